"""One machine speaks as a node. Restarts and reboots are its own; a copied disk makes two of it, and then none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batuta.errors import FabricUnavailable
from batuta.fabric.memory import MemoryBroker
from batuta.hub.boots import EARLIER_MAX, TWO_FOR_MS, Boots
from tests.hub.hubs import Voice, join, running

if TYPE_CHECKING:
    from pathlib import Path

QUIET_MS = 3_000


class Ears:
    """What a hub concludes from heartbeats of `pi`; instants in seconds."""

    def __init__(self) -> None:
        self.boots = Boots()

    def hear(self, boot: str, machine: str, at_s: float) -> str:
        return self.boots.heard("pi", boot, machine, int(at_s * 1000), QUIET_MS)


def test_an_agent_that_restarts_is_the_same_node_at_once() -> None:
    ears = Ears()
    assert [ears.hear(f"b{n // 3}", "m", n / 2) for n in range(60)] == ["one"] * 60


def test_a_machine_that_boots_is_the_same_node_once_its_last_run_is_surely_over() -> None:
    ears = Ears()
    assert ears.hear("b1", "m1", 0) == "one"
    assert [ears.hear("b2", "m2", at) for at in (1, 2, 2.9, 3, 4)] == ["new", "new", "new", "one", "one"]
    assert ears.hear("b3", "m3", 60) == "one"


def test_a_copy_is_never_the_node_and_makes_the_original_none_until_it_is_gone() -> None:
    ears = Ears()
    heard = [(ears.hear("b1", "m1", at), ears.hear("b2", "m2", at + 0.5)) for at in range(10)]
    assert heard == [("one", "new"), *[("two", "two")] * 9]
    # The copy is switched off; it was heard for the last time at 9.5, the original returned to for the last time at 10.
    alone = [at for at in range(10, 40) if ears.hear("b1", "m1", at) == "one"]
    assert alone[0] == 10 + TWO_FOR_MS // 1000
    assert len(alone) == 40 - alone[0]


def test_two_agents_of_one_machine_are_found_by_their_alternating() -> None:
    ears = Ears()
    assert [ears.hear(f"b{n % 2}", "m", n) for n in range(4)] == ["one", "one", "two", "two"]


def test_many_copies_are_two_as_well_and_memory_is_bounded() -> None:
    ears = Ears()
    heard = [ears.hear(f"b{n % 3}", f"m{n % 3}", n) for n in range(9)]
    assert heard[:3] == ["one", "new", "new"]
    assert set(heard[3:]) == {"two"}
    for n in range(100):
        ears.hear(f"run-{n}" * 100, "m", 100 + n)
    assert len(ears.boots._speakers["pi"].earlier) == EARLIER_MAX
    ears.boots.forget("pi")
    assert ears.hear("b1", "m1", 300) == "one"


async def test_two_machines_are_told_so_and_neither_is_heard(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        voice = Voice(broker, "pi-1")
        assert "serial" in await voice.beat(boot="b1", machine="m1")
        with pytest.raises(FabricUnavailable):
            await voice.beat(0.2, boot="b2", machine="m2")
        assert hub.counters["heartbeats_unanswered"] == 1
        seen = hub.loop.state.sightings["pi-1"].last_seen
        for boot, machine in (("b1", "m1"), ("b2", "m2")):
            assert await voice.beat(boot=boot, machine=machine) == {"error": "two_machines"}
        assert hub.counters["heartbeats_refused"] == 2
        assert hub.loop.state.sightings["pi-1"].last_seen == seen
