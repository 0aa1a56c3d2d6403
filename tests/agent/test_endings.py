"""How the end of a process is judged."""

from __future__ import annotations

import pytest

from batuta.runtimes.endings import judged, wants_memory

MIB = 1 << 20


@pytest.mark.parametrize(
    ("status", "held", "complaint", "code", "words"),
    [
        (0, 300, "MemoryError", "exited", "exit status 0"),
        (1, 0, "ValueError: no", "exited", "exit status 1"),
        (1, 100, "ValueError: no", "exited", "exit status 1"),
        (127, 300, "", "memory_exceeded", "exit status 127, for its memory: 300Mi resident, 100Mi allowed"),
        (-6, 300, "", "memory_exceeded", "killed by SIGABRT, for its memory: 300Mi resident, 100Mi allowed"),
        (-6, 0, "what():  std::bad_alloc", "memory_exceeded",
         "killed by SIGABRT, as it was refused more memory: 100Mi allowed"),
        (None, 0, "MemoryError", "memory_exceeded",
         "it ended; how is not known, because the node agent restarted meanwhile, as it was refused more memory: "
         "100Mi allowed"),
        (-9, 0, "", "exited", "killed by SIGKILL (out of memory?)"),
    ],
)  # fmt: skip
def test_who_wanted_more_memory_than_it_may_have_ended_by_that(
    status: int | None, held: int, complaint: str, code: str, words: str
) -> None:
    found = judged(status, asked=False, most_bytes=100 * MIB, held_bytes=held * MIB, complaint=complaint)
    assert (found.code, found.words) == (code, words)


def test_who_was_told_to_end_or_has_no_limit_did_not() -> None:
    asked = judged(-9, asked=True, most_bytes=MIB, held_bytes=9 * MIB, complaint="MemoryError")
    assert (asked.code, asked.words) == ("exited", "killed by SIGKILL")
    free = judged(1, asked=False, most_bytes=0, held_bytes=9 * MIB, complaint="MemoryError")
    assert (free.code, free.words) == ("exited", "exit status 1")


@pytest.mark.parametrize(
    ("complaint", "wants"),
    [
        ("numpy.core._exceptions._ArrayMemoryError: Unable to allocate 20 GiB", True),
        ("cannot allocate memory for thread-local data: ABORT", True),
        ("sort: Cannot allocate memory", True),
        ("fatal error: runtime: out of memory", True),
        ("memory allocation of 8589934592 bytes failed", True),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory.", False),
        ("a memory of what was", False),
    ],
)
def test_what_programs_say_when_they_are_refused_memory(complaint: str, wants: bool) -> None:
    assert wants_memory(complaint) is wants
