"""Worlds in which releases arrive in waves: nodes refuse them, people pause and undo them, others supersede them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import strategies as st

from batuta.core import rollout as rolling
from batuta.core.decide import decide
from batuta.core.observed import InstanceReport, Measures
from batuta.core.reasons import Reason
from batuta.core.sample import Sample
from batuta.core.state import Change
from batuta.kinds.base import Millis
from batuta.kinds.rolling import Deadline, Disruption, Rollout, UpdateWindow
from tests.core.fleets import application, component
from tests.laws.worlds import APPS, World, names, steps

if TYPE_CHECKING:
    from batuta.core.decided import Released

NIGHTLY = UpdateWindow(opens="*/3 * * * *", closes="1-59/3 * * * *")
plans = st.builds(
    Rollout,
    waves=st.sampled_from([None, ("1 node", "100%"), ("1 node", "50%", "100%"), ("where node.site == 'lyon'", "100%"),
                           ("2 nodes",)]),
    soak_ms=st.sampled_from([Millis(0), Millis(3_000)]),
    gates=st.sampled_from([(), (), ("errors.rate < 0.1",), ("latency.p50 < baseline.latency.p50 * 2.0",)]),
    least_answers=st.just(10),
    on_failure=st.sampled_from(["undo", "undo", "pause"]),
    deadline=st.builds(
        Deadline, node_ms=st.sampled_from([None, Millis(8_000)]), wave_ms=st.sampled_from([None, Millis(20_000)])
    ),
    windows=st.sampled_from([(), (), (NIGHTLY,)]),
    links=st.sampled_from(["any", "any", "unmetered"]),
    disruption=st.builds(Disruption, per_site=st.sampled_from([None, None, 0, 1])),
)  # fmt: skip


def _in_waves(rollout: Rollout, concurrency: int | None, approvals: bool, jitter_ms: int) -> Rollout:
    """What is about waves is only said where there are some."""
    if rollout.waves is None:
        return rollout
    return msgspec.structs.replace(
        rollout, concurrency=concurrency, approvals=approvals, jitter_ms=Millis(jitter_ms)
    )  # fmt: skip


plans = st.builds(
    _in_waves,
    plans,
    st.sampled_from([None, 1, 2]),
    st.sampled_from([False, False, True]),
    st.sampled_from([0, 0, 4_000]),
)
parts = st.builds(
    component,
    name=st.sampled_from(["x", "y"]),
    count=st.integers(0, 4),
    per_site=st.sampled_from([None, None, 1, 2]),
    every_node=st.sampled_from([None, None, True]),
    cpu=st.sampled_from([100, 700, 1_500]),
    where=st.sampled_from([None, None, '"camera" in node.labels']),
    never_twice=st.sampled_from([False, False, True]),
    command=st.sampled_from(["one", "two", "three"]),
    port=st.sampled_from([None, None, 8080]),
)


def _rolled(name: str, components: list[Any], rollout: Rollout, priority: int) -> Change:
    change = application(*components, name=name)
    spec = msgspec.structs.replace(change.value.spec, rollout=rollout, priority=priority)
    return change._replace(value=msgspec.structs.replace(change.value, spec=spec))


apps = st.builds(
    _rolled,
    st.sampled_from(APPS[:2]),
    st.lists(parts, min_size=1, max_size=2, unique_by=lambda c: c.name),
    plans,
    st.sampled_from([0, 0, 10]),
)
moves = st.one_of(
    st.tuples(st.just("apply"), apps),
    st.tuples(st.just("again"), st.tuples(st.sampled_from(APPS[:2]), st.sampled_from(["one", "two", "three", "four"]))),
    st.tuples(st.just("again"), st.tuples(st.sampled_from(APPS[:2]), st.sampled_from(["one", "two", "three", "four"]))),
    st.tuples(st.just("obey"), st.sets(names, max_size=1)),
    st.tuples(st.just("obey"), st.sets(names, max_size=1)),
    st.tuples(st.just("obey"), st.sets(names, max_size=1)),
    st.tuples(st.just("wait"), st.sampled_from([100, 1_000, 2_500, 6_000, 13_000, 30_000])),
    st.tuples(st.just("refuse"), names),
    st.tuples(st.just("crashloop"), names),
    st.tuples(st.just("count"), st.tuples(names, st.sampled_from([0, 20, 500]), st.sampled_from([0, 400]))),
    st.tuples(
        st.just("people"),
        st.tuples(
            st.sampled_from(APPS[:2]), st.sampled_from(["pause", "resume", "abort", "undo", "undo", "retry", "approve"])
        ),
    ),
    steps,
)
rolling_worlds = st.builds(
    lambda first, then: [*(("apply", a) for a in first), ("obey", set()), *then],
    st.lists(apps, min_size=1, max_size=2),
    st.lists(moves, min_size=6, max_size=30),
)


class RollingWorld(World):
    """One history of them."""

    def __init__(self) -> None:
        self.refusing: set[str] = set()
        self.looping: set[str] = set()
        super().__init__()

    def _again(self, with_: tuple[str, str]) -> None:
        """Somebody changes what runs."""
        name, command = with_
        known = self.state.application(f"default/{name}")
        if known is None:
            return
        changed = tuple(
            msgspec.structs.replace(c, process=msgspec.structs.replace(c.process, command=(command,)))
            if c.process is not None
            else c
            for c in known.spec.components
        )
        spec = msgspec.structs.replace(known.spec, components=changed)
        self.change(Change("desired", known.ref.key, msgspec.structs.replace(known, spec=spec)))

    def _refuse(self, name: str) -> None:
        """It turns down whatever is new from now on; or no longer does."""
        self.refusing ^= {name}

    def _crashloop(self, name: str) -> None:
        """What is started there from now on ends at once, again and again; or no longer does."""
        self.looping ^= {name}

    def _count(self, with_: tuple[str, int, int]) -> None:
        """What runs at a node has answered so much, and failed so often."""
        name, answered, errors = with_
        known = self.state.observed.get(name)
        if known is None or name in self.cut:
            return
        measures = Measures(sample=Sample(answered=answered, errors=errors, latency={50: answered} if answered else {}))
        said = tuple(msgspec.structs.replace(i, measures=measures) for i in known.instances)
        self.change(Change("observed", name, msgspec.structs.replace(known, at=self.now, instances=said)))

    def _people(self, with_: tuple[str, str]) -> None:
        name, ask = with_
        known = self.state.rollouts.get(f"default/{name}")
        if known is None:
            return
        why = Reason(code="rollout_paused", subject=f"application/{name}", detail="by anna")
        after = {
            "pause": lambda: rolling.paused(known, self.now, why),
            "resume": lambda: rolling.resumed(known, self.now),
            "abort": lambda: rolling.aborted(known, self.now, why),
            "undo": lambda: rolling.undoing(known, self.now, why),
            "retry": lambda: rolling.retried(known, self.now),
            "approve": lambda: rolling.approved(known),
        }[ask]()
        self.change(Change("decided", after.key, after))

    def _obey(self, but: set[str]) -> None:
        before = self.state
        super()._obey(but)
        rows = []
        for name in sorted((self.refusing | self.looping) - self.cut - but):
            known, was = self.state.observed.get(name), before.observed.get(name)
            if known is None or was is None or known is was:
                continue
            ready = {(i.name, i.epoch) for i in was.instances if i.phase == "ready"}
            said = tuple(i if (i.name, i.epoch) in ready else self._bad(name, i) for i in known.instances)
            rows.append(Change("observed", name, msgspec.structs.replace(known, instances=said)))
        self.state = self.state.with_changes(rows)

    def _bad(self, name: str, said: InstanceReport) -> InstanceReport:
        if name in self.refusing:
            reason = Reason(code="probation_failed", subject="instance/x", detail="it exited with 1")
            return msgspec.structs.replace(said, phase="refused", reason=reason)
        return msgspec.structs.replace(said, phase="backoff", starts=3)

    def settle(self) -> None:
        self.refusing.clear()
        self.looping.clear()
        super().settle()

    def copy(self) -> RollingWorld:
        other = super().copy()
        assert isinstance(other, RollingWorld)
        other.refusing, other.looping = set(self.refusing), set(self.looping)
        return other

    # --- Reading ---

    def waits(self, app: str) -> bool:
        """Does deciding say of any part of it why it is not as wished?"""
        return bool(decide(self.state, self.now).reasons.get(app))

    def release(self, app: str, revision: int) -> tuple[Released, ...]:
        return next(r.components for r in self.state.releases[app] if r.revision == revision)

    # --- What must hold ---

    def turn(self, *, full: bool = False) -> Any:
        before = self.state
        decision = super().turn(full=full)
        for app, rollout in self.state.rollouts.items():
            self._goes_on(before.rollouts.get(app), rollout)
            if rollout.phase in ("paused", "aborted") and before.rollouts.get(app) == rollout:
                self._nothing_is_changed(app, before)
        return decision

    def _goes_on(self, was: rolling.Rollout | None, now: rolling.Rollout) -> None:
        """Nothing that is over begins again by itself, and nobody's turn is taken back but where it is undone."""
        if was is None or was.revision != now.revision:
            return
        if was.phase in ("undone", "aborted", "paused"):
            assert now.phase == was.phase, f"{was.phase} became {now.phase} by itself"
        if was.phase == "done" != now.phase:
            assert now.turned_down, f"{was.phase} became {now.phase} by itself"
        if was.phase == "undoing":
            assert now.phase in ("undoing", "undone")
        if now.phase in ("rolling", "soaking", "done"):
            assert now.reach >= was.reach
        assert set(now.turned_down) >= set(was.turned_down)

    def _nothing_is_changed(self, app: str, before: Any) -> None:
        """While it is paused no node is given another revision than one that it has, in place of that."""
        for node, assignment in self.state.assignments.items():
            known = before.assignments.get(node)
            was = {(i.component, i.slot): i for i in known.instances if i.app == app} if known is not None else {}
            slots = {(i.component, i.slot) for i in assignment.instances if i.app == app}
            for i in assignment.instances:
                old = was.get((i.component, i.slot))
                if i.app == app and old is not None and old.revision != i.revision:
                    assert (i.component, i.slot) in slots
                    both = {
                        j.revision
                        for j in known.instances
                        if (j.app, j.component, j.slot) == (app, i.component, i.slot)
                    }
                    assert i.revision in both, f"{i.name} came to {node} in a pause"
