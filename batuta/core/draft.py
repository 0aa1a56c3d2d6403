"""Draft: a decision in the making. What was given and taken so far, laid over a State that does not change.

Passes read through the draft, so that a later application sees the room that an earlier one took. What comes out is
computed at the end, as rows of the decided table.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from batuta.core.decided import Capture, Fence, Instance, Release, fence_key, release_key
from batuta.core.liveness import Ears, heard_at, missed_ms
from batuta.core.load import load_of
from batuta.core.rooms import Rooms
from batuta.core.standing import Awaited, Displaced, Looked, Moving, Scaled, Standing
from batuta.core.state import Change, Held
from batuta.core.trusted import followed

if TYPE_CHECKING:
    from batuta.core.budget import Books
    from batuta.core.fleet import Fleet
    from batuta.core.load import Load
    from batuta.core.observed import InstanceReport
    from batuta.core.rollout import Rollout
    from batuta.core.state import State
    from batuta.core.wish import Ask, Slot

Row = TypeVar("Row", bound=Standing)


ROLLS_MAX = 32
"""So often at most is one application tended in a decision for what its rollout did; the rest is for the next one."""
_name = attrgetter("name")


class Draft:
    """What the decision has changed, and the instant it is made at."""

    def __init__(self, state: State, fleet: Fleet, now: int) -> None:
        self.state = state
        self.fleet = fleet
        self.now = now
        self.ears = Ears(state, now)
        self.missed_ms = missed_ms(state)
        self.may_preempt = False
        """Is it the turn of those that fit nowhere to displace others?"""
        self.displaced: set[str] = set()
        """Applications of which somebody was displaced."""
        self.rolled: set[str] = set()
        """Applications whose rollout may go on by what was given or taken: they are tended again."""
        self._rolls: dict[str, int] = {}
        self.asks: dict[tuple[str, str], Ask] = {}
        """By application and component: what was asked last."""
        self.fresh: dict[int, dict[tuple[str, str, str], Slot]] = {}
        """By row: slots (of application and component) that were filled there in this decision and that nobody filled
        before."""
        self.freed = 0
        """Counts what was taken away: room that somebody turned away before may want."""
        self.watched_sites: set[str] = set()
        """Sites whose captures must be looked at, whether or not a node of theirs was drafted."""
        self.wakes: set[int] = set()
        """Instants at which an answer given in this decision could change by time alone."""
        self.books: dict[tuple[str, str], Books | None] = {}
        """By application and component: what of it is missing, where somebody asked (`core.budget`)."""
        self.rooms = Rooms(self)
        self.stirred: dict[str, int] = {}
        """By application: counts what was given or taken of it."""
        self.below: dict[int, Any] = {}
        self.ready_slots: dict[tuple[str, str], tuple[int, frozenset[str]]] = {}
        """These two are kept for `core.preempt`."""
        self._instances: dict[str, list[Instance]] = {}
        self._insisted: dict[str, int] = {}
        self._held: dict[str, list[Held]] = {}
        self._decided: dict[str, Release | Rollout | Fence | Standing | Looked | None] = {}
        self._standing: dict[str, dict[str, Standing | None]] = {}
        self._releases: dict[str, list[Release]] = {}
        self._rollouts: dict[str, Rollout | None] = {}
        self._fences: dict[str, dict[str, Fence]] = {}
        self._fenced: dict[str, list[Capture]] | None = None
        self._reports: dict[str, dict[str, InstanceReport]] = {}

    # --- Instances ---

    def held(self, app: str) -> list[Held]:
        """Every instance of an application in any assignment, as drafted."""
        found = self._held.get(app)
        return list(self.state.held.get(app, ()) if found is None else found)

    def instances(self, node: str) -> tuple[Instance, ...]:
        """What a node should run, as drafted, by name."""
        drafted = self._instances.get(node)
        if drafted is not None:
            return tuple(drafted)
        assignment = self.state.assignments.get(node)
        return assignment.instances if assignment is not None else ()

    def give(self, node: str, instance: Instance, load: Load | None = None) -> None:
        """`load`: what the instance takes, where that is known already."""
        self.give_laid(node, instance)
        self._shift(node, instance, 1, load)

    def give_laid(self, node: str, instance: Instance) -> None:
        """The same for an instance whose load was shifted with that of others."""
        drafted, app = self._drafted(node), instance.app
        if drafted:
            name = instance.name
            place = bisect_left(drafted, name, key=_name)
            assert place == len(drafted) or drafted[place].name != name, f"{name} is given to {node} twice"
            drafted.insert(place, instance)
        else:
            drafted.append(instance)
        held = Held(node, instance)
        self._holders(app).append(held)
        if self.books and (books := self.books.get((app, instance.component))) is not None:
            books.gave(held)
        self.rooms.doubt(node, app)

    def take(self, held: Held) -> None:
        drafted, name = self._drafted(held.node), held.instance.name
        del drafted[next(i for i, instance in enumerate(drafted) if instance.name == name)]
        self._holders(held.instance.app).remove(held)
        if (books := self.books.get((held.instance.app, held.instance.component))) is not None:
            books.took(held)
        self._shift(held.node, held.instance, -1)
        self.freed += 1

    def take_back(self, held: Held) -> None:
        """Take away what was given in this decision, as if it had never been."""
        i = held.instance
        if i.lease_ms is not None:
            before = self.state.fences.get(i.app, {}).get(f"{i.component}/{i.slot}")
            given = self.fence(i.app, i.component, i.slot)
            if before is not None:
                self.write_fence(before)
            elif given is not None:
                self.drop_fence(given)
        for row in self.state.standing.get(i.app, {}).values():
            if isinstance(row, Displaced) and (row.component, row.slot) == (i.component, i.slot):
                self.write_standing(row)
        self.take(held)
        self.displaced.add(i.app)

    def holding_apps(self) -> set[str]:
        """Whoever holds anything, as drafted."""
        return {app for app in self.state.held.keys() | self._held.keys() if self.held(app)}

    def is_drafted(self, app: str) -> bool:
        """Did this decision give, take or note anything of it?"""
        return app in self._held or app in self._standing or app in self._fences

    def note_fresh(self, ask: Ask, slot: Slot, row: int) -> None:
        """An instance was placed in a slot that nobody filled before: until this decision is done it is no matter where
        it was put."""
        self.fresh.setdefault(row, {})[ask.app, ask.component.name, slot.name] = slot

    def changed_nodes(self) -> list[str]:
        return sorted(self._instances.keys() | self._insisted.keys())

    def insist(self, node: str, serial: int) -> None:
        """The node's assignment must reach this serial: something waits for the node to answer for it."""
        assignment = self.state.assignments.get(node)
        if node in self.state.nodes and (assignment is None or assignment.serial < serial):
            self._insisted[node] = max(serial, self._insisted.get(node, 0))

    def is_insisted(self, node: str) -> bool:
        return node in self._insisted

    def settle(self, node: str, instances: tuple[Instance, ...]) -> None:
        """These are what was drafted for a node: when they are assigned, the fleet need not count its loads again."""
        row = self.fleet.row_of.get(node)
        if row is not None:
            self.fleet.settle(row, instances)

    def reported(self, node: str, instance: Instance) -> InstanceReport | None:
        """What a node last said of this very placement."""
        if node not in self._reports:
            report = self.state.observed.get(node)
            self._reports[node] = {i.name: i for i in report.instances} if report is not None else {}
        found = self._reports[node].get(instance.name)
        return found if found is not None and found.epoch == instance.epoch else None

    def serial(self, node: str) -> int:
        """The serial of the assignment that this decision may write. Above whatever the node follows, also when the
        decided table was restored from an older copy."""
        assignment, report = self.state.assignments.get(node), self.state.observed.get(node)
        newest = max(assignment.serial if assignment else 0, report.serial if report else 0)
        return max(newest + 1, self._insisted.get(node, 0))

    # --- Time ---

    def silent_ms(self, node: str) -> int:
        """How long a node has been silent, by everybody's ears."""
        row = self.fleet.row_of.get(node)
        if row is not None and self.fleet.fresh[row]:
            return self.now - int(self.fleet.heard[row])
        return self.now - self.ears.silent_since(node)

    def unheard_ms(self, node: str) -> int:
        """How long the hub itself has not heard a node: what leases run by."""
        return self.now - heard_at(self.state, node)

    def wake_for(self, node: str, at: int) -> None:
        """When a silence will have lasted so long. What others hear may put that off as time goes by; then it is looked
        at again a little later, and not at every millisecond until somebody speaks."""
        moves = self.silent_ms(node) < self.unheard_ms(node)
        self.wake(max(at, self.now + self.missed_ms // 40) if moves and at > self.now else at)

    def wake(self, at: int) -> None:
        if at > self.now:
            self.wakes.add(at)

    # --- Releases and fences ---

    def releases(self, app: str) -> list[Release]:
        """Oldest first, as drafted."""
        return list(self._releases.get(app, self.state.releases.get(app, ())))

    def write_release(self, release: Release) -> None:
        app = f"{release.namespace}/{release.application}"
        self._decided[release_key(release.namespace, release.application, release.revision)] = release
        self._releases[app] = [*self.releases(app), release]

    def drop_release(self, release: Release) -> None:
        app = f"{release.namespace}/{release.application}"
        self._decided[release_key(release.namespace, release.application, release.revision)] = None
        self._releases[app] = [r for r in self.releases(app) if r.revision != release.revision]

    def rollout(self, app: str) -> Rollout | None:
        """How its newest release arrives, as drafted; None for one that is the first."""
        return self._rollouts[app] if app in self._rollouts else self.state.rollouts.get(app)

    def write_rollout(self, rollout: Rollout) -> None:
        if self.rollout(rollout.app) != rollout:
            self._decided[rollout.key] = self._rollouts[rollout.app] = rollout

    def drop_rollout(self, rollout: Rollout) -> None:
        self._decided[rollout.key] = self._rollouts[rollout.app] = None

    def roll_again(self, app: str) -> None:
        """Tend it once more in this decision, so that deciding ends at rest."""
        self._rolls[app] = self._rolls.get(app, 0) + 1
        if self._rolls[app] <= ROLLS_MAX:
            self.rolled.add(app)

    def fences(self, app: str) -> dict[str, Fence]:
        """By `component/slot`, as drafted."""
        return self._fences[app] if app in self._fences else dict(self.state.fences.get(app, {}))

    def fence(self, app: str, component: str, slot: str) -> Fence | None:
        rows = self._fences[app] if app in self._fences else self.state.fences.get(app)
        return rows.get(f"{component}/{slot}") if rows else None

    def write_fence(self, fence: Fence) -> None:
        self._decided[fence_key(fence.namespace, fence.application, fence.component, fence.slot)] = fence
        self._fence_rows(fence)[f"{fence.component}/{fence.slot}"] = fence

    def drop_fence(self, fence: Fence) -> None:
        self._decided[fence_key(fence.namespace, fence.application, fence.component, fence.slot)] = None
        self._fence_rows(fence).pop(f"{fence.component}/{fence.slot}", None)

    def watch_fences(self, app: str) -> None:
        """What an application's fences have its sites store may change without any node being given or taken."""
        for fence in (*self.state.fences.get(app, {}).values(), *self.fences(app).values()):
            node = self.state.nodes.get(fence.node)
            if node is not None:
                self.watched_sites.add(node.spec.site)

    def fenced_captures(self, site: str) -> list[Capture]:
        """What a site goes on storing for `never-twice` models that are between two holders."""
        if self._fenced is None:
            self._fenced = {}
            for app in sorted(self.state.fences.keys() | self._fences.keys()):
                rows = self._fences.get(app) if app in self._fences else self.state.fences.get(app)
                if all(fence.released_at is None for fence in (rows or {}).values()):
                    continue
                to_run = followed(self, app) if self.state.application(app) is not None else None
                components = {r.component.name: r.component for r in to_run.components} if to_run is not None else {}
                for _, fence in sorted(self.fences(app).items()):
                    node, component = self.state.nodes.get(fence.node), components.get(fence.component)
                    if node is None or component is None or component.model is None or fence.released_at is None:
                        continue
                    if not component.inputs:
                        continue
                    capture = Capture(
                        consumer=f"{fence.namespace}_{fence.application}_{fence.component}",
                        topics=tuple(dict.fromkeys(i.topic for i in component.inputs)),
                        outputs=component.outputs,
                    )
                    self._fenced.setdefault(node.spec.site, []).append(capture)
        return self._fenced.get(site, [])

    # --- What is remembered beside ---

    def standing(self, app: str, kind: type[Row]) -> list[Row]:
        """The rows of one kind that an application has, as drafted, in order of key."""
        known = self.state.standing.get(app, {})
        rows = {**known, **self._standing[app]} if app in self._standing else known
        return [row for _, row in sorted(rows.items()) if isinstance(row, kind)]

    def asked_move(self, app: str, component: str, slot: str) -> Moving | None:
        """The move that somebody asked for, if it is still to be made."""
        found = self.standing_row(app, f"moving.{app.replace('/', '.')}.{component}.{slot}")
        return found if isinstance(found, Moving) else None

    def asked_slots(self, app: str, component: str) -> set[str]:
        """The slots of which somebody asked for a move."""
        if app not in self._standing and app not in self.state.standing:
            return set()
        return {row.slot for row in self.standing(app, Moving) if row.component == component}

    def has_standing(self, app: str) -> bool:
        """Was anything of the kind drafted?"""
        return app in self._standing

    def next_look(self) -> int | None:
        """The next instant at which time alone may change the number of somebody's replicas."""
        known = {key: row for rows in self.state.standing.values() for key, row in rows.items()}
        drafted = {key: row for rows in self._standing.values() for key, row in rows.items()}
        looks = (row.look_at for row in {**known, **drafted}.values() if isinstance(row, Scaled))
        return min((at for at in looks if at is not None and at > self.now), default=None)

    def write_standing(self, row: Standing) -> None:
        self._decided[row.key] = self._standing.setdefault(row.app, {})[row.key] = row

    def drop_standing(self, row: Standing) -> None:
        self._decided[row.key] = self._standing.setdefault(row.app, {})[row.key] = None

    def write_look(self, look: Looked) -> None:
        self._decided[look.key] = look

    def drop_look(self, look: Looked) -> None:
        self._decided[look.key] = None

    def displacement(self, app: str, component: str, slot: str) -> Displaced | None:
        """What a slot gave way to, while it is not filled again."""
        found = self.standing_row(app, f"displaced.{app.replace('/', '.')}.{component}.{slot}")
        return found if isinstance(found, Displaced) else None

    def awaited(self, app: str, component: str, slot: str) -> Awaited | None:
        """Where a slot was that was emptied before its next instance could start, while that is not ready."""
        found = self.standing_row(app, f"awaited.{app.replace('/', '.')}.{component}.{slot}")
        return found if isinstance(found, Awaited) else None

    def standing_row(self, app: str, key: str) -> Standing | None:
        """One row, as drafted."""
        drafted = self._standing.get(app)
        if drafted is not None and key in drafted:
            return drafted[key]
        known = self.state.standing.get(app)
        return known.get(key) if known is not None else None

    def decided(self) -> list[Change]:
        """The releases, fences and standing rows that differ from what is decided already."""
        return [Change("decided", key, row) for key, row in self._decided.items() if self.state.decided.get(key) != row]

    def _fence_rows(self, fence: Fence) -> dict[str, Fence]:
        app = f"{fence.namespace}/{fence.application}"
        if app not in self._fences:
            self._fences[app] = dict(self.state.fences.get(app, {}))
        return self._fences[app]

    def _drafted(self, node: str) -> list[Instance]:
        """By name, as an assignment has them."""
        if node not in self._instances:
            self._instances[node] = list(self.instances(node))
        return self._instances[node]

    def _holders(self, app: str) -> list[Held]:
        if app not in self._held:
            self._held[app] = list(self.state.held.get(app, ()))
        self.stirred[app] = self.stirred.get(app, 0) + 1
        return self._held[app]

    def _shift(self, node: str, instance: Instance, count: int, load: Load | None = None) -> None:
        row = self.fleet.row_of.get(node)
        if row is not None:
            self.fleet.shift(row, load_of(instance) if load is None else load, count)
