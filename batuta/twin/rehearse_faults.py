"""Faults of a rehearsal: what scenarios call so, befalling the copy of a live fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batuta.twin.chance import Chance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batuta.kinds.scenario import Fault
    from batuta.twin.rehearse_node import NodeCopy
    from batuta.twin.rehearse_stage import Stage

NOT_PLAYED: Final = {
    "duplication": "everything sent is state: twice is once",
    "reordering": "everything sent is state: the newest counts",
    "skew": "nothing is decided by a node's clock",
}
STORM_MS: Final = 2_000
"""A link that breaks is back after so long."""


def plan_faults(stage: Stage, faults: Sequence[Fault], seed: int, for_ms: int) -> None:
    """Each at its instant; whom it befalls and when is drawn from the seed where the fault does not say."""
    for k, fault in enumerate(faults):
        if fault.fault in NOT_PLAYED:
            continue
        chance = Chance(seed, "rehearse", str(k))
        first, last = int(fault.at_ms), int(fault.until_ms) if fault.until_ms is not None else int(fault.at_ms)
        if fault.fault in OF_THE_HUB:
            for _ in range(fault.repeat):
                at_ms = min(for_ms, chance.between(first, last))
                stage.time.after(at_ms, OF_THE_HUB[fault.fault], stage, int(fault.for_ms))
            continue
        for node in _whom(stage, fault, chance):
            at_ms = min(for_ms, chance.between(first, last))
            stage.time.after(at_ms, BEGIN[fault.fault], node, fault)


def _whom(stage: Stage, fault: Fault, chance: Chance) -> list[NodeCopy]:
    """Those named, by name or site; of these so many as it says, drawn."""
    named = [
        node
        for node in stage.nodes.values()
        if node.powered and (not (fault.node or fault.site) or node.name in fault.node or node.site in fault.site)
    ]
    if fault.nodes is None:
        return named
    share = fault.nodes
    many = round(len(named) * float(share[:-1]) / 100) if share.endswith("%") else int(share)
    left = list(named)
    drawn: list[NodeCopy] = []
    while left and len(drawn) < many:
        drawn.append(left.pop(chance.between(0, len(left) - 1)))
    return drawn


def _ends(node: NodeCopy, fault: Fault, do: Callable[[], None]) -> None:
    node.time.after(int(fault.for_ms), do)


def _crash(node: NodeCopy, fault: Fault) -> None:
    node.power_off()
    _ends(node, fault, node.power_on)


def _agent_crash(node: NodeCopy, fault: Fault) -> None:
    node.stop_agent()
    _ends(node, fault, node.start_agent)


def _exit(node: NodeCopy, fault: Fault) -> None:
    del fault
    for name in sorted(node.alive)[:1]:
        node.exit(name)


def _partition(node: NodeCopy, fault: Fault) -> None:
    node.cut()
    _ends(node, fault, node.mend)


def _flapping(node: NodeCopy, fault: Fault) -> None:
    half_ms = max(1, int(fault.period_ms or 1_000) // 2)
    for k in range(int(fault.for_ms) // (2 * half_ms)):
        node.time.after(2 * k * half_ms, node.cut)
        node.time.after((2 * k + 1) * half_ms, node.mend)


def _storm(node: NodeCopy, fault: Fault) -> None:
    del fault
    node.cut()
    node.time.after(STORM_MS, node.mend)


def _delay(node: NodeCopy, fault: Fault) -> None:
    extra, by_ms = node.stage.links.extra_ms, int(fault.by_ms or 0)
    extra[node.site] = max(extra.get(node.site, 0), by_ms)
    _ends(node, fault, lambda: extra.update({node.site: 0}))


def _loss(node: NodeCopy, fault: Fault) -> None:
    """What is lost is sent again: everything is said later, and artifacts come more slowly."""
    links = node.stage.links
    links.lose(node.site, max(links.lost_percent.get(node.site, 0), int(fault.percent or 0)))
    _ends(node, fault, lambda: links.lose(node.site, 0))


def _full_disk(node: NodeCopy, fault: Fault) -> None:
    node.disk_full = True
    _ends(node, fault, lambda: setattr(node, "disk_full", False))


def _slow_disk(node: NodeCopy, fault: Fault) -> None:
    node.slow = fault.times or 2
    _ends(node, fault, lambda: setattr(node, "slow", 1))


def _hub_restart(stage: Stage, for_ms: int) -> None:
    if stage.hub.is_alive:
        stage.kill_hub()
        stage.time.after(for_ms, stage.restart_hub)


def _hub_stall(stage: Stage, for_ms: int) -> None:
    if stage.hub.is_alive:
        stage.stall_hub(for_ms)


OF_THE_HUB: Final[dict[str, Callable[[Stage, int], None]]] = {
    "hubRestart": _hub_restart,
    "hubTorn": _hub_restart,
    "hubStall": _hub_stall,
}
BEGIN: Final[dict[str, Callable[[NodeCopy, Fault], None]]] = {
    "crash": _crash,
    "agentCrash": _agent_crash,
    "exit": _exit,
    "partition": _partition,
    "flapping": _flapping,
    "reconnectStorm": _storm,
    "delay": _delay,
    "loss": _loss,
    "fullDisk": _full_disk,
    "slowDisk": _slow_disk,
}
