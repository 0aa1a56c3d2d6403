"""What the fleet's inference gateways counted, as lines of /metrics: summed over all nodes that have reported.

A gateway counts from its start, so a sum falls when one starts again; Prometheus takes that for the reset that it is.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from batuta.core.observed import MESH_BOUNDS_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from batuta.core.observed import Report

HELP: Final = {
    "mesh_calls_total": "Calls of models through the nodes' gateways, by what came of them.",
    "mesh_shed_total": "Calls that gateways refused because there were too many, by class.",
    "mesh_again_total": "Attempts beyond the first of a call: after a failure, or beside it as a hedge.",
    "mesh_breakers": "Instances as gateways know them, by the state of the circuit breaker.",
    "mesh_attempts_failed_total": "Attempts that were not answered, or badly, by model and how near the instance was.",
    "mesh_latency_milliseconds": "How long answered attempts took, by model and how near the instance was.",
}


def lines(reports: Iterable[Report], escaped: Callable[[str], str]) -> Iterable[str]:
    """Prometheus text, without the help lines of other families."""
    calls, shed, again, breakers = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    failed: Counter[str] = Counter()
    latencies: dict[str, tuple[list[int], float]] = {}
    for report in reports:
        if (mesh := report.mesh) is None:
            continue
        calls.update(mesh.calls)
        shed.update(mesh.shed)
        again.update(retry=mesh.retries, hedge=mesh.hedges)
        breakers.update(mesh.breakers)
        for row in mesh.rows:
            named = (("namespace", row.namespace), ("model", row.model), ("nearness", row.nearness))
            labels = ",".join(f'{name}="{escaped(value)}"' for name, value in named)
            failed[labels] += row.failed_attempts
            buckets, sum_ms = latencies.get(labels, ([0] * (len(MESH_BOUNDS_MS) + 1), 0.0))
            # Of another release it may have other bounds; then it tells its count and sum only.
            theirs = row.buckets if len(row.buckets) == len(buckets) else (*(0,) * len(MESH_BOUNDS_MS), row.answered)
            summed = [mine + each for mine, each in zip(buckets, theirs, strict=True)]
            latencies[labels] = (summed, sum_ms + row.latency_ms_sum)
    yield from _counted("mesh_calls_total", "counter", _labelled("outcome", calls, escaped))
    yield from _counted("mesh_shed_total", "counter", _labelled("class", shed, escaped))
    yield from _counted("mesh_again_total", "counter", _labelled("why", again, escaped))
    yield from _counted("mesh_breakers", "gauge", _labelled("state", breakers, escaped))
    yield from _counted("mesh_attempts_failed_total", "counter", failed)
    yield from _head("mesh_latency_milliseconds", "histogram")
    for labels, (buckets, sum_ms) in sorted(latencies.items()):
        name = "batuta_mesh_latency_milliseconds"
        for bound, count in zip((*MESH_BOUNDS_MS, "+Inf"), accumulate(buckets), strict=True):
            yield f'{name}_bucket{{{labels},le="{bound}"}} {count}'
        yield f"{name}_sum{{{labels}}} {sum_ms:g}"
        yield f"{name}_count{{{labels}}} {sum(buckets)}"


def _labelled(label: str, rows: Mapping[str, int], escaped: Callable[[str], str]) -> dict[str, int]:
    return {f'{label}="{escaped(word)}"': count for word, count in rows.items()}


def _counted(name: str, kind: str, rows: Mapping[str, int]) -> Iterable[str]:
    yield from _head(name, kind)
    for labels, count in sorted(rows.items()):
        yield f"batuta_{name}{{{labels}}} {count}"


def _head(name: str, kind: str) -> Iterable[str]:
    yield f"# HELP batuta_{name} {HELP[name]}"
    yield f"# TYPE batuta_{name} {kind}"
