"""The protocol on the fabric: requests from anywhere at the site, and the card that tells where this worker is.

Payloads are the bodies that HTTP would carry, and headers are the same words. The reply bears the error's code, so that
who calls can try another instance. Requests other than inferences name their path in a header.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
from nats.errors import Error as NatsError

from batuta.core.beside import ANY_VERSION, HEADER_INSTANCE, HEADER_KEY, HEADER_VERSION
from batuta.core.serving import (
    CARD_EVERY_MS,
    CLASSES,
    HEADER_CLASS,
    HEADER_DEADLINE,
    HEADER_ERROR,
    HEADER_JSON_BYTES,
    HEADER_PATH,
    Card,
)
from batuta.dataflow.oip.endpoint import Asking
from batuta.dataflow.oip.faults import Fault
from batuta.dataflow.oip.paths import Asked, answered
from batuta.fabric import subjects
from batuta.fabric.tasks import end
from batuta.kinds.base import encode_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from batuta.core.decided import Instance
    from batuta.dataflow.oip.endpoint import Endpoint

HEADER_RETRY: Final = "Retry-After"
PENDING_MAX: Final = 4_096
PENDING_BYTES_MAX: Final = 64 << 20
_NOTHING: Final[dict[str, str]] = {}


class OnFabric:
    """One worker's requests and card."""

    def __init__(
        self,
        client: Client,
        node: str,
        instance: Instance,
        endpoint: Endpoint,
        *,
        socket: str,
        port: int | None,
        p50_ms: Callable[[], float | None],
    ) -> None:
        assert instance.model is not None
        self.unsaid = 0
        """Answers and cards that the broker did not take."""
        self._client = client
        self._endpoint = endpoint
        self._subject = subjects.infer(node, instance.name)
        self._card_subject = subjects.serving(node, instance.name)
        self._p50_ms = p50_ms
        self._card = Card(
            namespace=instance.namespace, application=instance.application, component=instance.component,
            instance=instance.name, node=node, model=instance.model.name, version=instance.model.version,
            ready=False, socket=socket, port=port, signature=signature_digest(endpoint),
            room=endpoint.batching.room,
        )  # fmt: skip
        self._subscription: Any = None
        self._telling: asyncio.Task[None] | None = None
        self._replies: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        self._subscription = await self._client.subscribe(
            self._subject, cb=self._hear, pending_msgs_limit=PENDING_MAX, pending_bytes_limit=PENDING_BYTES_MAX
        )
        self._telling = asyncio.create_task(self._tell_on(), name="card")

    async def stop(self) -> None:
        """Says that it is not ready any more, and takes no new requests."""
        await end(self._telling)
        await self.tell()
        if self._subscription is not None and self._client.is_connected:
            try:
                await self._subscription.unsubscribe()
            except (NatsError, OSError):
                self.unsaid += 1

    async def settled(self) -> None:
        """Every reply has been handed to the broker."""
        while self._replies:
            await asyncio.wait(self._replies)

    # --- The card ---

    async def tell(self) -> None:
        endpoint = self._endpoint
        card = msgspec.structs.replace(
            self._card, ready=endpoint.is_ready, in_flight=endpoint.batching.guests, p50_ms=self._p50_ms()
        )
        await self._publish(self._card_subject, msgspec.json.encode(card, enc_hook=encode_hook), {})

    async def _tell_on(self) -> None:
        while True:
            await self.tell()
            await asyncio.sleep(CARD_EVERY_MS / 1000)

    # --- Requests ---

    async def _hear(self, message: Msg) -> None:
        headers = message.headers or _NOTHING
        body = memoryview(message.data)

        def say(said: bytes, json_bytes: int | None, fault: Fault | None, by: str = "", /) -> None:
            if not message.reply:
                return
            task = asyncio.create_task(self._publish(message.reply, said, headers_of(json_bytes, fault, by)))
            self._replies.add(task)
            task.add_done_callback(self._replies.discard)

        try:
            if (path := headers.get(HEADER_PATH)) is not None:
                parts = tuple(path.strip("/").split("/"))
                say(answered("GET", parts, Asked(self._endpoint, None, {}, body)), None, None)
                return
            json_bytes, asking = asking_of(headers)
        except Fault as fault:
            say(fault.body, None, fault)
            return
        self._endpoint.infer(body, json_bytes, asking, say)

    async def _publish(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        try:
            if len(data) > self._client.max_payload:
                most = self._client.max_payload
                fault = Fault("unanswerable", f"the answer has {len(data)} bytes; the fabric carries {most} at most")
                data, headers = fault.body, headers_of(None, fault)
            await self._client.publish(subject, data, headers=headers or None)
        except (NatsError, OSError):
            # A broker that is away: who asked hears nothing, and its deadline tells it so.
            self.unsaid += 1


def asking_of(headers: Mapping[str, str]) -> tuple[int | None, Asking]:
    """How much of the body is JSON, and how urgent it is. Raises Fault."""
    size, left = headers.get(HEADER_JSON_BYTES), headers.get(HEADER_DEADLINE)
    urgency = headers.get(HEADER_CLASS, "normal")
    if urgency not in CLASSES:
        raise Fault("malformed", f"{HEADER_CLASS} is one of {', '.join(CLASSES)}")
    if (size is not None and not size.isdecimal()) or (left is not None and not left.replace(".", "", 1).isdecimal()):
        raise Fault("malformed", f"{HEADER_JSON_BYTES} and {HEADER_DEADLINE} are numbers")
    asking = Asking(
        CLASSES.index(urgency), None if left is None else float(left), None, headers.get(HEADER_KEY, ""),
        headers.get(HEADER_VERSION, ANY_VERSION) != ANY_VERSION,
    )  # fmt: skip
    return None if size is None else int(size), asking


def headers_of(json_bytes: int | None, fault: Fault | None, by: str = "") -> dict[str, str]:
    """`by`: who answered, when there are two."""
    if fault is not None:
        again = {HEADER_RETRY: str(fault.retry_after_s)} if fault.retry_after_s else {}
        return {HEADER_ERROR: fault.code, **again}
    answered_by = {HEADER_INSTANCE: by} if by else {}
    return answered_by if json_bytes is None else {HEADER_JSON_BYTES: str(json_bytes), **answered_by}


def signature_digest(endpoint: Endpoint) -> str:
    """The same for models that may stand in for each other: what goes in and out, by name, datatype and shape."""
    said = endpoint.metadata
    what = msgspec.json.encode([said["inputs"], said["outputs"]])
    return f"sha256:{hashlib.sha256(what).hexdigest()}"
