"""Artifacts: fetched in pieces that resume, believed only after hashing, kept within a budget."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from batuta.agent.artifacts import Artifacts
from batuta.agent.partial import Partial
from batuta.agent.recipe import Recipe
from batuta.errors import ArtifactRefused
from tests.agent.shelf import CUT, Shelf, chunk_of, digest_of, recipe_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batuta.fabric.chunks import ChunksWanted


def cache(path: Path, shelf: Shelf, *, boot: str = "b1", budget: int = 1 << 30) -> Artifacts:
    made = Artifacts(path, shelf, node="pi", machine_boot=boot, budget_bytes=budget)
    made.open()
    return made


async def test_a_cut_resumes_where_it_was(tmp_path: Path) -> None:
    data = os.urandom(700_000)
    shelf = Shelf(data)
    shelf.breaks_after = 2
    artifacts = cache(tmp_path, shelf)
    path = await artifacts.fetch(digest_of(data))
    assert path.read_bytes() == data
    assert artifacts.fetched_bytes == len(data), "nothing was fetched twice"
    assert artifacts.held == {digest_of(data)}


def begun(directory: Path, data: bytes, chunks: int) -> None:
    """What an earlier run left of a file: its recipe, and the first few chunks."""
    name = digest_of(data)[7:]
    for part in ("partial", "recipes"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    (directory / "recipes" / name).write_bytes(recipe_of(data))
    recipe = Recipe(directory / "recipes" / name, digest_of(recipe_of(data)))
    partial = Partial(directory / "partial" / name, recipe)
    partial.open()
    for n in range(chunks):
        assert partial.put(n, chunk_of(data, n))
    partial.close()
    recipe.close()


async def test_a_file_that_an_earlier_run_began_is_completed(tmp_path: Path) -> None:
    data = os.urandom(5 * CUT + 99)
    begun(tmp_path, data, 3)
    artifacts = cache(tmp_path, Shelf(data))
    assert (await artifacts.fetch(digest_of(data))).read_bytes() == data
    assert artifacts.fetched_bytes == len(data) - 3 * CUT
    assert list(artifacts.partial.iterdir()) == []


async def test_what_an_earlier_run_wrote_and_the_disk_lost_is_fetched_again(tmp_path: Path) -> None:
    """The journal says that it is there, and after a loss of power it is not, or is something else."""
    data = os.urandom(5 * CUT)
    begun(tmp_path, data, 4)
    name = digest_of(data)[7:]
    with (tmp_path / "partial" / name).open("r+b") as file:
        file.seek(CUT + 5)
        file.write(b"garbage")
        file.truncate(3 * CUT + 17)
    shelf = Shelf(data)
    artifacts = cache(tmp_path, shelf)
    assert (await artifacts.fetch(digest_of(data))).read_bytes() == data
    assert sorted(n for asked in shelf.asked for n in asked) == [1, 3, 4]
    assert artifacts.refused == 0


@pytest.mark.parametrize("spoilt", [b"", b"short", bytes(range(90))], ids=["empty", "short", "noise"])
async def test_a_journal_or_recipe_that_makes_no_sense_costs_a_fetch_and_nothing_else(
    tmp_path: Path, spoilt: bytes
) -> None:
    data = os.urandom(3 * CUT)
    for where in ("partial", "recipes"):
        name = digest_of(data)[7:] + (".have" if where == "partial" else "")
        begun(tmp_path / where, data, 3)
        (tmp_path / where / where / name).write_bytes(spoilt)
        artifacts = cache(tmp_path / where, Shelf(data))
        assert (await artifacts.fetch(digest_of(data))).read_bytes() == data


async def test_what_another_file_here_has_is_copied_and_not_fetched(tmp_path: Path) -> None:
    first = os.urandom(20 * CUT)
    tuned = first[: 4 * CUT] + os.urandom(CUT) + first[5 * CUT :]
    shelf = Shelf(first, tuned)
    artifacts = cache(tmp_path, shelf)
    await artifacts.fetch(digest_of(first))
    shelf.asked.clear()
    assert (await artifacts.fetch(digest_of(tuned))).read_bytes() == tuned
    assert shelf.asked == [(4,)]
    # The file that was copied from went bad: its damaged chunk is not taken over.
    path = artifacts.path(digest_of(first))
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(7 * CUT)
        file.write(b"damage")
    shelf.asked.clear()
    third = tuned + b"more"
    shelf.files[digest_of(third)] = third
    artifacts.remove(digest_of(tuned))
    artifacts = cache(tmp_path, shelf)
    assert (await artifacts.fetch(digest_of(third))).read_bytes() == third


async def test_a_wrong_chunk_is_refused_before_it_is_written_and_what_was_right_is_kept(tmp_path: Path) -> None:
    data = os.urandom(6 * CUT)
    shelf = Shelf(data)
    shelf.spoils = lambda n, chunk: chunk[:-1] + bytes([chunk[-1] ^ 1]) if n == 3 else chunk
    artifacts = cache(tmp_path, shelf)
    with pytest.raises(ArtifactRefused) as refused:
        await artifacts.fetch(digest_of(data))
    assert refused.value.code == "digest_mismatch"
    assert "from the hub" in refused.value.message
    assert (artifacts.refused, artifacts.held) == (1, frozenset())
    had = artifacts.fetched_bytes
    shelf.spoils = lambda n, chunk: chunk
    assert (await artifacts.fetch(digest_of(data))).read_bytes() == data
    assert artifacts.fetched_bytes == len(data), f"{had} bytes were kept"


async def test_a_cut_that_never_ends_can_be_cancelled_and_goes_on_later(tmp_path: Path) -> None:
    data = os.urandom(8 * CUT)
    shelf = Shelf(data)
    answer, hangs = shelf.chunks, asyncio.Event()

    async def chunks(wanted: ChunksWanted) -> list[bytes]:
        if len(shelf.asked) >= 3:
            await hangs.wait()
        return await answer(wanted)

    shelf.chunks = chunks  # type: ignore[method-assign]
    artifacts = cache(tmp_path, shelf)
    fetching = asyncio.create_task(artifacts.fetch(digest_of(data)))
    async with asyncio.timeout(60):
        while len(shelf.asked) < 3 or not artifacts.under_way[digest_of(data)].fetched_bytes:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
    assert artifacts.under_way == {}
    hangs.set()
    await artifacts.fetch(digest_of(data))
    assert artifacts.fetched_bytes <= len(data) + 2 * CUT


def test_what_a_thread_does_after_the_end_touches_nothing(tmp_path: Path) -> None:
    """Its file number may be another file's by then."""
    data = os.urandom(2 * CUT)
    begun(tmp_path, data, 1)
    name = digest_of(data)[7:]
    recipe = Recipe(tmp_path / "recipes" / name, digest_of(recipe_of(data)))
    partial = Partial(tmp_path / "partial" / name, recipe)
    assert partial.open() == CUT
    partial.close()
    with (tmp_path / "innocent").open("w+b") as first, (tmp_path / "too").open("w+b") as second:
        assert not partial.put(1, chunk_of(data, 1))
        assert partial.take(0) is None
        partial.flush()
        partial.close()
        assert (first.read(), second.read()) == (b"", b"")
    late = Partial(tmp_path / "partial" / name, recipe)
    late.close()
    assert late.open() == 0, "it was over before it began"
    recipe.close()


async def test_how_far_it_is_can_be_told(tmp_path: Path) -> None:
    data = os.urandom(4 * CUT)
    shelf = Shelf(data)
    artifacts = cache(tmp_path, shelf)
    told: list[Any] = []
    artifacts.on_progress = lambda: told.append(artifacts.reason([digest_of(data)]))
    await artifacts.fetch(digest_of(data))
    assert told[0] == ("fetching", "0.0 kB of 0.3 MB")
    assert told[-1] is None


async def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    artifacts = cache(tmp_path, Shelf(b""))
    assert (await artifacts.fetch(digest_of(b""))).read_bytes() == b""


@pytest.mark.parametrize("same_size_and_time", [False, True])
async def test_a_damaged_file_is_found_after_a_boot_and_fetched_again(tmp_path: Path, same_size_and_time: bool) -> None:
    data = os.urandom(100_000)
    digest = digest_of(data)
    path = await cache(tmp_path, Shelf(data)).fetch(digest)
    stat = path.stat()
    path.chmod(0o600)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    if same_size_and_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    artifacts = cache(tmp_path, Shelf(data), boot="b2")
    assert artifacts.held == frozenset(), "nothing is believed before it was looked at in this boot"
    await artifacts.verify([digest])
    assert artifacts.held == frozenset()
    assert artifacts.problem is not None
    assert artifacts.problem.code == "digest_mismatch"
    assert (artifacts.corrupt / digest[7:]).exists()
    assert (await artifacts.fetch(digest)).read_bytes() == data
    assert artifacts.problem is None
    assert artifacts.refused == 1


async def test_within_one_boot_the_list_is_believed_and_a_changed_file_is_not(tmp_path: Path) -> None:
    data = os.urandom(1_000)
    path = await cache(tmp_path, Shelf(data)).fetch(digest_of(data))
    assert cache(tmp_path, Shelf()).held == {digest_of(data)}
    path.chmod(0o600)
    path.write_bytes(b"other")
    assert cache(tmp_path, Shelf()).held == frozenset()


async def test_the_budget_removes_what_nobody_needs_oldest_use_first_and_never_what_is_needed(tmp_path: Path) -> None:
    files = [os.urandom(1_000) for _ in range(4)]
    a, b, c, d = map(digest_of, files)
    artifacts = cache(tmp_path, Shelf(*files), budget=3_000)
    for n, digest in enumerate((a, b, c)):
        path = await artifacts.fetch(digest)
        os.utime(path, ns=(n, path.stat().st_mtime_ns))
    await artifacts.fetch(d, lambda: frozenset({a}))
    assert artifacts.held == {a, c, d}
    with pytest.raises(ArtifactRefused) as refused:
        await artifacts.fetch(b, lambda: frozenset({a, c, d}))
    assert refused.value.code == "disk_full"
    assert artifacts.held == {a, c, d}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """20 MiB of tmpfs."""
    words = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


async def test_a_full_disk_refuses_with_no_damage(small_disk: Path) -> None:
    """Most of the disk must stay spare, so what does not fit is refused before a byte of it is written."""
    small, large = os.urandom(100_000), os.urandom(8 << 20)
    artifacts = cache(small_disk / "artifacts", Shelf(small, large))
    await artifacts.fetch(digest_of(small))
    with pytest.raises(ArtifactRefused) as refused:
        await artifacts.fetch(digest_of(large))
    assert refused.value.code == "disk_full"
    assert artifacts.path(digest_of(small)).read_bytes() == small
    assert artifacts.held == {digest_of(small)}


async def test_a_disk_that_fills_up_during_a_fetch_loses_only_the_half_file(small_disk: Path) -> None:
    small, large = os.urandom(1_000), os.urandom(2 << 20)
    shelf = Shelf(small, large)
    artifacts = cache(small_disk / "artifacts", shelf)
    await artifacts.fetch(digest_of(small))
    answer, filler = shelf.chunks, small_disk / "filler"

    async def chunks(wanted: ChunksWanted) -> list[bytes]:
        if len(shelf.asked) > 3:
            with contextlib.suppress(OSError):
                filler.write_bytes(bytes(20 << 20))
        return await answer(wanted)

    shelf.chunks = chunks  # type: ignore[method-assign]
    with pytest.raises(ArtifactRefused) as refused:
        await artifacts.fetch(digest_of(large))
    assert refused.value.code == "disk_full"
    assert list(artifacts.partial.iterdir()) == []
    assert artifacts.held == {digest_of(small)}
    filler.unlink()
    shelf.chunks = answer  # type: ignore[method-assign]
    assert (await artifacts.fetch(digest_of(large))).read_bytes() == large


async def test_of_a_damaged_file_only_the_damage_is_fetched_again(tmp_path: Path) -> None:
    data = os.urandom(9 * CUT)
    shelf = Shelf(data)
    path = await cache(tmp_path, shelf).fetch(digest_of(data))
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(6 * CUT + 1)
        file.write(b"rot")
    shelf.asked.clear()
    artifacts = cache(tmp_path, shelf)
    assert (await artifacts.fetch(digest_of(data))).read_bytes() == data
    assert shelf.asked == [(6,)]


async def test_no_path_comes_from_a_digest_that_is_none(tmp_path: Path) -> None:
    artifacts = cache(tmp_path, Shelf())
    for digest in ("sha256:../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "0" * 32, ""):
        with pytest.raises(ArtifactRefused):
            await artifacts.fetch(digest)
