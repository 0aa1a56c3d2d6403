"""Before a model is switched in for the first time on a node, it is proved there: once, and remembered."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.decided import Assignment, Instance, ModelOrder
from batuta.core.local import Failed, Fetch, Gone, Local, Prove, Proved, Start, heard, step
from batuta.core.probation import same_content
from batuta.core.proving import PROVEN_MAX, Bench, Proven, proof_key, remembered
from batuta.core.reasons import Reason
from batuta.kinds.base import Bytes, Millis
from batuta.kinds.model import Golden, Variant
from batuta.kinds.shaping import After, Before

FILE, CASES = "sha256:" + "a" * 64, "sha256:" + "b" * 64
BENCH = Bench("pi-4", {"onnx": "onnxruntime 1.31.1"})
GOLDEN = Golden(digest=CASES)


def instance(slot: str = "0", golden: Golden | None = GOLDEN, digest: str = FILE, **more: object) -> Instance:
    variant = Variant(name="fp32", format="onnx", digest=digest, size_bytes=Bytes(10))
    model = ModelOrder(name="digits", version="1", variant=variant, golden=golden)
    return Instance(
        namespace="default", application="reader", component="read", revision=1, slot=slot, epoch=1, model=model, **more  # type: ignore[arg-type]
    )  # fmt: skip


def ordered(*instances: Instance) -> Assignment:
    return Assignment(node="pi", site="home", serial=1, instances=instances)


ONE = instance()
KEY = proof_key(ONE, BENCH)
PASSED = Proven(key=KEY, digest=FILE, at=0)
MISMATCH = Reason(code="golden_mismatch", subject="instance/x", detail="output y of case 3")
HELD = frozenset({FILE, CASES})


def test_golden_inputs_are_fetched_with_the_model() -> None:
    plan = step(ordered(ONE), {}, frozenset({FILE}), 0, None, bench=BENCH)
    assert plan.actions == (Fetch(ONE.name, (CASES,)),)


def test_it_is_proved_before_it_is_started_and_then_never_again() -> None:
    plan = step(ordered(ONE), {}, HELD, 0, None, bench=BENCH)
    assert plan.actions == (Prove(ONE.name, ONE, KEY),)
    local = plan.locals[ONE.name]
    assert (local.phase, local.reason and local.reason.code) == ("proving", "proving")
    assert step(ordered(ONE), plan.locals, HELD, 1, None, bench=BENCH).actions == ()

    after = heard(local, Proved(ONE.name, PASSED), 5)
    assert after is not None
    proven = {KEY: PASSED}
    assert step(ordered(ONE), {ONE.name: after}, HELD, 5, None, proven=proven, bench=BENCH).actions == (
        Start(ONE.name, ONE),
    )
    assert step(ordered(ONE), {}, HELD, 9, None, proven=proven, bench=BENCH).actions == (Start(ONE.name, ONE),)


def test_what_failed_is_refused_with_its_reason_and_not_tried_again() -> None:
    proven = {KEY: msgspec.structs.replace(PASSED, reason=MISMATCH)}
    plan = step(ordered(ONE), {}, HELD, 0, None, proven=proven, bench=BENCH)
    local = plan.locals[ONE.name]
    assert (plan.actions, local.phase, plan.wake_at) == ((), "refused", None)
    assert local.reason == msgspec.structs.replace(MISMATCH, subject=f"instance/{ONE.name}")
    later = step(ordered(ONE), plan.locals, HELD, 10**9, None, proven=proven, bench=BENCH)
    assert (later.actions, later.locals) == ((), plan.locals)


@pytest.mark.parametrize(
    ("changed", "bench"),
    [
        (ONE, Bench("pi-4", {"onnx": "onnxruntime 1.32.0"})), (ONE, Bench("pi-5", BENCH.runtimes)),
        (instance(golden=Golden(digest=CASES, tolerance=0.1)), BENCH),
        (instance(golden=Golden(digest="sha256:" + "c" * 64)), BENCH), (instance(memory_bytes=Bytes(1)), BENCH),
    ],
)  # fmt: skip
def test_it_is_tried_anew_when_something_changed(changed: Instance, bench: Bench) -> None:
    proven = {KEY: msgspec.structs.replace(PASSED, reason=MISMATCH)}
    refused = step(ordered(ONE), {}, HELD, 0, None, proven=proven, bench=BENCH).locals
    held = HELD | set(changed.artifacts)
    plan = step(ordered(changed), refused, held, 1, None, proven=proven, bench=bench)
    assert plan.actions == (Prove(changed.name, changed, proof_key(changed, bench)),)


def test_another_refusal_stays_one() -> None:
    local = Local(instance=ONE, phase="refused", reason=Reason(code="artifact_unreadable", subject="x"))
    plan = step(ordered(ONE), {ONE.name: local}, HELD, 1, None, bench=BENCH)
    assert (plan.actions, plan.locals[ONE.name]) == ((), local)


def test_one_at_a_time() -> None:
    other = instance("1", digest="sha256:" + "d" * 64)
    held = HELD | set(other.artifacts)
    plan = step(ordered(ONE, other), {}, held, 0, None, bench=BENCH)
    assert plan.actions == (Prove(ONE.name, ONE, KEY),)
    assert (plan.locals[other.name].phase, plan.wake_at) == ("waiting", None)
    done = {**plan.locals, ONE.name: heard(plan.locals[ONE.name], Proved(ONE.name, PASSED), 3)}
    then = step(ordered(ONE, other), done, held, 3, None, proven={KEY: PASSED}, bench=BENCH)  # type: ignore[arg-type]
    assert then.actions == (Prove(other.name, other, proof_key(other, BENCH)), Start(ONE.name, ONE))


def test_two_instances_of_one_variant_are_proved_once() -> None:
    other = instance("1")
    plan = step(ordered(ONE, other), {}, HELD, 0, None, proven={KEY: PASSED}, bench=BENCH)
    assert plan.actions == (Start(ONE.name, ONE), Start(other.name, other))


@pytest.mark.parametrize(
    ("golden", "bench"), [(None, BENCH), (GOLDEN, Bench()), (GOLDEN, Bench("pi-4", {"tflite": "x"}))]
)
def test_nothing_is_proved_that_cannot_be(golden: Golden | None, bench: Bench) -> None:
    plain = instance(golden=golden)
    assert proof_key(plain, bench) == ""
    assert step(ordered(plain), {}, HELD, 0, None, bench=bench).actions == (Start(plain.name, plain),)


def test_a_process_that_could_not_be_begun_is_tried_again_later() -> None:
    local = step(ordered(ONE), {}, HELD, 0, None, bench=BENCH).locals[ONE.name]
    after = heard(local, Failed(ONE.name, Reason(code="start_failed", subject="x")), 7)
    assert after is not None
    assert (after.phase, after.failures) == ("backoff", 1)
    # The agent ended meanwhile, and the process with it.
    gone = heard(local, Gone(ONE.name), 7)
    assert gone is not None
    assert gone.phase == "waiting"


def test_what_is_not_wanted_any_more_is_forgotten_while_it_is_proved() -> None:
    local = step(ordered(ONE), {}, HELD, 0, None, bench=BENCH).locals
    assert step(ordered(), local, HELD, 1, None, bench=BENCH) == ((), {}, None)


def test_the_newest_are_remembered() -> None:
    found: dict[str, Proven] = {}
    for at in range(PROVEN_MAX + 5):
        found = remembered(found.values(), Proven(key=f"k{at:04}", digest=FILE, at=at))
    assert len(found) == PROVEN_MAX
    assert "k0004" not in found
    assert "k0005" in found


def test_what_has_limits_is_proved_too_where_something_runs_meanwhile() -> None:
    bare = instance(golden=None)
    limited = msgspec.structs.replace(bare, memory_bytes=Bytes(64 << 20))
    before = instance(golden=None, digest="sha256:" + "d" * 64)
    asked = msgspec.structs.replace(bare, slo_p99_ms=Millis(50))
    changing = msgspec.structs.replace(limited, fallback=msgspec.structs.replace(before, revision=0))
    assert [bool(proof_key(each, BENCH)) for each in (bare, limited, asked, changing)] == [False, False, True, True]
    slower = msgspec.structs.replace(asked, slo_p99_ms=Millis(500))
    assert proof_key(asked, BENCH) != proof_key(slower, BENCH)
    assert same_content(asked, slower), "what runs need not be begun anew to be asked for more"


def test_the_old_one_goes_on_while_the_new_one_is_proved_and_for_good_when_it_is_too_slow() -> None:
    old = msgspec.structs.replace(instance(golden=None, digest="sha256:" + "d" * 64), revision=0)
    new = msgspec.structs.replace(instance(golden=None), fallback=old, slo_p99_ms=Millis(5))
    held = frozenset({FILE, "sha256:" + "d" * 64})
    running = {old.name: Local(instance=old, phase="ready")}
    plan = step(ordered(new), running, held, 0, None, bench=BENCH)
    key = proof_key(new, BENCH)
    assert plan.actions == (Prove(new.name, new, key),)
    assert plan.locals[old.name].phase == "ready"
    slow = Proven(key=key, digest=FILE, at=0, reason=Reason(code="too_slow", subject="model", detail="9 ms"))
    local = heard(plan.locals[new.name], Proved(new.name, slow), 1)
    assert local is not None
    after = step(ordered(new), {**plan.locals, new.name: local}, held, 1, None, proven={key: slow}, bench=BENCH)
    assert (after.actions, after.locals[old.name].phase, after.locals[new.name].phase) == ((), "ready", "refused")


def test_what_is_done_around_the_file_is_proved_with_it():
    def around(**said: object) -> str:
        assert ONE.model is not None
        return proof_key(msgspec.structs.replace(ONE, model=msgspec.structs.replace(ONE.model, **said)), BENCH)

    keys = [
        KEY,
        around(transform="sha256:" + "c" * 64),
        around(transform="sha256:" + "d" * 64),
        around(before=Before(scale=0.5)),
        around(before=Before(scale=0.25)),
        around(after=After(argmax=True)),
        around(after=After(argmax=True), labels=("a", "b")),
    ]
    assert len(set(keys)) == len(keys)
    assert around(labels=("a", "b")) == KEY, "names alone change nothing that is said of tensors"
