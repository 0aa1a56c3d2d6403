"""Gate: a condition over what devices measured, such as `latency.p99 < baseline.latency.p99 * 1.2`.

Whatever is measured has a name here and nowhere else; `baseline.` before it asks for the same of what ran before, and
of what still runs the old release on the same class of hardware.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from batuta.kinds import condition
from batuta.kinds.condition import ConditionFault
from batuta.kinds.tokens import paths_in, tokens_of

if TYPE_CHECKING:
    from batuta.kinds.base import Problem

BASELINE = "baseline"

MEASURED: dict[str, tuple[str, str]] = {
    "errors.rate": ("share", "of the messages, those that could not be answered"),
    "latency.p50": ("ms", "half of the answers came within this"),
    "latency.p95": ("ms", "of a hundred answers, ninety-five came within this"),
    "latency.p99": ("ms", "of a hundred answers, ninety-nine came within this"),
    "throughput.perSecond": ("/s", "answers of an instance in a second"),
    "confidence.mean": ("share", "how sure the model was of its answers"),
    "confidence.shift": ("share", "how far its sureness is from the baseline's (Kolmogorov and Smirnov's distance)"),
    "drift.score": ("share", "how far its inputs are from those it was made with (the same distance)"),
    "agreement.share": ("share", "in shadow: of the answers, those that were the old release's too"),
    "restarts.count": ("", "restarts of all instances since they were updated"),
    "memory.max": ("bytes", "the most that any instance took"),
    "temperature.max": ("°C", "of the hottest node"),
    "energy.perInference": ("J", "energy of one answer"),
}
"""By name: the unit and one line for people."""


def _nested(value: float) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in MEASURED:
        of, what = name.split(".")
        found.setdefault(of, {})[what] = value
    return found


SAMPLE: dict[str, dict[str, Any]] = {**_nested(1.0), BASELINE: _nested(1.0)}
VARIABLES = frozenset(SAMPLE)


def check(path: str, text: str) -> list[Problem]:
    """Everything wrong with a gate that can be seen before anything was measured."""
    from batuta.kinds.base import Problem

    if found := condition.check(path, text, VARIABLES, sample=SAMPLE):
        return found
    answer = condition.evaluate(condition.compile_condition(text), SAMPLE)
    if isinstance(answer, ConditionFault) and answer.code != "failed":
        return [Problem(path=path, code=answer.code, message=answer.message)]
    if not measures_in(text):
        hint = f"a gate asks for one of {', '.join(MEASURED)}"
        return [Problem(path=path, code="value", message="this gate measures nothing", hint=hint)]
    return []


@lru_cache(1024)
def asks_agreement(text: str) -> bool:
    """Does it ask what is only seen while two releases answer the same?"""
    return any(name.startswith("agreement.") for name in measures_in(text))


def measures_in(text: str) -> tuple[str, ...]:
    """The measurements that a gate asks for, such as `latency.p99` and `baseline.latency.p99`, in order."""
    found = {".".join(names) for _, _, names in paths_in(tokens_of(text))}
    return tuple(sorted(name for name in found if name.removeprefix(f"{BASELINE}.") in MEASURED))
