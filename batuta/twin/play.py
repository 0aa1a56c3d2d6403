"""Play: one run's stage. It builds the world of a scenario, lets people and faults act, and heals it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.kinds import Node as NodeResource
from batuta.kinds import Site
from batuta.kinds.base import Metadata, Ref
from batuta.kinds.node import NodeSpec
from batuta.twin import faults
from batuta.twin.chance import Chance
from batuta.twin.hub import Broker, Hub
from batuta.twin.laws import Laws
from batuta.twin.node import Node
from batuta.twin.world import EPOCH_MS, Wire, World

if TYPE_CHECKING:
    from batuta.kinds import AnyResource
    from batuta.twin.rules import Rules
    from batuta.twin.scenario import Edit, Scenario


class Play:
    """The stage: world, broker, hub, nodes, and the watch."""

    def __init__(self, scenario: Scenario, seed: int, rules: Rules) -> None:
        self.scenario = scenario
        self.rules = rules
        self.world = World(seed, scenario.physics)
        self.laws = Laws(self.world, scenario.machines)
        self.broker = Broker(self.world)
        self.healings = 0
        self._chance = Chance(seed, "play")
        self._enrol()
        self.nodes: dict[str, Node] = self.broker.nodes
        for plan in scenario.machines:
            wire = Wire(self.world, plan.name)
            self.nodes[plan.name] = Node(self.world, plan, wire, self.broker, self.laws, rules=rules)
        self.start_hub()
        for node in self.nodes.values():
            self.world.after(self._chance.between(0, 2_000), node.power_on)
        for edit in scenario.edits:
            self.world.after(edit.at_ms, self._edit, edit)
        for fault in faults.draw(scenario, seed):
            self.world.after(fault.at_ms, faults.inflict, self, fault)

    def _enrol(self) -> None:
        """Sites and nodes are declared before the play begins, eldest first."""
        for site in sorted({m.site for m in self.scenario.machines}):
            self._put(Site(metadata=Metadata(name=site)))
        for k, plan in enumerate(self.scenario.machines):
            metadata = Metadata(name=plan.name, creation_timestamp=f"2023-11-14T22:13:{k % 60:02d}Z")
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

    def heal(self) -> None:
        """All faults end now; machines, agents and the hub come back, but for those that are lost for good."""
        self.healings += 1
        self.world.tell("all heals")
        for node in self.nodes.values():
            node.wire.mend()
            node.is_isolated = False
            if node.name in self.scenario.lost:
                node.power_off()
                continue
            node.power_on()
            node.start_agent()
            node.read_assignment()
        if self.broker.hub is not None:
            self.broker.hub.dies_after_rows = None
        self.start_hub()

    @property
    def at_ms(self) -> int:
        return self.world.now - EPOCH_MS

    def run_to(self, at_ms: int) -> None:
        self.world.run_until(EPOCH_MS + at_ms)
