"""Files from other sites: real tunnels with real certificates, and caches of several nodes, in one process."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.agent.artifacts import Artifacts
from batuta.agent.depot import Depot
from batuta.agent.exchange import Exchange
from batuta.agent.region import Region
from batuta.agent.tunnelling import Credentials
from batuta.core.region import DepotOf, DepotsAnswer
from batuta.errors import FabricUnavailable
from batuta.fabric import identity, subjects
from batuta.fabric.broker import free_port
from batuta.fabric.chunks import head_of, line
from batuta.fabric.memory import MemoryBroker
from batuta.kinds.base import encode_hook
from tests.agent.shelf import CUT, Shelf, digest_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from batuta.fabric.base import Message

DATA = random.Random(7).randbytes(40 * CUT + 5)
DIGEST = digest_of(DATA)
PATIENCE_S = 60


class Away(Shelf):
    """A hub that can be away."""

    is_away = False

    async def recipe(self, *asked: Any) -> Any:
        if self.is_away:
            raise FabricUnavailable("away")
        return await super().recipe(*asked)

    async def chunks(self, wanted: Any) -> Any:
        if self.is_away:
            raise FabricUnavailable("away")
        return await super().chunks(wanted)


class Country:
    """A region and a shop below it, each with brokers of their own; the hub only says who the region is."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = int(time.time() * 1000)
        self.root = identity.make_root("Batuta", self.now, 1)
        self.hub, self.uplink = MemoryBroker(), Away(DATA)
        self.depots: list[DepotOf] = []
        self.passages: list[dict[str, Any]] = []
        self.passage = b"{}\n"
        self.tasks: list[asyncio.Task[None]] = []

    def credentials(self, node: str, site: str, root: identity.Authority | None = None) -> Credentials:
        home = self.directory / node
        home.mkdir(parents=True, exist_ok=True)
        authority = identity.make_site_authority(root or self.root, site, self.now, 2)
        key = identity.make_key()
        chain = identity.sign_request(
            authority, identity.make_request(key, node), node=node, now=self.now, serial=3, valid_s=3600
        )
        for name, text in (("chain", chain), ("key", key), ("root", (root or self.root).certificate_pem)):
            (home / f"{name}.pem").write_text(text)
        return Credentials(*(str(home / f"{name}.pem") for name in ("chain", "key", "root")))

    async def open(self) -> None:
        async def answer(message: Message) -> None:
            verb = subjects.verb_of(message.subject)
            if verb == "passage":
                self.passages.append(msgspec.json.decode(message.data))
                await message.respond(self.passage)
            else:
                told = DepotsAnswer(depots=tuple(self.depots))
                await message.respond(msgspec.json.encode(told, enc_hook=encode_hook))

        await self.hub.connect("hub").subscribe(subjects.ALL_ASKS, answer)

    async def holder(self, name: str, *, holds: bool = True, exchange: Any = Exchange) -> tuple[Artifacts, Depot]:
        """A node of the region with a depot."""
        talks = exchange(MemoryBroker().connect(name), name, lambda: False)
        files = self.files(name, exchange=talks)
        if holds:
            await files.fetch(DIGEST)
        depot = Depot(name, talks, lambda: self.credentials_of[name], listen="127.0.0.1", advertise="", tell=_unheard)
        self.credentials_of[name] = self.credentials(name, "north")
        depot.follow(free_port("127.0.0.1"))
        self.tasks.append(asyncio.create_task(depot.run()))
        async with asyncio.timeout(PATIENCE_S):
            await until(lambda: depot.address)
        self.depots.append(DepotOf(node=name, address=depot.address))
        return files, depot

    credentials_of: dict[str, Credentials] = {}

    def shop(self, name: str = "shop-0", root: identity.Authority | None = None) -> tuple[Artifacts, Region]:
        credentials = self.credentials(name, "shop", root)
        region = Region(self.hub.connect_node(name), self.directory / name, lambda: credentials)
        self.tasks.append(asyncio.create_task(region.run()))
        return self.files(name, region=region), region

    def files(self, name: str, **more: Any) -> Artifacts:
        made = Artifacts(
            self.directory / name / "artifacts", self.uplink, node=name, machine_boot="b", budget_bytes=1 << 30,
            apart=False, **more,
        )  # fmt: skip
        made.open()
        return made

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  what is waited for is the agent's, and tells only the agent
        await asyncio.sleep(0.001)


def _unheard(_news: object) -> None:
    pass


@asynccontextmanager
async def country(directory: Path) -> AsyncIterator[Country]:
    made = Country(directory)
    await made.open()
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield made
    finally:
        await made.close()


async def test_a_file_that_the_region_has_comes_from_there_and_not_from_the_hub(tmp_path: Path) -> None:
    async with country(tmp_path) as land:
        _, depot = await land.holder("north-0")
        land.uplink.asked.clear()
        files, region = land.shop()
        assert (await files.fetch(DIGEST)).read_bytes() == DATA
        assert land.uplink.asked == [], "no chunk came from the hub"
        assert files.books() == {"refused": 0, "fetchedBytes": len(DATA), "hubBytes": 0, "regionBytes": len(DATA)}
        assert depot.asked >= 20
        assert list(depot.askers.values()) == ["shop-0"]
        assert land.passages == [], "nothing on the way is ruled, so nobody is asked"
        assert region.problems() == ()


async def test_with_the_hub_away_recipe_and_chunks_come_from_who_is_remembered(tmp_path: Path) -> None:
    async with country(tmp_path) as land:
        await land.holder("north-0")
        first, _ = land.shop()
        await first.fetch(DIGEST)
        first.remove(DIGEST)
        land.uplink.is_away = True
        land.hub.cut("shop-0")
        again, region = land.shop()
        assert (await again.fetch(DIGEST)).read_bytes() == DATA
        assert again.books()["regionBytes"] == len(DATA)
        assert region.unanswered >= 1, "the hub was asked who is there, and did not answer"


class Liar(Exchange):
    """Says truly what it has, and gives something else."""

    async def answer_to(self, data: bytes) -> bytes:
        answer = await super().answer_to(data)
        if b'"chunks"' not in data:
            return answer
        head, rest = head_of(answer)
        return line({"sizes": head.sizes}) + bytes(len(rest))


async def test_a_lying_region_is_refused_counted_said_and_the_hub_gives_the_file(tmp_path: Path) -> None:
    async with country(tmp_path) as land:
        await land.holder("north-0", exchange=Liar)
        files, region = land.shop()
        assert (await files.fetch(DIGEST)).read_bytes() == DATA
        books = files.books()
        assert books["regionBytes"] == 0
        assert books["hubBytes"] == len(DATA)
        assert 1 <= books["refused"] == region.lies <= 4, "as many as were on their way at once"
        (problem,) = files.problems
        assert (problem.code, problem.subject) == ("neighbour_lied", "node/north-0")


class Boaster(Exchange):
    """Says that it has everything, and gives nothing, so often."""

    refuses = 3

    async def answer_to(self, data: bytes) -> bytes:
        if b'"chunks"' in data and self.refuses > 0:
            self.refuses -= 1
            return line({"error": "artifact_missing"})
        return await super().answer_to(data)


@pytest.mark.parametrize("refuses", [2, 10_000])
async def test_who_has_it_not_just_now_is_asked_again_and_who_never_has_it_is_not(tmp_path: Path, refuses: int) -> None:
    async with country(tmp_path) as land:
        files, depot = await land.holder("north-0", exchange=Boaster)
        depot.exchange.refuses = refuses
        land.uplink.asked.clear()
        shop, region = land.shop()
        assert (await shop.fetch(DIGEST)).read_bytes() == DATA
        books = shop.books()
        assert books["regionBytes"] == (len(DATA) if refuses == 2 else 0)
        assert books["regionBytes"] + books["hubBytes"] == len(DATA)
        assert region.problems() == files.problems == ()


async def test_a_region_that_dies_half_way_leaves_the_rest_to_the_hub(tmp_path: Path) -> None:
    async with country(tmp_path) as land:
        _, depot = await land.holder("north-0")
        land.uplink.asked.clear()
        files, _ = land.shop()

        async def pull_the_plug() -> None:
            await until(lambda: depot.asked >= 12)
            depot.follow(None)

        plug = asyncio.create_task(pull_the_plug())
        assert (await files.fetch(DIGEST)).read_bytes() == DATA
        await plug
        books = files.books()
        assert 0 < books["regionBytes"] < len(DATA)
        assert books["regionBytes"] + books["hubBytes"] == len(DATA)


async def test_what_the_region_is_just_fetching_is_waited_for(tmp_path: Path) -> None:
    async with country(tmp_path) as land:
        north, _ = await land.holder("north-0", holds=False)
        gate, asked = asyncio.Event(), asyncio.Event()
        chunks = land.uplink.chunks

        async def slowly(wanted: Any) -> Any:
            if len(land.uplink.asked) >= 10:
                asked.set()
                await gate.wait()
            return await chunks(wanted)

        land.uplink.chunks = slowly  # type: ignore[method-assign]
        fetching = asyncio.create_task(north.fetch(DIGEST))
        await asked.wait()
        files, _ = land.shop()
        following = asyncio.create_task(files.fetch(DIGEST))
        await until(lambda: files.books()["regionBytes"] >= 10 * CUT)
        gate.set()
        assert (await fetching).read_bytes() == (await following).read_bytes() == DATA
        assert sorted(n for some in land.uplink.asked for n in some) == list(range(41)), "one copy, for both"
        assert files.books()["regionBytes"] == len(DATA)


async def test_who_is_only_about_to_fetch_it_is_waited_for_as_well(tmp_path: Path) -> None:
    async with country(tmp_path) as land:
        north, _ = await land.holder("north-0", holds=False)
        land.depots = [msgspec.structs.replace(each, is_due=True) for each in land.depots]
        files, region = land.shop()
        following = asyncio.create_task(files.fetch(DIGEST))
        await until(lambda: region.peers(DIGEST, ""))
        assert land.uplink.asked == []
        assert (await north.fetch(DIGEST)).read_bytes() == (await following).read_bytes() == DATA
        assert sorted(n for some in land.uplink.asked for n in some) == list(range(41)), "one copy, for both"


async def test_on_a_ruled_link_the_hub_is_asked_before_each_answer(tmp_path: Path) -> None:
    async with country(tmp_path) as land:
        await land.holder("north-0")
        land.depots = [msgspec.structs.replace(each, is_metered=True) for each in land.depots]
        land.passage = line({"error": "window_closed", "message": "22 to 6", "subject": "site/shop", "untilMs": 300})
        files, _ = land.shop()
        fetching = asyncio.create_task(files.fetch(DIGEST))
        await until(lambda: (files.reason([DIGEST]) or ("", ""))[0] == "window_closed")
        assert files.books()["regionBytes"] == 0
        land.passage = b"{}\n"
        assert (await fetching).read_bytes() == DATA
        passed = land.passages
        assert sum(each["sizeBytes"] for each in passed) >= len(DATA)
        assert {(each["digest"], each["node"]) for each in passed} == {(DIGEST, "north-0")}


@pytest.mark.parametrize("what", ["stranger", "another node"])
async def test_who_has_no_certificate_of_this_hub_or_not_the_right_one_is_not_talked_to(
    tmp_path: Path, what: str
) -> None:
    async with country(tmp_path) as land:
        _, depot = await land.holder("north-0")
        other = identity.make_root("Batuta", land.now, 1) if what == "stranger" else None
        if other is None:
            land.depots = [DepotOf(node="north-9", address=depot.address)]
        files, region = land.shop(root=other)
        assert (await files.fetch(DIGEST)).read_bytes() == DATA
        assert files.books()["regionBytes"] == 0
        assert depot.asked == 0
        assert region.unanswered >= 1


async def test_a_renewed_certificate_is_shown_without_a_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batuta.agent.depot.LOOK_EVERY_S", 0.05)
    async with country(tmp_path) as land:
        _, depot = await land.holder("north-0")
        before = land.credentials_of["north-0"]
        renewed = land.credentials("north-0b", "north")
        land.credentials_of["north-0"] = renewed
        assert before != renewed
        land.depots = [DepotOf(node="north-0b", address=depot.address)]
        while True:
            files, region = land.shop()
            await files.fetch(DIGEST)
            if files.books()["regionBytes"] == len(DATA):
                break
            assert region.unanswered, "it still shows the old one"
            files.remove(DIGEST)
        assert depot.starts == 1
