"""Artifacts: fetched in pieces that resume, believed only after hashing, kept within a budget."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from batuta.agent.artifacts import Artifacts, Piece
from batuta.errors import ArtifactRefused, FabricUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Shelf:
    """A source with a link that can break after so many pieces."""

    def __init__(self, *files: bytes) -> None:
        self.files = {digest_of(data): data for data in files}
        self.asked: list[tuple[int, int]] = []
        self.breaks_after: int | None = None

    async def piece(self, digest: str, offset: int, length: int) -> Piece:
        if self.breaks_after is not None and len(self.asked) >= self.breaks_after:
            self.breaks_after = None
            raise FabricUnavailable("cut")
        self.asked.append((offset, length))
        if digest not in self.files:
            raise ArtifactRefused("artifact_missing", "not here")
        data = self.files[digest]
        return Piece(data[offset : offset + length], len(data))


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


async def test_a_half_file_of_an_earlier_run_is_completed(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    artifacts = cache(tmp_path, Shelf(data))
    (artifacts.partial / digest_of(data)[7:]).write_bytes(data[:200_000])
    assert (await artifacts.fetch(digest_of(data))).read_bytes() == data
    assert artifacts.fetched_bytes == 100_000


async def test_wrong_bytes_are_refused_counted_and_not_kept(tmp_path: Path) -> None:
    shelf = Shelf()
    wanted = digest_of(b"right")
    shelf.files[wanted] = b"wrong"
    artifacts = cache(tmp_path, shelf)
    with pytest.raises(ArtifactRefused) as refused:
        await artifacts.fetch(wanted)
    assert refused.value.code == "digest_mismatch"
    assert (artifacts.refused, artifacts.held, list(artifacts.partial.iterdir())) == (1, frozenset(), [])
    shelf.files[wanted] = b"right"
    assert (await artifacts.fetch(wanted)).read_bytes() == b"right"


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
    answer, filler = shelf.piece, small_disk / "filler"

    async def piece(digest: str, offset: int, length: int) -> Piece:
        if offset:
            with contextlib.suppress(OSError):
                filler.write_bytes(bytes(20 << 20))
        return await answer(digest, offset, length)

    shelf.piece = piece  # type: ignore[method-assign]
    with pytest.raises(ArtifactRefused) as refused:
        await artifacts.fetch(digest_of(large))
    assert refused.value.code == "disk_full"
    assert list(artifacts.partial.iterdir()) == []
    assert artifacts.held == {digest_of(small)}
    filler.unlink()
    shelf.piece = answer  # type: ignore[method-assign]
    assert (await artifacts.fetch(digest_of(large))).read_bytes() == large


async def test_no_path_comes_from_a_digest_that_is_none(tmp_path: Path) -> None:
    artifacts = cache(tmp_path, Shelf())
    for digest in ("sha256:../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "0" * 32, ""):
        with pytest.raises(ArtifactRefused):
            await artifacts.fetch(digest)
