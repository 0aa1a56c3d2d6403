"""Progress: how far a file is on its way here, in words for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from batuta.core.reasons import Reason

HERE: Final = "/"
"""The source of what lay in other files here: no node is called so."""


class Progress:
    """How far a file is, and where it comes from."""

    def __init__(self, size_bytes: int, has_bytes: int, now: int) -> None:
        self.size_bytes = size_bytes
        self.has_bytes = has_bytes
        self.by_source: dict[str, int] = {}
        """Bytes that came in this run, by source."""
        self.held: Reason | None = None
        """Why the hub does not send it now."""
        self.awaited = 0
        self.told = ""
        """What people are told: said anew every few seconds, for each time it is a report."""
        self._marks = [(now, has_bytes)]

    def add(self, source: str, size_bytes: int) -> None:
        self.has_bytes += size_bytes
        self.by_source[source] = self.by_source.get(source, 0) + size_bytes

    def found_here(self, size_bytes: int, now: int) -> None:
        """What lay in other files counts for no rate."""
        self.add(HERE, size_bytes)
        self._marks = [(now, self.has_bytes)]

    def mark(self, now: int) -> None:
        self._marks = [*self._marks[-5:], (now, self.has_bytes)]
        self.told = self._text()

    def _text(self) -> str:
        (then, had), (now, has) = self._marks[0], self._marks[-1]
        rate = (has - had) * 1000 // (now - then) if now > then else 0
        words = [f"{_amount(self.has_bytes)} of {_amount(self.size_bytes)}"]
        if rate:
            words.append(f"{_amount(rate)}/s")
        named = sorted(self.by_source.items(), key=lambda pair: -pair[1])
        words += [f"{_amount(size)} {_from(source)}" for source, size in named[:3]]
        if len(named) > 3:
            words.append(f"{_amount(sum(size for _, size in named[3:]))} from {len(named) - 3} more")
        return ", ".join(words)


def _from(source: str) -> str:
    return "from files here" if source == HERE else f"from {source or 'the hub'}"


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
