"""A node that is to run a new release beside the old one: both, each by itself, and then the new one afresh."""

from __future__ import annotations

from typing import Any

import msgspec

from batuta.core.decided import Assignment, Beside, Instance
from batuta.core.load import load_of
from batuta.core.local import Failed, Gone, Local, Ready, Start, Started, Stop, heard, step
from batuta.core.reasons import Reason
from batuta.kinds.application import ProcessUse
from batuta.kinds.base import Bytes, Millicores

T = 1_000_000
replace = msgspec.structs.replace


def an_instance(revision: int, **more: Any) -> Instance:
    return Instance(
        namespace="default", application="app", component="read", revision=revision, slot="0", epoch=1,
        process=ProcessUse(command=("run", str(revision))), cpu_millis=Millicores(100), memory_bytes=Bytes(1_000),
        **more,
    )  # fmt: skip


OLD = an_instance(1)
NEW = an_instance(2, beside=Beside(mode="shadow"))
PAIR = replace(OLD, newcomer=NEW)


def an_assignment(*instances: Instance) -> Assignment:
    return Assignment(node="n", site="s", serial=1, instances=instances)


def running(instance: Instance) -> Local:
    return Local(instance=instance, phase="ready", since=T, starts=1, handle={"pid": 7})


def test_both_take_room() -> None:
    assert load_of(PAIR) == load_of(OLD)._replace(cpu_millis=200, memory_bytes=2_000)


def test_the_new_one_is_started_and_the_old_one_is_not_touched() -> None:
    plan = step(an_assignment(PAIR), {OLD.name: running(OLD)}, frozenset(), T + 1, None)
    assert plan.actions == (Start(NEW.name, NEW),)
    assert plan.locals[OLD.name].phase == "ready"
    assert plan.locals[OLD.name].instance == PAIR


def test_the_old_one_is_started_while_the_new_one_stops_or_runs() -> None:
    for phase in ("ready", "stopping"):
        here = {NEW.name: replace(running(NEW), phase=phase)}
        plan = step(an_assignment(PAIR), here, frozenset(), T + 1, None)
        assert Start(OLD.name, PAIR) in plan.actions


def test_when_the_new_one_fails_it_is_tried_again_and_the_old_one_goes_on() -> None:
    here = {OLD.name: running(PAIR), NEW.name: running(NEW)}
    failed = heard(here[NEW.name], Failed(NEW.name, Reason(code="exited", subject="x")), T + 1)
    assert failed is not None
    assert failed.phase == "backoff"
    plan = step(an_assignment(PAIR), {**here, NEW.name: failed}, frozenset(), T + 2, None)
    assert plan.actions == ()
    assert failed.retry_at is not None
    plan = step(an_assignment(PAIR), plan.locals, frozenset(), failed.retry_at, None)
    assert plan.actions == (Start(NEW.name, NEW),)


def test_when_nothing_is_tried_any_more_only_the_new_one_ends() -> None:
    here = {OLD.name: running(PAIR), NEW.name: running(NEW)}
    plan = step(an_assignment(OLD), here, frozenset(), T + 1, None)
    assert plan.actions == (Stop(NEW.name, "replaced"),)
    assert plan.locals[OLD.name].phase == "ready"


def test_another_way_of_trying_it_starts_it_anew_and_having_it_whole_too() -> None:
    whole = replace(NEW, beside=None, epoch=2)
    for orders in (
        (replace(OLD, newcomer=replace(NEW, beside=Beside(mode="split", share=0.2), epoch=0)),),
        (OLD, whole),
    ):
        here = {OLD.name: running(PAIR), NEW.name: running(NEW)}
        plan = step(an_assignment(*orders), here, frozenset(), T + 1, None)
        assert plan.actions == (Stop(NEW.name, "changed"),)
        gone = heard(plan.locals[NEW.name], Gone(NEW.name), T + 2)
        left = {OLD.name: plan.locals[OLD.name]} | ({NEW.name: gone} if gone is not None else {})
        plan = step(an_assignment(*orders), left, frozenset(), T + 3, None)
        (start,) = plan.actions
        assert isinstance(start, Start)
        assert start.name == NEW.name
        assert plan.locals[OLD.name].phase == "ready", "the old one serves meanwhile"


def test_what_was_found_again_after_a_restart_goes_on() -> None:
    here = {OLD.name: running(PAIR), NEW.name: running(NEW)}
    found: dict[str, Local] = {}
    for name, local in here.items():
        after = heard(local, Started(name, {"pid": 7}, adopted=True), T + 1)
        assert after is not None
        ready = heard(after, Ready(name), T + 2)
        assert ready is not None
        found[name] = ready
    assert step(an_assignment(PAIR), found, frozenset(), T + 3, None).actions == ()
