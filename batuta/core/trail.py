"""Trail: which rows changed from one State to the next, so that whoever follows a line of States looks at those alone.

A State knows its trail and how many steps along it lies. States of one line share a trail; one that branches off begins
a new one, and a reader that comes from elsewhere is told so and compares everything. What is remembered is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Keys = Mapping[str, set[str]]

KEYS_MAX = 1 << 17
"""Keys remembered along one trail; whoever lags further behind compares everything."""


class Trail:
    """The steps of one line of States: by table, the keys that each of them changed."""

    __slots__ = ("_first", "_size", "_steps", "end")

    def __init__(self) -> None:
        self.end = 0
        """Steps taken so far: where the newest State of the line is."""
        self._steps: list[dict[str, tuple[str, ...]]] = []
        self._first = 0
        """Which step `_steps` begins with."""
        self._size = 0

    def step(self, changed: dict[str, tuple[str, ...]]) -> int:
        """One State more; returns where it is."""
        self._steps.append(changed)
        self._size += sum(len(keys) for keys in changed.values())
        self.end += 1
        while self._size > KEYS_MAX:
            self._size -= sum(len(keys) for keys in self._steps.pop(0).values())
            self._first += 1
        return self.end

    def between(self, one: int, other: int) -> Keys | None:
        """The keys, by table, that may differ between two States of this line; None when that is forgotten."""
        start, stop = min(one, other), max(one, other)
        if start < self._first or stop > self.end:
            return None
        found: dict[str, set[str]] = {}
        for changed in self._steps[start - self._first : stop - self._first]:
            for table, keys in changed.items():
                found.setdefault(table, set()).update(keys)
        return found


def named(keys: Iterable[str], prefix: str) -> list[str]:
    """What comes after a prefix, of the keys that have it."""
    return [key[len(prefix) :] for key in keys if key.startswith(prefix)]
