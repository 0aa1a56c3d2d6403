"""Counters: what happened, how often, since this process started. Whatever is dropped or refused is counted here."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Counters:
    """Named counts, each with one label at most."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, label: str = "", by: int = 1) -> None:
        self._counts[name, label] += by

    def __getitem__(self, name: str) -> int:
        """The sum over all labels."""
        return sum(count for (mine, _), count in self._counts.items() if mine == name)

    def items(self) -> Iterator[tuple[str, str, int]]:
        """Name, label, count; sorted."""
        for (name, label), count in sorted(self._counts.items()):
            yield name, label, count
