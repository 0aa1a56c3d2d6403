"""What a node wrote down survives every kind of damage, or is set aside; it never stops the node."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batuta.agent import ledger as ledgers
from batuta.agent.ledger import Ledger, Page, seal
from batuta.core.decided import Assignment, Instance
from batuta.core.local import Local


def page(serial: int, *, at: int = 1) -> Page:
    instance = Instance(namespace="default", application="a", component="c", revision=1, slot="0", epoch=1)
    assignment = Assignment(node="pi", site="home", serial=serial, instances=(instance,))
    local = Local(instance=instance, phase="ready", since=5, starts=2, handle={"pid": 7})
    return Page(assignment=assignment, locals=(local,), at=at, steady_ms=at, machine_boot="b")


def opened(path: Path) -> Ledger:
    ledger = Ledger(path, "pi")
    ledger.open()
    return ledger


def fill(path: Path) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(descriptor, b"x" * 4096)
    finally:
        os.close(descriptor)


def test_what_was_written_is_read_back_whole(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    assert ledger.write(page(1))
    assert ledger.write(page(2))
    found = Ledger(tmp_path, "pi").open()
    assert found.page == page(2)
    assert found.problems == ()
    assert ledgers.read(ledger.older) == page(1)
    assert ledger.newest.stat().st_mode & 0o777 == 0o600


def test_nothing_is_written_when_only_time_passed(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    assert ledger.write(page(1, at=1))
    before = ledger.newest.stat().st_ino
    assert ledger.write(page(1, at=99))
    assert (ledger.writes, ledger.newest.stat().st_ino) == (1, before)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("cut short", lambda data: data[: len(data) // 2]),
        ("one bit", lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]),
        ("emptied", lambda _data: b""),
        ("zeros, as after a loss of power", lambda data: bytes(len(data))),
        ("of a schema to come", lambda data: data.replace(b"batuta-ledger 1 ", b"batuta-ledger 2 ")),
        ("something else", lambda _data: b"hello\nworld"),
    ],
)
def test_damage_is_set_aside_and_the_older_generation_used(tmp_path: Path, name: str, damage: object) -> None:
    ledger = opened(tmp_path)
    ledger.write(page(1))
    ledger.write(page(2))
    ledger.newest.write_bytes(damage(ledger.newest.read_bytes()))  # type: ignore[operator]
    found = Ledger(tmp_path, "pi").open()
    assert found.page == page(1), name
    assert [reason.code for reason in found.problems] == ["ledger_corrupt"]
    assert (tmp_path / "ledger.corrupt-1").exists()
    assert not ledger.newest.exists()


def test_when_both_are_damaged_the_node_starts_with_nothing_and_says_so(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.write(page(1))
    ledger.write(page(2))
    for path in (ledger.newest, ledger.older):
        path.write_bytes(b"rust")
    found = Ledger(tmp_path, "pi").open()
    assert found.page == Page()
    assert [reason.code for reason in found.problems] == ["ledger_corrupt", "ledger_corrupt"]
    assert {p.name for p in tmp_path.glob("ledger.corrupt-*")} == {"ledger.corrupt-1", "ledger.corrupt-2"}


def test_a_right_checksum_over_nonsense_is_damage_too(tmp_path: Path) -> None:
    opened(tmp_path)
    whole = seal(Page())
    head, _, body = whole.partition(b"\n")
    nonsense = b'{"assignment": 7}'
    (tmp_path / "ledger").write_bytes(
        head.replace(hashlib.sha256(body).hexdigest().encode(), hashlib.sha256(nonsense).hexdigest().encode())
        + b"\n" + nonsense
    )  # fmt: skip
    assert [r.code for r in Ledger(tmp_path, "pi").open().problems] == ["ledger_corrupt"]


def test_a_full_disk_harms_nothing_and_is_told_until_there_is_room(tmp_path: Path) -> None:
    """A real disk that is really full: one megabyte of tmpfs."""
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting takes root")
    try:
        ledger = opened(tmp_path)
        assert ledger.write(page(1))
        filler = tmp_path / "filler"
        with pytest.raises(OSError, match="No space") as full:
            fill(filler)
        assert full.value.errno == errno.ENOSPC
        assert not ledger.write(page(2))
        assert ledger.problem is not None
        assert ledger.problem.code == "disk_full"
        assert Ledger(tmp_path, "pi").open().page == page(1)
        assert not (tmp_path / "ledger.new").exists()
        filler.unlink()
        assert ledger.write(page(2))
        assert ledger.problem is None
        assert Ledger(tmp_path, "pi").open().page == page(2)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_limit_on_file_size_is_no_room_either(tmp_path: Path) -> None:
    """Without root: the kernel refuses the write with EFBIG in a child that may write 64 bytes a file."""
    code = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[2]);"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64));"
        "from pathlib import Path; from batuta.agent.ledger import Ledger, Page;"
        "l = Ledger(Path(sys.argv[1]), 'pi'); l.open();"
        "print(l.write(Page(at=1, hub_epoch=3)), l.problem.code)"
    )
    root = str(Path(__file__).parents[2])
    said = subprocess.run(
        [sys.executable, "-B", "-c", code, str(tmp_path), root], check=True, capture_output=True, text=True
    )
    assert said.stdout.split() == ["False", "disk_full"]
