"""A new instance and its fallback: whatever the new one does, one of the two ends up running, and restarts of the node
agent at any step change nothing about which."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batuta.core.decided import Assignment, Instance, ModelOrder
from batuta.core.local import (
    Event,
    Failed,
    Fallen,
    Fetch,
    Fetched,
    Gone,
    Local,
    Prove,
    Proved,
    Ready,
    Start,
    Started,
    Stop,
    Unready,
    heard,
    remembered,
    step,
)
from batuta.core.probation import START_WITHIN_MS, UNTRIED
from batuta.core.proving import Bench, Proven, proof_key
from batuta.core.reasons import Reason
from batuta.kinds.application import ProcessUse
from batuta.kinds.base import Bytes, decode_hook, encode_hook
from batuta.kinds.model import Golden, Variant

if TYPE_CHECKING:
    from collections.abc import Callable

OLD_FILE, NEW_FILE, CASES = ("sha256:" + letter * 64 for letter in "abc")
BENCH = Bench("box", {"onnx": "onnxruntime 1"})
PROBATION_MS = 60_000
BEHAVIOURS = ("good", "refused", "wrong", "dies", "hangs", "exits", "exits_late", "freezes", "stutters", "unfetched")
BAD = frozenset(BEHAVIOURS) - {"good", "exits_late", "stutters"}
"""What must end with the fallback."""
ALIVE = ("starting", "ready", "unready")


def an_instance(revision: int, *, lease: bool, model: str = "", **more: object) -> Instance:
    order = None
    if model:
        variant = Variant(name="v", format="onnx", digest=model, size_bytes=Bytes(10))
        golden = Golden(digest=CASES) if model == NEW_FILE else None
        order = ModelOrder(name="m", version=str(revision), variant=variant, golden=golden)
    return Instance(
        namespace="default", application="app", component="read", revision=revision, slot="0", epoch=revision,
        model=order, process=None if model else ProcessUse(command=(f"run-{revision}",)),
        lease_ms=5_000 if lease else None, **more,  # type: ignore[arg-type]
    )  # fmt: skip


class World:
    """One node with the real `step` and `heard`, and processes that behave as told."""

    def __init__(self, order: Assignment, new: Instance, behaviour: str) -> None:
        self.order, self.new, self.behaviour = order, new, behaviour
        self.now = 1_000_000
        self.locals: dict[str, Local] = {}
        self.proven: dict[str, Proven] = {}
        self.fallen: dict[str, Fallen] = {}
        self.held = {OLD_FILE} if behaviour == "unfetched" else {OLD_FILE, NEW_FILE, CASES}
        self.running: dict[str, int] = {}
        """By name: a number that no other run has."""
        self.runs = self.starts_of_new = 0
        self.queue: list[tuple[int, int, bool, Callable[[], None]]] = []
        """When, in what order, whether it is the agent's own doing, and what."""
        self.events: list[Event] = []
        self.steps = 0
        self.both_ready_since: int | None = None

    # --- What happens ---

    def later(self, after_ms: int, do: Callable[[], None], *, own: bool = True) -> None:
        self.runs += 1
        heapq.heappush(self.queue, (self.now + after_ms, self.runs, own, do))

    def hear(self, event: Event) -> None:
        self.events.append(event)

    def hear_if_runs(self, event: Event, run: int) -> None:
        if self.running.get(event.name) == run:
            if isinstance(event, Failed):
                del self.running[event.name]
            self.hear(event)

    def perform(self, action: object) -> None:
        match action:
            case Fetch(name, _):
                reason = Reason(code="artifact_missing", subject=f"instance/{name}")
                self.later(50, lambda: self.hear(Failed(name, reason) if name == self.new.name else Fetched(name)))
            case Prove(name, _, key):
                wrong = Reason(code="golden_mismatch", subject="model") if self.behaviour == "wrong" else None
                self.later(100, lambda: self._proved(name, Proven(key=key, digest="", at=0, reason=wrong)))
            case Start(name, _):
                assert name not in self.running, "one copy is enough"
                self._start(name)
            case Stop(name, _):
                self.later(200, lambda: self._stopped(name))

    def _proved(self, name: str, proven: Proven) -> None:
        self.proven[proven.key] = proven
        self.hear(Proved(name, proven))

    def _stopped(self, name: str) -> None:
        self.running.pop(name, None)
        self.hear(Gone(name))

    def _start(self, name: str) -> None:
        how = self.behaviour if name == self.new.name else "good"
        self.starts_of_new += name == self.new.name
        self.runs += 1
        run = self.running[name] = self.runs
        exited = Reason(code="exited", subject=f"instance/{name}", detail="exit status 1")
        frozen = Reason(code="not_live", subject=f"instance/{name}")
        self.later(10, lambda: self.hear_if_runs(Started(name, {"run": run}), run))
        if how == "refused":
            unreadable = Reason(code="artifact_unreadable", subject=f"instance/{name}")
            self.later(300, lambda: self.hear_if_runs(Failed(name, unreadable, final=True), run), own=False)
        elif how == "dies" or (how == "stutters" and self.starts_of_new < 3):
            self.later(300, lambda: self.hear_if_runs(Failed(name, exited), run), own=False)
        elif how != "hangs":
            self.later(400, lambda: self.hear_if_runs(Ready(name), run), own=False)
        if how == "exits":
            self.later(PROBATION_MS // 2, lambda: self.hear_if_runs(Failed(name, exited), run), own=False)
        elif how == "exits_late" and self.starts_of_new == 1:
            self.later(2 * PROBATION_MS, lambda: self.hear_if_runs(Failed(name, exited), run), own=False)
        elif how == "freezes":
            self.later(PROBATION_MS // 3, lambda: self.hear_if_runs(Unready(name, frozen), run), own=False)

    # --- Time ---

    def turn(self) -> bool:
        """Fold, step, perform; False when nothing will ever happen any more."""
        for event in self.events:
            if event.name in self.locals:
                after = heard(self.locals.pop(event.name), event, self.now)
                if after is not None:
                    self.locals[event.name] = after
        self.events.clear()
        plan = step(
            self.order, self.locals, frozenset(self.held), self.now, self.now,
            proven=self.proven, bench=BENCH, fallen=self.fallen,
        )  # fmt: skip
        self.locals = dict(plan.locals)
        self.fallen = remembered(self.fallen, self.locals.values(), self.now)
        again = step(
            self.order, self.locals, frozenset(self.held), self.now, self.now,
            proven=self.proven, bench=BENCH, fallen=self.fallen,
        )  # fmt: skip
        assert again == plan._replace(actions=()), "idle when done"
        for action in plan.actions:
            self.perform(action)
        self._look()
        instants = [self.queue[0][0]] if self.queue else []
        instants += [plan.wake_at] if plan.wake_at is not None else []
        if not instants:
            return False
        self.now = max(self.now, min(instants))
        while self.queue and self.queue[0][0] <= self.now:
            heapq.heappop(self.queue)[3]()
        self.steps += 1
        return True

    def _look(self) -> None:
        alive = [local for local in self.locals.values() if local.phase in ALIVE]
        if any(local.instance.lease_ms is not None for local in alive):
            assert len(self.running) <= 1, "never twice"
        for local in alive:
            assert local.phase == "starting" or local.instance.name in self.running

    def restart(self) -> None:
        """The node agent is killed: what it had begun is forgotten, what ran runs on, and the ledger is read."""
        kept = msgspec.json.encode(tuple(self.locals.values()), enc_hook=encode_hook)
        found = msgspec.json.decode(kept, type=tuple[Local, ...], dec_hook=decode_hook)
        self.locals = {local.instance.name: local for local in found}
        self.events.clear()
        self.queue = [entry for entry in self.queue if not entry[2]]  # processes go on; what the agent did does not
        heapq.heapify(self.queue)
        for name, local in self.locals.items():
            run = self.running.get(name)
            if run is not None and local.instance.lease_ms is not None:
                del self.running[name]  # tied to the agent that counted its lease
                run = None
            if run is None and local.phase not in ("waiting", "backoff", "refused"):
                self.hear(Gone(name))
            elif run is not None:
                self.hear(Started(name, {"run": run}, adopted=True))
                if name != self.new.name or self.behaviour not in ("refused", "dies", "hangs"):
                    self.later(400, lambda n=name, r=run: self.hear_if_runs(Ready(n), r), own=False)
                if local.phase == "stopping":
                    self.later(200, lambda n=name: self._stopped(n))

    def play(self, restarts: frozenset[int] = frozenset()) -> tuple[str, ...]:
        until = self.now + 2 * (START_WITHIN_MS + PROBATION_MS)
        for _ in range(2_000):
            if self.steps in restarts:
                restarts -= {self.steps}
                self.restart()
            if not self.turn() or self.now > until:
                break
        return tuple(sorted(name for name, local in self.locals.items() if local.phase == "ready"))


def a_world(behaviour: str, *, lease: bool = False, surge: bool = False) -> World:
    model = behaviour in ("wrong", "unfetched")
    old = an_instance(1, lease=lease, model=OLD_FILE if model else "")
    new = an_instance(
        2, lease=lease, model=NEW_FILE if model else "", fallback=old, probation_ms=PROBATION_MS
    )  # fmt: skip
    world = World(Assignment(node="n", site="s", serial=1, instances=(old,)), new, behaviour)
    assert world.play() == (old.name,)
    instances = (old, new) if surge and not lease else (new,)
    world.order = Assignment(node="n", site="s", serial=2, instances=instances)
    return world


OLD, NEW = an_instance(1, lease=False).name, an_instance(2, lease=False).name


@pytest.mark.parametrize("lease", [False, True])
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_what_is_no_good_ends_with_what_ran_before(behaviour: str, lease: bool) -> None:
    world = a_world(behaviour, lease=lease)
    assert world.play() == ((OLD,) if behaviour in BAD else (NEW,))
    if behaviour in BAD - {"unfetched"}:
        assert world.locals[NEW].phase == "refused"
        was, world.now = world.starts_of_new, world.now + 10**9
        world.play()
        assert world.starts_of_new == was, "it is not tried again"


@settings(max_examples=150)
@given(
    st.sampled_from(BEHAVIOURS), st.booleans(), st.booleans(), st.frozensets(st.integers(2, 60), max_size=2)
)  # fmt: skip
def test_restarts_at_any_step_lead_to_the_same_end(
    behaviour: str, lease: bool, surge: bool, restarts: frozenset[int]
) -> None:
    plain, shaken = a_world(behaviour, lease=lease, surge=surge), a_world(behaviour, lease=lease, surge=surge)
    begun = shaken.steps
    assert shaken.play(frozenset(begun + n for n in restarts)) == plain.play()


@given(st.sampled_from(sorted(BAD - {"unfetched"})))
def test_the_old_release_assigned_again_keeps_running(behaviour: str) -> None:
    world = a_world(behaviour)
    world.play()
    run, old = world.running[OLD], an_instance(1, lease=False, model=OLD_FILE if behaviour == "wrong" else "")
    again = msgspec.structs.replace(old, epoch=3)
    world.order = Assignment(node="n", site="s", serial=3, instances=(again,))
    assert world.play() == (OLD,)
    assert (world.running[OLD], world.locals[OLD].instance, set(world.locals)) == (run, again, {OLD})


@pytest.mark.parametrize("behaviour", ["refused", "dies", "exits"])
def test_the_same_thing_under_another_revision_is_not_tried_but_asked_for_anew_it_is(behaviour: str) -> None:
    world = a_world(behaviour)
    world.play()
    tried, old = world.starts_of_new, world.locals[OLD].instance
    third = msgspec.structs.replace(world.new, revision=3, epoch=5)
    world.new, world.order = third, Assignment(node="n", site="s", serial=3, instances=(third,))
    assert world.play() == (OLD,)
    refused = world.locals[third.name]
    assert (refused.phase, world.starts_of_new) == ("refused", tried)
    assert refused.reason is not None
    assert refused.reason.subject == f"instance/{third.name}"
    assert refused.reason.detail.count(UNTRIED) == 1
    world.order = Assignment(node="n", site="s", serial=4, instances=(old,))
    world.play()
    retried = msgspec.structs.replace(third, epoch=9)
    world.new, world.order = retried, Assignment(node="n", site="s", serial=5, instances=(retried,))
    assert world.play() == (OLD,)
    assert world.starts_of_new > tried


events = st.sampled_from(["started", "adopted", "ready", "unready", "not_live", "failed", "final", "gone"])


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from([0, 1]), events, st.integers(0, 90_000)), max_size=30), st.booleans())
def test_any_sequence_of_events_ends_with_one_of_the_two(told: list[tuple[int, str, int]], lease: bool) -> None:
    """Events that no machine would send, too; then the machine comes to its senses, and the fallback works."""
    world = a_world("good", lease=lease)
    for which, word, after_ms in told:
        name = (OLD, NEW)[which]
        reason = Reason(code="exited", subject=f"instance/{name}")
        frozen = Reason(code="not_live", subject=f"instance/{name}")
        event = {
            "started": Started(name, {"run": 0}), "adopted": Started(name, {"run": 0}, adopted=True),
            "ready": Ready(name), "unready": Unready(name, Reason(code="not_ready", subject=f"instance/{name}")),
            "not_live": Unready(name, frozen), "failed": Failed(name, reason), "final": Failed(name, reason, True),
            "gone": Gone(name),
        }[word]  # fmt: skip
        if name in world.locals:
            after = heard(world.locals.pop(name), event, world.now)
            if after is not None:
                world.locals[name] = after
        plan = step(world.order, world.locals, frozenset(), world.now, world.now, bench=BENCH, fallen=world.fallen)
        world.locals, world.now = dict(plan.locals), world.now + after_ms
        world.fallen = remembered(world.fallen, plan.locals.values(), world.now)
    world.queue.clear()
    world.running.clear()
    for name, local in world.locals.items():
        if local.phase in (*ALIVE, "stopping"):
            world.hear(Gone(name))
    ended = world.play()
    if world.locals.get(OLD) is not None and world.locals[OLD].phase == "refused":
        return  # both were refused for good: nothing is left that could run
    assert ended in ((OLD,), (NEW,))


def test_proof_keys_are_what_the_world_thinks() -> None:
    new = an_instance(2, lease=False, model=NEW_FILE)
    assert proof_key(new, BENCH)
