"""The path to instances of other nodes: request and reply over a broker's client.

All answers come to one subscription under a prefix of this process; the last level of the subject says which question
it was. So a question costs one message each way, and one that is given up is forgotten at once.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Final

from nats.errors import Error as NatsError

from batuta.core.beside import HEADER_INSTANCE
from batuta.core.serving import HEADER_CLASS, HEADER_DEADLINE, HEADER_ERROR, HEADER_JSON_BYTES, HEADER_PATH
from batuta.dataflow.mesh.talk import JSON, Broken, Reply, TooLarge, Unreached, of_release, path_of, status_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from batuta.dataflow.mesh.talk import Ask

HEADERS_SLACK_BYTES: Final = 4096
HEADER_STATUS: Final = "Batuta-Status"
"""The HTTP status, where a gateway answers for an instance."""


class FabricPath:
    """Questions over one client, and their answers."""

    def __init__(self, client: Client, inbox: str) -> None:
        self.client = client
        self.inbox = inbox
        """Prefix of where answers come, without the last level."""
        self.late = 0
        """Answers that came when nobody waited for them any more, or from somebody else than was asked."""
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg]]] = {}
        """By number: under which subject the answer must come, and who waits for it."""
        self._numbers = itertools.count(1)

    async def open(self) -> None:
        await self.client.subscribe(f"{self.inbox}.*", cb=self.hear)

    async def ask(self, subject: str, data: bytes, headers: Mapping[str, str], inbox: str = "") -> Msg:
        """One question. Waits for ever: whoever asks has a deadline, and cancels. `inbox` is where the answer comes, if
        not with all others: who may answer there is a right of the broker's."""
        if not self.client.is_connected:
            raise Unreached("the node's own broker is away")
        if len(data) + HEADERS_SLACK_BYTES > self.client.max_payload:
            raise TooLarge(f"{len(data)} bytes; the fabric carries {self.client.max_payload}")
        number = str(next(self._numbers))
        reply = f"{inbox or self.inbox}.{number}"
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (reply, answer)
        try:
            await self.client.publish(subject, data, reply, headers=dict(headers))
            message = await answer
        except NatsError as error:
            raise Unreached(str(error) or type(error).__name__) from None
        finally:
            del self._waiting[number]
        if (message.headers or {}).get("Status") == "503":
            raise Unreached("nobody answers there")
        return message

    async def send(self, subject: str, ask: Ask, version: str, left_ms: int, traceparent: str) -> Reply:
        """One call to an instance of the site."""
        return reply_of(await self.ask(subject, ask.body, headers_of(ask, version, left_ms, traceparent)))

    async def hear(self, message: Msg) -> None:
        reply, waiting = self._waiting.get(message.subject.rpartition(".")[2], ("", None))
        if waiting is None or waiting.done() or message.subject != reply:
            self.late += 1
            return
        waiting.set_result(message)


def headers_of(ask: Ask, version: str, left_ms: int, traceparent: str) -> dict[str, str]:
    headers = {HEADER_DEADLINE: str(left_ms), HEADER_CLASS: ask.urgency, "traceparent": traceparent}
    if ask.verb != "infer":
        headers[HEADER_PATH] = path_of(ask, version)
    if ask.json_bytes:
        headers[HEADER_JSON_BYTES] = ask.json_bytes
    headers |= of_release(ask, path=False)
    if ask.tracestate:
        headers["tracestate"] = ask.tracestate
    return headers


def reply_of(message: Msg) -> Reply:
    headers = message.headers or {}
    code = headers.get(HEADER_ERROR, "")
    json_bytes = headers.get(HEADER_JSON_BYTES, "")
    try:
        status = int(headers.get(HEADER_STATUS, 0)) or (status_of(code) if code else 200)
    except ValueError:
        raise Broken("its answer cannot be read") from None
    return Reply(
        status,
        message.data,
        json_bytes,
        "application/octet-stream" if json_bytes else JSON,
        code,
        by=headers.get(HEADER_INSTANCE, ""),
    )
