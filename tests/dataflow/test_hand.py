"""Taking frames in batches: order, lingering, room, and coming to an end."""

from __future__ import annotations

import asyncio
from typing import Any

from batuta.dataflow.answers import Place
from batuta.dataflow.hand import Frame, Hand
from batuta.fabric.clock import run_virtually


class Plain:
    """A message as far as a hand looks at it."""

    subject = "$MQTT.msgs.a.b"


def frame(number: int) -> Frame:
    message: Any = Plain()
    return Frame("n1", message, Place(1, number, 0), float(number))


def sequences(frames: list[Frame]) -> list[int]:
    return [f.place.sequence for f in frames]


def test_it_gives_what_is_there_in_order_and_at_most_so_much() -> None:
    async def story() -> None:
        hand = Hand(10, lambda: None)
        for i in range(5):
            hand.put(frame(i))
        assert sequences(await hand.take(3, 0)) == [0, 1, 2]
        assert sequences(await hand.take(3, 0)) == [3, 4]
        assert sequences(hand.held()) == [0, 1, 2, 3, 4], "held until dropped"

    run_virtually(story())


def test_it_lingers_no_longer_than_told_nor_once_it_is_full() -> None:
    async def story() -> None:
        hand, loop = Hand(10, lambda: None), asyncio.get_running_loop()
        loop.call_later(1.0, hand.put, frame(1))
        loop.call_later(1.02, hand.put, frame(2))
        loop.call_later(9.0, hand.put, frame(3))
        assert sequences(await hand.take(3, 50)) == [1, 2]
        assert loop.time() == 1.05
        loop.call_later(9.0, hand.put, frame(4))
        loop.call_later(9.0, hand.put, frame(5))
        before = loop.time()
        assert sequences(await hand.take(1, 60_000)) == [3]
        assert loop.time() - before < 9

    run_virtually(story())


def test_room_is_told_when_it_comes_back() -> None:
    async def story() -> None:
        told: list[int] = []
        hand = Hand(2, lambda: told.append(1))
        frames = [frame(i) for i in range(3)]
        for each in frames:
            assert hand.has_room() is (each.place.sequence < 2)
            hand.put(each)
        hand.drop(frames[0])
        assert not hand.has_room()
        hand.drop(frames[1])
        assert hand.has_room()
        assert told == [1]

    run_virtually(story())


def test_closed_it_gives_what_is_left_and_then_nothing() -> None:
    async def story() -> None:
        hand = Hand(10, lambda: None)
        hand.put(frame(1))
        hand.close()
        assert sequences(await hand.take(8, 60_000)) == [1]
        assert await hand.take(8, 60_000) == []
        assert not hand.has_room()

    run_virtually(story())
