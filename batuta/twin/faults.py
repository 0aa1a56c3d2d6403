"""Faults: what goes wrong, drawn from a seed and inflicted on a running world. Every fault heals what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.twin.chance import Chance
from batuta.twin.scenario import Fault, FaultKind
from batuta.twin.weights import RECONNECT_DOWN_BYTES, RECONNECT_UP_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.twin.node import Node
    from batuta.twin.play import Play
    from batuta.twin.scenario import Scenario
    from batuta.twin.world import Wire

HOUR_MS = 3_600_000

# How long a drawn fault lasts, and how strong it is. Half of all durations are short: those around a timeout find most.
DURATIONS_MS: dict[FaultKind, tuple[int, int]] = {
    "node_crash": (500, 60_000),
    "agent_crash": (200, 40_000),
    "partition": (300, 60_000),
    "site_partition": (300, 60_000),
    "loss": (2_000, 60_000),
    "duplication": (2_000, 60_000),
    "reordering": (2_000, 60_000),
    "delay": (2_000, 60_000),
    "clock_jump": (0, 0),
    "hub_restart": (100, 30_000),
    "hub_torn": (100, 10_000),
    "hub_stall": (200, 30_000),
    "exit": (0, 0),
    "flapping": (2_000, 60_000),
    "reconnect_storm": (500, 30_000),
    "disk_full": (2_000, 60_000),
    "disk_slow": (2_000, 60_000),
}
AMOUNTS: dict[FaultKind, tuple[int, int]] = {
    "partition": (0, 1),
    "loss": (50, 900),
    "duplication": (50, 500),
    "reordering": (50, 500),
    "delay": (100, 8_000),
    "clock_jump": (-120_000, 120_000),
    "hub_torn": (0, 4),
    "flapping": (500, 12_000),
    "disk_slow": (2, 20),
}


def draw(scenario: Scenario, seed: int) -> tuple[Fault, ...]:
    """The scenario's own faults and as many more as its rates ask for, by instant."""
    faults = list(scenario.faults)
    sites = sorted({m.site for m in scenario.machines})
    nodes = [m.name for m in scenario.machines]
    for kind, an_hour in sorted(scenario.rates.items()):
        chance = Chance(seed, "faults", kind)
        expected_permille = an_hour * scenario.duration_ms * 1_000 // HOUR_MS
        times = expected_permille // 1_000 + chance.happens(expected_permille % 1_000)
        for _ in range(times):
            least, most = DURATIONS_MS[kind]
            lasts_ms = chance.between(least, most if chance.happens(500) else least + (most - least) // 6)
            low, high = AMOUNTS.get(kind, (0, 0))
            target = ""
            if kind == "site_partition":
                target = chance.pick(sites)
            elif kind not in OF_ALL:
                target = chance.pick(nodes)
            at_ms = chance.between(0, scenario.duration_ms)
            faults.append(
                Fault(kind=kind, at_ms=at_ms, for_ms=lasts_ms, target=target, amount=chance.between(low, high))
            )
    return tuple(sorted(faults, key=lambda f: (f.at_ms, f.kind, f.target, f.for_ms, f.amount)))


def inflict(play: Play, fault: Fault) -> None:
    """Begins a fault and plans its end."""
    play.world.tell(f"fault {fault.kind} {fault.target} {fault.amount} for {fault.for_ms} ms")
    play.world.count(f"fault {fault.kind}")
    play.disturb(_befallen(play, fault))
    BEGIN[fault.kind](play, fault)


def _befallen(play: Play, fault: Fault) -> list[Node]:
    """Whom it troubles: a node and its neighbours, a site, or everybody."""
    if fault.kind in OF_ALL:
        return list(play.nodes.values())
    node = play.nodes.get(fault.target)
    return list(play.broker.sites[fault.target if node is None else node.plan.site])


def _ends(play: Play, fault: Fault, do: Callable[[], None]) -> None:
    """Ends it after its time, unless everything was healed before."""
    generation = play.healings

    def end() -> None:
        if play.healings == generation:
            play.world.tell(f"end of {fault.kind} {fault.target}")
            do()
            play.calm(_befallen(play, fault))

    play.world.after(fault.for_ms, end)


def _node_crash(play: Play, fault: Fault) -> None:
    node = play.nodes[fault.target]
    node.power_off()
    play.broker_may_notice(node.name)
    _ends(play, fault, node.power_on)


def _agent_crash(play: Play, fault: Fault) -> None:
    node = play.nodes[fault.target]
    node.stop_agent()
    _ends(play, fault, node.start_agent)


def _cut(play: Play, fault: Fault) -> None:
    """One node, or all of a site at the same instant."""
    cut = [n for n in play.nodes.values() if fault.target in (n.name, n.plan.site)]
    _sever(play, cut, fault)

    def mend() -> None:
        for node in cut:
            _mend(node)

    _ends(play, fault, mend)


def _sever(play: Play, cut: list[Node], fault: Fault) -> None:
    for node in cut:
        node.wire.cuts += 1
        node.is_isolated |= fault.kind == "partition" and fault.amount > 0
        play.broker_may_notice(node.name)


def _mend(node: Node, *, at_hub: bool = False) -> None:
    node.wire.cuts -= 1
    node.wire.cuts_at_hub -= at_hub
    if node.wire.is_whole:
        node.is_isolated = False
        node.link_mended(own=not at_hub)


def _flapping(play: Play, fault: Fault) -> None:
    """Down for half of every period, up for half, until it ends whole."""
    node, generation = play.nodes[fault.target], play.healings
    half_ms, until = max(50, fault.amount // 2), play.world.now + fault.for_ms

    def down() -> None:
        if play.healings == generation and play.world.now < until:
            _sever(play, [node], fault)
            play.world.after(half_ms, up)

    def up() -> None:
        if play.healings == generation:
            _mend(node)
            play.world.after(half_ms, down)

    down()
    play.world.after(fault.for_ms + half_ms, play.ended, fault, generation, _befallen(play, fault))


def _reconnect_storm(play: Play, fault: Fault) -> None:
    """All links break at once; when they may come back, all try at once, and the hub takes one after the other."""
    nodes, generation, world = list(play.nodes.values()), play.healings, play.world
    for node in nodes:
        node.wire.cuts += 1
        node.wire.cuts_at_hub += 1
        if node.is_running:
            play.broker.link_closed(node.name)
    line = Chance(world.seed, "storm", str(world.now)).sample(nodes, len(nodes))
    takes_us = world.physics.accept_us

    def back(node: Node) -> None:
        if play.healings == generation:
            node.wire.bytes_up += RECONNECT_UP_BYTES
            node.wire.bytes_down += RECONNECT_DOWN_BYTES
            _mend(node, at_hub=True)

    for k, node in enumerate(line):
        world.after(fault.for_ms + (k + 1) * takes_us // 1_000, back, node)
    last_ms = fault.for_ms + len(line) * takes_us // 1_000 + 1
    world.after(last_ms, play.ended, fault, generation, nodes)


def _disk_full(play: Play, fault: Fault) -> None:
    """Nothing more can be fetched; what runs goes on."""
    node = play.nodes[fault.target]
    node.is_disk_full = True
    _ends(play, fault, lambda: setattr(node, "is_disk_full", False))


def _disk_slow(play: Play, fault: Fault) -> None:
    node = play.nodes[fault.target]
    node.slower = max(node.slower, fault.amount)
    _ends(play, fault, lambda: setattr(node, "slower", 1))


def _degrade(name: str) -> Callable[[Play, Fault], None]:
    def begin(play: Play, fault: Fault) -> None:
        wire: Wire = play.nodes[fault.target].wire
        setattr(wire, name, max(getattr(wire, name), fault.amount))
        _ends(play, fault, lambda: setattr(wire, name, 0))

    return begin


def _clock_jump(play: Play, fault: Fault) -> None:
    play.nodes[fault.target].ahead_ms += fault.amount
    _ends(play, fault, lambda: None)


def _hub_restart(play: Play, fault: Fault) -> None:
    if play.broker.hub is not None:
        play.broker.hub.kill()
    _ends(play, fault, play.start_hub)


def _hub_torn(play: Play, fault: Fault) -> None:
    """The hub dies in the middle of its next commit, and is started again some time later."""
    hub = play.broker.hub
    if hub is not None:
        hub.dies_after_rows = fault.amount
        hub.back_after_ms = fault.for_ms
    _ends(play, fault, lambda: None)


def _hub_stall(play: Play, fault: Fault) -> None:
    """The hub process is held up: a long decision, a machine out of memory or asleep, a debugger."""
    if play.broker.hub is not None:
        play.broker.hub.attention.stall(fault.for_ms)
    _ends(play, fault, lambda: None)


def _exit(play: Play, fault: Fault) -> None:
    node = play.nodes[fault.target]
    for process in list(node.machine.processes.values())[:1]:
        node.exit(process)
    _ends(play, fault, lambda: None)


OF_ALL: frozenset[FaultKind] = frozenset({"hub_restart", "hub_torn", "hub_stall", "reconnect_storm"})
BEGIN: dict[FaultKind, Callable[[Play, Fault], None]] = {
    "node_crash": _node_crash,
    "agent_crash": _agent_crash,
    "partition": _cut,
    "site_partition": _cut,
    "loss": _degrade("loss"),
    "duplication": _degrade("duplication"),
    "reordering": _degrade("reordering"),
    "delay": _degrade("delay_ms"),
    "clock_jump": _clock_jump,
    "hub_restart": _hub_restart,
    "hub_torn": _hub_torn,
    "hub_stall": _hub_stall,
    "exit": _exit,
    "flapping": _flapping,
    "reconnect_storm": _reconnect_storm,
    "disk_full": _disk_full,
    "disk_slow": _disk_slow,
}
