"""Columns: answers to questions about nodes, by row. Kept, and asked again only where a node's facts have changed.

A question is a condition, a set of tolerations, a digest: whatever somebody asked once is likely to be asked again.
Which facts it depends on is told by versions, numbers that rise with every change of a row's facts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

COLUMNS_MAX = 1024
"""Questions remembered; the one asked longest ago is forgotten first."""
CLASSES_MAX = 2**20
"""So many combinations of facts are counted before those that nobody has are left out."""
_NONE: Ints = np.zeros(0, np.int64)


class Column:
    """The answers to one question, the version of each row's facts that was asked, and when all of them were right."""

    __slots__ = ("revision", "seen", "values")

    def __init__(self, values: Any, seen: Ints) -> None:
        self.values, self.seen, self.revision = values, seen, -1


class Columns:
    """Every question that was asked of a fleet so far."""

    def __init__(self) -> None:
        self.revision = 0
        """Counts the changes of any fact of any row, so that nobody looks for stale rows when there are none."""
        self._columns: dict[object, Column] = {}
        self._capacity = 0

    def grow(self, capacity: int) -> None:
        self._capacity = capacity
        self._columns.clear()

    def forget(self, key: object) -> None:
        self._columns.pop(key, None)

    def asked(self, key: object, present: Bools, versions: Ints, ask: Callable[[int], Any], dtype: Any) -> Any:
        """The answer of every row; `ask` is asked for those that are present and whose facts changed."""
        known = self._columns.get(key)
        if known is not None and known.revision == self.revision:
            return known.values
        column = self._kept(key, dtype)
        stale = self._stale(column, present, versions)
        if stale.size:
            column.values[stale] = np.fromiter(map(ask, stale.tolist()), column.values.dtype, len(stale))
        return column.values

    def asked_by_class(  # noqa: PLR0917
        self, key: object, present: Bools, versions: Ints, facts: Iterable[Ints], ask: Callable[[int], Any], dtype: Any
    ) -> Any:
        """The same for a question that depends on these facts alone, given as numbers: asked once for all rows that do
        not differ in them."""
        column = self._kept(key, dtype)
        stale = self._stale(column, present, versions)
        if stale.size:
            classes, span = np.zeros(len(stale), np.int64), 1
            for fact in facts:
                codes = fact[stale]
                classes, span = classes * (width := int(codes.max()) + 1) + codes, span * width
                if span > CLASSES_MAX:
                    # Made dense again, so that many facts do not overflow.
                    found, classes = np.unique(classes, return_inverse=True)
                    span = len(found)
            row_of = np.full(span, -1, np.int64)
            row_of[classes[::-1]] = stale[::-1]  # Of each class the first.
            there = np.flatnonzero(row_of >= 0)
            answers = np.zeros(span, dtype)
            answers[there] = [ask(row) for row in row_of[there].tolist()]
            column.values[stale] = answers[classes]
        return column.values

    def _kept(self, key: object, dtype: Any) -> Column:
        found = self._columns.pop(key, None)
        if found is None:
            while len(self._columns) >= COLUMNS_MAX:
                del self._columns[next(iter(self._columns))]
            found = Column(np.zeros(self._capacity, dtype), np.full(self._capacity, -1, np.int64))
        self._columns[key] = found
        return found

    def _stale(self, column: Column, present: Bools, versions: Ints) -> Ints:
        """The rows to be asked again, marked as asked."""
        if column.revision == self.revision:
            return _NONE
        stale = np.flatnonzero((column.seen != versions) & present)
        column.seen[stale] = versions[stale]
        column.revision = self.revision
        return stale


class Marks:
    """Numbers by key of which each row has few: the topics that are published there, the artifacts that are there."""

    def __init__(self, dtype: Any = np.int64) -> None:
        self._dtype = dtype
        self._rows: dict[str, dict[int, int]] = {}
        """By key, the rows that have it."""
        self._columns: dict[str, Any] = {}
        """By key that was asked for: the number of every row."""

    def note(self, row: int, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """What a row had, and has from now on."""
        for key in before.keys() - after.keys():
            rows = self._rows[key]
            del rows[row]
            if not rows:
                del self._rows[key]
            self._set(key, row, 0)
        for key, number in after.items():
            if before.get(key) != number:
                self._rows.setdefault(key, {})[row] = number
                self._set(key, row, number)

    def column(self, key: str, capacity: int) -> Any:
        """The number of every row; 0 where there is none."""
        found = self._columns.pop(key, None)
        if found is None or len(found) != capacity:
            while len(self._columns) >= COLUMNS_MAX:
                del self._columns[next(iter(self._columns))]
            found = np.zeros(capacity, self._dtype)
            rows = self._rows.get(key, {})
            found[list(rows)] = list(rows.values())
        self._columns[key] = found
        return found

    def _set(self, key: str, row: int, number: int) -> None:
        column = self._columns.get(key)
        if column is not None and row < len(column):
            column[row] = number
