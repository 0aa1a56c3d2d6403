"""Play: one run's stage. It builds the world of a scenario, lets people and faults act, and heals it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from batuta.core.liveness import HEARTBEAT_MS, HEARTBEATS_A_SECOND_MAX
from batuta.kinds import Node as NodeResource
from batuta.kinds import Site
from batuta.kinds.base import Metadata, Ref
from batuta.kinds.node import NodeSpec
from batuta.twin import faults
from batuta.twin.broker import Broker
from batuta.twin.chance import Chance
from batuta.twin.hub import Hub
from batuta.twin.laws import Laws
from batuta.twin.load import Work
from batuta.twin.node import Node
from batuta.twin.rest import CALM_MS
from batuta.twin.world import EPOCH_MS, Wire, World

if TYPE_CHECKING:
    from batuta.kinds import AnyResource
    from batuta.twin.rules import Rules
    from batuta.twin.scenario import Edit, Fault, Scenario

SLOWEST_BEAT_MS: Final = 60_000
"""No node agent beats more slowly, whatever the hub asks."""


class Play:
    """The stage: world, broker, hub, nodes, and the watch."""

    def __init__(self, scenario: Scenario, seed: int, rules: Rules) -> None:
        self.scenario = scenario
        self.rules = rules
        self.world = World(seed, scenario.physics)
        self.laws = Laws(self.world, scenario.machines)
        self.broker = Broker(self.world)
        every_ms = HEARTBEAT_MS * len(scenario.machines) // HEARTBEATS_A_SECOND_MAX
        self.world.every_ms = min(SLOWEST_BEAT_MS, max(scenario.physics.heartbeat_ms, every_ms))
        self.healings = 0
        self._chance = Chance(seed, "play")
        self._enrol()
        self.nodes: dict[str, Node] = self.broker.nodes
        for plan in scenario.machines:
            wire = Wire(self.world, plan.name, plan.latency_ms)
            node = Node(self.world, plan, wire, self.broker, self.laws, rules=rules)
            self.nodes[plan.name] = node
            beside = self.broker.sites.setdefault(plan.site, [])
            node.place = len(beside)
            beside.append(node)
        load = Work(scenario, seed, self.nodes)
        self.truths = load.truths
        for node in self.nodes.values():
            node.pulse.load = load
            node.truths = load.truths
        self.laws.is_there = lambda name, for_ms: self.nodes[name].is_there(for_ms)
        self.start_hub()
        for node in self.nodes.values():
            self.world.after(self._chance.between(0, 2_000), node.power_on)
        for edit in scenario.edits:
            self.world.after(edit.at_ms, self._edit, edit)
        for fault in faults.draw(scenario, seed):
            self.world.after(fault.at_ms, faults.inflict, self, fault)

    def _enrol(self) -> None:
        """Sites and nodes are declared before the play begins, eldest first."""
        known = {site.metadata.name: site for site in self.scenario.sites}
        for name in sorted({m.site for m in self.scenario.machines} | known.keys()):
            self._put(known.get(name) or Site(metadata=Metadata(name=name)))
        for k, plan in enumerate(self.scenario.machines):
            at = f"2023-11-14T22:13:{k % 60:02d}Z"
            metadata = Metadata(name=plan.name, labels=plan.labels, creation_timestamp=at)
            self._put(NodeResource(metadata=metadata, spec=NodeSpec(site=plan.site)))

    def _put(self, resource: AnyResource) -> None:
        """As the API does: a changed resource has the next generation."""
        old = self.broker.store.get("desired", resource.ref.key)
        generation = 1 if old is None else old.metadata.generation + 1
        metadata = msgspec.structs.replace(resource.metadata, generation=generation)
        kept = msgspec.structs.replace(resource, metadata=metadata)
        self.broker.store.put("desired", resource.ref.key, kept)
        if self.broker.hub is not None:
            self.broker.hub.hear_edit(resource.ref.key, kept)

    def _edit(self, edit: Edit) -> None:
        if edit.apply is not None:
            self.world.tell(f"apply {edit.apply.ref}")
            self._put(edit.apply)
        if edit.delete is not None:
            ref = Ref(*edit.delete)
            self.world.tell(f"delete {ref}")
            self.broker.store.put("desired", ref.key, None)
            if self.broker.hub is not None:
                self.broker.hub.hear_edit(ref.key, None)
        if edit.rollout is not None:
            self.world.tell(f"{edit.rollout.ask} the rollout of {edit.rollout.application}")
            if self.broker.hub is None:
                self.world.count("asks refused")
            else:
                self.broker.hub.hear_ask(edit.rollout)

    def start_hub(self) -> None:
        if self.broker.hub is None:
            self.world.tell("hub starts")
            Hub(self.world, self.broker, self.laws, self.rules, self.start_hub)

    def broker_may_notice(self, node: str) -> None:
        """Sometimes the connection closes visibly; else only silence tells."""
        if self._chance.happens(self.world.physics.disconnect_seen_permille):
            self.world.after(self._chance.between(5, 5_000), self._notice, node)

    def _notice(self, name: str) -> None:
        node = self.nodes[name]
        if not node.wire.is_whole or not node.is_powered:
            self.broker.link_closed(name)

    def disturb(self, nodes: list[Node]) -> None:
        """Something befalls them: what they do is played beat by beat until it is over, and some time more."""
        for node in nodes:
            node.trouble += 1
            node.pulse.wake()

    def calm(self, nodes: list[Node]) -> None:
        for node in nodes:
            node.trouble -= 1
            node.calm_at = self.world.now + CALM_MS + self.scenario.longest_delay_ms

    def ended(self, fault: Fault, generation: int, nodes: list[Node]) -> None:
        """A fault that mends what it did by itself is over, unless everything was healed before."""
        if self.healings == generation:
            self.world.tell(f"end of {fault.kind} {fault.target}")
            self.calm(nodes)

    def heal(self) -> None:
        """All faults end now; machines, agents and the hub come back, but for those that are lost for good."""
        self.healings += 1
        self.world.tell("all heals")
        self.truths.are_healed = True
        for node in self.nodes.values():
            self._relieve(node)
        for node in self.nodes.values():
            if node.name in self.scenario.lost:
                # Its neighbours are listened to beat by beat from now on: they tell how silent it is.
                self.disturb(self.broker.sites[node.plan.site])
                node.power_off()
                continue
            node.power_on()
            node.start_agent()
        if self.broker.hub is not None:
            self.broker.hub.dies_after_rows = None
            self.broker.hub.attention.end()
        self.start_hub()

    def _relieve(self, node: Node) -> None:
        """Ends all faults of one node."""
        was_cut = not node.wire.is_whole
        node.wire.mend()
        node.is_isolated = node.is_disk_full = False
        node.slower = 1
        if node.trouble:
            node.trouble = 0
            node.calm_at = self.world.now + CALM_MS + self.scenario.longest_delay_ms
        if was_cut:
            node.link_mended()
        else:
            node.pulse.read_assignment()

    def traffic(self) -> dict[str, int]:
        """What went over all links so far."""
        for rest in self.broker.resting.values():
            rest.enter()
        wires = [node.wire for node in self.nodes.values()]
        return {
            "messages": sum(w.messages for w in wires), "messages lost": sum(w.lost for w in wires),
            "bytes up": sum(w.bytes_up for w in wires), "bytes down": sum(w.bytes_down for w in wires),
        }  # fmt: skip

    @property
    def at_ms(self) -> int:
        return self.world.now - EPOCH_MS

    def run_to(self, at_ms: int) -> None:
        self.world.run_until(EPOCH_MS + at_ms)
