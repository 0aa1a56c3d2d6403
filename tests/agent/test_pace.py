"""Pace: a fast link is used, a slow one is left to orders, and many who ask ask for less."""

from __future__ import annotations

from batuta.agent.pace import GAP_MOST_MS, HUB_ASKS_MOST, PART_LEAST_BYTES, Pace

CHUNK = 64 * 1024


def played(*took_ms: int, size_bytes: int = CHUNK) -> Pace:
    pace = Pace()
    for took in took_ms:
        pace.asked(0)
        pace.answered(took, size_bytes)
    return pace


def test_while_answers_are_quick_more_is_asked() -> None:
    pace = played(*[40] * 6)
    assert pace.asks(0, 1) == HUB_ASKS_MOST
    assert (pace.chunks(1), pace.part_bytes) == (2, 0)


def test_a_link_of_high_delay_is_no_slow_link() -> None:
    pace = played(*[650] * 6)
    assert pace.asks(0, 1) == HUB_ASKS_MOST
    assert pace.part_bytes == 0


def test_when_answers_get_slower_less_is_asked_and_then_there_are_pauses() -> None:
    pace = played(*[40] * 6, *[600] * 8)
    assert pace.asks(0, 1) <= 1
    assert pace.chunks(1) == 1
    pace.asked(1_000)
    assert pace.asks(1_000, 1) == 0
    assert 0 < pace.wait_s(1_000, 60.0) <= GAP_MOST_MS / 1000
    for _ in range(30):
        pace.answered(40, CHUNK)
    assert pace.asks(100_000, 1) == HUB_ASKS_MOST


def test_over_a_slow_link_a_chunk_comes_in_parts() -> None:
    pace = played(8_000)
    assert pace.part_bytes == PART_LEAST_BYTES
    pace.answered(500, PART_LEAST_BYTES)
    assert PART_LEAST_BYTES <= pace.part_bytes < 2 * PART_LEAST_BYTES
    assert pace.chunks(1) == 1


def test_many_who_bring_in_the_same_file_ask_for_one_chunk_each() -> None:
    pace = played(*[40] * 6)
    assert (pace.asks(0, 10), pace.chunks(10)) == (1, 1)
    assert (pace.asks(0, 3), pace.chunks(3)) == (2, 2)


def test_nobody_is_asked_for_a_while_that_grows_and_ends() -> None:
    pace = Pace()
    pace.failed(0)
    assert (pace.asks(199, 1), pace.asks(200, 1)) == (0, 1)
    for _ in range(10):
        pace.failed(0)
    assert (pace.asks(4_999, 1), pace.asks(5_000, 1)) == (0, 1)
    pace.open()
    assert pace.asks(0, 1) == 1
    pace.closed(60_000)
    assert (pace.asks(59_999, 1), pace.asks(60_000, 1)) == (0, 1)
