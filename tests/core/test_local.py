"""The node's half, row by row: whole plans and whole Locals are compared."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.decided import Assignment, Instance, ModelOrder
from batuta.core.lease import LAPSED_GRACE_MS, contacted, grace_ms, holds_lease
from batuta.core.local import (
    BACKOFF_LONGEST_MS,
    FORGIVEN_AFTER_MS,
    STOP_AGAIN_AFTER_MS,
    Failed,
    Fetch,
    Fetched,
    Gone,
    Local,
    Plan,
    Ready,
    Start,
    Started,
    Stop,
    Unready,
    backoff_ms,
    heard,
    locals_for_report,
    step,
)
from batuta.core.observed import InstanceReport, Measures
from batuta.core.reasons import Reason
from batuta.kinds.application import ProcessUse
from batuta.kinds.base import Bytes
from batuta.kinds.model import Variant

DIGEST = "sha256:" + "a" * 64
T = 1_000_000
replace = msgspec.structs.replace


def an_instance(component="read", revision=1, slot="0", epoch=1, lease_ms=None, model=False, command="run") -> Instance:
    order = None
    if model:
        variant = Variant(name="fp32", format="onnx", digest=DIGEST, size_bytes=Bytes(1000))
        order = ModelOrder(name="digits", version="1", variant=variant)
    return Instance(
        namespace="default",
        application="app",
        component=component,
        revision=revision,
        slot=slot,
        epoch=epoch,
        model=order,
        process=None if model else ProcessUse(command=(command,)),
        lease_ms=lease_ms,
    )


def an_assignment(*instances: Instance) -> Assignment:
    return Assignment(node="n", site="s", serial=1, instances=instances)


def why(instance: Instance, code: str) -> Reason:
    return Reason(code=code, subject=f"instance/{instance.name}")


def by_name(*found: Local) -> dict[str, Local]:
    return {local.instance.name: local for local in found}


NOTHING = frozenset[str]()
ONE = an_instance()
MODEL = an_instance("infer", model=True)
LEASED = an_instance("once", lease_ms=5_000)


# --- step -----------------------------------------------------------------------------------------------------------


def test_without_an_assignment_nothing_is_touched():
    running = by_name(Local(instance=ONE, phase="ready"))
    assert step(None, running, NOTHING, T, None) == Plan((), running, None)


def test_an_instance_without_artifacts_starts_at_once():
    assert step(an_assignment(ONE), {}, NOTHING, T, None) == Plan(
        (Start(ONE.name, ONE),),
        by_name(Local(instance=ONE, phase="starting", since=T, reason=why(ONE, "starting"))),
        None,
    )


def test_artifacts_are_fetched_before_the_start():
    fetching = Local(instance=MODEL, phase="fetching", since=T, reason=why(MODEL, "fetching"))
    assert step(an_assignment(MODEL), {}, NOTHING, T, None) == Plan(
        (Fetch(MODEL.name, (DIGEST,)),), by_name(fetching), None
    )
    fetched = heard(fetching, Fetched(MODEL.name), T + 5)
    assert fetched == Local(instance=MODEL, phase="waiting", since=T + 5)
    plan = step(an_assignment(MODEL), by_name(fetched), frozenset({DIGEST}), T + 5, None)
    assert plan.actions == (Start(MODEL.name, MODEL),)


@pytest.mark.parametrize("phase", ["starting", "ready", "unready"])
def test_what_is_no_longer_assigned_stops(phase):
    plan = step(an_assignment(), by_name(Local(instance=ONE, phase=phase, since=1)), NOTHING, T, None)
    assert plan.actions == (Stop(ONE.name, "unassigned"),)
    assert plan.locals == by_name(Local(instance=ONE, phase="stopping", since=T))
    assert heard(plan.locals[ONE.name], Gone(ONE.name), T + 1) is None


@pytest.mark.parametrize("phase", ["waiting", "fetching", "backoff", "refused"])
def test_what_does_not_run_and_is_not_wanted_is_forgotten(phase):
    assert step(an_assignment(), by_name(Local(instance=ONE, phase=phase)), NOTHING, T, None) == Plan((), {}, None)


def test_other_content_under_the_same_name_is_stopped_then_begun_afresh():
    other = an_instance(command="run-2")
    plan = step(an_assignment(other), by_name(Local(instance=ONE, phase="ready", starts=3)), NOTHING, T, None)
    assert plan.actions == (Stop(ONE.name, "changed"),)
    assert step(an_assignment(other), plan.locals, NOTHING, T, None).actions == ()
    assert heard(plan.locals[ONE.name], Gone(ONE.name), T + 1) is None


def test_another_epoch_of_the_same_content_keeps_running_under_the_new_number():
    ready = Local(instance=LEASED, phase="ready", since=5, starts=1, handle={"pid": 7})
    newer = replace(LEASED, epoch=2)
    plan = step(an_assignment(newer), by_name(ready), NOTHING, T, T)
    assert plan == Plan((), by_name(replace(ready, instance=newer)), T + 5_001)


def test_a_refused_order_is_not_tried_again_until_it_changes():
    refused = heard(Local(instance=ONE, phase="starting"), Failed(ONE.name, why(ONE, "command_missing"), final=True), T)
    assert refused == Local(instance=ONE, phase="refused", since=T, failures=1, reason=why(ONE, "command_missing"))
    assert step(an_assignment(ONE), by_name(refused), NOTHING, T + 10**9, None) == Plan((), by_name(refused), None)
    for order in (replace(ONE, epoch=2), an_instance(command="found")):
        assert step(an_assignment(order), by_name(refused), NOTHING, T, None).actions == (Start(ONE.name, order),)


def test_failures_back_off_and_are_tried_again_at_the_instant_promised():
    failed = heard(Local(instance=ONE, phase="ready", handle={"pid": 1}), Failed(ONE.name, why(ONE, "exited")), T)
    assert failed is not None
    assert (failed.phase, failed.failures, failed.handle, failed.reason) == ("backoff", 1, {}, why(ONE, "exited"))
    plan = step(an_assignment(ONE), by_name(failed), NOTHING, T, None)
    assert plan == Plan((), by_name(failed), failed.retry_at)
    assert step(an_assignment(ONE), by_name(failed), NOTHING, failed.retry_at - 1, None).actions == ()
    assert step(an_assignment(ONE), by_name(failed), NOTHING, failed.retry_at, None).actions == (Start(ONE.name, ONE),)


def test_backoff_doubles_to_five_minutes_and_differs_by_name():
    waits = [backoff_ms("a", n) for n in range(1, 40)]
    for n, wait in enumerate(waits):
        full = min(1_000 * 2**n, BACKOFF_LONGEST_MS)
        assert full * 4 // 5 <= wait <= full
    assert len({backoff_ms(f"default/app/read-1-{n}", 9) for n in range(50)}) > 25


def test_a_clock_set_back_does_not_stretch_a_wait():
    waiting = Local(instance=ONE, phase="backoff", failures=1, since=T, retry_at=T + 900)
    plan = step(an_assignment(ONE), by_name(waiting), NOTHING, T - 10**7, None)
    assert plan.actions == (Start(ONE.name, ONE),)


def test_a_minute_of_readiness_forgives():
    ready = Local(instance=ONE, phase="ready", since=T, failures=3)
    early = step(an_assignment(ONE), by_name(ready), NOTHING, T + 1, None)
    assert early == Plan((), by_name(ready), T + FORGIVEN_AFTER_MS)
    late = step(an_assignment(ONE), by_name(ready), NOTHING, T + FORGIVEN_AFTER_MS, None)
    assert late == Plan((), by_name(replace(ready, failures=0)), None)


def test_two_revisions_of_a_slot_run_together_when_both_are_assigned():
    old, new = Local(instance=ONE, phase="ready"), an_instance(revision=2)
    plan = step(an_assignment(ONE, new), by_name(old), NOTHING, T, None)
    assert plan.actions == (Start(new.name, new),)
    assert plan.locals[ONE.name] == old


def test_when_only_the_new_one_is_assigned_the_old_one_ends_first():
    new = an_instance(revision=2)
    plan = step(an_assignment(new), by_name(Local(instance=ONE, phase="ready")), NOTHING, T, None)
    assert plan.actions == (Stop(ONE.name, "replaced"),)
    assert plan.locals[new.name] == Local(instance=new, since=T, reason=why(new, "making_room"))
    left = {new.name: plan.locals[new.name]}
    assert step(an_assignment(new), left, NOTHING, T + 9, None).actions == (Start(new.name, new),)


def test_the_new_one_fetches_while_the_old_one_still_runs():
    old, new = an_instance("infer", model=True), an_instance("infer", revision=2, model=True)
    plan = step(an_assignment(new), by_name(Local(instance=old, phase="ready")), NOTHING, T, None)
    assert plan.actions == (Stop(old.name, "replaced"), Fetch(new.name, (DIGEST,)))


def test_of_a_never_twice_slot_only_the_newest_is_wanted():
    new = replace(LEASED, revision=2, epoch=2)
    plan = step(an_assignment(LEASED, new), by_name(Local(instance=LEASED, phase="ready")), NOTHING, T, T)
    assert plan.actions == (Stop(LEASED.name, "replaced"),)
    assert plan.locals[new.name].phase == "waiting"


def test_a_failed_liveness_probe_stops_then_backs_off():
    sick = heard(Local(instance=ONE, phase="ready", handle={"pid": 1}), Unready(ONE.name, why(ONE, "not_live")), T)
    plan = step(an_assignment(ONE), by_name(sick), NOTHING, T, None)
    assert plan.actions == (Stop(ONE.name, "not_live"),)
    gone = heard(plan.locals[ONE.name], Gone(ONE.name), T + 3)
    assert (gone.phase, gone.failures, gone.reason) == ("backoff", 1, why(ONE, "not_live"))


def test_a_stop_that_nobody_answers_is_asked_again():
    stopping = Local(instance=ONE, phase="stopping", since=T)
    assert step(an_assignment(), by_name(stopping), NOTHING, T, None) == Plan(
        (), by_name(stopping), T + STOP_AGAIN_AFTER_MS
    )
    again = step(an_assignment(), by_name(stopping), NOTHING, T + STOP_AGAIN_AFTER_MS, None)
    assert again.actions == (Stop(ONE.name, "unassigned"),)


# --- leases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contact_at", [None, T - 5_001, T + 1])
def test_without_a_fresh_contact_a_never_twice_instance_neither_starts_nor_runs(contact_at):
    idle = step(an_assignment(LEASED), {}, NOTHING, T, contact_at)
    assert idle == Plan((), by_name(Local(instance=LEASED, since=T, reason=why(LEASED, "lease_lapsed"))), None)
    plan = step(an_assignment(LEASED), by_name(Local(instance=LEASED, phase="ready")), NOTHING, T, contact_at)
    assert plan.actions == (Stop(LEASED.name, "lease_lapsed"),)
    gone = heard(plan.locals[LEASED.name], Gone(LEASED.name), T + 1)
    assert gone == Local(instance=LEASED, phase="waiting", since=T + 1, reason=why(LEASED, "lease_lapsed"))
    assert step(an_assignment(LEASED), by_name(gone), NOTHING, T + 2, T + 2).actions == (Start(LEASED.name, LEASED),)


def test_a_lease_holds_to_its_last_millisecond_and_says_when_it_lapses():
    running = by_name(Local(instance=LEASED, phase="ready"))
    assert step(an_assignment(LEASED), running, NOTHING, T, T - 5_000) == Plan((), running, T + 1)


def test_contact_is_the_newest_send_instant_that_is_not_in_the_future():
    assert contacted(None, 10, 20) == 10
    assert contacted(15, 10, 20) == 15
    assert contacted(50, 10, 20) == 10
    assert contacted(15, 30, 20) == 15
    assert contacted(50, 30, 20) is None


def test_an_answer_that_names_a_newer_assignment_renews_nothing():
    assert contacted(None, 10, 20, missed=True) is None
    assert contacted(5, 10, 20, missed=True) == 5


def test_politeness_ends_with_the_lease():
    assert grace_ms(ONE, T, None) == 10_000
    assert grace_ms(LEASED, T, T) == 5_000 + LAPSED_GRACE_MS
    assert grace_ms(LEASED, T, None) == grace_ms(LEASED, T, T - 9_000) == grace_ms(LEASED, T, T + 1) == LAPSED_GRACE_MS
    assert holds_lease(ONE, T, None)


# --- heard ----------------------------------------------------------------------------------------------------------


def test_a_start_is_counted_and_an_adoption_is_not():
    starting = Local(instance=ONE, phase="starting", since=1, reason=why(ONE, "starting"))
    started = heard(starting, Started(ONE.name, {"pid": 7}), T)
    assert started == replace(starting, handle={"pid": 7}, starts=1)
    assert heard(started, Started(ONE.name, {"pid": 7}, adopted=True), T) == started
    ready = heard(started, Ready(ONE.name), T + 1)
    assert ready == Local(instance=ONE, phase="ready", since=T + 1, starts=1, handle={"pid": 7}, ready_after_ms=T)
    assert heard(ready, Ready(ONE.name), T + 9) == ready
    assert heard(ready, Started(ONE.name, {"pid": 7}, adopted=True), T + 9) == ready


def test_a_stop_interrupted_by_a_restart_of_the_node_agent_is_planned_again():
    stopping = Local(instance=ONE, phase="stopping", since=T, handle={"pid": 7}, starts=1)
    found = heard(stopping, Started(ONE.name, {"pid": 7}, adopted=True), T)
    assert step(an_assignment(), by_name(found), NOTHING, T, None).actions == (Stop(ONE.name, "unassigned"),)


def test_how_long_a_start_took_is_remembered_until_the_next():
    starting = Local(instance=ONE, phase="starting", since=T, starts=1)
    ready = heard(starting, Ready(ONE.name), T + 700)
    assert ready.ready_after_ms == 700
    unready = heard(ready, Unready(ONE.name, why(ONE, "not_ready")), T + 800)
    assert heard(unready, Ready(ONE.name), T + 5_000).ready_after_ms == 700, "it was unwell, not starting"
    [said] = locals_for_report(by_name(ready), {})
    assert said.ready_after_ms == 700


@pytest.mark.parametrize("phase", ["fetching", "starting", "ready", "unready"])
def test_after_a_cold_boot_what_ran_starts_again_without_blame(phase):
    gone = heard(Local(instance=ONE, phase=phase, starts=1, handle={"pid": 7}), Gone(ONE.name), T)
    assert gone == Local(instance=ONE, phase="waiting", since=T, starts=1)


def test_a_slow_start_is_not_yet_unready():
    starting = Local(instance=ONE, phase="starting", handle={"pid": 1})
    assert heard(starting, Unready(ONE.name, why(ONE, "not_ready")), T).phase == "starting"
    ready = Local(instance=ONE, phase="ready", handle={"pid": 1})
    assert heard(ready, Unready(ONE.name, why(ONE, "not_ready")), T).phase == "unready"


def test_a_start_that_ends_while_its_stop_waits_stays_stopping():
    stopping = Local(instance=ONE, phase="stopping", since=T)
    assert heard(stopping, Started(ONE.name, {"pid": 7}), T) == replace(stopping, handle={"pid": 7}, starts=1)
    assert heard(stopping, Failed(ONE.name, why(ONE, "start_failed")), T) == stopping


def test_the_report_is_the_locals():
    local = Local(instance=ONE, phase="ready", since=5, starts=2)
    measures = Measures(received=3)
    assert locals_for_report(by_name(local), {ONE.name: measures}) == (
        InstanceReport(name=ONE.name, epoch=1, phase="ready", since=5, starts=2, measures=measures),
    )
