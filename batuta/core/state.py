"""State: the three tables at one instant, with the indexes that decisions read.

Immutable: `with_changes` gives a new State that shares what did not change. Tables are copied once a batch (about 30 µs
for ten thousand rows), so changes are folded in batches. Indexes are derived here, incrementally, and nowhere else.
"""

from __future__ import annotations

from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeGuard

from batuta.core.decided import Assignment, Commons, Fence, Instance, Release
from batuta.core.known import KnownProfile
from batuta.core.observed import Report, Sighting
from batuta.core.rollout import Rollout
from batuta.core.standing import Looked, Room, Standing
from batuta.core.trail import Trail
from batuta.kinds.application import Application
from batuta.kinds.base import DEFAULT_NAMESPACE, Ref, Resource
from batuta.kinds.model import Model
from batuta.kinds.node import Node
from batuta.kinds.policy import Policy
from batuta.kinds.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Table = Literal["desired", "decided", "observed", "sightings"]


class Change(NamedTuple):
    """One row of one table becomes `value`; None removes it."""

    table: Table
    key: str
    value: Any


class Held(NamedTuple):
    """An instance and the node whose assignment holds it."""

    node: str
    instance: Instance


WATCHED_MAX = 256

_EMPTY: Mapping[str, Any] = MappingProxyType({})


class State:
    """Desired by people, decided by the hub, observed by nodes; sightings are the hub's own ears."""

    __slots__ = (
        "assignments",
        "commons",
        "deaf_ms",
        "decided",
        "declared",
        "desired",
        "fences",
        "held",
        "hub_since",
        "looks",
        "memo",
        "nodes",
        "nodes_of_site",
        "observed",
        "policies",
        "profiles",
        "releases",
        "rollouts",
        "rooms",
        "sightings",
        "standing",
        "step",
        "strays",
        "trail",
        "users_of_model",
        "watched",
        "wide",
    )  # fmt: skip

    def __init__(self, *, hub_since: int = 0) -> None:
        self.hub_since = hub_since
        """When this hub began to listen: nobody's silence is older than that."""
        self.deaf_ms = 0
        """For how long since then it could not listen, all in all: nobody was silent for that."""
        self.desired: Mapping[str, Resource] = _EMPTY
        """By `Ref.key`."""
        self.decided: Mapping[str, Assignment | Commons | Release | Rollout | Fence | Standing | Looked] = _EMPTY
        """By the keys of `core.decided`."""
        self.observed: Mapping[str, Report] = _EMPTY
        """By node name."""
        self.sightings: Mapping[str, Sighting] = _EMPTY
        """By node name."""
        # Derived from the tables above.
        self.nodes: Mapping[str, Node] = _EMPTY
        """Those of the fleet: machines that wait for approval are not among them."""
        self.nodes_of_site: Mapping[str, tuple[str, ...]] = _EMPTY
        """Eldest first: by enrolment, then name."""
        self.assignments: Mapping[str, Assignment] = _EMPTY
        """By node name."""
        self.commons: Mapping[str, Commons] = _EMPTY
        """By site."""
        self.strays: frozenset[str] = frozenset()
        """Names that have an assignment and are no nodes (any more)."""
        self.declared: Mapping[str, Application] = _EMPTY
        """By `namespace/application`: what people want to run."""
        self.releases: Mapping[str, tuple[Release, ...]] = _EMPTY
        """By `namespace/application`, oldest first."""
        self.rollouts: Mapping[str, Rollout] = _EMPTY
        """By `namespace/application`: how its newest release arrives, or arrived."""
        self.fences: Mapping[str, Mapping[str, Fence]] = _EMPTY
        """By `namespace/application`, then `component/slot`."""
        self.standing: Mapping[str, Mapping[str, Standing]] = _EMPTY
        """By `namespace/application`, then the row's key: what is remembered beside who holds what."""
        self.rooms: Mapping[str, Room] = _EMPTY
        """By key: those of the above for which a node keeps room."""
        self.looks: Mapping[str, Looked] = _EMPTY
        """By policy: when it last looked for moves."""
        self.held: Mapping[str, tuple[Held, ...]] = _EMPTY
        """By `namespace/application`: every instance in any assignment, sorted."""
        self.profiles: Mapping[str, Mapping[str, KnownProfile]] = _EMPTY
        """By digest of a variant, then class of hardware: how fast nodes found it to be."""
        self.users_of_model: Mapping[str, frozenset[str]] = _EMPTY
        """By `namespace/model`: the applications that name it."""
        self.policies: tuple[Policy, ...] = ()
        """In order of name."""
        self.watched: tuple[str, ...] = ()
        """Topic patterns that some component wants to be near: every node counts them. Sorted, at most WATCHED_MAX."""
        self.wide: frozenset[str] = frozenset()
        """Applications whose number of replicas follows the fleet: one for every site or every node."""

        self.trail = Trail()
        """How this State came about; `step` is where along it this State is."""
        self.step = 0
        self.memo: dict[str, Any] = {}
        """What readers keep from one State of a line to the next, to save work; no answer depends on it."""

    # --- Reading ---

    def get(self, ref: Ref) -> Resource | None:
        return self.desired.get(ref.key)

    def application(self, app: str) -> Application | None:
        """The application called `namespace/name`, as desired."""
        return self.declared.get(app)

    def model(self, namespace: str, name: str) -> Model | None:
        found = self.desired.get(Ref("models", namespace, name).key)
        return found if isinstance(found, Model) else None

    def site(self, name: str) -> Site | None:
        found = self.desired.get(Ref("sites", "", name).key)
        return found if isinstance(found, Site) else None

    def sites(self) -> list[Site]:
        # There are few of them among many; they are found before they are put in order.
        found = [(key, r) for key, r in self.desired.items() if isinstance(r, Site)]
        return [r for _, r in sorted(found, key=itemgetter(0))]

    def applications(self) -> list[str]:
        """Every application that is wished for or still leaves something behind, sorted."""
        indexes = (self.held, self.releases, self.rollouts, self.fences, self.standing)
        left = {app for index in indexes for app in index}
        return sorted(set(self.declared) | left)

    # --- Folding ---

    def with_changes(self, changes: Iterable[Change]) -> State:
        """The State after these changes, in order."""
        after = State.__new__(State)
        for slot in State.__slots__:
            setattr(after, slot, getattr(self, slot))
        batch = list(changes)
        after._tread(self, batch)
        for table in ("desired", "decided", "observed", "sightings"):
            mine = [c for c in batch if c.table == table]
            if not mine:
                continue
            before: Mapping[str, Any] = getattr(self, table)
            rows = dict(before)
            for change in mine:
                if change.value is None:
                    rows.pop(change.key, None)
                else:
                    rows[change.key] = change.value
            setattr(after, table, rows)
            if table == "desired":
                after._reindex_desired(before, {c.key for c in mine})
            elif table == "decided":
                after._reindex_decided(before, {c.key for c in mine})
        return after

    def listening_since(self, hub_since: int) -> State:
        """The same tables, heard by a hub that began to listen at `hub_since`; what it heard before is forgotten."""
        after = self.with_changes(())
        after.hub_since = hub_since
        after.deaf_ms = 0
        after.sightings = _EMPTY
        after.trail, after.step = Trail(), 0
        return after

    def deaf_for(self, deaf_ms: int) -> State:
        """The same tables, heard by a hub that could not listen for so long, all in all."""
        if deaf_ms == self.deaf_ms:
            return self
        after = self.with_changes(())
        after.deaf_ms = deaf_ms
        return after

    def _tread(self, before: State, batch: list[Change]) -> None:
        """One step further on the trail; whoever is not the first to go on from `before` begins a new one."""
        if before.step != before.trail.end:
            self.trail, self.step = Trail(), 0
            return
        changed: dict[str, list[str]] = {}
        for change in batch:
            changed.setdefault(change.table, []).append(change.key)
        self.step = self.trail.step({table: tuple(keys) for table, keys in changed.items()})

    def _reindex_desired(self, before: Mapping[str, Resource], keys: set[str]) -> None:
        nodes: dict[str, Node] | None = None
        users: dict[str, frozenset[str]] | None = None
        sites_touched: set[str] = set()
        declared: dict[str, Application] | None = None
        wide: set[str] | None = None
        near_changed = False
        for key in keys:
            old, new = before.get(key), self.desired.get(key)
            if old == new:
                continue
            if isinstance(old, Node) or isinstance(new, Node):
                nodes = dict(self.nodes) if nodes is None else nodes
                if is_member(old):
                    nodes.pop(old.metadata.name, None)
                    sites_touched.add(old.spec.site)
                if is_member(new):
                    nodes[new.metadata.name] = new
                    sites_touched.add(new.spec.site)
            if isinstance(old, Policy) or isinstance(new, Policy):
                others = (p for p in self.policies if p is not old)
                mine = (new,) if isinstance(new, Policy) else ()
                self.policies = tuple(sorted((*others, *mine), key=lambda p: p.metadata.name))
            if isinstance(old, Application) or isinstance(new, Application):
                users = dict(self.users_of_model) if users is None else users
                for resource, add in ((old, False), (new, True)):
                    if isinstance(resource, Application):
                        for model in _models_of(resource):
                            present = users.get(model, frozenset())
                            changed = present | {_app(resource)} if add else present - {_app(resource)}
                            users[model] = changed
                            if not changed:
                                del users[model]
                declared = dict(self.declared) if declared is None else declared
                if isinstance(old, Application):
                    declared.pop(_app(old), None)
                if isinstance(new, Application):
                    declared[_app(new)] = new
                was, now = _near(old), _near(new)
                near_changed = near_changed or (was != now and (bool(was - now) or not now.issubset(self.watched)))
                wide = set(self.wide) if wide is None else wide
                wide -= {_app(old)} if isinstance(old, Application) else set()
                wide |= {_app(new)} if isinstance(new, Application) and _is_wide(new) else set()
        if wide is not None:
            self.wide = frozenset(wide)
        if declared is not None:
            self.declared = declared
        if near_changed:
            self.watched = tuple(sorted({p for r in self.declared.values() for p in _near(r)})[:WATCHED_MAX])
        if nodes is not None:
            self.nodes = nodes
            self._find_strays(key.removeprefix("nodes.") for key in keys)
            self.nodes_of_site = self._sites_with(sites_touched, nodes)
        if users is not None:
            self.users_of_model = users

    def _sites_with(self, touched: set[str], nodes: Mapping[str, Node]) -> Mapping[str, tuple[str, ...]]:
        members: dict[str, list[Node]] = {site: [] for site in touched}
        for node in nodes.values():
            if node.spec.site in members:
                members[node.spec.site].append(node)
        index = dict(self.nodes_of_site)
        for site, found in members.items():
            if found:
                ordered = sorted(found, key=lambda n: (n.metadata.creation_timestamp or "", n.metadata.name))
                index[site] = tuple(n.metadata.name for n in ordered)
            else:
                index.pop(site, None)
        return index

    def _reindex_decided(self, before: Mapping[str, Any], keys: set[str]) -> None:
        assignments: dict[str, Assignment] | None = None
        releases: dict[str, tuple[Release, ...]] | None = None
        fences: dict[str, Mapping[str, Fence]] | None = None
        standing: dict[str, Mapping[str, Standing]] | None = None
        stood: dict[str, dict[str, Standing]] = {}
        rooms: dict[str, Room] | None = None
        commons: dict[str, Commons] | None = None
        fenced: dict[str, dict[str, Fence]] = {}
        gone: dict[str, set[tuple[str, int]]] = {}
        come: dict[str, list[Held]] = {}
        for key in keys:
            old, new = before.get(key), self.decided.get(key)
            if old is new or old == new:
                continue
            row = new if new is not None else old
            if isinstance(row, Assignment):
                assignments = dict(self.assignments) if assignments is None else assignments
                was, now = _instances(assignments.get(row.node)), _instances(new)
                if isinstance(new, Assignment):
                    assignments[row.node] = new
                else:
                    assignments.pop(row.node, None)
                if was is now:
                    continue
                # Whoever drafts an assignment keeps the instances that stay: what is the same object is not looked at.
                left, new_ones = apart(was, now)
                for instance in left:
                    gone.setdefault(instance.app, set()).add((row.node, id(instance)))
                for instance in new_ones:
                    come.setdefault(instance.app, []).append(Held(row.node, instance))
            elif isinstance(row, Commons):
                commons = dict(self.commons) if commons is None else commons
                if isinstance(new, Commons):
                    commons[row.site] = new
                else:
                    commons.pop(row.site, None)
            elif isinstance(row, KnownProfile):
                known = {h: found for h, found in self.profiles.get(row.digest, {}).items() if h != row.hardware}
                known |= {row.hardware: new} if isinstance(new, KnownProfile) else {}
                of_others = {digest: mine for digest, mine in self.profiles.items() if digest != row.digest}
                self.profiles = {**of_others, row.digest: known} if known else of_others
            elif isinstance(row, Release):
                releases = dict(self.releases) if releases is None else releases
                app = f"{row.namespace}/{row.application}"
                kept = [r for r in releases.get(app, ()) if r.revision != row.revision]
                kept += [row] if new is not None else []
                releases[app] = tuple(sorted(kept, key=lambda r: r.revision))
                if not releases[app]:
                    del releases[app]
            elif isinstance(row, Rollout):
                others_roll = {app: known for app, known in self.rollouts.items() if app != row.app}
                self.rollouts = others_roll | ({row.app: new} if isinstance(new, Rollout) else {})
            elif isinstance(row, Fence):
                fences = dict(self.fences) if fences is None else fences
                app = f"{row.namespace}/{row.application}"
                if app not in fenced:
                    fences[app] = fenced[app] = dict(fences.get(app, {}))
                fenced[app].pop(f"{row.component}/{row.slot}", None)
                if new is not None:
                    fenced[app][f"{row.component}/{row.slot}"] = row
            elif isinstance(row, Standing):
                standing = dict(self.standing) if standing is None else standing
                if row.app not in stood:
                    standing[row.app] = stood[row.app] = dict(standing.get(row.app, {}))
                stood[row.app].pop(key, None)
                if isinstance(new, Standing):
                    stood[row.app][key] = new
                if key in self.rooms or isinstance(new, Room):
                    rooms = dict(self.rooms) if rooms is None else rooms
                    rooms.pop(key, None)
                    if isinstance(new, Room) and new.node:
                        rooms[key] = new
            elif isinstance(row, Looked):
                others = {name: look for name, look in self.looks.items() if name != row.policy}
                self.looks = others | ({row.policy: new} if isinstance(new, Looked) else {})
        if standing is not None:
            self.standing = {app: mine for app, mine in standing.items() if mine}
        if rooms is not None:
            self.rooms = rooms
        if assignments is not None:
            self.assignments = assignments
            self._find_strays(key.removeprefix("assignment.") for key in keys)
        if commons is not None:
            self.commons = commons
        if releases is not None:
            self.releases = releases
        if fences is not None:
            self.fences = {app: rows for app, rows in fences.items() if rows}
        self._reindex_held(gone, come)

    def _find_strays(self, names: Iterable[str]) -> None:
        found = {name for name in names if name in self.assignments and name not in self.nodes}
        lost = {name for name in self.strays if name in self.nodes or name not in self.assignments}
        if found - self.strays or lost:
            self.strays = (self.strays | found) - lost

    def _reindex_held(self, gone: dict[str, set[tuple[str, int]]], come: dict[str, list[Held]]) -> None:
        if not gone and not come:
            return
        held = dict(self.held)
        for app in gone.keys() | come.keys():
            left = gone.get(app, set())
            stay = [h for h in held.get(app, ()) if (h.node, id(h.instance)) not in left] + come.get(app, [])
            if stay:
                held[app] = tuple(sorted(stay, key=_order))
            else:
                held.pop(app, None)
        self.held = held


def is_member(resource: Resource | None) -> TypeGuard[Node]:
    """A machine that waits for approval is declared, so that it can be seen, and is no node of the fleet yet."""
    return isinstance(resource, Node) and not resource.spec.pending


def apart(was: Sequence[Instance], now: Sequence[Instance]) -> tuple[list[Instance], list[Instance]]:
    """Of what is assigned to a node: what is gone, and what has come. What stays is the same object."""
    before = {id(i) for i in was}
    come = [i for i in now if id(i) not in before]
    if len(was) == len(now) - len(come):
        return [], come
    after = {id(i) for i in now}
    return [i for i in was if id(i) not in after], come


def _instances(row: Any) -> tuple[Instance, ...]:
    return row.instances if isinstance(row, Assignment) else ()


def _order(held: Held) -> tuple[str, str, int, int, str]:
    instance = held.instance
    return (instance.component, instance.slot, instance.revision, instance.epoch, held.node)


def _app(application: Application) -> str:
    return f"{application.ref.namespace}/{application.ref.name}"


def _near(resource: Resource | None) -> set[str]:
    components = resource.spec.components if isinstance(resource, Application) else ()
    return {pattern for component in components for pattern in component.placement.near}


def _is_wide(application: Application) -> bool:
    return any(c.replicas.per_site is not None or c.replicas.every_node for c in application.spec.components)


def _models_of(application: Application) -> set[str]:
    namespace = application.metadata.namespace or DEFAULT_NAMESPACE
    return {f"{namespace}/{c.model.name}" for c in application.spec.components if c.model is not None}
