"""Did you mean …? The nearest word to one that was mistyped."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that people most likely meant; case and dashes count for nothing."""
    plain = {_plain(k): k for k in known}
    if _plain(word) in plain:
        return plain[_plain(word)]
    begun = [k for p, k in plain.items() if len(word) > 2 and p.startswith(_plain(word))]
    if len(begun) == 1:
        return begun[0]
    found = get_close_matches(_plain(word[:64]), plain, n=1, cutoff=0.6)
    return plain[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """A hint: the near miss when there is one; else `otherwise`, or the list of what is known."""
    known = tuple(known)
    found = nearest(word, known)
    if found is not None:
        return f"did you mean {found!r}?"
    if otherwise is not None:
        return otherwise
    return f"known: {', '.join(known)}" if known else ""


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")
