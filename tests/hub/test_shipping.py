"""Artifacts leave the hub by recipe and chunk: as they should be, in turns, and when the links may carry them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from batuta.fabric.base import Message
from batuta.fabric.chunks import head_of, split
from batuta.fabric.memory import MemoryBroker
from batuta.hub import chunking
from batuta.hub.counters import Counters
from batuta.hub.shipping import WAITING_MOST, Shipping
from batuta.kinds.manifest import parse
from tests.hub.hubs import Voice, join, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batuta.hub.hub import Hub


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def put(hub: Hub, data: bytes) -> str:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    digest = digest_of(data)
    await hub.artifacts.put(digest, chunks())
    return digest


async def whole_by_chunks(voice: Voice, digest: str) -> bytes:
    """As a node puts it together."""
    head, recipe = head_of(await voice.ask("recipe", {"digest": digest, "length": 10**6}))
    assert len(recipe) == head.bytes
    assert digest_of(bytes(recipe)) == head.recipe
    got = b""
    for n, (wanted, end) in enumerate(chunking.RECORD.iter_unpack(recipe)):
        answer = await voice.ask("chunks", {"digest": digest, "chunks": [n], "recipe": head.recipe})
        said, data = head_of(answer)
        (chunk,) = split(said.sizes, data)
        assert hashlib.sha256(chunk).digest() == wanted
        got += bytes(chunk)
        assert len(got) == end
    assert len(got) == head.size
    return got


async def error_of(voice: Voice, verb: str, asked: Any) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode((await voice.ask(verb, asked)).partition(b"\n")[0])
    return found


# --- Cutting ---


def cut(path: Path, data: bytes) -> dict[bytes, int]:
    """Digests of the chunks of some bytes, and their sizes."""
    path.write_bytes(data)
    found, at = {}, 0
    for size in chunking.sizes(path):
        found[hashlib.sha256(data[at : at + size]).digest()] = size
        at += size
    assert at == len(data)
    return found


def test_chunks_have_their_sizes_and_depend_on_nothing_but_the_bytes(tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(12_345_678)
    first = cut(tmp_path / "a", data)
    assert first == cut(tmp_path / "b", data)
    sizes = list(first.values())
    assert max(sizes) <= chunking.MOST_BYTES
    assert min(sizes[:-1]) >= chunking.LEAST_BYTES
    assert 56_000 < len(data) / len(sizes) < 80_000
    for odd in (b"", b"x", bytes(5_000_000), data[: chunking.LEAST_BYTES], data[: (1 << 20) + 7]):
        cut(tmp_path / "odd", odd)


@pytest.mark.parametrize("change", ["put in", "taken out", "written over"])
def test_a_change_changes_the_chunks_it_is_in_and_hardly_any_other(tmp_path: Path, change: str) -> None:
    data = np.random.default_rng(2).bytes(8_000_000)
    at = 3_500_001
    new = {
        "put in": data[:at] + b"seven b" + data[at:],
        "taken out": data[:at] + data[at + 1000 :],
        "written over": data[:at] + b"over" + data[at + 4 :],
    }[change]
    fresh = cut(tmp_path / "b", new).keys() - cut(tmp_path / "a", data).keys()
    assert 1 <= len(fresh) <= 4


def test_a_fine_tune_shares_all_that_it_left_alone(tmp_path: Path) -> None:
    """Two of forty layers were trained: of the file's bytes that are new, few more than theirs are in new chunks."""
    layers = np.random.default_rng(3).normal(0, 0.02, (40, 100_000)).astype(np.float32)
    tuned = layers.copy()
    tuned[[7, 30]] += 0.001
    before = cut(tmp_path / "a", layers.tobytes())
    after = cut(tmp_path / "b", tuned.tobytes())
    fresh = sum(size for digest, size in after.items() if digest not in before)
    assert 0.05 <= fresh / layers.nbytes < 0.09


# --- Shipping ---


async def test_nodes_get_artifacts_chunk_by_chunk(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        voice = Voice(broker, "pi-1")
        for data in (os.urandom(1_000_000), b"small", b""):
            assert await whole_by_chunks(voice, await put(hub, data)) == data
        digest = digest_of(b"small")
        assert (await error_of(voice, "recipe", {"digest": "sha256:" + "0" * 64}))["error"] == "artifact_missing"
        assert (await error_of(voice, "recipe", {"digest": "../../admin.token"}))["error"] == "digest_malformed"
        for wrong in ([], [1], [-1], list(range(9))):
            said = await error_of(voice, "chunks", {"digest": digest, "chunks": wrong})
            assert said["error"] == "request_malformed"
        part = await voice.ask("chunks", {"digest": digest, "chunks": [0], "begin": 2, "most": 2})
        assert part == b'{"sizes":[2]}\nal'
        for wrong in ({"begin": -1, "most": 2}, {"begin": 2, "most": -1}, {"begin": 2}):
            said = await error_of(voice, "chunks", {"digest": digest, "chunks": [0], **wrong})
            assert said["error"] == "request_malformed"
        other = {"digest": digest, "chunks": [0], "recipe": "sha256:" + "1" * 64}
        assert (await error_of(voice, "chunks", other))["error"] == "recipe_changed"
        assert (await error_of(voice, "chunks", ["no", "question"]))["error"] == "request_malformed"
        assert (await error_of(voice, "artifact", {}))["error"] == "verb_unknown"


async def test_a_recipe_survives_a_restart_and_is_made_anew_when_it_does_not_fit(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        digest = await put(hub, data)
        first = await hub.recipes.recipe(digest)
        made_at = first.path.stat().st_mtime_ns
    async with running(tmp_path, MemoryBroker()) as hub:
        again = await hub.recipes.recipe(digest)
        assert (again, again.path.stat().st_mtime_ns) == (first, made_at)
    first.path.write_bytes(first.path.read_bytes()[:-40])
    async with running(tmp_path, MemoryBroker()) as hub:
        assert await hub.recipes.recipe(digest) == first


async def test_what_went_bad_on_the_hubs_disk_does_not_leave_it(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        voice, data = Voice(broker, "pi-1"), os.urandom(200_000)
        digest = await put(hub, data)
        await hub.recipes.recipe(digest)
        path = hub.artifacts.path(digest)
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        said = await error_of(voice, "chunks", {"digest": digest, "chunks": [0]})
        assert said["error"] == "digest_mismatch"
        # It is set aside, and counted once; nor is a recipe made of it.
        assert (await error_of(voice, "chunks", {"digest": digest, "chunks": [0]}))["error"] == "artifact_missing"
        hub.recipes.forget(digest)
        assert (await error_of(voice, "recipe", {"digest": digest}))["error"] == "artifact_missing"
        assert hub.counters["artifacts_refused"] == 1
        await put(hub, data)
        assert await whole_by_chunks(voice, digest) == data


async def test_no_recipe_is_made_of_what_went_bad(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        voice, data = Voice(broker, "pi-1"), os.urandom(200_000)
        digest = await put(hub, data)
        await hub.recipes.recipe(digest)
        hub.artifacts.path(digest).write_bytes(bytes([data[0] ^ 1]) + data[1:])
        hub.recipes.forget(digest)
        assert (await error_of(voice, "recipe", {"digest": digest}))["error"] == "digest_mismatch"
        assert await hub.artifacts.whole(digest) is None
        assert hub.counters["artifacts_refused"] == 1, "whoever finds it next finds nothing"


async def test_a_recipe_that_went_bad_is_made_anew_and_its_file_stays(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        voice, data = Voice(broker, "pi-1"), os.urandom(200_000)
        digest = await put(hub, data)
        known = await hub.recipes.recipe(digest)
        known.path.write_bytes(bytes(known.path.stat().st_size))
        assert (await error_of(voice, "chunks", {"digest": digest, "chunks": [0]}))["error"] == "digest_mismatch"
        assert await whole_by_chunks(voice, digest) == data
        assert hub.counters["artifacts_refused"] == 0


class Slow:
    """Recipes that answer when they are let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.began: list[str] = []

    async def chunks(self, digest: str, wanted: Any, by: str = "") -> list[bytes]:
        self.began.append(digest)
        await self.let.wait()
        return [b"data"]


class Open:
    """Uplinks that let everything through."""

    spent = 0

    def held(self, node: str, digest: str) -> None:
        return None

    def spend(self, node: str, size_bytes: int) -> None:
        self.spent += size_bytes


async def test_nodes_take_turns_and_none_fills_the_hub() -> None:
    slow, counters = Slow(), Counters()
    shipping = Shipping(slow, Open(), counters)  # type: ignore[arg-type]
    answers: list[tuple[str, bytes]] = []

    async def ask(node: str) -> None:
        async def respond(data: bytes) -> None:
            answers.append((node, data))

        data = msgspec.json.encode({"digest": node, "chunks": [0]})
        await shipping.take(node, "chunks", Message("batuta.ask", data, {}, "reply", respond))

    for _ in range(4 + WAITING_MOST + 3):
        await ask("greedy")
    assert [node for node, data in answers if b'"busy"' in data] == ["greedy"] * 3
    assert counters["asks_refused"] == 3
    for _ in range(2):
        await ask("modest")
        await ask("quiet")
    slow.let.set()
    async with asyncio.timeout(60):
        while len(answers) < 4 + WAITING_MOST + 3 + 4:  # noqa: ASYNC110  the shipping itself tells nobody
            await asyncio.sleep(0)
    assert slow.began[:4] == ["greedy"] * 4, "nobody else had asked"
    assert sorted(slow.began[4:10]) == ["greedy"] * 2 + ["modest"] * 2 + ["quiet"] * 2
    await shipping.close()


# --- Uplinks ---

SITE = """
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: berlin}
spec:
  uplink: UPLINK
"""


async def test_a_closed_uplink_says_why_and_when_to_ask_again(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        voice, data = Voice(broker, "pi-1"), os.urandom(400_000)
        digest = await put(hub, data)
        assert await whole_by_chunks(voice, digest) == data
        hub.uplinks._state = lambda: _with_site(hub, "{budget: {perDay: 100Ki}}")
        said: dict[str, Any] = {}
        for n in range(4):
            said = await error_of(voice, "chunks", {"digest": digest, "chunks": [n]})
            if "error" in said:
                break
        assert said["error"] == "budget_spent"
        assert said["subject"] == "site/berlin"
        assert said["message"].endswith("of 102400 bytes today")
        assert 1_000 <= said["untilMs"] <= 30_000
        # What is spent stays spent when the hub restarts.
        hub.uplinks.close()
        hub.uplinks._spent.clear()
        hub.uplinks.open()
        assert (await error_of(voice, "chunks", {"digest": digest, "chunks": [0]}))["error"] == "budget_spent"


def _with_site(hub: Hub, uplink: str) -> Any:
    from batuta.core.state import Change

    (site,) = parse(SITE.replace("UPLINK", uplink))
    return hub.loop.state.with_changes([Change("desired", site.ref.key, site)])


# --- Sweeping ---


async def test_what_nothing_refers_to_goes_after_a_while_with_its_recipe(tmp_path: Path) -> None:
    async with running(tmp_path, MemoryBroker(), artifact_keep_s=3_600) as hub:
        kept, fresh, old = [await put(hub, os.urandom(1_000)) for _ in range(3)]
        for digest in (kept, fresh, old):
            await hub.recipes.recipe(digest)
        long_ago = time.time() - 7_200
        for digest in (kept, old):
            os.utime(hub.artifacts.path(digest), (long_ago, long_ago))
        hub.sweep._state = lambda: _with_model(hub, kept)
        assert await hub.sweep.once() == [old]
        assert hub.artifacts.held() == sorted([kept, fresh])
        names = sorted(path.name for path in (tmp_path / "hub" / "artifacts" / "recipes").iterdir())
        assert names == sorted([kept[7:], fresh[7:]])
        assert await hub.sweep.once() == []


def _with_model(hub: Hub, digest: str) -> Any:
    from batuta.core.state import Change

    text = f"""
apiVersion: batuta.dev/v1
kind: Model
metadata: {{name: m}}
spec:
  versions: [{{version: "1", variants: [{{name: a, format: onnx, digest: "{digest}", size: 1Ki}}]}}]
"""
    (model,) = parse(text)
    return hub.loop.state.with_changes([Change("desired", model.ref.key, model)])
