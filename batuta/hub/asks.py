"""Questions that nodes ask over the fabric, one row for each verb. The broker vouches for who asks.

recipe, chunks   of artifacts: see `hub.shipping`, where nodes take turns
renew            RenewRequest -> EnrolAnswer, or `{"error", "message", "nextStep"}`
elsewhere        FarWanted -> FarAnswer: see `hub.elsewhere`
depots, passage  of the node's region: see `hub.region`
commons          nothing -> the Commons of the site that the node is part of, or `{"error", "message"}`
flags            nothing -> the node's flags: see `hub.flags`
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from batuta.core.decided import Commons
from batuta.errors import BatutaError, EnrolmentRefused
from batuta.fabric import subjects
from batuta.hub.enrol import RenewRequest
from batuta.hub.shipping import error_line
from batuta.kinds.base import encode_hook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batuta.core.state import State
    from batuta.fabric.base import Fabric, Message, Subscription
    from batuta.hub.counters import Counters
    from batuta.hub.elsewhere import Elsewhere
    from batuta.hub.enrol import Enrolment
    from batuta.hub.shipping import Shipping

log = logging.getLogger(__name__)


class Asks:
    """Answers nodes."""

    def __init__(
        self,
        shipping: Shipping,
        enrolment: Enrolment,
        elsewhere: Elsewhere,
        counters: Counters,
        state: Callable[[], State],
    ) -> None:
        self._shipping = shipping
        self._enrolment = enrolment
        self._counters = counters
        self._state = state
        self._told: dict[str, tuple[Commons, bytes]] = {}
        """By site: what its nodes were answered last. They all ask at once."""
        self._subscription: Subscription | None = None
        self.verbs: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {
            "renew": self._renew,
            "commons": self._commons,
            "elsewhere": elsewhere.answer,
        }

    async def open(self, fabric: Fabric) -> None:
        self._subscription = await fabric.subscribe(subjects.ALL_ASKS, self._hear)

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.close()

    async def _hear(self, message: Message) -> None:
        node, verb = subjects.node_of(message.subject), subjects.verb_of(message.subject)
        if verb in self._shipping.verbs:
            await self._shipping.take(node, verb, message)
            return
        answer = self.verbs.get(verb)
        if answer is None:
            self._counters.add("asks_refused", "verb_unknown")
            await message.respond(error_line("verb_unknown", f"this hub does not answer {verb!r}"))
            return
        try:
            await message.respond(await answer(node, message.data))
        except BatutaError as error:
            self._counters.add("asks_refused", verb)
            await message.respond(error_line(getattr(error, "code", "failed"), error.message, error.next_step))

    async def _renew(self, node: str, data: bytes) -> bytes:
        try:
            asked = msgspec.json.decode(data, type=RenewRequest)
        except msgspec.DecodeError as error:
            raise EnrolmentRefused("request_malformed", str(error)) from None
        return msgspec.json.encode(await self._enrolment.renew(node, asked))

    async def _commons(self, node: str, _data: bytes) -> bytes:
        state = self._state()
        if node not in state.nodes:
            self._counters.add("asks_refused", "commons")
            return error_line("node_unknown", f"{node} is no node of this fleet")
        site = state.nodes[node].spec.site
        found = state.commons.get(site)
        if found is None:
            return msgspec.json.encode(Commons(site=site, serial=0))
        told = self._told.get(site)
        if told is None or told[0] is not found:
            told = self._told[site] = (found, msgspec.json.encode(found, enc_hook=encode_hook))
            for gone in [name for name in self._told if name not in state.commons]:
                del self._told[gone]
        return told[1]
