"""A small world to prove decisions in: a fleet, what people want of it, and whatever may happen, step after step.

Nodes keep their half of the bargain as the node agent does: they run what they were last told, stop what is leased when
the hub has not answered for so long, and read the newest assignment before anything else when they come back.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import msgspec
from hypothesis import strategies as st

from batuta.core.decide import APPLICATION, Decision, decide
from batuta.core.decided import Assignment
from batuta.core.fleet import Fleet
from batuta.core.liveness import heard_at, sighted, silent_ms
from batuta.core.observed import Flow, InstanceReport, Measures
from batuta.core.standing import Moving, Scaled
from batuta.core.state import Change, State
from batuta.core.touched import touched
from batuta.kinds.application import Replicas, Toleration
from batuta.kinds.autoscale import Autoscale, Window
from batuta.kinds.base import Millis
from batuta.kinds.instants import Instant
from batuta.kinds.node import Hold, Taint
from batuta.kinds.policy import Hours, Moves
from batuta.kinds.rolling import Disruption, Rollout
from batuta.twin.budget_law import exceeded
from tests.core.fleets import MIB, NOW, application, component, model, no_application, node, policy, report, site
from tests.laws import preempting, rooming

NODES = ("a", "b", "c", "d", "e", "f")
SITES = ("berlin", "lyon")
APPS = ("p", "q", "r")
WHERES = (
    None,
    None,
    '"camera" in node.labels',
    "node.labels.zone == '1'",
    "node.temperature < 50.0",
    'site.name != "x"',
)

components = st.builds(
    component,
    name=st.sampled_from(["x", "y"]),
    count=st.integers(0, 4),
    per_site=st.sampled_from([None, None, 1, 2]),
    every_node=st.sampled_from([None, None, None, True]),
    after_ms=st.sampled_from([2_000, 5_000, 10_000]),
    cpu=st.sampled_from([100, 700, 1_500]),
    memory=st.sampled_from([16, 64, 400]),
    where=st.sampled_from(WHERES),
    near=st.sampled_from([(), ("cameras/+/frame",)]),
    spread=st.sampled_from([None, "node", "site"]),
    tolerations=st.sampled_from([(), (Toleration(key="t"),)]),
    model=st.sampled_from([None, None, "1", "2", "9"]),
    never_twice=st.booleans(),
    command=st.sampled_from(["one", "two", "three"]),
    port=st.sampled_from([None, None, 8080]),
)


def _application(name: str, parts: list[Any], priority: int, budget: int | None, zone: int | None = None) -> Change:
    change = application(*parts, name=name)
    rollout = Rollout(disruption=Disruption(per_site=budget, per_domain={} if zone is None else {"zone": zone}))
    spec = msgspec.structs.replace(change.value.spec, priority=priority, rollout=rollout)
    return change._replace(value=msgspec.structs.replace(change.value, spec=spec))


def _scaled(part: Any, autoscale: Autoscale | None) -> Any:
    if autoscale is None or part.replicas.count is None:
        return part
    return msgspec.structs.replace(part, replicas=Replicas(autoscale=autoscale))


autoscales = st.builds(
    Autoscale,
    min=st.integers(0, 2),
    max=st.integers(2, 5),
    windows=st.sampled_from(
        [
            (),
            (Window(opens="*/2 * * * *", closes="1-59/2 * * * *", min=3),),
            (Window(opens="14 * * * *", closes="15 * * * *", max=1),),
        ]
    ),
    load=st.sampled_from(
        [
            None,
            "latency.p99 / 50.0",
            "latency.p99 / 50.0",
            "queue.stored / 10.0",
            "rate.received / 5.0",
            "latency.p50 / 1.0",
        ]
    ),
    up_after_ms=st.sampled_from([Millis(0), Millis(2_000), Millis(10_000)]),
    down_after_ms=st.sampled_from([Millis(0), Millis(5_000)]),
)
components = st.builds(_scaled, components, st.one_of(st.none(), st.none(), autoscales))
applications = st.builds(
    _application,
    st.sampled_from(APPS),
    st.lists(components, min_size=1, max_size=2, unique_by=lambda c: c.name),
    st.sampled_from([0, 0, -5, 10, 20]),
    st.sampled_from([None, None, 0, 1]),
    st.sampled_from([None, None, 0, 1]),
)
crowds = st.builds(
    _application,
    st.sampled_from(APPS),
    st.lists(
        st.builds(
            component,
            name=st.sampled_from(["x", "y"]),
            count=st.integers(1, 4),
            per_site=st.sampled_from([None, None, None, 1]),
            every_node=st.sampled_from([None, None, None, True]),
            cpu=st.sampled_from([700, 1_500]),
            where=st.sampled_from([None, None, *WHERES]),
            never_twice=st.sampled_from([False, False, True]),
            command=st.sampled_from(["one", "two"]),
        ),
        min_size=1,
        max_size=2,
        unique_by=lambda c: c.name,
    ),
    st.sampled_from([0, -5, 10, 20]),
    st.sampled_from([None, None, 0, 1, 2]),
)
"""Applications for which there is never room enough."""
taints = st.sampled_from([(), (), (Taint(key="t"),), (Taint(key="t", effect="NoExecute"),), (Taint(key="u"),)])
holds = st.sampled_from([None, None, None, Hold(), Hold(until=Instant(NOW + 9_000)), Hold(until=Instant(NOW + 40_000))])
labels = st.sampled_from([{}, {"camera": "1"}, {"camera": "1", "zone": "1"}, {"zone": "2"}])
declarations = st.builds(
    node, st.sampled_from(NODES), st.sampled_from(SITES), labels=labels, taints=taints, unschedulable=st.booleans(),
    drain=st.sampled_from([False, False, True]), hold=holds,
)  # fmt: skip
names = st.sampled_from(NODES)
steps = st.one_of(
    st.tuples(st.just("apply"), applications),
    st.tuples(st.just("apply"), applications),
    st.tuples(st.just("obey"), st.sets(names, max_size=2)),
    st.tuples(st.just("obey"), st.sets(names, max_size=2)),
    st.tuples(st.just("wait"), st.sampled_from([100, 1_000, 2_500, 6_000, 13_000, 30_000])),
    st.tuples(st.just("wait"), st.sampled_from([100, 1_000, 2_500, 6_000, 13_000, 30_000])),
    st.tuples(st.just("cut"), names),
    st.tuples(st.just("mend"), names),
    st.tuples(st.just("crash"), names),
    st.tuples(st.just("fail"), names),
    st.tuples(st.just("delete"), st.sampled_from(APPS)),
    st.tuples(st.just("declare"), declarations),
    st.tuples(st.just("remove"), names),
    st.tuples(
        st.just("machine"), st.tuples(names, st.sampled_from([500, 2_000, 4_000]), st.sampled_from([40.0, 60.0]))
    ),
    st.tuples(
        st.just("measure"),
        st.tuples(names, st.sampled_from([None, 1.0, 50.0, 400.0]), st.integers(0, 3), st.sampled_from([0, 90])),
    ),
    st.tuples(st.just("ask"), st.tuples(st.sampled_from(APPS), st.integers(0, 5), names)),
    st.tuples(
        st.just("govern"),
        st.builds(
            Moves,
            every_ms=st.sampled_from([Millis(3_000), Millis(7_000)]),
            at_most=st.integers(1, 3),
            least_gain=st.sampled_from([1, 10]),
            again_ms=st.sampled_from([Millis(2_000), Millis(20_000)]),
            hours=st.sampled_from([(), (), (Hours(opens="*/2 * * * *", closes="1-59/2 * * * *"),)]),
        ),
    ),
    st.tuples(st.just("govern"), st.none()),
    st.tuples(st.just("models"), st.sampled_from([("1",), ("1", "2"), ("1", "2", "3")])),
    st.tuples(st.just("hub"), st.just(None)),
)
worlds = st.builds(
    lambda first, then: [*(("apply", a) for a in first), ("obey", set()), *then],
    st.lists(applications, min_size=1, max_size=3),
    st.lists(steps, min_size=5, max_size=30),
)
crowded_worlds = st.builds(
    lambda first, then: [*(("apply", a) for a in first), ("obey", set()), *then],
    st.lists(crowds, min_size=2, max_size=3),
    st.lists(
        st.one_of(st.tuples(st.just("apply"), crowds), st.tuples(st.just("obey"), st.sets(names, max_size=1)), steps),
        min_size=5,
        max_size=20,
    ),
)

stalls = st.tuples(st.just("stall"), st.sampled_from([300, 2_500, 10_000, 60_000]))


class World:
    """One history. `turn` is the hub's loop: what changed is decided, committed, and compared with deciding it all."""

    def __init__(self) -> None:
        self.now = NOW
        rows = [site(s) for s in SITES] + [model("1", "2")]
        rows += [node(n, SITES[k % 2], labels={"camera": "1"} if k % 3 else {}) for k, n in enumerate(NODES[:4])]
        rows += [Change("observed", n, report(n, cpu=2_000, memory=600)) for n in NODES[:4]]
        self.state = State(hub_since=NOW - 3_600_000).with_changes(rows)
        self.cut: set[str] = set()
        self.failing: set[str] = set()
        self.told: dict[str, Assignment] = {}
        self.contact: dict[str, int] = {}
        self.fleet = Fleet()
        self.before, self.was, self.pending = self.state, self.now, frozenset[str]()
        self.own: dict[str, Any] = {}
        self._beat()
        self.turn(full=True)

    # --- What may happen ---

    def step(self, what: str, with_: Any) -> None:
        getattr(self, f"_{what}")(with_)
        self.turn()

    def _apply(self, change: Change) -> None:
        self.change(change)

    def _delete(self, name: str) -> None:
        self.change(no_application(name))

    def _declare(self, change: Change) -> None:
        name = change.value.metadata.name
        self.change(change)
        if name not in self.state.observed:
            self.change(Change("observed", name, report(name, cpu=2_000, memory=600)))
        self._beat()

    def _remove(self, name: str) -> None:
        if name in self.state.nodes:
            self.change(Change("desired", f"nodes.{name}", None))

    def _machine(self, with_: tuple[str, int, float]) -> None:
        name, cpu, temperature = with_
        known = self.state.observed.get(name)
        if known is not None and name not in self.cut:
            fresh = report(name, cpu=cpu, memory=600)
            vitals = msgspec.structs.replace(known.vitals, temperature_c=temperature)
            self.change(
                Change(
                    "observed", name, msgspec.structs.replace(known, inventory=fresh.inventory, vitals=vitals)
                )
            )  # fmt: skip

    def _measure(self, with_: tuple[str, float | None, int, int]) -> None:
        """A node says how slow what it runs is, what came in and what waits."""
        name, p99, came, stored = with_
        known = self.state.observed.get(name)
        if known is None or name in self.cut:
            return
        measures = None if p99 is None else Measures(latency_p99_ms=p99, received=came)
        said = tuple(msgspec.structs.replace(i, measures=measures) for i in known.instances)
        before = {flow.consumer: flow for flow in known.flows}
        flows = tuple(
            Flow(consumer=c, produced=(before[c].produced if c in before else 0) + 100 * came, stored=stored)
            for c in (f"default_{app}_{part}" for app in APPS for part in "xy")
        )
        self.change(Change("observed", name, msgspec.structs.replace(known, at=self.now, instances=said, flows=flows)))
        sighting = self.state.sightings.get(name)
        if sighting is not None:
            self.change(Change("sightings", name, msgspec.structs.replace(sighting, reported_at=self.now)))

    def _ask(self, with_: tuple[str, int, str]) -> None:
        """Somebody asks for a move."""
        app, which, to = with_
        held = self.state.held.get(f"default/{app}", ())
        if held:
            node, i = held[which % len(held)]
            row = Moving(
                namespace=i.namespace, application=i.application, component=i.component, slot=i.slot,
                node=node, to=to, by="anna", at=self.now,
            )  # fmt: skip
            self.change(Change("decided", row.key, row))

    def _govern(self, moves: Moves | None) -> None:
        """There is a policy that moves what is better off elsewhere; or there is none any more."""
        rule = policy("tidy", moves=moves)
        self.change(rule if moves is not None else rule._replace(value=None))

    def _models(self, versions: tuple[str, ...]) -> None:
        self.change(model(*versions))

    def _cut(self, name: str) -> None:
        self.cut.add(name)

    def _mend(self, name: str) -> None:
        self.cut.discard(name)
        if name in self.state.nodes and name in self.state.assignments:
            self.told[name] = self.state.assignments[name]
        self._beat()

    def _crash(self, name: str) -> None:
        """It loses power; what ran is gone, its link too."""
        self.cut.add(name)
        self.told.pop(name, None)

    def _fail(self, name: str) -> None:
        """What is started there from now on does not get ready; or does again."""
        self.failing ^= {name}

    def _hub(self, _: None) -> None:
        self.state = self.state.listening_since(self.now)
        self.before, self.pending, self.fleet = State(), frozenset(), Fleet()
        self.turn(full=True)

    def _stall(self, ms: int) -> None:
        """The hub is blocked and hears nobody; what was said meanwhile it hears right after."""
        lost = {name for name in self.state.nodes if silent_ms(self.state, name, self.now) >= 2_000}
        self.now += ms
        self.state = self.state.deaf_for(self.state.deaf_ms + ms)
        assert lost >= {name for name in self.state.nodes if silent_ms(self.state, name, self.now) >= 2_000}
        self.turn()
        self._beat()
        self.turn()

    def _wait(self, ms: int) -> None:
        """Time passes, with a heartbeat a second and a turn of the loop whenever it asked for one."""
        until = self.now + ms
        while self.now < until:
            self.now = min(until, self.now + 1_000)
            self._beat()
            self.turn()

    def _obey(self, but: set[str]) -> None:
        """Nodes take their assignments, run them and report."""
        rows = []
        for name, assignment in self.state.assignments.items():
            known = self.state.observed.get(name)
            if name in self.cut or name in but or known is None or name not in self.state.nodes:
                continue
            self.told[name] = assignment
            measured = {(i.name, i.epoch): i.measures for i in known.instances}
            said = tuple(
                InstanceReport(
                    name=i.name, epoch=i.epoch, since=self.now, measures=measured.get((i.name, i.epoch)),
                    phase="starting" if name in self.failing else "ready",
                )
                for i in assignment.instances
            )  # fmt: skip
            rows.append(
                Change("observed", name, msgspec.structs.replace(known, serial=assignment.serial, instances=said))
            )
        self._beat()
        self.state = self.state.with_changes(rows)

    def change(self, *rows: Change) -> None:
        self.state = self.state.with_changes(rows)

    def settle(self) -> None:
        """All heals, and then as many turns as it takes, or forty."""
        for name in NODES:
            self.step("mend", name)
        self.failing.clear()
        self._obeyed()
        self.step("wait", 18_000)
        assert self._obeyed(), "a healed fleet is still deciding"

    def _obeyed(self) -> bool:
        """Nodes do as they are told until they are told nothing new; False when there is no end to it."""
        for _ in range(40):
            before = self.rows()
            self.step("obey", set())
            if self.rows() == before:
                return True
        return False

    def rows(self) -> dict[str, Any]:
        """What is decided, but for when policies last looked for moves."""
        return {key: row for key, row in self.state.decided.items() if not key.startswith("looked.")}

    def settle_for(self, ms: int) -> None:
        """Settled, and time alone has nothing to decide for so long: neither a window's edge nor a count of messages.
        What these change settles too."""
        self.settle()
        for _ in range(8):
            looks = self.next_look()
            if looks is None or looks > self.now + ms:
                return
            self.step("wait", looks - self.now)
            self._obeyed()

    def next_look(self) -> int | None:
        """When time alone next has something to decide of what is autoscaled."""
        rows = (row for each in self.state.standing.values() for row in each.values())
        return min((r.look_at for r in rows if isinstance(r, Scaled) and r.look_at is not None), default=None)

    def copy(self) -> World:
        """The same world, from here on by itself."""
        other = copy(self)
        other.cut, other.failing = set(self.cut), set(self.failing)
        other.told, other.contact = dict(self.told), dict(self.contact)
        other.fleet, other.before, other.own = Fleet(), State(), {}
        other.turn(full=True)
        return other

    def _beat(self) -> None:
        rows = []
        for name in sorted(self.state.nodes.keys() - self.cut):
            rows.append(
                Change("sightings", name, sighted(self.state.sightings.get(name), self.now, deaf_ms=self.state.deaf_ms))
            )
            self.contact[name] = self.now
        self.state = self.state.with_changes(rows)

    # --- What must hold ---

    def turn(self, *, full: bool = False) -> Decision:
        subjects = (
            None if full else touched(self.before, self.state, self.was, self.now, self.fleet, self.own) | self.pending
        )
        decision = decide(self.state, self.now, subjects, self.fleet)
        everything = decide(self.state, self.now, None, Fleet())
        assert decision.changes == everything.changes, "deciding what was touched is not deciding everything"
        assert decision.pending == everything.pending
        before, self.state = self.state, self.state.with_changes(decision.changes)
        self._capacity_is_kept(before)
        self._holds_are_kept(before)
        preempting.check(before, self.state)
        assert not (broken := exceeded(before, self.state, self.now)), "; ".join(map(str, broken))
        rooming.check(before, self.state)
        again = decide(self.state, self.now, None, Fleet())
        assert again.changes == (), f"not idle: {[c.key for c in again.changes]}"
        if again.wake_at is not None:
            assert again.wake_at > self.now
        quiet_until = again.wake_at if again.wake_at is not None else self.now + 1_000_000
        for later in (quiet_until - 1, (self.now + quiet_until) // 2):
            early = decide(self.state, later, None, Fleet())
            assert early.changes == (), (
                f"would have to wake at {later - self.now}, not {quiet_until - self.now} ms, for "
                f"{[c.key for c in early.changes]}"
            )
        self.before, self.was = before, self.now
        self.own = {c.key: c.value for c in decision.changes}
        self.pending = frozenset(APPLICATION + app for app in decision.pending)
        self.never_twice_runs_once()
        return decision

    def _capacity_is_kept(self, before: State) -> None:
        for name, assignment in self.state.assignments.items():
            known = before.assignments.get(name)
            new = [i for i in assignment.instances if known is None or i not in known.instances]
            inventory = self.state.observed[name].inventory if name in self.state.observed else None
            if new:
                assert inventory is not None
                assert sum(i.cpu_millis for i in assignment.instances) <= inventory.cpu_millis
                assert sum(i.memory_bytes for i in assignment.instances) <= inventory.memory_bytes

    def _holds_are_kept(self, before: State) -> None:
        """Nothing comes to a node that its owner holds; and while it is heard, nothing on it is changed or taken."""
        for name, known in self.state.nodes.items():
            if known.spec.hold is None or not known.spec.hold.holds_at(self.now):
                continue
            was, now = before.assignments.get(name), self.state.assignments.get(name)
            there, left = ([(i.name, i.epoch) for i in a.instances] if a is not None else [] for a in (was, now))
            assert set(left) <= set(there), f"{name} is held and was given something"
            if self.now - heard_at(self.state, name) < 2_000:
                assert left == there, f"{name} is held and something was taken"

    def running(self) -> list[tuple[str, str, str, int, str]]:
        """(application, component, slot, epoch, node) of every leased instance that may be running this instant."""
        return [
            (i.app, i.component, i.slot, i.epoch, name)
            for name, assignment in sorted(self.told.items())
            for i in assignment.instances
            if i.lease_ms is not None and self.now - self.contact.get(name, 0) <= i.lease_ms
        ]

    def never_twice_runs_once(self) -> None:
        holders: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
        for app, part, slot, epoch, name in self.running():
            holders.setdefault((app, part, slot), []).append((epoch, name))
        for assignment in self.state.assignments.values():
            for i in assignment.instances:
                if i.lease_ms is not None and (i.epoch, assignment.node) not in (
                    found := holders.setdefault((i.app, i.component, i.slot), [])
                ):
                    found.append((i.epoch, assignment.node))
        twice = {slot: found for slot, found in holders.items() if len(found) > 1}
        assert not twice, f"may run twice: {twice}"


def capacity_mib(state: State, name: str) -> int:
    return int(state.observed[name].inventory.memory_bytes) // MIB
