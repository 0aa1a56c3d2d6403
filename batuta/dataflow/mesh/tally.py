"""The books of a gateway: what was asked, what came of it, how long it took, by model and by how far it went.

Counters since the process began. A histogram with fixed bounds adds up over all nodes; the last minute, kept apart for
each model, tells how long answers take at present, which is what patience and hedges go by.
"""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from batuta.core import mesh_breaker
from batuta.core.mesh_deadline import Past
from batuta.core.observed import MESH_BOUNDS_MS, Mesh, MeshRow
from batuta.dataflow.measures import LastMinute

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batuta.core.mesh import Nearness
    from batuta.dataflow.mesh.cards import Known
    from batuta.dataflow.mesh.talk import Ask, Reply

ROWS_MOST: Final = 128
PAST_HOLDS_MS: Final = 200
"""So long quantiles are not computed again: they are asked for several times in each call."""
NO_FLAGS: Final[Mapping[str, int]] = MappingProxyType({})
LEAST_ANSWERS: Final = 20
"""Quantiles of fewer answers are chance."""


class _Row:
    def __init__(self) -> None:
        self.answered = 0
        self.failed_attempts = 0
        self.latency_ms_sum = 0.0
        self.buckets = [0] * (len(MESH_BOUNDS_MS) + 1)


class _Minute:
    def __init__(self) -> None:
        self.latencies = LastMinute()
        self.past = Past()
        self.computed_at = -PAST_HOLDS_MS
        self.last_at = 0


class Tally:
    """Counts; nothing is decided here."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        """By what came of them: `answered`, `refused` by the instance, or a code of the mesh."""
        self.shed: Counter[str] = Counter()
        """By class: refused because there were too many."""
        self.retries = 0
        self.hedges = 0
        self.unlisted = 0
        """Answers of models beyond those that rows are kept for."""
        self._rows: dict[tuple[str, str, Nearness], _Row] = {}
        self._minutes: dict[tuple[str, str], _Minute] = {}

    # --- What happens ---

    def answered(self, ask: Ask, known: Known, took_ms: float, now: int) -> None:
        """An attempt was answered well."""
        if (row := self._row(ask, known)) is not None:
            row.answered += 1
            row.latency_ms_sum += took_ms
            row.buckets[next((i for i, bound in enumerate(MESH_BOUNDS_MS) if took_ms <= bound), -1)] += 1
        if ask.verb == "infer":
            minute = self._minutes.get((ask.namespace, ask.model))
            if minute is None:
                if len(self._minutes) >= ROWS_MOST:
                    return
                minute = self._minutes[ask.namespace, ask.model] = _Minute()
            minute.latencies.add(took_ms, now)

    def attempt_failed(self, ask: Ask, known: Known) -> None:
        if (row := self._row(ask, known)) is not None:
            row.failed_attempts += 1

    def again(self, *, is_hedge: bool) -> None:
        """One more attempt of the same call: beside the first one, or after it failed."""
        if is_hedge:
            self.hedges += 1
        else:
            self.retries += 1

    def ended(self, ask: Ask, reply: Reply) -> None:
        """A call is over."""
        word = "answered" if reply.status < 400 else reply.code or "refused"
        self.calls[word if len(self.calls) < ROWS_MOST or word in self.calls else "other"] += 1
        if word == "overloaded":
            self.shed[ask.urgency] += 1

    # --- What is known ---

    def past(self, namespace: str, model: str, now: int) -> Past:
        """How long answers of a model took in the last minute."""
        minute = self._minutes.get((namespace, model))
        if minute is None:
            return Past()
        if now - minute.computed_at >= PAST_HOLDS_MS:
            if minute.latencies.count(now) < LEAST_ANSWERS:
                return Past()
            minute.computed_at = now
            minute.past = Past(*minute.latencies.quantiles((0.0, 0.5, 0.95, 0.99), now))
        return minute.past

    def told(self, known: Iterable[Known], now: int, flags: Mapping[str, int] = NO_FLAGS) -> Mesh:
        """The books as they are reported."""
        breakers: Counter[str] = Counter(mesh_breaker.state(each.breaker, now) for each in known)
        rows = tuple(
            MeshRow(
                namespace=namespace,
                model=model,
                nearness=nearness,
                answered=row.answered,
                failed_attempts=row.failed_attempts,
                latency_ms_sum=round(row.latency_ms_sum, 3),
                buckets=tuple(row.buckets),
            )
            for (namespace, model, nearness), row in sorted(self._rows.items())
        )
        return Mesh(
            rows=rows,
            calls=dict(sorted(self.calls.items())),
            shed=dict(sorted(self.shed.items())),
            retries=self.retries,
            hedges=self.hedges,
            breakers=dict(sorted(breakers.items())),
            flags=dict(sorted(flags.items())),
        )

    def _row(self, ask: Ask, known: Known) -> _Row | None:
        key = (ask.namespace, ask.model, known.nearness)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= ROWS_MOST:
                self.unlisted += 1
                return None
            row = self._rows[key] = _Row()
        return row
