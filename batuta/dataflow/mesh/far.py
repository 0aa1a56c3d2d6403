"""Calls between sites, through the hub's broker: asking who serves elsewhere, calling them, and answering such calls.

The hub's process says who serves what; what it said is kept, also on disk, so with that process away calls between
sites go on as long as the broker carries them. A node calls only in namespaces of which it runs something itself, and
answers only as itself: both are rights of its link, and this module could not do otherwise if it wanted to.

A call that came from another site is answered by an instance of this node, never passed on: so no call can go round.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from nats.errors import Error as NatsError

from batuta.core import mesh_deadline
from batuta.core.gateway import FAR_FILE
from batuta.core.mesh_far import FarAnswer, FarInstance, FarWanted
from batuta.core.serving import (
    CLASSES,
    HEADER_CLASS,
    HEADER_DEADLINE,
    HEADER_ERROR,
    HEADER_JSON_BYTES,
    HEADER_PATH,
    Card,
    instance_token,
)
from batuta.dataflow.mesh.call import clock_ms
from batuta.dataflow.mesh.cards import Wanted
from batuta.dataflow.mesh.fabric import HEADER_STATUS, FabricPath, headers_of, reply_of
from batuta.dataflow.mesh.talk import Ask, Unreached, refusal
from batuta.fabric import subjects
from batuta.fabric.tasks import end

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from batuta.core.serving import Class
    from batuta.dataflow.mesh.call import Calls
    from batuta.dataflow.mesh.cards import Cards, Known
    from batuta.dataflow.mesh.talk import Reply, Verb

log = logging.getLogger("gateway")

HOLDS_MS: Final = 10_000
"""What the hub said is not asked for again so soon."""
ASK_S: Final = 2.0
RELINKED_S: Final = 1.5
"""So long a link takes to be made anew."""
LOOK_AGAIN_MS: Final = 100
KEPT_MOST: Final = 256
FAR_BYTES_MAX: Final = 1 << 20


class _Said(NamedTuple):
    """What the hub said, and when."""

    at: int
    instances: tuple[FarInstance, ...] = ()
    version: str = ""
    """What an alias stands for."""

    @property
    def helps(self) -> bool:
        return bool(self.instances or self.version)


_NOTHING_SAID: Final = _Said(-HOLDS_MS)


class Far:
    """One gateway's way to other sites. `client` is connected as the gateway in the node's account CONTROL."""

    def __init__(self, client: Client, node: str, directory: str, cards: Cards) -> None:
        self.node = node
        self.cards = cards
        self.calls: Calls
        self.answered = 0
        """Calls from other sites that were answered here."""
        self.refused = 0
        """Calls from other sites that were not meant for anything here, or wanted the answer elsewhere."""
        self.why = ""
        """What the hub said last about why not."""
        self._client = client
        self._path = FabricPath(client, subjects.gateway_inbox(node))
        self._file = Path(directory) / FAR_FILE
        self._said: dict[Wanted, _Said] = {}
        self._asking: dict[Wanted, asyncio.Task[bool]] = {}
        self._answering: set[asyncio.Task[None]] = set()

    async def open(self, calls: Calls) -> None:
        self.calls = calls
        calls.meant, calls.why_not_far = self.meant, lambda: self.why
        self._remember()
        await self._path.open()
        await self._client.subscribe(subjects.far_answers_to(self.node), cb=self._path.hear)
        await self._client.subscribe(subjects.far_calls_to(self.node), cb=self._hear)

    async def close(self) -> None:
        await end(*self._asking.values(), *self._answering)

    # --- Who serves elsewhere ---

    async def look(self, wanted: Wanted) -> bool:
        """Whether anybody serves it elsewhere; asks the hub unless it said so lately."""
        said = self._said.get(wanted, _NOTHING_SAID)
        if clock_ms() - said.at < HOLDS_MS:
            return said.helps
        return await asyncio.shield(self._asked(wanted))

    def meant(self, wanted: Wanted) -> Wanted:
        """With the version that an alias stands for, as the hub said last; asked for again in passing, because aliases
        move."""
        said = self._said.get(wanted) if wanted.version else None
        if said is None or not said.version:
            return wanted
        if clock_ms() - said.at >= HOLDS_MS:
            self._asked(wanted)
        return wanted._replace(version=said.version)

    def _asked(self, wanted: Wanted) -> asyncio.Task[bool]:
        asking = self._asking.get(wanted)
        if asking is None:
            asking = self._asking[wanted] = asyncio.create_task(self._ask(wanted))
            asking.add_done_callback(lambda _: self._asking.pop(wanted, None))
        # Whoever gives up waiting must not take the answer from the others: they shield it.
        return asking

    async def _ask(self, wanted: Wanted) -> bool:
        question = msgspec.json.encode(FarWanted(**wanted._asdict()))
        try:
            async with asyncio.timeout(ASK_S):
                message = await self._path.ask(subjects.ask(self.node, "elsewhere"), question, {})
            answer = msgspec.json.decode(message.data, type=FarAnswer)
        except (Unreached, TimeoutError, NatsError, msgspec.MsgspecError) as error:
            # The hub's process is away: what it said last still holds.
            self.why = f"the hub cannot be asked who serves it elsewhere ({error or type(error).__name__})"
            before = self._said.get(wanted)
            if before is not None:
                self._said[wanted] = before._replace(at=clock_ms())
            return before is not None and before.helps
        self.why = answer.message
        if answer.relinked:
            await asyncio.sleep(RELINKED_S)
        said = _Said(clock_ms(), answer.instances, answer.version)
        self._learn(wanted, said)
        self._keep()
        return said.helps

    def _learn(self, wanted: Wanted, said: _Said) -> None:
        if len(self._said) >= KEPT_MOST and wanted not in self._said:
            del self._said[min(self._said, key=lambda each: self._said[each][0])]
        self._said[wanted] = said
        for each in said.instances:
            card = Card(
                namespace=wanted.namespace, application=each.application, component=each.component,
                instance=each.instance, node=each.node, model=wanted.model, version=each.version, ready=True,
            )  # fmt: skip
            self.cards.put(card, each.nearness, said.at)

    def _keep(self) -> None:
        rows = [(wanted, said.instances, said.version) for wanted, said in self._said.items() if said.helps]
        try:
            new = self._file.with_name(f".{FAR_FILE}.new")
            new.write_bytes(msgspec.json.encode(rows))
            new.replace(self._file)
        except OSError as error:
            log.warning("who serves elsewhere could not be written down: %s", error)

    def _remember(self) -> None:
        """What an earlier gateway was told; asked for again at the first call, used if there is no answer."""
        try:
            with self._file.open("rb") as file:
                rows = msgspec.json.decode(
                    file.read(FAR_BYTES_MAX), type=list[tuple[Wanted, tuple[FarInstance, ...], str]]
                )
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("what was known of other sites cannot be read: %s", error)
            return
        now = clock_ms()
        for wanted, instances, version in rows[:KEPT_MOST]:
            self._learn(wanted, _Said(now, instances, version))
            self._said[wanted] = self._said[wanted]._replace(at=now - HOLDS_MS)

    # --- Calling ---

    async def send(self, known: Known, ask: Ask, left_ms: int, traceparent: str) -> Reply:
        card = known.card
        message = await self._path.ask(
            subjects.far_call(self.node, card.namespace, card.node, card.instance),
            ask.body,
            headers_of(ask, card.version, left_ms, traceparent),
            subjects.far_answer(card.node, self.node),
        )
        return reply_of(message)

    # --- Answering ---

    async def _hear(self, message: Msg) -> None:
        task = asyncio.create_task(self._answer(message))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, message: Msg) -> None:
        _, _, asker, namespace, _, token = message.subject.split(".")
        # Whoever asks may hear the answer under its own name only.
        if not message.reply.startswith(f"{subjects.far_answer(self.node, asker)}."):
            self.refused += 1
            return
        reply = await self._reply(namespace, token, message)
        headers = {HEADER_STATUS: str(reply.status)}
        if reply.code:
            headers[HEADER_ERROR] = reply.code
        if reply.json_bytes:
            headers[HEADER_JSON_BYTES] = reply.json_bytes
        try:
            body = reply.body
            if len(body) > self._client.max_payload:
                headers = {HEADER_STATUS: "400", HEADER_ERROR: "unanswerable"}
                body = b'{"error":"the answer is too large to leave its node"}'
            await self._client.publish(message.reply, body, headers=headers)
            self.answered += 1
        except (NatsError, OSError) as error:
            log.warning("an answer could not be sent: %s", error or type(error).__name__)

    def _local(self, namespace: str, token: str) -> Known | None:
        for known in self.cards.all(clock_ms()):
            card = known.card
            if known.nearness == "local" and (card.namespace, instance_token(card.instance)) == (namespace, token):
                return known
        return None

    async def _reply(self, namespace: str, token: str, message: Msg) -> Reply:
        while (known := self._local(namespace, token)) is None and self.calls.is_settling:
            # This gateway was started by this very call, and has not heard everybody yet.
            await self.calls.changed(LOOK_AGAIN_MS)
        if known is None:
            self.refused += 1
            return refusal("model_unknown", f"node {self.node} has no such instance in namespace {namespace!r}")
        try:
            ask = _ask_of(known.card, message.headers or {}, message.data)
        except ValueError as error:
            return refusal("malformed", str(error))
        return await self.calls.call(ask)


def _ask_of(card: Card, headers: Mapping[str, str], body: bytes) -> Ask:
    left, urgency = headers.get(HEADER_DEADLINE, ""), headers.get(HEADER_CLASS, "normal")
    if left and not (left.isascii() and left.isdigit() and len(left) < 16):
        raise ValueError(f"{HEADER_DEADLINE} is no number of milliseconds")
    path = headers.get(HEADER_PATH)
    verb: Verb = "infer" if path is None else "ready" if path.endswith("/ready") else "metadata"
    said: Class = next((each for each in CLASSES if each == urgency), "normal")
    return Ask(
        namespace=card.namespace, model=card.model, version=card.version, application=card.application, verb=verb,
        urgency=said, deadline=mesh_deadline.begins(int(left) if left else None, clock_ms()), body=body,
        json_bytes=headers.get(HEADER_JSON_BYTES, ""), traceparent=headers.get("traceparent", ""),
        tracestate=headers.get("tracestate", ""), reach="local",
    )  # fmt: skip
