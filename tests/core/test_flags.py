"""Flags: what the hub makes of their rules for each node, what a key gets of that, and what the status says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from batuta.core.admission import admit
from batuta.core.flag_sheets import NOTHING, Sheets, resolved, sheets_of
from batuta.core.flags import Denied, FlagOrder, Given, Sheet, digest_of, evaluate, read, written
from batuta.core.observed import Mesh
from batuta.core.state import Change, State
from batuta.core.view import status
from batuta.core.view_flag import flag_answer
from batuta.kinds.base import Metadata
from batuta.kinds.flag import Flag, FlagRule, FlagSpec
from tests.core.fleets import NOW, heard, machines, node, report, site, state_of

CANARY = 'node.labels.ring == "canary"'
GUARDED = f'"ring" in node.labels && {CANARY}'


def flag(name: str = "overlay", *rules: FlagRule, namespace: str = "default", **spec: Any) -> Change:
    said = {"variants": {"new": True, "old": False}, "default": "old", "rules": rules, **spec}
    kind = Flag(metadata=Metadata(name=name, namespace=namespace), spec=FlagSpec(**said))
    return Change("desired", kind.ref.key, kind)


def rule(when: str | None = None, variant: str | None = None, **split: int) -> FlagRule:
    return FlagRule(when=when, variant=variant, split=split)


def order_at(state: State, where: str, name: str = "overlay") -> FlagOrder:
    sheet = read(sheets_of(state).told(where).body)
    return next(each for each in sheet.flags if each.name == name)


def of(change: Change) -> Flag:
    assert isinstance(change.value, Flag)
    return change.value


def has_it(state: State, *names: str) -> list[Change]:
    """Heartbeats that say that these nodes have what they should."""
    digests = {name: sheets_of(state).told(name).digest for name in names}
    return [
        Change("sightings", name, msgspec.structs.replace(heard(name, NOW).value, flags=digests[name]))
        for name in names
    ]


# --- What a key gets --------------------------------------------------------------------------------------------------


def test_a_flag_without_rules_gives_its_default_to_whoever_asks():
    order = resolved(of(flag()), 0)
    assert order == FlagOrder(namespace="default", name="overlay", why="STATIC", variants={"old": False})
    assert evaluate(order, None) == evaluate(order, "k") == Given("old", False, "STATIC", 0)


@pytest.mark.parametrize(
    ("where", "given"),
    [
        ("canary", Given("new", True, "TARGETING_MATCH", 1)),
        ("other", Given("old", False, "DEFAULT", 0)),
        ("lyon", Given("new", True, "SPLIT", 2)),
    ],
)
def test_the_first_rule_that_holds_decides(where, given):
    change = flag("overlay", rule(GUARDED, "new"), rule('site.name == "lyon"', new=100, old=0))
    state = state_of(
        machines("other"), [node("canary", labels={"ring": "canary"})], site("lyon"), [node("lyon", "lyon")], change
    )
    assert evaluate(order_at(state, where), None) == given


def test_a_disabled_flag_gives_its_default_and_asks_no_rule():
    state = state_of(machines("a"), flag("overlay", rule(None, "new"), rule(CANARY, "new"), disabled=True))
    assert evaluate(order_at(state, "a"), None) == Given("old", False, "DISABLED", 0)
    assert status(state, of(flag()).ref, NOW)["given"] == "old: 1"


def test_a_split_takes_a_key_of_bearable_length():
    order = resolved(of(flag("overlay", rule(None, new=20, old=80))), 1)
    for key in (None, ""):
        denied = evaluate(order, key)
        assert isinstance(denied, Denied)
        assert denied.code == "TARGETING_KEY_MISSING"
    denied = evaluate(order, "k" * 1025)
    assert isinstance(denied, Denied)
    assert denied.code == "INVALID_CONTEXT"
    assert {evaluate(order, f"camera-{n}")[0] for n in range(100)} == {"new", "old"}


def test_what_nobody_can_get_is_not_sent():
    change = flag("overlay", rule(None, a=50, b=50, c=0), variants={"a": 1, "b": 2, "c": 3, "d": 4}, default="d")
    assert resolved(of(change), 1).variants == {"a": 1, "b": 2}


def test_numbers_are_all_whole_or_all_with_a_fraction():
    whole = resolved(of(flag("n", variants={"a": 1, "b": 2}, default="a")), 0)
    assert written(Sheet(flags=(whole,))).count(b'"a":1}') == 1
    mixed = resolved(of(flag("n", variants={"a": 1, "b": 0.5}, default="a")), 0)
    assert written(Sheet(flags=(mixed,))).count(b'"a":1.0}') == 1


def test_a_sheet_without_flags_is_nothing():
    assert (written(Sheet()), digest_of(b""), read(b"")) == (b"", "", Sheet())
    assert sheets_of(state_of(machines("a"))).told("a") == NOTHING
    for bad in (b"{", b"[]", b'{"error":"node_unknown"}', b'{"flags":[{}]}', b"\xff"):
        with pytest.raises(ValueError, match="no sheet"):
            read(bad)


# --- What nodes are told ----------------------------------------------------------------------------------------------


def told(state: State) -> dict[str, str]:
    return {name: sheets_of(state).told(name).digest for name in state.nodes}


def test_only_nodes_for_which_something_changes_are_told_anything():
    first = state_of(
        machines("a", "b"), site("lyon"), [node("c", "lyon")], flag("overlay", rule('site.name == "lyon"', "new"))
    )
    before = told(first)
    assert before["a"] == before["b"] != before["c"]
    other = first.with_changes([flag("overlay", rule('site.name == "lyon"', new=50, old=50))])
    after = told(other)
    assert {name for name in after if after[name] != before[name]} == {"c"}
    # Labels of the flag, and variants that nobody gets, are no news to anybody.
    same = other.with_changes(
        [flag("overlay", rule('site.name == "lyon"', new=50, old=50), variants={"new": True, "old": False, "x": True})]
    )
    assert told(same) == after


def test_a_node_that_becomes_another_is_told_something_else():
    state = state_of(
        machines("a"),
        flag("overlay", rule(GUARDED, "new")),
        flag("small", rule('node.memory < quantity("1Gi")', "new")),
    )
    assert order_at(state, "a").why == "DEFAULT"
    state = state.with_changes([node("a", labels={"ring": "canary"})])
    assert order_at(state, "a").why == "TARGETING_MATCH"
    state = state.with_changes([Change("observed", "a", report("a", memory=512))])
    assert order_at(state, "a", "small").why == "TARGETING_MATCH"
    state = state.with_changes([Change("desired", state.nodes["a"].ref.key, None)])
    assert sheets_of(state).told("a") == NOTHING


def test_a_site_that_becomes_another_counts_too():
    state = state_of(machines("a"), flag("overlay", rule("site.metered", "new")))
    assert order_at(state, "a").why == "DEFAULT"
    metered = site("berlin").value
    spec = msgspec.structs.replace(metered.spec, uplink=msgspec.structs.replace(metered.spec.uplink, metered=True))
    state = state.with_changes([Change("desired", metered.ref.key, msgspec.structs.replace(metered, spec=spec))])
    assert order_at(state, "a").why == "TARGETING_MATCH"


def test_namespaces_keep_their_flags_apart():
    state = state_of(machines("a"), flag(), flag("overlay", namespace="team", default="new"))
    assert [(f.namespace, f.name) for f in read(sheets_of(state).told("a").body).flags] == [
        ("default", "overlay"),
        ("team", "overlay"),
    ]


def test_followed_step_by_step_it_comes_to_the_same_as_from_the_start():
    steps = [
        machines("a", "b"), flag("one", rule(GUARDED, "new")), [node("a", labels={"ring": "canary"})],
        flag("two", rule("site.metered", "new"), rule(None, new=1, old=99)), [node("c")],
        flag("one", rule(CANARY, "new")),
        [Change("observed", "b", report("b", memory=99))], [Change("desired", "flags.default.two", None)],
        [node("b", "lyon")], site("lyon"), flag("three", rule('node.architecture == "arm64"', "new")),
    ]  # fmt: skip
    state = State(hub_since=NOW)
    for step in steps:
        # As the hub does: what is to be declared is tried first, and dropped.
        tried = state.with_changes([flag("tried", rule(None, "new")), node("nobody")])
        assert len(sheets_of(tried).flags) == len(sheets_of(state).flags) + 1
        sheets_of(tried)
        state = state.with_changes(step if isinstance(step, list) else [step])
        fresh = Sheets()
        fresh.refresh(state)
        kept = sheets_of(state)
        assert {n: kept.told(n) for n in state.nodes} == {n: fresh.told(n) for n in state.nodes}
        for each in kept.flags:
            assert kept.choices(each) == fresh.choices(each)


def test_all_flags_together_fit_into_a_message():
    large = [of(flag(f"flag-{n}", variants={"old": "x" * 16_000})) for n in range(33)]
    state = state_of([Change("desired", each.ref.key, each) for each in large[:31]])
    assert admit(large[0], state) == []
    (problem,) = admit(large[32], state.with_changes([Change("desired", each.ref.key, each) for each in large]))
    assert problem.code == "too_large"
    assert problem.message.startswith("all 33 flags together have ")


# --- What the status says ---------------------------------------------------------------------------------------------


def asked(name: str, at: int = NOW) -> Change:
    return Change("observed", name, report(name, mesh=Mesh(flags={"default/overlay": at})))


def test_it_is_empty_updating_unused_and_then_ok():
    change = flag("overlay", rule(None, new=20, old=80))
    ref = of(change).ref
    assert status(state_of(change), ref, NOW)["state"] == "empty"
    state = state_of(machines("a", "b"), change)
    said = status(state, ref, NOW)
    assert (said["state"], said["current"], said["reason"]) == (
        "updating",
        "0/2",
        "a, b have not said yet that they have it",
    )
    state = state.with_changes(has_it(state, "a", "b"))
    said = status(state, ref, NOW)
    assert (said["state"], said["current"], said["askedAt"]) == ("unused", "2/2", None)
    state = state.with_changes([asked("a", NOW - 60_000), asked("b")])
    said = status(state, ref, NOW)
    assert (said["state"], said["given"], said["askedAt"]) == ("ok", "20% new/80% old: 2", NOW)


def test_a_node_that_is_away_is_not_waited_for():
    change = flag()
    state = state_of(machines("a", "b"), change)
    state = state.with_changes([*has_it(state, "a"), heard("b", NOW - 60_000)])
    said = status(state, of(change).ref, NOW)
    assert (said["state"], said["current"]) == ("unused", "1/2")


def test_a_rule_that_holds_nowhere_says_so():
    change = flag("overlay", rule(GUARDED, "new"), rule(None, "old"))
    state = state_of(machines("a"), change)
    state = state.with_changes([*has_it(state, "a"), asked("a")])
    said = status(state, of(change).ref, NOW)
    assert (said["state"], said["reason"]) == ("idle", "rule 1 holds on no node")
    assert [each["nodes"] for each in said["rules"]] == [0, 1]


def test_a_rule_that_cannot_be_answered_does_not_hold_and_says_where():
    change = flag("overlay", rule(CANARY, "new"))
    state = state_of(machines("a"), [node("b", labels={"ring": "canary"})], change)
    said = status(state, of(change).ref, NOW)
    assert said["state"] == "degraded"
    assert said["reason"].startswith("rule 1 cannot be answered on a: ")
    assert "node.labels.ring" in said["reason"]
    assert [(each["nodes"], each["unanswered"]) for each in said["rules"]] == [(1, 1)]
    assert order_at(state, "a").why == "DEFAULT"


def test_the_answer_says_what_became_of_each_rule():
    change = flag("overlay", rule(CANARY, "new"), rule('site.name == "berlin"', new=20, old=80), rule(None, "old"))
    state = state_of(machines("a"), change)
    answer = flag_answer(state, of(change), "a", "camera-7")
    given = evaluate(order_at(state, "a"), "camera-7")
    assert (answer["variant"], answer["value"], answer["why"], answer["rule"]) == given
    assert [each["holds"] for each in answer["rules"]] == ["unanswered", "yes", "not asked"]
    assert answer["says"] == "rule 2 holds there, and gives 20% new/80% old"
    assert answer["hasIt"] is False
    assert flag_answer(state, of(change), "a", None)["errorCode"] == "TARGETING_KEY_MISSING"
