"""Disks that are full to the last byte, under a node and under a hub. The table is in test_misfortunes.py."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from batuta.demo.cameras import Camera
from batuta.demo.stage import processes_in, wait_for
from batuta.errors import BatutaError
from batuta.model_push import push
from tests.e2e.playing import READER, SLEEPER, instance, patiently, play, problems, ready, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batuta.demo.digits import Digits
    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


class Disk:
    """A small disk of its own, that can be filled to the last byte."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.filler = directory / "filler"

    def fill(self) -> None:
        with self.filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def free(self) -> None:
        self.filler.unlink()


@pytest.fixture
def disk_for(stage: Stage) -> Iterator[Callable[[str], Disk]]:
    """Mounts 64 MiB below a name of the stage's directory. It goes last: whoever lives there has ended by then."""
    mounted: list[Path] = []

    def mount(name: str) -> Disk:
        directory = stage.directory / name
        directory.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(directory)]
        if os.geteuid() != 0 or subprocess.run(words, check=False, capture_output=True).returncode:
            pytest.skip("NOT TESTED: a disk of its own takes root, and full disks are what machines die of")
        mounted.append(directory)
        return Disk(directory)

    yield mount
    stage.close()
    for directory in mounted:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk_at_a_node_is_told_and_every_frame_is_answered_once(
    stage: Stage, digits: Digits, disk_for: Callable[[str], Disk]
) -> None:
    disk = disk_for("pi")
    play(stage)
    serve(stage, digits)
    camera = Camera("c", "home", [stage.mqtt_of("pi")], itertools.cycle(digits.held_out), 20.0)
    camera.start()
    try:
        wait_for("frames", lambda: len(camera.published) > 10 or None, 120)
        disk.fill()
        push(stage.client, digits.second, name="digits", version="2", task="classification")
        stage.client.apply(READER.format(version="2"))
        refused = wait_for(
            "the refused version", lambda: i if (i := instance(stage, revision=2))["phase"] == "backoff" else None, 120
        )
        assert refused["reason"]["code"] == "disk_full"
        assert "kept spare" in refused["reason"]["detail"]
        told = wait_for(
            "both reasons",
            lambda: t if "the ledger" in (t := problems(stage).get("disk_full", "")) and "write error" in t else None,
            120,
        )
        assert "no space left on device" in told.lower()
        assert stage.node_status("pi")["health"]["word"] in ("degraded", "failing")
        assert ready(stage, revision=1), "the version that runs goes on"
        stuck = len(camera.published)
        disk.free()
        wait_for("the next version", lambda: ready(stage, revision=2), 120)
        wait_for("frames again", lambda: len(camera.published) > stuck + 10 or None, 120)
        wait_for("nothing to tell any more", lambda: "disk_full" not in problems(stage) or None, 120)
        assert "its store had given up" in problems(stage)["broker_restarted"]
    finally:
        camera.finish()
    published = [frame.id for frame in camera.published]
    arrived: list[str] = []

    def all_there() -> bool | None:
        arrived[:] = [json.loads(row["payload"])["id"] for row in stage.client.up("normal", limit=2_000)]
        return set(published) <= set(arrived) or None

    wait_for("every reading", all_there, 120)
    assert len(arrived) == len(set(arrived)), "each once"


def test_a_broker_that_dies_on_a_full_disk_begins_again_and_the_node_is_heard(
    stage: Stage, disk_for: Callable[[str], Disk]
) -> None:
    disk = disk_for("pi")
    play(stage)
    disk.fill()
    (broker,) = [p for p in processes_in(stage.directory / "pi") if "nats-server" in p.name()]
    broker.kill()
    said = wait_for("the restart", lambda: patiently(lambda: problems(stage).get("broker_restarted")), 120)
    assert "it had died" in said
    wait_for("the node", lambda: stage.online("pi"), 120, alive=stage.nodes["pi"].running)
    assert "Traceback" not in stage.log_tail("pi", 100)
    disk.free()
    wait_for("nothing to tell any more", lambda: "disk_full" not in problems(stage) or None, 120)


def test_a_node_that_begins_on_a_full_disk_ends_in_words(stage: Stage, disk_for: Callable[[str], Disk]) -> None:
    disk = disk_for("pi")
    play(stage)
    stage.client.apply(SLEEPER.format(name="sleeper", runs="at-least-once"))
    wait_for("the program", lambda: ready(stage, "sleeper"), 120)
    stage.kill_node("pi")
    disk.fill()
    stage.restart_node("pi")
    assert stage.nodes["pi"].running.wait(120) == 1
    said = stage.log_tail("pi", 3)
    assert f"the disk of {stage.directory / 'pi' / 'node'} is full" in said
    assert "next: free some space" in said
    assert "Traceback" not in stage.log_tail("pi", 100)
    assert processes_in(stage.directory / "pi") == []
    disk.free()
    killed_at = stage.node_status("pi")["reportedAt"]
    stage.restart_node("pi")
    wait_for("the node", lambda: stage.node_status("pi")["reportedAt"] > killed_at or None, 120)
    wait_for("the program", lambda: ready(stage, "sleeper"), 120)
    assert instance(stage, "sleeper")["starts"] == 2


def test_a_full_disk_at_the_hub_refuses_in_words_and_hears_again_when_there_is_room(
    stage: Stage, disk_for: Callable[[str], Disk]
) -> None:
    disk = disk_for("hub-machine")
    play(stage)
    stage.client.apply(SLEEPER.format(name="first", runs="at-least-once"))
    wait_for("the program", lambda: ready(stage, "first"), 120)
    node = {p.pid for p in processes_in(stage.directory / "pi")}
    disk.fill()

    def refusal() -> str | None:
        """Something may still fit into what was begun; then the next does not."""
        try:
            stage.client.apply(SLEEPER.format(name=f"more-{next(count)}", runs="at-least-once"))
        except BatutaError as error:
            return f"{error.message} {error.next_step}"
        return None

    count = itertools.count()
    said = wait_for("a refusal", refusal, 120)
    assert "the disk of the hub is full" in said
    assert "free some space" in said
    checks = {check.name: check for check in stage.client.doctor()}
    assert (checks["disk"].result, "free some space" in checks["disk"].next_step) == ("fail", True)
    assert {p.pid for p in processes_in(stage.directory / "pi")} >= node
    disk.free()
    wait_for("the broker", lambda: "the broker is well again" in stage.log_tail("hub", 50) or None, 120)
    wait_for(
        "a write", lambda: patiently(lambda: stage.client.apply(SLEEPER.format(name="last", runs="at-least-once"))), 120
    )
    wait_for("a report", lambda: patiently(lambda: ready(stage, "last")), 120)
    assert ready(stage, "first")
    assert instance(stage, "first")["starts"] == 1
