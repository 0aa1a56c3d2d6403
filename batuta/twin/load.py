"""Load: the work that comes to components, and what their instances measure. Autoscaling and gates follow that.

An instance that has just enough to do answers in 50 ms; with twice as much it takes twice as long. After the phase of
faults the work stays as it is, so that a fleet can come to rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batuta.core.observed import Measures
from batuta.twin.chance import Chance
from batuta.twin.truth import NO_TRUTHS, Truths, measured
from batuta.twin.world import EPOCH_MS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.core.decided import Instance
    from batuta.core.local import Local
    from batuta.core.sample import Sample
    from batuta.kinds.truth import Truth
    from batuta.twin.node import Node
    from batuta.twin.scenario import Demand, Scenario

BUSY_MS: Final = 50.0


class Work:
    """All of one run, by component."""

    def __init__(self, scenario: Scenario | None, seed: int, nodes: Mapping[str, Node]) -> None:
        self._demands: dict[str, Demand] = scenario.demands if scenario is not None else {}
        self._until_ms = scenario.duration_ms if scenario is not None else 0
        self._nodes = nodes
        self._draws = {name: Chance(seed, "demand", name) for name in self._demands}
        self.truths = Truths(scenario.truths) if scenario is not None else NO_TRUTHS
        self._is_measured = bool(self._demands or self.truths.truths)

    def comes_to(self, node: Node) -> bool:
        """Is anything measured of what it runs?"""
        return self._is_measured and any(
            _of(x.instance) in self._demands or self._truth(node, x.instance).per_second is not None
            for x in node.ledger.locals.values()
        )

    def measures(self, node: Node, at: int) -> dict[str, Measures]:
        """What the node measures of its instances at an instant."""
        if not self._is_measured:
            return {}
        found: dict[str, Measures] = {}
        for name, local in node.ledger.locals.items():
            component, sample = _of(local.instance), self._sample(node, local, at)
            p99_ms = None
            if component in self._demands and local.phase == "ready":
                p99_ms = round(BUSY_MS * self._share(component, at), 1)
            if p99_ms is not None or sample is not None:
                found[name] = Measures(latency_p99_ms=p99_ms, sample=sample)
        return found

    def _truth(self, node: Node, instance: Instance) -> Truth:
        return self.truths.of(instance, node.plan.hardware)

    def _sample(self, node: Node, local: Local, at: int) -> Sample | None:
        """What one that runs has counted since it was ready."""
        running = next((p for p in node.machine.called(local.instance.name) if p.ready), None)
        if running is None:
            return None
        restarts = max(0, local.starts - 1)
        ready_ms = max(0, at - running.ready_at)
        return measured(self._truth(node, local.instance), local.instance, node.name, ready_ms, restarts)

    def _share(self, component: str, at: int) -> float:
        """How much of what it can do comes to each instance that is ready, wherever it is."""
        demand = self._demands[component]
        turn = min(at - EPOCH_MS, self._until_ms) // demand.every_ms
        tenths = 10 * demand.least + self._draws[component].at(turn) % (10 * (demand.most - demand.least) + 1)
        running = (p for node in self._nodes.values() for p in node.machine.processes.values())
        return tenths / 10 / max(1, sum(p.ready and _of(p.instance) == component for p in running))


def _of(instance: Instance) -> str:
    return f"{instance.app}/{instance.component}"


NO_WORK: Final = Work(None, 0, {})
