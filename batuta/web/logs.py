"""Logs of instances: asked of their nodes; and what can be said when a node does not answer.

Nothing is made up. What an instance printed is on its node; the hub keeps the end of some of it (see `hub.tails`), and
says from when it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.liveness import heard_at, link_rule
from batuta.errors import FabricUnavailable
from batuta.web.ages import age

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from batuta.core.state import State
    from batuta.hub.hub import Hub


class Logs:
    """What instances printed."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def log(self, node: str, instance: str, tail: int, *, follow: bool) -> AsyncIterator[str]:
        """The last lines, then what is printed from now on. Raises FabricUnavailable with all that is known of the node
        when it does not answer and nothing of this log was kept."""
        has_begun = False
        try:
            async for text in self._hub.questions.log(node, instance, tail, follow=follow):
                self._hub.tails.keep(node, instance, text, adds=has_begun)
                has_begun = True
                yield text
        except FabricUnavailable as error:
            now = self._hub.clock.now()
            message = away(self._hub.loop.state, node, instance, now)
            kept = self._hub.tails.get(node, instance)
            if has_begun or kept is None:
                raise FabricUnavailable(message, next_step=f"see `batuta describe node {node}`") from error
            yield f"({message}; what follows is from {age(kept.at, now)} ago)\n"
            yield "".join(kept.text.splitlines(keepends=True)[-tail:] if tail else [])


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
