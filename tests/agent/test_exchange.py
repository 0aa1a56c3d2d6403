"""Files between neighbours: real caches and exchanges of several nodes over the memory fabric, in virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.agent.artifacts import Artifacts
from batuta.agent.exchange import Exchange
from batuta.agent.fetch import Held
from batuta.core.reasons import Reason
from batuta.errors import ArtifactRefused, FabricUnavailable
from batuta.fabric import subjects
from batuta.fabric.chunks import Card, line
from batuta.fabric.clock import run_virtually
from batuta.fabric.memory import MemoryBroker
from tests.agent.shelf import CUT, Shelf, digest_of, recipe_of

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.agent.fetch import Part
    from batuta.fabric.base import Message
    from batuta.fabric.chunks import ChunksWanted

DATA = random.Random(5).randbytes(40 * CUT + 17)
DIGEST = digest_of(DATA)
RECIPE = digest_of(recipe_of(DATA))


class Uplink(Shelf):
    """The hub behind a link that all nodes share: it takes its time, may be cut, and counts."""

    def __init__(self, *files: bytes) -> None:
        super().__init__(*files)
        self.is_cut = False
        self.held: Held | None = None
        self.sent: list[int] = []

    async def recipe(self, digest: str, offset: int, length: int) -> Part:
        await self._travel()
        return await super().recipe(digest, offset, length)

    async def chunks(self, wanted: ChunksWanted) -> list[bytes]:
        await self._travel()
        if self.held is not None:
            raise self.held
        found = await super().chunks(wanted)
        self.sent += wanted.chunks
        await asyncio.sleep(0.03 * len(found))
        return found

    async def _travel(self) -> None:
        await asyncio.sleep(0.04)
        if self.is_cut:
            raise FabricUnavailable("cut")


class Town:
    """Nodes of one site."""

    def __init__(self, directory: Path, uplink: Uplink, *names: str) -> None:
        self.uplink, self.broker = uplink, MemoryBroker()
        self.nodes = {name: self._node(directory / name, name) for name in names}
        self.tasks: list[asyncio.Task[None]] = []

    def _node(self, directory: Path, name: str) -> Artifacts:
        exchange = Exchange(self.broker.connect(name), name, lambda: True)
        made = Artifacts(
            directory, self.uplink, node=name, machine_boot="b", budget_bytes=1 << 30, apart=False, exchange=exchange
        )
        made.open()
        return made

    def exchange(self, name: str) -> Exchange:
        found = self.nodes[name].exchange
        assert found is not None
        return found

    async def __aenter__(self) -> Town:
        self.tasks = [asyncio.create_task(self.exchange(name).run()) for name in self.nodes]
        await asyncio.sleep(0.1)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for fabric in list(self.broker.fabrics):
            await fabric.close()

    async def all_fetch(self, *names: str) -> None:
        for path in await asyncio.gather(*(self.nodes[n].fetch(DIGEST) for n in names or self.nodes)):
            assert path.read_bytes() == DATA

    async def impostor(self, name: str, answer: Any, **card: Any) -> None:
        """A neighbour that says on its card that it has everything, and answers in its own way."""
        fabric = self.broker.connect(name)

        async def hear(message: Message) -> None:
            said = {"digest": DIGEST, "recipe": RECIPE, "count": 41, "whole": True, **card}
            if not message.subject.endswith(name) and msgspec.json.decode(message.data, type=Card).wants:
                await fabric.publish(subjects.files(name), msgspec.json.encode(Card(**said)))

        await fabric.subscribe(subjects.ALL_FILES, hear)
        await fabric.subscribe(subjects.chunks(name), answer)


def names(count: int) -> list[str]:
    return [f"shop-{n}" for n in range(count)]


def test_ten_nodes_at_the_same_moment_bring_each_chunk_in_once(tmp_path: Path) -> None:
    async def play() -> Uplink:
        async with Town(tmp_path, uplink := Uplink(DATA), *names(10)) as town:
            await town.all_fetch()
            shares = [town.nodes[name].fetched_bytes for name in town.nodes]
            assert shares == [len(DATA)] * 10, "nothing came twice to anybody"
            assert sum(town.exchange(n).given_bytes for n in town.nodes) == 9 * len(DATA)
        return uplink

    assert sorted(run_virtually(play()).sent) == list(range(41))


def test_who_comes_later_gets_it_all_from_neighbours_even_while_the_hub_is_away(tmp_path: Path) -> None:
    async def play() -> None:
        async with Town(tmp_path, uplink := Uplink(DATA), "early", "late") as town:
            await town.all_fetch("early")
            uplink.is_cut = True
            await town.all_fetch("late")
            assert sorted(uplink.sent) == list(range(41))
            assert town.nodes["late"].fetched_bytes == len(DATA)

    run_virtually(play())


def test_a_holder_that_restarted_gives_what_it_has(tmp_path: Path) -> None:
    async def play() -> None:
        uplink = Uplink(DATA)
        async with Town(tmp_path, uplink, "early") as town:
            await town.all_fetch()
        async with Town(tmp_path, uplink, "early", "late") as town:
            await town.all_fetch("late")
        assert sorted(uplink.sent) == list(range(41))

    run_virtually(play())


def test_a_lying_neighbour_is_refused_counted_said_and_not_asked_again(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def lie(message: Message) -> None:
        asked.append(message.data)
        wanted = msgspec.json.decode(message.data)
        made = [bytes(CUT) for _ in wanted["chunks"]]
        await message.respond(line({"sizes": [*map(len, made)]}) + b"".join(made))

    async def play() -> None:
        async with Town(tmp_path, uplink := Uplink(DATA), "pi") as town:
            await town.impostor("liar", lie)
            await town.all_fetch()
            assert sorted(uplink.sent) == list(range(41))
            assert len(asked) == 1
            (problem,) = town.nodes["pi"].problems
            assert (problem.code, problem.subject) == ("neighbour_lied", "node/liar")
            assert town.exchange("pi").lies == town.nodes["pi"].refused == 1
            await asyncio.sleep(601)
            assert town.nodes["pi"].problems == ()

    run_virtually(play())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no line at all",
        b'{"sizes": [5]}\n',
        b'{"sizes": [-5, 5]}\n',
        b'{"sizes": "many"}\n',
        b'{"error": "busy"}\n',
        b'{"sizes": []}\n',
        b'{"sizes": [1, 1, 1, 1, 1]}\nabcde',
        b"[" * 5_000,
    ],
)
def test_answers_that_make_no_sense_cost_a_question(tmp_path: Path, answer: bytes) -> None:
    async def babble(message: Message) -> None:
        await message.respond(answer)

    async def play() -> None:
        async with Town(tmp_path, Uplink(DATA), "pi") as town:
            await town.impostor("babbler", babble)
            await town.all_fetch()

    run_virtually(play())


def test_a_neighbour_that_does_not_answer_is_passed_over(tmp_path: Path) -> None:
    async def say_nothing(message: Message) -> None:
        pass

    async def play() -> None:
        async with Town(tmp_path, uplink := Uplink(DATA), "pi") as town:
            await town.impostor("mute", say_nothing)
            await town.all_fetch()
            assert sorted(uplink.sent) == list(range(41))

    run_virtually(play())


def test_a_neighbour_that_claims_its_share_and_brings_nothing_in_is_not_waited_for_long(tmp_path: Path) -> None:
    async def play() -> None:
        async with Town(tmp_path, Uplink(DATA), "pi") as town:
            nothing = {"whole": False, "wants": True, "claims": b"\xff" * 6}
            await town.impostor("stuck", lambda message: message.respond(b"{}\n"), **nothing)
            began = asyncio.get_running_loop().time()
            await town.all_fetch()
            assert asyncio.get_running_loop().time() - began < 30, "virtual seconds"

    run_virtually(play())


def test_one_of_many_that_dies_half_way_leaves_nobody_waiting(tmp_path: Path) -> None:
    async def play() -> None:
        async with Town(tmp_path, uplink := Uplink(DATA), *names(4)) as town:
            fetching = [asyncio.create_task(town.nodes[name].fetch(DIGEST)) for name in town.nodes]
            while len(uplink.sent) < 12:  # noqa: ASYNC110  in virtual time
                await asyncio.sleep(0.01)
            fetching[2].cancel()
            town.tasks[2].cancel()
            await town.exchange("shop-2").site.close()
            for task in (*fetching[:2], fetching[3]):
                assert (await task).read_bytes() == DATA
            assert len(uplink.sent) <= 41 + 8, "what it alone had is fetched again, and no more"

    run_virtually(play())


def test_what_went_bad_at_a_holder_is_not_given_and_found_there(tmp_path: Path) -> None:
    async def play() -> None:
        async with Town(tmp_path, uplink := Uplink(DATA), "early", "late") as town:
            await town.all_fetch("early")
            path = town.nodes["early"].path(DIGEST)
            path.chmod(0o600)
            with path.open("r+b") as file:
                file.seek(20 * CUT)
                file.write(b"rot")
            await town.all_fetch("late")
            assert town.nodes["late"].refused == 0
            assert uplink.sent.count(20) == 2
            assert DIGEST not in town.nodes["early"].held
            assert [reason.code for reason in town.nodes["early"].problems] == ["digest_mismatch"]

    run_virtually(play())


def test_while_the_uplink_is_closed_the_reason_is_told_and_then_it_goes_on(tmp_path: Path) -> None:
    async def play() -> None:
        async with Town(tmp_path, uplink := Uplink(DATA), "pi") as town:
            uplink.held = Held(Reason(code="window_closed", subject="site/s", detail="0 22 * * * to 0 6 * * *"), 60_000)
            fetching = asyncio.create_task(town.nodes["pi"].fetch(DIGEST))
            await asyncio.sleep(5)
            told = town.nodes["pi"].reason([DIGEST])
            assert told is not None
            assert told == ("window_closed", "0 22 * * * to 0 6 * * *; 0.0 kB of 2.6 MB")
            assert not uplink.sent
            uplink.held = None
            assert (await fetching).read_bytes() == DATA

    run_virtually(play())


def test_over_a_slow_link_chunks_come_in_parts_and_are_whole_in_the_end(tmp_path: Path) -> None:
    data = DATA[: 3 * CUT + 5]
    sizes: list[int] = []

    class Slow(Uplink):
        async def chunks(self, wanted: ChunksWanted) -> list[bytes]:
            found = await super().chunks(wanted)
            sizes.append(sum(map(len, found)))
            await asyncio.sleep(sizes[-1] / 4_000)
            return found

    async def play() -> None:
        async with Town(tmp_path, Slow(data), "pi") as town:
            path = await town.nodes["pi"].fetch(digest_of(data))
            assert path.read_bytes() == data
            assert sum(sizes) == town.nodes["pi"].books()["hubBytes"] == len(data)
            assert max(sizes[1:]) <= 16 * 1024

    run_virtually(play())


def test_a_recipe_that_lies_is_not_believed_whoever_gave_it(tmp_path: Path) -> None:
    """The hub is away, and the neighbour's list is of another file: what it makes is not what the digest says."""
    other = bytes(CUT)

    async def lie(message: Message) -> None:
        wanted = msgspec.json.decode(message.data)
        recipe = recipe_of(other)
        if wanted.get("recipe_of"):
            head = {"size": len(other), "recipe": digest_of(recipe), "bytes": len(recipe)}
            await message.respond(line(head) + recipe)
        else:
            await message.respond(line({"sizes": [len(other)]}) + other)

    async def play() -> None:
        async with Town(tmp_path, uplink := Uplink(DATA), "pi") as town:
            uplink.is_cut = True
            await town.impostor("liar", lie, recipe=digest_of(recipe_of(other)), count=1)
            with pytest.raises(ArtifactRefused) as refused:
                await town.nodes["pi"].fetch(DIGEST)
            assert refused.value.code == "digest_mismatch"
            assert town.nodes["pi"].held == frozenset()
            assert [str(reason.subject) for reason in town.nodes["pi"].problems] == ["node/liar"]
            uplink.is_cut = False
            await town.all_fetch()

    run_virtually(play())


def test_cards_and_questions_that_make_no_sense_are_counted_and_answered(tmp_path: Path) -> None:
    async def play() -> None:
        async with Town(tmp_path, Uplink(DATA), "pi") as town:
            stranger = town.broker.connect("stranger")
            for data in (b"", b"{", b"[]", msgspec.json.encode(Card(digest="x", count=1 << 40))):
                await stranger.publish(subjects.files("stranger"), data)
            for question in (b"", b"[]", b'{"digest": "../../etc/passwd", "chunks": [0]}', b'{"chunks": [-1]}'):
                answer = await stranger.request(subjects.chunks("pi"), question)
                assert b'"error"' in answer
            assert town.exchange("pi").unread == 4 + 2

    run_virtually(play())
