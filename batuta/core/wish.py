"""Wishes: what a component asks of a node, and the slots it wants filled.

An Ask is a component of a release as placement sees it; a Wish is one slot of it. Slots come from `replicas`:
a count gives `0`, `1`, …; one per site gives `berlin-0` for each site that has a node where the component may run; one
for every node gives each such node's name. A cordon changes no wish: it is a wait, and `why` says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from batuta.core import traits
from batuta.core.decided import CONTAINER, PROCESS, Instance, ModelOrder
from batuta.core.fleet import FALSE, FAULT, TRUE
from batuta.core.load import claims_of, load_of, probed_ports, served_ports
from batuta.kinds.base import Bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batuta.core.decided import Released, VersionChoice
    from batuta.core.fleet import Bools, Fleet, Ints
    from batuta.core.load import Claim, Load
    from batuta.core.preferences import Scorer
    from batuta.core.rank import Ranking
    from batuta.core.rules import Rule, Ruling
    from batuta.kinds.application import AcceleratorNeed, Component
    from batuta.kinds.model import Variant

LEASE_MS = 5_000
"""How long a `never-twice` instance may run on without word from the hub: five heartbeats."""


class Ask:
    """What one component of one release asks of any node, for all of its slots and for one decision."""

    def __init__(self, app: str, released: Released, fleet: Fleet) -> None:
        self.namespace, self.application = app.split("/")
        self.component: Component = released.component
        self.revision: int = released.revision
        self.version: VersionChoice | None = released.version
        self.fleet: Fleet = fleet
        base = int(self.component.resources.memory_bytes)
        variants = self.version.variants if self.version is not None else ()
        self.formats: tuple[str, ...] = tuple(v.format for v in variants) or (
            CONTAINER if self.component.container is not None else PROCESS,
        )
        self.requests: tuple[int, ...] = tuple(max(base, int(v.needs.memory_bytes or 0)) for v in variants) or (base,)
        self.cpu_millis: int = int(self.component.resources.cpu_millis)
        self.memory_bytes: int = base
        resources = self.component.resources
        self.disk_bytes: int = int(resources.disk_bytes or 0)
        self.needs: tuple[AcceleratorNeed, ...] = resources.accelerators
        self.claims: tuple[Claim, ...] = claims_of(
            (*resources.ports, *served_ports(self.component.serve), *probed_ports(self.component.program)),
            resources.devices,
        )
        """Ports and devices that no other instance on its node may have."""
        slo = self.component.slo
        self.slo_us: int | None = int(slo.p99_ms) * 1000 if slo is not None else None
        resource = fleet.state.application(app)
        at_home = resource.spec.residency if resource is not None else ()
        self.residency: tuple[str, ...] = self.component.placement.residency or at_home
        self.ruling: Ruling = traits.ruling(fleet, app, self.component)
        """What the policies say of it."""
        self.order = _best_first(variants)
        """Variants by quality, where all of them tell of the same; else as they are listed."""
        self.here: Ints = np.zeros(fleet.capacity, np.int64)
        """Replicas of this component by row, kept while a decision is made."""
        self.pull: dict[int, int] = {}
        """Messages by row: where those are with whom it talks (`core.talks`)."""
        self.turned_away = ""
        """Why a slot that may be anywhere found no node: the next one need not ask again."""
        self.open = 1
        """How many slots are to be filled at once, as far as that is known: whoever ranks nodes looks so far ahead."""
        self.known: dict[str, Any] = {}
        """What tables work out once for a decision: by row, or by variant."""
        self.fitted: tuple[Ints, tuple[int, bool], Ints] | None = None
        """The nodes last asked which variant fits there, and the answer."""
        self.turn: Bools | None = None
        """By row: may it run there, as far as its rollout has come? None for everywhere."""
        self.frozen: Bools | None = None
        """By row: what runs there is left alone, whichever release it is of."""
        self.tolerated: frozenset[int] = frozenset()
        """Other revisions that are left alone where they run."""
        self.probation_ms: int | None = None
        """While it replaces something: so long a node goes back by itself."""
        self._stays: Bools | None = None
        self._calm: Bools | None = None
        self._suits: dict[int, Bools] = {}
        self._p99_us: dict[int, Ints] = {}
        self._ranking: Ranking | None = None
        self.scorers: tuple[Scorer, ...] | None = None
        """What weighs for it, once somebody asked (`preferences.scorers_for`)."""
        self._loads: dict[int, Load] = {}
        self._orders: dict[int, Instance] = {}

    @property
    def app(self) -> str:
        return f"{self.namespace}/{self.application}"

    @property
    def consumer(self) -> str:
        return f"{self.namespace}_{self.application}_{self.component.name}"

    @property
    def archive(self) -> str:
        """Digest of the image that must reach the node; nothing when there is none."""
        container = self.component.container
        return container.archive.digest if container is not None and container.archive is not None else ""

    @property
    def never_twice(self) -> bool:
        return self.component.runs == "never-twice"

    @property
    def claims_port(self) -> bool:
        """A program that is asked at a port owns it: two of them cannot share a node."""
        return bool(self.claims)

    @property
    def alone(self) -> bool:
        """No two replicas on one node: for a site's replicas a second one there would fall with the first."""
        return self.component.replicas.per_site is not None or self.claims_port

    @property
    def where(self) -> str | None:
        return self.component.placement.where

    def accepts(self, revision: int, row: int) -> bool:
        """May an instance of this revision stay there as it is?"""
        if revision == self.revision or revision in self.tolerated:
            return True
        return self.frozen is not None and bool(self.frozen[row])

    def suits(self, variant: int) -> Bools:
        """By row: can this variant be loaded there, room aside? A program has one variant, itself."""
        if variant not in self._suits:
            fleet = self.fleet
            found: Bools = traits.has_runtime(fleet, self.formats[variant]).copy()
            if self.version is not None:
                v = self.version.variants[variant]
                if v.architectures:
                    found &= traits.runs_on(fleet, v.architectures)
                if v.opset is not None:
                    found &= traits.loads_opset(fleet, v.format, v.opset)
                if v.precision is not None:
                    found &= traits.computes(fleet, v.precision)
                if v.needs.accelerator is not None:
                    found &= traits.has_card(fleet, v.needs.accelerator)
            self._suits[variant] = found
        return self._suits[variant]

    def p99_us(self, variant: int) -> Ints:
        """By row: how fast this variant is on such hardware, as far as anybody knows."""
        assert self.version is not None, "only models are measured"
        if variant not in self._p99_us:
            v = self.version.variants[variant]
            profiles = {p.hardware: int(p.p99_ms) * 1000 if p.p99_us is None else p.p99_us for p in v.profiles}
            # What a node found out counts before what people say of it.
            known = self.fleet.state.profiles.get(v.digest, {})
            profiles |= {hardware: row.p99_us for hardware, row in known.items()}
            self._p99_us[variant] = traits.p99_us(self.fleet, v.digest, profiles)
        return self._p99_us[variant]

    def eligible(self) -> Bools:
        """By row: may it run there at all, room aside?"""
        effects = ("NoSchedule", "NoExecute")
        tolerated = traits.tolerated(self.fleet, self.component.placement.tolerations, effects)
        answer: Bools = self.fleet.present & (self.fleet.where(self.where) == TRUE) & tolerated & self._is_home()
        program = self.component.program
        if program is not None and program.architectures:
            answer &= traits.runs_on(self.fleet, program.architectures)
        for rule in self.ruling.hard:
            answer &= self.may(rule) & ~self.is_puzzled(rule)
        return answer

    def _is_home(self) -> Bools:
        """By row: may its data live there?"""
        return traits.resides(self.fleet, self.residency) if self.residency else self.fleet.present

    def may(self, rule: Rule) -> Bools:
        """By row: does a rule of a policy not say no?"""
        return ~traits.refused(self.fleet, rule) if not rule.fault else np.ones(self.fleet.capacity, np.bool_)

    def is_puzzled(self, rule: Rule) -> Bools:
        """By row: can a rule not be answered there?"""
        if rule.fault:
            return np.ones(self.fleet.capacity, np.bool_)
        answer: Bools = traits.answers(self.fleet, rule) == FAULT
        return answer

    def stays(self) -> Bools:
        """By row: may what runs there stay? A condition that cannot be answered moves nothing."""
        if self._stays is None:
            tolerated = traits.tolerated(self.fleet, self.component.placement.tolerations, ("NoExecute",))
            holds = self.fleet.where(self.where) != FALSE
            for rule in self.ruling.hard:
                holds &= self.may(rule) | (not rule.moves)
            self._stays = self.fleet.present & (~self.fleet.reported | holds) & tolerated & self._is_home()
        return self._stays

    def calm(self) -> Bools:
        """By row: may what runs there stay, on a node that is heard and that nobody drains or holds?"""
        if self._calm is None:
            fleet = self.fleet
            self._calm = self.stays() & fleet.fresh & (fleet.held_until <= fleet.now) & ~fleet.drained
        return self._calm

    def ranking(self, fleet: Fleet) -> Ranking:
        """The order of all nodes, kept right while a decision is made."""
        if self._ranking is None:
            from batuta.core.rank import Ranking

            self._ranking = Ranking(self, fleet)
        return self._ranking

    def load(self, variant: int, row: int) -> Load:
        """What an instance would take of a node."""
        if variant not in self._loads:
            self._loads[variant] = load_of(self.instance("", 0, variant))
        load = self._loads[variant]
        if not self.needs:
            return load
        return load._replace(claims=load.claims + claims_of((), (), traits.grants(self.fleet, self.needs, row)))

    def instance(self, slot: str, epoch: int, variant: int, row: int | None = None) -> Instance:
        """The order for one slot. Accelerators are those of a node, so whoever needs some says which."""
        order = self._orders.get(variant)
        if order is None:
            order = self._orders[variant] = self._order(variant)
        granted = traits.grants(self.fleet, self.needs, row) if self.needs and row is not None else ()
        return msgspec.structs.replace(order, slot=slot, epoch=epoch, accelerators=granted)

    def _order(self, variant: int) -> Instance:
        """What is the same for all slots."""
        component, model = self.component, None
        if component.model is not None and self.version is not None:
            version, chosen = self.version, self.version.variants[variant]
            model = ModelOrder(
                name=version.name, version=version.version, variant=chosen, golden=chosen.golden or version.golden,
                signature=version.signature, labels=version.labels,
                before=version.before, after=version.after, transform=version.transform, drift=version.drift,
                transform_signatures=version.transform_signatures,
                batch=component.model.batch, linger_ms=int(component.model.linger_ms), signers=self.ruling.signers,
            )  # fmt: skip
        return Instance(
            namespace=self.namespace, application=self.application, component=component.name,
            revision=self.revision, slot="", epoch=0, model=model, process=component.process,
            container=component.container, signers=self.ruling.signers if component.container is not None else (),
            inputs=component.inputs, outputs=component.outputs, serve=component.serve,
            cpu_millis=component.resources.cpu_millis, memory_bytes=Bytes(self.requests[variant]),
            slo_p99_ms=component.slo.p99_ms if component.slo is not None else None,
            disk_bytes=component.resources.disk_bytes, ports=component.resources.ports,
            devices=component.resources.devices,
            lease_ms=LEASE_MS if self.never_twice else None,
        )  # fmt: skip


class Slot(NamedTuple):
    """One replica that is wanted: its name, and the site or node it is for when it is for one."""

    name: str
    site: str | None = None
    node: str | None = None

    @property
    def is_free(self) -> bool:
        """Any node will do."""
        return self.site is None and self.node is None


class Wish(NamedTuple):
    """One slot to be filled, and what is known about who fills it now."""

    ask: Ask
    slot: Slot
    before: int | None = None
    """Row of its predecessor: staying near its data and artifacts is worth something."""
    own: tuple[int, ...] = ()
    """Rows of the slot's own holders: they do not count as other replicas."""
    shun: int | None = None
    """A row that is out of the question, because the predecessor there owns the same port."""
    only: int | None = None
    """The one row that comes into question."""

    def rows(self) -> Ints:
        """The rows that can come into question at all; asking only these changes no answer."""
        fleet = self.ask.fleet
        if self.only is not None:
            return np.array([self.only], np.int64)
        if self.slot.node is not None:
            row = fleet.row_of.get(self.slot.node)
            return np.array([] if row is None else [row], np.int64)
        if self.slot.site is not None:
            return np.flatnonzero(fleet.present & (fleet.site == fleet.site_code.get(self.slot.site, -1)))
        return np.flatnonzero(fleet.present)

    def beside(self, rows: Ints) -> Ints:
        """Other replicas of the component on these rows."""
        count: Ints = self.ask.here[rows]
        for row in self.own:
            count = count - (rows == row)
        return count


def slots_of(ask: Ask, held_rows: Iterable[int]) -> list[Slot]:
    """The slots that are wanted now. Where it runs and may stay, it stays wanted, whatever new taints say."""
    replicas, fleet = ask.component.replicas, ask.fleet
    if replicas.per_site is None and not replicas.every_node:
        return [Slot(str(k)) for k in range(replicas.count or 0)]
    eligible, stays = ask.eligible().copy(), ask.stays()
    for row in held_rows:
        eligible[row] |= stays[row]
    rows = np.flatnonzero(eligible)
    if replicas.every_node:
        return [Slot(name, node=name) for name in sorted(fleet.names[row] for row in rows.tolist())]
    sites = sorted(fleet.site_names[code] for code in np.unique(fleet.site[rows]).tolist())
    return [Slot(f"{site}-{k}", site=site) for site in sites for k in range(replicas.per_site or 0)]


def _best_first(variants: Sequence[Variant]) -> tuple[int, ...]:
    """By the first measure of quality that all of them state; without one, in the order in which they are listed."""
    if not variants:
        return (0,)
    shared = set(variants[0].quality).intersection(*(v.quality for v in variants))
    if not shared:
        return tuple(range(len(variants)))
    measure = min(shared)
    return tuple(sorted(range(len(variants)), key=lambda i: (-variants[i].quality[measure], i)))
