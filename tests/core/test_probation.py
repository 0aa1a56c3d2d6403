"""Probation, row by row: who runs, what makes the new one fall, what is remembered of it."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.decided import Assignment, Instance, ModelOrder
from batuta.core.local import Failed, Fallen, Fetch, Gone, Local, Ready, Start, Stop, Unready, heard, remembered, step
from batuta.core.probation import FALLEN_MAX, START_WITHIN_MS, fall_key, fell_before, same_content
from batuta.core.proving import Bench
from batuta.core.reasons import Reason
from batuta.kinds.application import ProcessUse
from batuta.kinds.base import Bytes
from batuta.kinds.model import Variant

T = 1_000_000
BENCH = Bench("pi-4", {"onnx": "onnxruntime 1"})
OLD_FILE, NEW_FILE = "sha256:" + "a" * 64, "sha256:" + "b" * 64
replace = msgspec.structs.replace


def an_instance(revision: int = 1, file: str = "", **more: object) -> Instance:
    variant = Variant(name="fp32", format="onnx", digest=file or OLD_FILE, size_bytes=Bytes(1))
    return Instance(
        namespace="default", application="app", component="read", revision=revision, slot="0", epoch=revision,
        model=ModelOrder(name="m", version="1", variant=variant) if file else None,
        process=None if file else ProcessUse(command=(f"run-{revision}",)), **more,  # type: ignore[arg-type]
    )  # fmt: skip


OLD = an_instance()
NEW = an_instance(2, fallback=OLD, probation_ms=60_000)
OLD_MODEL = an_instance(1, OLD_FILE)
NEW_MODEL = an_instance(2, NEW_FILE, fallback=OLD_MODEL, probation_ms=60_000)


def ordered(*instances: Instance) -> Assignment:
    return Assignment(node="n", site="s", serial=1, instances=instances)


def exited(detail: str = "exit status 1") -> Reason:
    return Reason(code="exited", subject=f"instance/{NEW.name}", detail=detail)


def by_name(*found: Local) -> dict[str, Local]:
    return {local.instance.name: local for local in found}


def test_what_ran_before_goes_on_until_the_new_one_is_here_and_then_gives_way() -> None:
    running = by_name(Local(instance=OLD_MODEL, phase="ready"))
    fetching = step(ordered(NEW_MODEL), running, frozenset({OLD_FILE}), T, None)
    assert fetching.actions == (Fetch(NEW_MODEL.name, (NEW_FILE,)),)
    assert fetching.locals[OLD_MODEL.name].phase == "ready"
    here = frozenset({OLD_FILE, NEW_FILE})
    fetched = {**fetching.locals, NEW_MODEL.name: Local(instance=NEW_MODEL)}
    plan = step(ordered(NEW_MODEL), fetched, here, T, None)
    assert plan.actions == (Stop(OLD_MODEL.name, "replaced"),)
    waiting = plan.locals[NEW_MODEL.name]
    assert waiting.reason is not None
    assert (waiting.phase, waiting.reason.code) == ("waiting", "making_room")


def test_a_failure_after_it_was_ready_makes_it_fall_and_starts_what_ran_before() -> None:
    ready = heard(Local(instance=NEW, phase="starting", since=T), Ready(NEW.name), T)
    assert ready is not None
    assert ready.first_ready_at == T
    fell = heard(ready, Failed(NEW.name, exited("killed for its memory")), T + 60_000)
    assert fell is not None
    assert fell.phase == "refused"
    assert fell.reason == Reason(
        code="probation_failed",
        subject=f"instance/{NEW.name}",
        detail="its process ended: killed for its memory; 60.0 s after it was first ready",
    )
    assert step(ordered(NEW), by_name(fell), frozenset(), T + 60_000, None).actions == (Start(OLD.name, OLD),)
    later = heard(ready, Failed(NEW.name, exited()), T + 60_001)
    assert later is not None
    assert later.phase == "backoff", "its probation is over"


def test_before_it_was_ready_the_third_failure_makes_it_fall_and_the_first_is_told() -> None:
    local: Local | None = Local(instance=NEW)
    for n in (1, 2, 3):
        assert local is not None
        local = heard(replace(local, phase="starting"), Failed(NEW.name, exited(f"error {n}")), T + n)
        assert local is not None
        assert local.phase == ("refused" if n == 3 else "backoff")
    assert local is not None
    assert local.reason is not None
    assert local.reason.detail == "its process ended: error 1; 3 times before it was ready"


def test_what_could_not_be_fetched_is_not_its_fault() -> None:
    local: Local | None = Local(instance=NEW_MODEL, phase="fetching")
    for n in range(5):
        assert local is not None
        missing = Reason(code="artifact_missing", subject=f"instance/{NEW_MODEL.name}")
        local = heard(replace(local, phase="fetching"), Failed(NEW_MODEL.name, missing), T + n)
        assert local is not None
        assert (local.phase, local.runs_failed) == ("backoff", 0)


def test_one_that_is_not_live_falls_once_it_is_gone_however_long_that_takes() -> None:
    ready = Local(instance=NEW, phase="ready", since=T, first_ready_at=T)
    sick = heard(ready, Unready(NEW.name, Reason(code="not_live", subject=f"instance/{NEW.name}")), T + 59_000)
    assert sick is not None
    stopping = step(ordered(NEW), by_name(sick), frozenset(), T + 59_000, None)
    assert stopping.actions == (Stop(NEW.name, "not_live"),)
    fell = heard(stopping.locals[NEW.name], Gone(NEW.name), T + 65_000)
    assert fell is not None
    assert (fell.phase, fell.reason and fell.reason.code) == ("refused", "probation_failed")


def test_what_is_never_ready_is_stopped_in_the_end() -> None:
    hanging = by_name(Local(instance=NEW, phase="starting", since=T))
    waiting = step(ordered(NEW), hanging, frozenset(), T, None)
    assert (waiting.actions, waiting.wake_at) == ((), T + START_WITHIN_MS)
    plan = step(ordered(NEW), hanging, frozenset(), T + START_WITHIN_MS, None)
    assert plan.actions == (Stop(NEW.name, "probation_failed"),)
    fell = heard(plan.locals[NEW.name], Gone(NEW.name), T + START_WITHIN_MS + 9)
    assert fell is not None
    assert (fell.phase, fell.reason and fell.reason.code) == ("refused", "probation_failed")


def test_what_takes_the_machine_along_three_times_falls_but_a_lease_is_not_blamed() -> None:
    for lease_ms, end in ((None, "refused"), (5_000, "waiting")):
        local: Local | None = Local(instance=replace(NEW, lease_ms=lease_ms), phase="ready", since=T, first_ready_at=T)
        for n in range(3):
            assert local is not None
            local = heard(replace(local, phase="ready", since=T + n), Gone(NEW.name), T + n)
        assert local is not None
        assert local.phase == end


def test_refused_without_a_fallback_is_as_it_ever_was() -> None:
    alone = replace(NEW, fallback=None)
    fell = heard(Local(instance=alone, phase="ready", first_ready_at=T), Failed(NEW.name, exited()), T)
    assert fell is not None
    assert fell.phase == "backoff"
    refused = heard(Local(instance=alone, phase="starting"), Failed(NEW.name, exited(), final=True), T)
    assert refused is not None
    plan = step(ordered(alone), by_name(refused), frozenset(), T, None)
    assert (plan.actions, plan.locals[NEW.name].proof_key) == ((), "")


@pytest.mark.parametrize(
    "other",
    [replace(NEW, epoch=9), replace(NEW, fallback=None), replace(NEW, probation_ms=1), replace(NEW, fallback=NEW)],
)
def test_how_it_would_fall_back_is_no_part_of_what_runs(other: Instance) -> None:
    assert same_content(NEW, other)
    running = by_name(Local(instance=NEW, phase="ready", since=T))
    plan = step(ordered(other), running, frozenset(), T, None)
    assert plan == plan._replace(actions=(), locals=by_name(Local(instance=other, phase="ready", since=T)))


def test_what_fell_is_remembered_for_this_machine_and_its_runtime() -> None:
    refused = Local(instance=NEW_MODEL, phase="refused", reason=exited())
    plan = step(ordered(NEW_MODEL), by_name(refused), frozenset({OLD_FILE}), T, None, bench=BENCH)
    fallen = remembered({}, plan.locals.values(), T)
    [known] = fallen.values()
    assert known == Fallen(key=fall_key(NEW_MODEL, BENCH), name=NEW_MODEL.name, epoch=2, at=T, reason=exited())
    assert fell_before(replace(NEW_MODEL, revision=3, epoch=4), BENCH, fallen) == known
    assert fell_before(replace(NEW_MODEL, epoch=3), BENCH, fallen) is None, "asked for anew"
    assert fell_before(NEW_MODEL, Bench("pi-5", BENCH.runtimes), fallen) is None
    assert fell_before(NEW_MODEL, Bench("pi-4", {"onnx": "onnxruntime 2"}), fallen) is None
    assert fell_before(replace(NEW_MODEL, fallback=None), BENCH, fallen) is None, "better this than nothing"
    newer = step(ordered(NEW_MODEL), plan.locals, frozenset({OLD_FILE}), T, None, bench=Bench("pi-5", BENCH.runtimes))
    assert newer.locals[NEW_MODEL.name].phase == "fetching", "on other hardware it is tried again"


def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    known: dict[str, Fallen] = {}
    for n in range(FALLEN_MAX + 5):
        one = replace(NEW, process=ProcessUse(command=(f"run {n}",)))
        plan = step(
            ordered(one), by_name(Local(instance=one, phase="refused", reason=exited())), frozenset(), T + n, None
        )
        known = remembered(known, plan.locals.values(), T + n)
    assert len(known) == FALLEN_MAX
    assert min(each.at for each in known.values()) == T + 5
