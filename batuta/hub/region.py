"""What nodes ask before they take a file from other sites of their region: who has it, and may it come now?

depots      DepotsWanted -> DepotsAnswer
passage     PassageWanted -> `{}`: it may come, and is counted; or `{"error", "message", "subject", "untilMs"}`

Windows and budgets are those of the links between the two; what comes that way does not cross the links above them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from batuta.core.region import DepotsAnswer, DepotsWanted, PassageWanted, depots, way
from batuta.hub.shipping import error_line, held_line
from batuta.kinds.base import encode_hook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batuta.core.state import State
    from batuta.hub.counters import Counters
    from batuta.hub.uplinks import Uplinks

HOLDS_MS: Final = 2_000
FOUND_MOST: Final = 256
PASSAGE_BYTES_MAX: Final = 8 << 20


class Region:
    """Answers nodes."""

    def __init__(self, state: Callable[[], State], uplinks: Uplinks, counters: Counters) -> None:
        self._state = state
        self._uplinks = uplinks
        self._counters = counters
        self._found: dict[tuple[str, str], tuple[int, bytes]] = {}
        """By site and file: all nodes of a site ask at once."""
        self.verbs: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {
            "depots": self._depots,
            "passage": self._passage,
        }

    async def _depots(self, node: str, data: bytes) -> bytes:
        try:
            digest = msgspec.json.decode(data, type=DepotsWanted).digest
        except msgspec.MsgspecError as error:
            return self._malformed(error)
        state, now = self._state(), self._uplinks.now()
        here = state.nodes.get(node)
        if here is None:
            return msgspec.json.encode(DepotsAnswer())
        key = (here.spec.site, digest[:80])
        at, found = self._found.get(key, (now - HOLDS_MS, b""))
        if not 0 <= now - at < HOLDS_MS:
            told = DepotsAnswer(depots=depots(state, here.spec.site, digest, now))
            found = msgspec.json.encode(told, enc_hook=encode_hook)
            if len(self._found) >= FOUND_MOST:
                self._found.clear()
            self._found[key] = (now, found)
        return found

    async def _passage(self, node: str, data: bytes) -> bytes:
        try:
            asked = msgspec.json.decode(data, type=PassageWanted)
        except msgspec.MsgspecError as error:
            return self._malformed(error)
        state = self._state()
        here, there = state.nodes.get(node), state.nodes.get(asked.node)
        if here is None or there is None or not 0 <= asked.size_bytes <= PASSAGE_BYTES_MAX:
            self._counters.add("asks_refused", "passage")
            return error_line("request_malformed", "between two nodes of this fleet, and no more than 8 MiB at a time")
        links = way(state, here.spec.site, there.spec.site)
        if (held := self._uplinks.held(node, asked.digest, links)) is not None:
            return held_line(held, self._uplinks.now())
        self._uplinks.spend(node, asked.size_bytes, links)
        return b"{}\n"

    def _malformed(self, error: msgspec.MsgspecError) -> bytes:
        self._counters.add("asks_refused", "request_malformed")
        return error_line("request_malformed", str(error))
