"""How a process ended: in words, and with the Reason code for it.

What ends a process that wants more memory than it may have is not always the watch: what grows fast runs into the
kernel's limit between two looks, and then dies of whatever allocation fails first, in words of its own. So the most
that it ever held counts too, and the last that it complained of.
"""

from __future__ import annotations

import signal
from typing import Final, NamedTuple

WANTS_MEMORY: Final = (
    "MemoryError",
    "bad_alloc",
    "annot allocate memory",
    "ut of memory",
    "OutOfMemoryError",
    "memory allocation of",
)
"""What programs say when they are refused memory: Python, C++, the C library, Go, Java, Rust."""
NOT_OURS: Final = ("cuda", "gpu", "hip error")
"""The memory of a card is not the memory that a component is promised."""


class Exit(NamedTuple):
    """How it ended, in words."""

    words: str
    asked: bool
    """It was told to end."""
    code: str = "exited"
    """The Reason code for it."""


def killed_for_memory(held_bytes: int, most_bytes: int) -> str:
    return f"killed for its memory: {held_bytes >> 20}Mi resident, {most_bytes >> 20}Mi allowed"


def judged(status: int | None, *, asked: bool, most_bytes: int, held_bytes: int, complaint: str) -> Exit:
    """The end of a process that nobody here killed for its memory.

    `most_bytes`: what it may have; 0 for no limit. `held_bytes`: the most that it is known to have held at once, 0 when
    that is not known. `complaint`: the last that it said on its standard error.
    """
    words = words_of(status, asked=asked)
    if asked or status == 0 or not most_bytes:
        return Exit(words, asked)
    if held_bytes > most_bytes:
        return Exit(
            f"{words}, for its memory: {held_bytes >> 20}Mi resident, {most_bytes >> 20}Mi allowed",
            asked,
            "memory_exceeded",
        )
    if wants_memory(complaint):
        return Exit(f"{words}, as it was refused more memory: {most_bytes >> 20}Mi allowed", asked, "memory_exceeded")
    return Exit(words, asked)


def words_of(status: int | None, *, asked: bool) -> str:
    """As the interpreter counts: what a signal killed has its number, below zero."""
    if status is None:
        return "it ended; how is not known, because the node agent restarted meanwhile"
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name if -status in signal.valid_signals() else f"signal {-status}"
    guess = " (out of memory?)" if name == "SIGKILL" and not asked else ""
    return f"killed by {name}{guess}"


def wants_memory(complaint: str) -> bool:
    lower = complaint.lower()
    return any(words in complaint for words in WANTS_MEMORY) and not any(words in lower for words in NOT_OURS)
