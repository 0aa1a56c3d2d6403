"""Wishes: what a component asks of a node, and the slots it wants filled.

An Ask is a component of a release as placement sees it; a Wish is one slot of it. Slots come from `replicas`:
a count gives `0`, `1`, …; one per site gives `berlin-0` for each site that has a node where the component may run; one
for every node gives each such node's name. A cordon changes no wish: it is a wait, and `why` says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batuta.core.decided import Instance, ModelOrder
from batuta.core.fleet import FALSE, TRUE
from batuta.core.load import load_of
from batuta.kinds.base import Bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batuta.core.decided import Released
    from batuta.core.fleet import Bools, Fleet, Ints
    from batuta.core.load import Load
    from batuta.core.rank import Ranking
    from batuta.kinds.application import Probe

LEASE_MS = 5_000
"""How long a `never-twice` instance may run on without word from the hub: five heartbeats."""
PROCESS = "process"


class Ask:
    """What one component of one release asks of any node, for all of its slots and for one decision."""

    def __init__(self, app: str, released: Released, fleet: Fleet) -> None:
        self.namespace, self.application = app.split("/")
        self.component = released.component
        self.revision = released.revision
        self.version = released.version
        self.fleet = fleet
        base = int(self.component.resources.memory_bytes)
        variants = self.version.variants if self.version is not None else ()
        self.formats: tuple[str, ...] = tuple(v.format for v in variants) or (PROCESS,)
        self.requests: tuple[int, ...] = tuple(max(base, int(v.needs.memory_bytes or 0)) for v in variants) or (base,)
        self.cpu_millis = int(self.component.resources.cpu_millis)
        self.memory_bytes = base
        self.here: Ints = np.zeros(fleet.capacity, np.int64)
        """Replicas of this component by row, kept while a decision is made."""
        self.turned_away = ""
        """Why a slot that may be anywhere found no node: the next one need not ask again."""
        self.open = 1
        """How many slots are to be filled at once, as far as that is known: whoever ranks nodes looks so far ahead."""
        self._stays: Bools | None = None
        self._ranking: Ranking | None = None
        self._loads: dict[int, Load] = {}

    @property
    def app(self) -> str:
        return f"{self.namespace}/{self.application}"

    @property
    def consumer(self) -> str:
        return f"{self.namespace}_{self.application}_{self.component.name}"

    @property
    def never_twice(self) -> bool:
        return self.component.runs == "never-twice"

    @property
    def claims_port(self) -> bool:
        """A program that is asked at a port owns it: two of them cannot share a node."""
        process = self.component.process
        return process is not None and any(_port(p) for p in (process.ready, process.live))

    @property
    def alone(self) -> bool:
        """No two replicas on one node: for a site's replicas a second one there would fall with the first."""
        return self.component.replicas.per_site is not None or self.claims_port

    @property
    def where(self) -> str | None:
        return self.component.placement.where

    def eligible(self) -> Bools:
        """By row: may it run there at all, room aside?"""
        effects = ("NoSchedule", "NoExecute")
        tolerated = self.fleet.tolerated(self.component.placement.tolerations, effects)
        answer: Bools = self.fleet.present & (self.fleet.where(self.where) == TRUE) & tolerated
        return answer

    def stays(self) -> Bools:
        """By row: may what runs there stay? A condition that cannot be answered moves nothing."""
        if self._stays is None:
            tolerated = self.fleet.tolerated(self.component.placement.tolerations, ("NoExecute",))
            holds = ~self.fleet.reported | (self.fleet.where(self.where) != FALSE)
            self._stays = self.fleet.present & holds & tolerated
        return self._stays

    def ranking(self, fleet: Fleet) -> Ranking:
        """The order of all nodes, kept right while a decision is made."""
        if self._ranking is None:
            from batuta.core.rank import Ranking

            self._ranking = Ranking(self, fleet)
        return self._ranking

    def load(self, variant: int, row: int) -> Load:
        """What an instance would take of a node."""
        del row
        if variant not in self._loads:
            self._loads[variant] = load_of(self.instance("", 0, variant))
        return self._loads[variant]

    def instance(self, slot: str, epoch: int, variant: int) -> Instance:
        """The order for one slot."""
        component, model = self.component, None
        if component.model is not None and self.version is not None:
            version = self.version
            model = ModelOrder(
                name=version.name, version=version.version, variant=version.variants[variant],
                signature=version.signature, labels=version.labels,
                batch=component.model.batch, linger_ms=int(component.model.linger_ms),
            )  # fmt: skip
        return Instance(
            namespace=self.namespace, application=self.application, component=component.name,
            revision=self.revision, slot=slot, epoch=epoch, model=model, process=component.process,
            inputs=component.inputs, outputs=component.outputs,
            cpu_millis=component.resources.cpu_millis, memory_bytes=Bytes(self.requests[variant]),
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


def _port(probe: Probe | None) -> bool:
    return probe is not None and (probe.http is not None or probe.tcp is not None)
