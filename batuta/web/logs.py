"""Logs of instances: asked of their nodes; and what can be said when a node does not answer.

Nothing is made up. What an instance printed is on its node; of what was shown to somebody before, the hub remembers the
end, in memory, and says from when it is.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from batuta.core.liveness import heard_at, link_rule
from batuta.errors import FabricUnavailable
from batuta.web.ages import age

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from batuta.core.state import State
    from batuta.hub.hub import Hub

KEPT_BYTES_MAX: Final = 64 * 1024
KEPT_LOGS_MAX: Final = 256
"""So that at most 16 MiB are kept; the log that was shown longest ago is forgotten first."""


class Shown(NamedTuple):
    """The end of a log, and when it was."""

    at: int
    text: str


class Logs:
    """What instances printed."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._shown: OrderedDict[tuple[str, str], Shown] = OrderedDict()

    async def log(self, node: str, instance: str, tail: int, *, follow: bool) -> AsyncIterator[str]:
        """The last lines, then what is printed from now on. Raises FabricUnavailable with all that is known of the node
        when it does not answer and nothing of this log was ever shown."""
        has_begun = False
        try:
            async for text in self._hub.questions.log(node, instance, tail, follow=follow):
                self._keep((node, instance), text, adds=has_begun)
                has_begun = True
                yield text
        except FabricUnavailable as error:
            now = self._hub.clock.now()
            message = away(self._hub.loop.state, node, instance, now)
            shown = self._shown.get((node, instance))
            if has_begun or shown is None:
                raise FabricUnavailable(message, next_step=f"see `batuta describe node {node}`") from error
            yield f"({message}; what follows was shown {age(shown.at, now)} ago)\n"
            yield "".join(shown.text.splitlines(keepends=True)[-tail:] if tail else [])

    def _keep(self, key: tuple[str, str], text: str, *, adds: bool) -> None:
        before = self._shown.pop(key, None)
        if before is not None and (adds or before.text.endswith(text)):
            # Followed, it grows; asked for fewer lines than before, it is the end of what is known.
            text = before.text + text if adds else before.text
        self._shown[key] = Shown(self._hub.clock.now(), _end_of(text))
        while len(self._shown) > KEPT_LOGS_MAX:
            self._shown.popitem(last=False)


def away(state: State, node: str, instance: str, now: int) -> str:
    """What is known of an instance whose node does not answer: its link, and what it said last."""
    if node not in state.nodes:
        return f"{node} is no longer a node"
    word = link_rule(state, node, now).word
    said = [f"{node} does not answer: its link is {word}"]
    if node in state.sightings:
        said.append(f"last heard {age(heard_at(state, node), now)} ago")
    report = state.observed.get(node)
    known = next((i for i in report.instances if i.name == instance), None) if report is not None else None
    if known is not None:
        why = f", {known.reason}" if known.reason is not None else ""
        said.append(f"in its last report {instance.rpartition('/')[2]} was {known.phase}{why}")
    elif report is not None:
        said.append(f"its last report does not name {instance.rpartition('/')[2]}")
    return "; ".join(said)


def _end_of(text: str) -> str:
    """Whole lines, no more than may be kept."""
    data = text.encode()
    if len(data) <= KEPT_BYTES_MAX:
        return text
    cut = data[-KEPT_BYTES_MAX:]
    return cut[cut.find(b"\n") + 1 :].decode(errors="replace")
