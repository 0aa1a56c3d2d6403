"""Instances for tests of the mesh: small processes' worth of a model worker that answer as told, really listening.

They speak what a worker speaks: HTTP at a Unix socket in their own directory, request and reply on the site's fabric,
and a card every second. The model adds one to each number. How they misbehave is chosen while they run.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.core.serving import CARD_EVERY_MS, SOCKET_FILE, Card
from batuta.dataflow.unix import listen_unix
from batuta.fabric import subjects
from batuta.fabric.tasks import end

if TYPE_CHECKING:
    from pathlib import Path

    from nats.aio.client import Client
    from nats.aio.msg import Msg


class Instance:
    """One instance of model `adder` (or another) at a node."""

    def __init__(
        self, node: str, client: Client, instances: Path, slot: str = "0", *, model: str = "adder", version: str = "1",
        namespace: str = "default", application: str = "app", room: int = 32,
    ) -> None:  # fmt: skip
        self.name = f"{namespace}/{application}/{model}-1-{slot}"
        self.client = client
        self.directory = instances / self.name
        self.card = Card(
            namespace=namespace, application=application, component=model, instance=self.name, node=node, model=model,
            version=version, ready=True, socket=str(self.directory / SOCKET_FILE), room=room,
        )  # fmt: skip
        self.mood = "well"
        """`well`, `slow`, `errors` (500), `fails` (the model fails), `silent`, `full`, `refuses` (400), `hangs up`."""
        self.slow_s = 0.0
        self.asked: list[dict[str, str]] = []
        """Headers of each request, names in lower case."""
        self.under_way = 0
        self.most_at_once = 0
        self._server: asyncio.Server | None = None
        self._beating: asyncio.Task[None] | None = None
        self._subscription: Any = None
        self._answering: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> Instance:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._server = await asyncio.start_unix_server(
            self._line, sock=listen_unix(self.directory / SOCKET_FILE), limit=1 << 26
        )
        self._subscription = await self.client.subscribe(subjects.infer(self.card.node, self.name), cb=self._on_fabric)
        self._beating = asyncio.create_task(self._beat())
        return self

    async def tell(self, **changes: Any) -> None:
        """The card, at once, with changes."""
        self.card = msgspec.structs.replace(self.card, **changes)
        await self.client.publish(subjects.serving(self.card.node, self.name), msgspec.json.encode(self.card))

    async def die(self) -> None:
        """Without a word: the socket closes, the card stops, nobody listens on the fabric."""
        await end(self._beating, *self._answering)
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        subscription, self._subscription = self._subscription, None
        if subscription is not None and self.client.is_connected:
            await subscription.unsubscribe()
            await self.client.flush()

    async def _beat(self) -> None:
        while True:
            if self.client.is_connected:
                await self.tell()
            await asyncio.sleep(CARD_EVERY_MS / 1000)

    async def _answer(self, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        self.asked.append(headers)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            if self.slow_s:
                await asyncio.sleep(self.slow_s)
            match self.mood:
                case "silent":
                    await asyncio.Event().wait()
                case "errors":
                    return 500, "", b'{"error":"it is broken"}'
                case "fails":
                    return 500, "model_failed", b'{"error":"the model failed"}'
                case "full":
                    return 503, "overloaded", b'{"error":"full"}'
                case "refuses":
                    return 400, "unfit", b'{"error":"not what the model takes"}'
            asked = json.loads(body)
            tensor = asked["inputs"][0]
            output = {**tensor, "name": "sum", "data": [each + 1 for each in tensor["data"]]}
            said = {"model_name": self.card.model, "model_version": self.card.version, "outputs": [output]}
            return 200, "", json.dumps(said).encode()
        finally:
            self.under_way -= 1

    async def _on_fabric(self, message: Msg) -> None:
        async def answer() -> None:
            headers = {name.lower(): value for name, value in (message.headers or {}).items()}
            status, code, body = await self._answer(headers, message.data)
            said = {"Batuta-Error": code or "model_failed"} if status != 200 else None
            await self.client.publish(message.reply, body, headers=said)

        task = asyncio.create_task(answer())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                pairs = (line.partition(":") for line in lines[1:] if line)
                headers = {name.lower(): value.strip() for name, _, value in pairs}
                headers[":path"] = lines[0]
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if self.mood == "hangs up":
                    return
                status, code, answer = await self._answer(headers, body)
                head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n"
                head += f"Batuta-Error: {code}\r\n" if code else ""
                writer.write(head.encode() + b"\r\n" + answer)
        except (EOFError, OSError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
