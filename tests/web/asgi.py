"""Calls an ASGI application as a server would, without one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import msgspec

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Caller:
    """One client of one application."""

    def __init__(self, app: ASGIApp, **headers: str) -> None:
        self.app = app
        self.headers = {"host": "127.0.0.1:8400", **headers}

    async def __call__(
        self, method: str, path: str, body: object = b"", *, parts: list[bytes] | None = None, **headers: str
    ) -> Answer:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        stream = self.stream(method, path, parts if parts is not None else [data], **headers)
        started = await anext(stream)
        whole = b"".join([m.get("body", b"") async for m in stream])
        found = {k.decode(): v.decode() for k, v in started["headers"]}
        return Answer(started["status"], found, whole)

    async def stream(self, method: str, path: str, parts: list[bytes] | None = None, **headers: str) -> Any:
        """The messages of an answer as they come; closing it hangs up."""
        said: asyncio.Queue[Message | None] = asyncio.Queue()
        bodies = list(parts or [b""])
        gone = asyncio.Event()

        async def receive() -> Message:
            if bodies:
                part = bodies.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(bodies)}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            await said.put(message)

        plain, _, query = path.partition("?")
        known = {k.replace("_", "-"): v for k, v in {**self.headers, **headers}.items()}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": plain,
            "raw_path": quote(plain).encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.encode(), v.encode()) for k, v in known.items()],
            "server": ("127.0.0.1", 8400),
            "client": ("127.0.0.1", 5),
        }

        async def run() -> None:
            try:
                await self.app(scope, receive, send)
            finally:
                await said.put(None)

        running = asyncio.create_task(run())
        try:
            while (message := await said.get()) is not None:
                yield message
            await running
        finally:
            gone.set()
            if not running.done():
                running.cancel()
            await asyncio.gather(running, return_exceptions=True)
