"""The status of a flag: which nodes get which variants, who has not taken it yet, and whether anybody asks for it.

| state | when | exit |
|---|---|---|
| ok | every node that is connected has it, and some program asks for it | |
| updating | some connected node has not taken it yet | it takes it within a second |
| degraded | a rule cannot be answered on some node: it does not hold there | guard what may be missing with has(…) |
| idle | a rule holds on no node | change its `when`, or take it out |
| unused | no program has asked for it | ask for it, or delete it |
| empty | there is no node yet | join one |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from batuta.core.flag_sheets import resolved, sheets_of
from batuta.core.flags import Denied, evaluate
from batuta.core.liveness import link_rule
from batuta.core.words import WORDS

if TYPE_CHECKING:
    from batuta.core.flag_sheets import Choice, Sheets
    from batuta.core.state import State
    from batuta.kinds.flag import Flag

NAMED_MAX: Final = 3
_LATE: Final = "flags not taken"
_ASKED: Final = "flags asked for"


def flag_status(state: State, flag: Flag, now: int) -> dict[str, Any]:
    sheets = sheets_of(state)
    choices = sheets.choices(flag)
    given: dict[str, int] = {}
    for choice, count in choices.items():
        words = _given(flag, choice)
        given[words] = given.get(words, 0) + count
    rules = [
        {
            "rule": n,
            "when": rule.when or "everywhere",
            "gives": rule.variant or _shares(rule.split),
            "nodes": sum(count for choice, count in choices.items() if choice.rule == n),
            "unanswered": sum(count for choice, count in choices.items() if choice.puzzled == n),
        }
        for n, rule in enumerate(flag.spec.rules, 1)
    ]
    late = _late(state, sheets)
    waiting = [node for node in late if link_rule(state, node, now).word == "online"]
    asked_at = _asked(state).get(f"{flag.ref.namespace}/{flag.ref.name}")
    word, reason = _word(flag, sheets, rules, waiting, asked_at)
    return {
        "state": word,
        "reason": reason or WORDS[word].meaning,
        "next": _NEXT.get(word, WORDS[word].next_step),
        "type": flag.spec.type,
        "given": ", ".join(f"{words}: {count}" for words, count in sorted(given.items())),
        "nodes": sum(choices.values()),
        "current": f"{sum(choices.values()) - len(late)}/{sum(choices.values())}",
        "askedAt": asked_at,
        "rules": rules,
    }


_NEXT: Final = {
    "degraded": "guard what may be missing with has(…)",
    "updating": "wait a second",
    "idle": "change its `when`, or take the rule out",
    "unused": "ask for it at BATUTA_FLAGS_URL, or delete it",
}


def flag_answer(state: State, flag: Flag, node: str, key: str | None) -> dict[str, Any]:
    """What a key gets of a flag on a node, and which rule says so: for `batuta flag eval`."""
    sheets = sheets_of(state)
    choice = sheets.choice(flag, node)
    assert choice is not None, "whoever asks has looked whether there is such a node"
    answer: dict[str, Any] = {"flag": flag.ref.name, "namespace": flag.ref.namespace, "node": node}
    given = evaluate(resolved(flag, choice.rule), key)
    if key is not None:
        answer["key"] = key
    if isinstance(given, Denied):
        answer |= {"errorCode": given.code, "message": given.message}
    else:
        answer |= {"variant": given.variant, "value": given.value, "why": given.why}
    answer["rule"] = choice.rule
    answer["says"] = _says(flag, choice)
    answer["rules"] = [
        {"rule": n, "when": rule.when or "everywhere", "gives": rule.variant or _shares(rule.split)}
        | _verdict(flag, sheets, choice, n, node)
        for n, rule in enumerate(flag.spec.rules, 1)
    ]
    answer["hasIt"] = _has(state, sheets, node)
    return answer


def _verdict(flag: Flag, sheets: Sheets, choice: Choice, n: int, node: str) -> dict[str, Any]:
    if flag.spec.disabled or (choice.rule and n > choice.rule):
        return {"holds": "not asked"}
    holds = sheets.holds(flag, n, node)
    if isinstance(holds, str):
        return {"holds": "unanswered", "why": holds}
    return {"holds": "yes" if holds else "no"}


def _says(flag: Flag, choice: Choice) -> str:
    spec = flag.spec
    if spec.disabled:
        return f"the flag is disabled: everybody gets its default, {spec.default}"
    if not spec.rules:
        return f"it has no rules: everybody gets its default, {spec.default}"
    if not choice.rule:
        what = "none of its rules holds" if len(spec.rules) > 1 else "its rule does not hold"
        return f"{what} there, so its default counts: {spec.default}"
    rule = spec.rules[choice.rule - 1]
    return f"rule {choice.rule} holds there, and gives {rule.variant or _shares(rule.split)}"


def _word(
    flag: Flag, sheets: Sheets, rules: list[dict[str, Any]], waiting: list[str], asked_at: int | None
) -> tuple[str, str]:
    nodes = list(sheets.nodes())
    if not nodes:
        return "empty", "there is no node yet"
    puzzled = next((each for each in rules if each["unanswered"]), None)
    if puzzled is not None:
        n = puzzled["rule"]
        names = sorted(node for node in nodes if (at := sheets.choice(flag, node)) is not None and at.puzzled == n)
        return "degraded", f"rule {n} cannot be answered on {_some(names)}: {sheets.fault(flag, n, names[0])}"
    if waiting:
        has = "has not said yet that it has it" if len(waiting) == 1 else "have not said yet that they have it"
        return "updating", f"{_some(list(waiting))} {has}"
    nowhere = [each["rule"] for each in rules if not each["nodes"]]
    if nowhere and not flag.spec.disabled:
        return "idle", f"rule {nowhere[0]} holds on no node"
    if asked_at is None:
        return "unused", "no program has asked for it"
    return "ok", "it is disabled: everybody gets the default" if flag.spec.disabled else ""


def _has(state: State, sheets: Sheets, node: str) -> bool:
    """Has it said with its last heartbeat that it has what it should? Nobody can tell of one that was never heard."""
    sighting = state.sightings.get(node)
    return sighting is not None and sighting.flags == sheets.told(node).digest


def _late(state: State, sheets: Sheets) -> tuple[str, ...]:
    """Nodes that have not said that they have what they should. Looked up once for all flags."""
    known = state.memo.get(_LATE)
    if known is None or known[0] is not state.sightings or known[1] != sheets.version:
        found = tuple(sorted(node for node in sheets.nodes() if not _has(state, sheets, node)))
        known = state.memo[_LATE] = (state.sightings, sheets.version, found)
    late: tuple[str, ...] = known[2]
    return late


def _asked(state: State) -> dict[str, int]:
    """By `namespace/flag`: when some program last asked a gateway for it, as far as nodes have reported."""
    known = state.memo.get(_ASKED)
    if known is None or known[0] is not state.observed:
        found: dict[str, int] = {}
        for report in state.observed.values():
            for key, at in report.mesh.flags.items() if report.mesh is not None else ():
                found[key] = max(at, found.get(key, 0))
        known = state.memo[_ASKED] = (state.observed, found)
    asked: dict[str, int] = known[1]
    return asked


def _given(flag: Flag, choice: Choice) -> str:
    order = resolved(flag, choice.rule)
    return _shares(order.split) if len(order.split) > 1 else next(iter(order.variants))


def _shares(split: dict[str, int]) -> str:
    """`20% new/80% old`."""
    return "/".join(f"{share}% {name}" for name, share in sorted(split.items()) if share)


def _some(names: list[str]) -> str:
    rest = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {rest} more" if rest > 0 else "")
