"""Cards: who serves which model, as heard.

What is heard on the site's fabric is enough to call, so it works with the hub away. A card that was not heard for three
seconds is void; so is one that says so itself. A card speaks for its own instance only: one that came under another
address, or that names a socket elsewhere than in the instances' directory of this node, is not believed, and counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from batuta.core.mesh_breaker import Breaker, heard
from batuta.core.serving import CARD_BYTES_MAX, CARD_VOID_MS, SOCKET_FILE, Card
from batuta.fabric import subjects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batuta.core.mesh import Nearness

MOST: Final = 8_192
FAR_VOID_MS: Final = 600_000
"""Who serves elsewhere is told by the hub, and asked for again while it is used; with the hub's process away, what it
said last holds for so long."""
FORGET_MS: Final = 30_000
"""So long after its card became void an instance's breaker is still remembered."""

_decoder = msgspec.json.Decoder(Card)


class Known:
    """One instance that was heard of, and what this caller remembers of it."""

    __slots__ = ("answered_at", "breaker", "card", "heard_at", "in_flight", "key", "latency_ms", "nearness")

    def __init__(self, card: Card, nearness: Nearness, heard_at: int) -> None:
        self.key = f"{card.node}/{card.instance}"
        self.card = card
        self.nearness = nearness
        self.heard_at = heard_at
        self.breaker = Breaker()
        self.in_flight = 0
        self.latency_ms: float | None = None
        self.answered_at = 0
        """When the newest of the requests was sent that it has answered."""

    def is_heard(self, now: int) -> bool:
        return now - self.heard_at <= (CARD_VOID_MS if self.nearness in ("local", "site") else FAR_VOID_MS)

    def took(self, latency_ms: float) -> None:
        """A moving average: the newest fifth counts as much as all the others."""
        before = self.latency_ms
        self.latency_ms = latency_ms if before is None else before + 0.2 * (latency_ms - before)


class Wanted(NamedTuple):
    """What a call asks for."""

    namespace: str
    model: str
    version: str = ""
    application: str = ""


class Cards:
    """All that was heard."""

    def __init__(self, node: str, instances: str) -> None:
        self.node = node
        self.instances = instances
        self.unbelieved = 0
        """Cards that cannot be read, or speak for somebody else."""
        self.stir: Callable[[], None] = _nothing
        """Called when something changed that a waiting call may care for."""
        self._known: dict[str, Known] = {}
        self._of_model: dict[tuple[str, str], dict[str, Known]] = {}

    def hear(self, subject: str, data: bytes, now: int) -> None:
        """A card from this site."""
        try:
            if len(data) > CARD_BYTES_MAX:
                raise ValueError("too long for a card")
            card = _decoder.decode(data)
            if subjects.serving(card.node, card.instance) != subject:
                raise ValueError("it speaks for another")
            is_here = card.node == self.node
            if is_here and card.socket and not self._is_ours(card):
                raise ValueError("its socket is elsewhere")
        except ValueError:  # msgspec's own errors are such, too
            self.unbelieved += 1
            return
        self.put(card, "local" if is_here else "site", now)

    def put(self, card: Card, nearness: Nearness, now: int) -> Known | None:
        key = f"{card.node}/{card.instance}"
        known = self._known.get(key)
        if known is not None and (known.card.namespace, known.card.model) != (card.namespace, card.model):
            self._forget(known)
            known = None
        if known is None:
            if len(self._known) >= MOST:
                self.unbelieved += 1
                return None
            known = self._known[key] = Known(card, nearness, now)
            self._of_model.setdefault((card.namespace, card.model), {})[key] = known
            self.stir()
            return known
        was_ready = known.card.ready
        known.card, known.heard_at, known.nearness = card, now, nearness
        before = known.breaker
        if card.ready:
            known.breaker = heard(before, now)
        if known.breaker is not before or card.ready != was_ready:
            self.stir()
        return known

    def of(self, wanted: Wanted, now: int) -> list[Known]:
        """Everyone that was heard lately and serves it, ready or not."""
        found = self._of_model.get((wanted.namespace, wanted.model), {})
        return [
            known
            for known in found.values()
            if known.is_heard(now)
            and (not wanted.version or known.card.version == wanted.version)
            and (not wanted.application or known.card.application == wanted.application)
        ]

    def all(self, now: int) -> Iterator[Known]:
        return (known for known in self._known.values() if known.is_heard(now))

    def sweep(self, now: int) -> list[Known]:
        """Forget those that fell silent, and say which: their connections can be closed."""
        gone = [k for k in self._known.values() if not k.is_heard(now - FORGET_MS) and not k.in_flight]
        for known in gone:
            self._forget(known)
        return gone

    def _forget(self, known: Known) -> None:
        del self._known[known.key]
        model = (known.card.namespace, known.card.model)
        del self._of_model[model][known.key]
        if not self._of_model[model]:
            del self._of_model[model]

    def _is_ours(self, card: Card) -> bool:
        return Path(card.socket) == Path(self.instances) / card.instance / SOCKET_FILE


def _nothing() -> None:
    """Nobody waits yet."""
