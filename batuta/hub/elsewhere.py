"""What a node's gateway asks the hub: who serves this model at other sites?

The answer follows from `core.mesh_far`. The right to call there is one of the node's link, given for the namespaces of
which the node ran something when the link was made. One that came later is given by making the link anew, and only when
the node first asks for it: so a new namespace does not shake the links of a whole fleet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from batuta.core.mesh_far import FarAnswer, FarWanted, elsewhere, namespaces_of, serving, version_meant
from batuta.kinds.base import encode_hook

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.mesh_far import Serving
    from batuta.core.state import State
    from batuta.fabric.clock import Clock
    from batuta.hub.counters import Counters

HOLDS_MS: Final = 2_000
FOUND_MOST: Final = 64


class Elsewhere:
    """Answers gateways. `relink` makes a link anew if it has no right to a namespace, and says whether it does."""

    def __init__(self, state: Callable[[], State], clock: Clock, counters: Counters) -> None:
        self.relink: Callable[[str, str], bool] = _has_all_rights
        self._state = state
        self._clock = clock
        self._counters = counters
        self._found: dict[FarWanted, tuple[int, Serving]] = {}

    def namespaces(self, node: str) -> tuple[str, ...]:
        """What the link of this node may call."""
        return namespaces_of(self._state(), node)

    async def answer(self, node: str, data: bytes) -> bytes:
        try:
            wanted = msgspec.json.decode(data, type=FarWanted)
        except msgspec.MsgspecError as error:
            return _written(FarAnswer(error="malformed", message=str(error)))
        if wanted.namespace not in self.namespaces(node):
            self._counters.add("asks_refused", "namespace")
            message = f"node {node} runs nothing of namespace {wanted.namespace!r}, so it may not call it elsewhere"
            return _written(FarAnswer(error="not_allowed", message=message))
        found = elsewhere(self._state(), node, self._serving(wanted))
        relinked = bool(found) and self.relink(node, wanted.namespace)
        if relinked:
            self._counters.add("links_widened")
        meant = version_meant(self._state(), wanted)
        return _written(FarAnswer(instances=found, version=meant if meant != wanted.version else "", relinked=relinked))

    def _serving(self, wanted: FarWanted) -> Serving:
        """Found once for all who ask within two seconds: a whole fleet may use the same model."""
        now = self._clock.now()
        at, found = self._found.get(wanted, (now - HOLDS_MS, None))
        if found is None or not 0 <= now - at < HOLDS_MS:
            found = serving(self._state(), wanted, now)
            if len(self._found) >= FOUND_MOST:
                self._found.clear()
            self._found[wanted] = (now, found)
        return found


def _written(answer: FarAnswer) -> bytes:
    return msgspec.json.encode(answer, enc_hook=encode_hook)


def _has_all_rights(_node: str, _namespace: str) -> bool:
    """A fabric without links: nothing is ever denied there."""
    return False
