"""Looks: the figures of a run at one instant, and whether they are what was expected. Looking changes nothing."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from batuta.core.liveness import link
from batuta.kinds.condition import ConditionFault, compile_condition, evaluate
from batuta.twin.laws import wished_count, wished_slots

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.state import State
    from batuta.kinds.scenario import Expectation
    from batuta.twin.play import Play

Figures = dict[str, Any]
TRAFFIC_NODES_MAX: Final = 2_000
"""Of larger fleets the messages are counted at every tenth look: each node's books have to be brought up to date."""


class Looks:
    """All looks of one run, and the expectations that are asked at each of them."""

    def __init__(self, play: Play, amiss: Callable[[Play], list[str]]) -> None:
        self.play = play
        self.figures: list[Figures] = []
        self.met: dict[str, int] = {}
        """By the name of an expectation `eventually`: when it was met first, in milliseconds."""
        self._amiss = amiss
        self._expected = play.scenario.expected
        words = " ".join(e.always or e.eventually or "" for e in self._expected)
        self._asked = set(re.findall(r"[a-z_]+", words))
        self._broken: set[str] = set()
        self._traffic: dict[str, int] = {}

    def look(self, *, is_last: bool = False) -> Figures:
        """Takes the figures of this instant and asks the expectations of it."""
        found = self._take(is_last=is_last)
        self.figures.append(found)
        for expectation in self._expected:
            self._ask(expectation, found)
        return found

    def close(self) -> None:
        """The run is over: what was to be so at some time and never was is broken."""
        for expectation in self._expected:
            if expectation.eventually is not None and expectation.name not in self.met:
                self._break(expectation, f"{expectation.eventually} was never so")

    def _ask(self, expectation: Expectation, found: Figures) -> None:
        at_ms, until_ms = self.play.at_ms, expectation.until_ms
        if at_ms < expectation.from_ms or expectation.name in self.met or expectation.name in self._broken:
            return
        if until_ms is not None and at_ms > until_ms:
            if expectation.eventually is not None:
                self._break(expectation, f"{expectation.eventually} was not so by {until_ms.text()}")
            return
        text = expectation.always or expectation.eventually or "true"
        if "converged" in text:
            found["converged"] = not self._amiss(self.play)
        answer = evaluate(compile_condition(text), found)
        if isinstance(answer, ConditionFault):
            self._break(expectation, f"{text} cannot be answered: {answer.message}")
        elif expectation.eventually is not None and answer:
            self.met[expectation.name] = at_ms
        elif expectation.always is not None and not answer:
            names = [n for n in dict.fromkeys(re.findall(r"[a-z_]+", text)) if n in found and n != "ready_of"]
            self._break(expectation, f"{text} is not so: " + ", ".join(f"{n} is {found[n]}" for n in names))

    def _break(self, expectation: Expectation, detail: str) -> None:
        self._broken.add(expectation.name)
        self.play.laws.breaks("expectation", f"{expectation.name}: {detail}")

    def _last(self, *words: str) -> Figures:
        """As at the last look: nobody can tell now."""
        return {word: self.figures[-1][word] if self.figures else {} for word in words}

    def _take(self, *, is_last: bool) -> Figures:
        play = self.play
        hub, laws, nodes = play.broker.hub, play.laws, list(play.nodes.values())
        found: Figures = {"at_s": play.at_ms // 1_000, "nodes": len(nodes), "hub_is_up": hub is not None}
        found["running"] = sum(n.is_running for n in nodes)
        found["connected"] = sum(n.is_running and n.wire.is_whole for n in nodes)
        links: Counter[str] = Counter()
        # While no hub is there, what it wished for and gave stays so.
        assigned, wished = (self.figures[-1][word] if self.figures else 0 for word in ("assigned", "wished"))
        if hub is not None:
            state, now = hub.known(), play.world.now
            awake = [n.name for n in nodes if n.pulse.rest is None]
            links = Counter(link(state, name, now) for name in awake)
            links["online"] += len(nodes) - len(awake)
            assigned = sum(len(a.instances) for a in state.assignments.values())
            wished = sum(
                count if (count := wished_count(state, app, part)) is not None else len(wished_slots(state, app, part))
                for app, resource in state.declared.items()
                for part in resource.spec.components
            )
        found |= {word: links[word] for word in ("online", "late", "offline")}
        found |= {"wished": wished, "assigned": assigned, "ready_of": {}}
        if "ready_of" in self._asked:
            found["ready_of"] = dict(
                Counter(p.instance.app for n in nodes for p in n.machine.processes.values() if p.ready)
            )
        if self._asked & {"rollout_of", "updated_of"}:
            found |= _rolled(hub.known(), play) if hub is not None else self._last("rollout_of", "updated_of")
        found["ready"] = sum(p.ready for n in nodes for p in n.machine.processes.values())
        found |= {
            "decisions": play.broker.decisions, "writes": play.broker.writes, "moves": laws.moves,
            "dead_verdicts": laws.dead, "false_dead_verdicts": laws.falsely_dead, "broken_laws": len(laws.broken),
            "converged": False,
        }  # fmt: skip
        if is_last or len(nodes) <= TRAFFIC_NODES_MAX or not len(self.figures) % 10:
            self._traffic = play.traffic()
        said = self._traffic
        found |= {
            "messages": said["messages"], "lost_messages": said["messages lost"],
            "message_bytes": said["bytes up"] + said["bytes down"], "uplink_bytes": said["bytes up"],
        }  # fmt: skip
        return found


def _rolled(state: State, play: Play) -> Figures:
    """How far the newest releases have come."""
    newest = {
        app: {r.component.name: r.revision for r in state.releases[app][-1].components}
        for app in state.declared
        if app in state.releases
    }
    running = [p.instance for n in play.nodes.values() for p in n.machine.processes.values() if p.ready]
    updated = Counter(i.app for i in running if newest.get(i.app, {}).get(i.component) == i.revision)
    return {
        "rollout_of": {app: state.rollouts[app].phase if app in state.rollouts else "none" for app in newest},
        "updated_of": {app: updated[app] for app in newest},
    }
