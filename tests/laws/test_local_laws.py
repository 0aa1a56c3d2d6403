"""What holds for every assignment, every ledger and every order of events on a node."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from batuta.core.decided import Assignment, Instance, ModelOrder
from batuta.core.lease import holds_lease
from batuta.core.local import (
    Failed,
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
    step,
)
from batuta.core.observed import Phase
from batuta.core.proving import Bench, Proven, proof_key
from batuta.core.reasons import Reason
from batuta.kinds.application import ProcessUse
from batuta.kinds.base import Bytes, decode_hook, encode_hook
from batuta.kinds.model import Golden, Variant

DIGESTS = tuple("sha256:" + letter * 64 for letter in "ab")
PHASES: tuple[Phase, ...] = Phase.__args__
RUNNING = ("starting", "ready", "unready")
BENCH = Bench("box", {"onnx": "onnxruntime 1"})


@st.composite
def instances(draw):
    model = draw(st.sampled_from([None, *DIGESTS]))
    order = None
    if model is not None:
        variant = Variant(name="v", format="onnx", digest=model, size_bytes=Bytes(10))
        golden = draw(st.sampled_from([None, Golden(digest=DIGESTS[0])]))
        order = ModelOrder(name="m", version="1", variant=variant, golden=golden)
    never_twice = draw(st.booleans())
    return Instance(
        namespace="default",
        application="app",
        component="once" if never_twice else "many",
        revision=draw(st.integers(1, 2)),
        slot=draw(st.sampled_from("01")),
        epoch=draw(st.integers(1, 3)),
        model=order,
        process=None if model else ProcessUse(command=(draw(st.sampled_from(["a", "b"])),)),
        lease_ms=5_000 if never_twice else None,
    )


def reasons(codes=("exited", "not_live", "not_ready")):
    return st.builds(lambda code: Reason(code=code, subject="instance/x"), st.sampled_from(codes))


instants = st.integers(0, 1_000_000)
assignments = st.lists(instances(), max_size=5, unique_by=lambda i: i.name).map(
    lambda found: Assignment(node="n", site="s", serial=1, instances=tuple(found))
)


@st.composite
def ledgers(draw):
    found = {}
    for instance in draw(st.lists(instances(), max_size=5, unique_by=lambda i: i.name)):
        phase = draw(st.sampled_from(PHASES))
        found[instance.name] = Local(
            instance=instance,
            phase=phase,
            since=draw(instants),
            failures=draw(st.integers(0, 5)),
            retry_at=draw(instants) if phase == "backoff" else None,
            reason=draw(st.none() | reasons(("lease_lapsed", "not_live", "exited"))),
            handle={"pid": 1} if phase in RUNNING and draw(st.booleans()) else {},
        )
    return found


def a_proof(instance, fails=False):
    reason = Reason(code="golden_mismatch", subject="model") if fails else None
    return Proven(key=proof_key(instance, BENCH), digest="", at=0, reason=reason)


def proofs():
    """What is remembered of models that may or may not be assigned."""
    made = st.builds(a_proof, instances(), st.booleans()).filter(lambda proof: proof.key)
    return st.lists(made, max_size=3).map(lambda found: {proof.key: proof for proof in found})


situations = st.tuples(
    assignments, ledgers(), st.frozensets(st.sampled_from(DIGESTS)), instants, st.none() | instants, proofs()
)


def planned(situation, **other):
    assignment, ledger, held, now, contact_at, proven = situation
    given = {"ledger": ledger, "now": now, **other}
    return step(assignment, given["ledger"], held, given["now"], contact_at, proven=proven, bench=BENCH)


@given(situations)
def test_step_is_idle_when_done(situation):
    plan = planned(situation)
    assert planned(situation, ledger=plan.locals) == plan._replace(actions=())


@given(situations)
def test_it_wakes_only_for_what_lies_ahead_and_then_something_happens(situation):
    plan = planned(situation)
    if plan.wake_at is not None:
        assert plan.wake_at > situation[3]
        before = planned(situation, ledger=plan.locals, now=plan.wake_at - 1)
        assert (before.actions, before.locals) == ((), plan.locals)
        then = planned(situation, ledger=plan.locals, now=plan.wake_at)
        assert then.actions or then.locals != plan.locals


@given(situations)
def test_actions_are_lawful(situation):
    assignment, ledger, held, now, contact_at, proven = situation
    wanted = {i.name: i for i in assignment.instances}
    newest = {(i.component, i.slot): i for i in sorted(assignment.instances, key=lambda i: (i.epoch, i.revision))}
    superseded = {n for n, i in wanted.items() if i.lease_ms and newest[i.component, i.slot].name != n}
    plan = planned(situation)
    assert [type(a).__name__ for a in plan.actions] == sorted(
        (type(a).__name__ for a in plan.actions), key=["Stop", "Fetch", "Prove", "Start"].index
    )
    assert len({a.name for a in plan.actions}) == len(plan.actions), "one action an instance at a time"
    assert sum(local.phase == "proving" for local in plan.locals.values()) <= max(
        1, sum(local.phase == "proving" for local in ledger.values())
    ), "one at a time, but for what a ledger says was begun"
    for action in plan.actions:
        match action:
            case Prove(name, instance, key):
                assert instance == wanted[name]
                assert set(instance.artifacts) <= held
                assert key == proof_key(instance, BENCH)
                assert key not in proven
            case Start(name, instance):
                assert instance == wanted[name]
                key = proof_key(instance, BENCH)
                assert not key or proven[key].reason is None, "nothing is switched in unproved"
                assert set(instance.artifacts) <= held
                assert holds_lease(instance, now, contact_at)
                assert name not in ledger or ledger[name].phase not in (*RUNNING, "stopping")
            case Fetch(name, digests):
                assert digests
                assert not set(digests) & held
            case Stop(name, why):
                assert ledger[name].phase in (*RUNNING, "stopping")
                assert why != "unassigned" or name not in wanted or name in superseded
    for name, local in plan.locals.items():
        if local.phase in RUNNING:
            assert name in wanted
            assert local.instance == wanted[name], "what runs follows its order"
            assert holds_lease(local.instance, now, contact_at)


@given(situations)
def test_a_never_twice_slot_never_has_two_under_way(situation):
    plan = planned(situation)
    for started in (a.instance for a in plan.actions if isinstance(a, Start) and a.instance.lease_ms is not None):
        others = [
            local
            for name, local in plan.locals.items()
            if name != started.name
            and (local.instance.component, local.instance.slot) == (started.component, started.slot)
            and local.phase in (*RUNNING, "stopping")
        ]
        assert others == []


events = st.sampled_from(["fetched", "proved", "started", "adopted", "ready", "unready", "failed", "final", "gone"])


@given(ledgers(), events, reasons(), instants)
def test_hearing_is_total_and_counts_honestly(ledger, word, reason, now):
    for name, local in ledger.items():
        event = {
            "fetched": Fetched(name),
            "proved": Proved(name, Proven(key="k", digest="", at=0)),
            "started": Started(name, {"pid": 2}),
            "adopted": Started(name, {"pid": 2}, adopted=True),
            "ready": Ready(name),
            "unready": Unready(name, reason),
            "failed": Failed(name, reason),
            "final": Failed(name, reason, final=True),
            "gone": Gone(name),
        }[word]
        after = heard(local, event, now)
        if after is None:
            assert (word, local.phase, local.reason) == ("gone", "stopping", None)
            continue
        assert after.instance == local.instance
        assert after.starts == local.starts + (word == "started")
        assert after.failures >= local.failures
        assert (after.retry_at is None) == (after.phase != "backoff")
        if word in ("failed", "final", "gone"):
            assert after.handle == {} or after is local
        written = msgspec.json.encode(after, enc_hook=encode_hook)
        assert msgspec.json.decode(written, type=Local, dec_hook=decode_hook) == after, "the ledger can keep it"


@settings(max_examples=60)
@given(assignments, ledgers(), st.lists(st.integers(0, 5), max_size=40))
def test_every_ledger_leads_to_what_is_assigned(assignment, ledger, luck):
    """Whatever the ledger says, once the runtimes answer, exactly what is wanted is ready; failures only delay it."""
    now, pending = 2_000_000, [Gone(name) for name in ledger]
    here, held, proven = dict(ledger), frozenset(DIGESTS), {}
    draws = iter(luck)
    for _ in range(400):
        for event in pending:
            if isinstance(event, Proved):
                proven[event.proven.key] = event.proven
            if event.name in here:
                after = heard(here.pop(event.name), event, now)
                if after is not None:
                    here[event.name] = after
        plan = step(assignment, here, held, now, now, proven=proven, bench=BENCH)
        here, pending = dict(plan.locals), []
        for action in plan.actions:
            if isinstance(action, Stop):
                pending.append(Gone(action.name))
            elif isinstance(action, Prove):
                pending.append(Proved(action.name, a_proof(action.instance, fails=next(draws, 5) == 1)))
            elif isinstance(action, Start):
                if next(draws, 1) == 0:
                    pending.append(Failed(action.name, Reason(code="start_failed", subject="instance/x")))
                else:
                    pending += [Started(action.name, {"pid": 1}), Ready(action.name)]
        if not pending:
            if plan.wake_at is None:
                break
            now = plan.wake_at
            if all(local.phase in ("ready", "refused") for local in here.values()):
                break
        now += 1
    newest = {}
    for instance in sorted(assignment.instances, key=lambda i: (i.epoch, i.revision)):
        newest[(instance.component, instance.slot) if instance.lease_ms else instance.name] = instance
    assert {n: x.instance for n, x in here.items()} == {i.name: i for i in newest.values()}
    assert {x.phase for x in here.values()} <= {"ready", "refused"}
    for name, local in here.items():
        if local.phase == "refused" and local.proof_key:
            assert proven[local.proof_key].reason is not None
        elif local.phase == "refused":
            assert ledger[name].phase == "refused"
            assert ledger[name].instance == local.instance
