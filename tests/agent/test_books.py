"""Books of instances: what the agent counts itself, what it takes from workers, and what is there after a restart."""

from __future__ import annotations

from pathlib import Path

from batuta.agent.books import FILE, KEPT_EVERY_S, Book
from batuta.core.observed import Measures
from batuta.core.sample import Sample
from batuta.core.worker import PULSE_FILE
from batuta.kinds.base import Bytes
from batuta.runtimes.base import Condition


def ready(rss_bytes: int = 0) -> Condition:
    return Condition("ready", measures=Measures(rss_bytes=Bytes(rss_bytes) if rss_bytes else None))


def test_of_a_process_readiness_and_memory_are_counted_over_its_runs(tmp_path: Path) -> None:
    book = Book(tmp_path)
    assert book.last() is None
    for at_s, rss_bytes in ((0.0, 10), (1.0, 30), (2.5, 20)):
        told = book.looked(ready(rss_bytes), at_s)
    assert told is not None
    assert told.rss_bytes == 20
    assert told.sample == Sample(instance_ms=2_500, memory_bytes=30)
    gone = book.looked(Condition("gone", "exit status 1", "exited"), 3.0)
    assert gone == Measures(sample=Sample(instance_ms=3_000, memory_bytes=30)), "what it was is told while it is down"
    again = Book(tmp_path)
    assert again.last() == gone, "the next node agent knows it"
    again.looked(ready(), 100.0)
    again.looked(ready(), 101.0)
    assert again.sample == Sample(instance_ms=4_000, memory_bytes=30)


def test_time_that_nobody_saw_is_not_counted(tmp_path: Path) -> None:
    book = Book(tmp_path)
    for at_s in (0.0, 1.0, 500.0, 501.0):
        book.looked(ready(), at_s)
    assert book.sample == Sample(instance_ms=2_000)


def test_a_worker_counts_for_itself_and_is_taken_at_its_word(tmp_path: Path) -> None:
    book, said = Book(tmp_path), Sample(answered=7, instance_ms=9, memory_bytes=5)
    book.looked(Condition("running", code="not_ready"), 0.0)
    told = book.looked(Condition("ready", measures=Measures(answered=7, rss_bytes=Bytes(8), sample=said)), 1.0)
    assert told is not None
    assert told.sample == Sample(answered=7, instance_ms=9, memory_bytes=8)


def test_a_first_start_begins_new_books(tmp_path: Path) -> None:
    book = Book(tmp_path)
    (tmp_path / PULSE_FILE).write_text("of another order")
    book.looked(ready(5), 0.0)
    book.keep()
    assert (tmp_path / FILE).exists()
    book.begin()
    assert (book.last(), list(tmp_path.iterdir())) == (None, [])


def test_they_are_kept_now_and_then_and_not_with_every_look(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.looked(ready(5), 1000.0)
    first = (tmp_path / FILE).stat().st_mtime_ns
    for second in range(1, int(KEPT_EVERY_S) - 1):
        book.looked(ready(5), 1000.0 + second)
    assert (tmp_path / FILE).stat().st_mtime_ns == first
    book.looked(ready(5), 1000.0 + KEPT_EVERY_S)
    assert (tmp_path / FILE).stat().st_mtime_ns > first


def test_a_damaged_book_is_a_new_one_and_a_full_disk_is_counted(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    book = Book(tmp_path)
    assert book.last() is None
    book.looked(ready(5), 0.0)
    lost = Book(tmp_path / "nowhere")
    lost.looked(ready(5), 1000.0)
    assert lost.faults == 1
