"""What goes wrong on real machines, on real processes: each says clearly what it is, and does no damage.

A test without a file is here; `survival: x` is test_x of test_survival.py, and so on.

misfortune               test                                what it asserts
-----------------------  ----------------------------------  ---------------------------------------------------------
cold boot, no hub        a_model_answers_again               MQTT answered in 10 s from the ledger, nothing fetched
                         survival: a_machine_comes_up        a program runs again in 10 s
kill -9: node agent      survival: a_killed_agent            same process, one start, same serial
                         agent: kill_9_of_the_agent          broker and program adopted, twice in a row
                         survival: ctrl_c_before_the_agent   at any moment the next one ends what was left
kill -9: model worker    a_killed_model_worker               backoff, `exited` with the signal, starts 2, answered once
         program         survival: a_killed_instance         starts 2
kill -9: hub             survival: a_killed_hub              same processes; every decided row of the same revision
                         hub: the_hub_process_dies           no decision, epoch 2, old watches get 410
kill -9: broker          agent: a_broker_that_dies           same ports, `broker_restarted`; hub: every row is there
full disk: node          a_full_disk_at_a_node               `disk_full` of broker, ledger, fetch; old version serves;
                                                             each frame answered once; all well when there is room
                         a_node_that_begins_on_a_full_disk   ends in words; ledger, artifacts: neither is damaged
full disk: hub           a_full_disk_at_the_hub              refused in words, doctor fails; then writes and hears again
corrupt ledger           agent: a_corrupt_ledger             `ledger_corrupt`, found again and not started again
                         ledger: damage_is_set_aside         every kind of damage; the older generation is used
corrupt artifact         bytes_that_are_not                  never run, set aside, `digest_mismatch`, fetched again
wrong digest             bytes_that_are_not                  node refuses; status and `why` say it; a push mends it
port taken: hub          hub: two_hubs_cannot_share          ends with 1, names the port; parts: next one if not asked
port taken: MQTT         a_port_that_was_taken               `port_taken` names both, devices are served at the next
                         agent: a_port_that_is_taken         the same at the first start
clock a day off: node    a_nodes_clock                       `clock_jumped`, leases kept; joining: `clock_wrong`
                 hub     a_hubs_clock                        it begins anew, no row changes, nothing moves
                         node, clock, never_twice            waits and leases in virtual time
hub set up anew          a_hub_that_is_set_up_anew           old token, running node, doctor say so; the way back
token: expired, used...  a_token_that_is_no_good             each in words with a next step; hub: the codes over HTTP
two nodes, one name      a_token_that_is_no_good             `name_taken`, the first one is not disturbed
join interrupted         survival: ctrl_c_while_it_asks      130, no words, no process, no identity left
link cut                 demo: act 3; rig                    answered meanwhile, delivered once afterwards
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from batuta.demo.cameras import Camera, Session
from batuta.demo.digits import Digits, prepare
from batuta.demo.stage import kill, processes_in, wait_for
from batuta.errors import BatutaError
from batuta.model_push import push
from tests.cli.running import Ran, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from batuta.demo.digits import Image
    from batuta.demo.stage import Stage

pytestmark = pytest.mark.e2e

READER = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: reader}}
spec:
  components:
  - name: read
    model: {{name: digits, version: "{version}"}}
    inputs:  [{{topic: "cameras/+/frame", tensor: image}}]
    outputs: [{{topic: "meters/{{1}}/reading"}}, {{forward: hub}}]
    replicas: {{count: 1}}
    resources: {{cpu: 100m, memory: 128Mi}}
    failover: {{after: 1h}}
"""

SLEEPER = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: {name}}}
spec:
  components:
  - name: sleep
    process: {{command: [sleep, "86400"], stopGrace: 1s}}
    replicas: {{count: 1}}
    resources: {{cpu: 10m, memory: 16Mi}}
    runs: {runs}
    failover: {{after: 2s}}
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return prepare(tmp_path_factory.mktemp("digits"))


class Device:
    """One MQTT client of one node: shows images and hears what was read."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.readings: list[dict[str, Any]] = []
        self._session = Session("device", [address])
        self._session.subscribe_to = "meters/+/reading"
        self._session.on_message = lambda message: self.readings.append(json.loads(message.payload))

    def __enter__(self) -> Device:
        stop = threading.Event()
        timer = threading.Timer(20, stop.set)
        timer.start()
        try:
            assert self._session.connect(stop), "no node takes this device"
        finally:
            timer.cancel()
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def show(self, name: str, image: Image) -> None:
        """Publishes one frame; returns when the broker has it."""
        assert self._session.client is not None
        payload = json.dumps({"id": name, "data": image.pixels})
        self._session.client.publish("cameras/device/frame", payload, qos=1).wait_for_publish(5)

    def read(self, name: str, within_s: float) -> dict[str, Any]:
        """What was made of that frame."""
        return wait_for(
            f"a reading of {name}", lambda: next((r for r in self.readings if r["id"] == name), None), within_s
        )


def play(stage: Stage) -> None:
    """A hub and one node."""
    stage.start_hub()
    stage.start_node("pi", "home")
    wait_for("the node", lambda: stage.online("pi"), 30, alive=stage.nodes["pi"].running)


def serve(stage: Stage, digits: Digits) -> str:
    """The first version of the model, running on it; returns its digest."""
    digest = push(stage.client, digits.first, name="digits", version="1", task="classification").digest
    stage.client.apply(READER.format(version="1"))
    wait_for("the model", lambda: ready(stage), 30)
    return digest


def instance(stage: Stage, application: str = "reader", revision: int = 0) -> Mapping[str, Any]:
    """The one instance there is, or the one of that revision."""
    found = [i for i in stage.instances(application) if revision in (0, i["revision"])]
    return found[0] if found else {"phase": "none", "reason": None}


def ready(stage: Stage, application: str = "reader", revision: int = 0) -> bool | None:
    return instance(stage, application, revision)["phase"] == "ready" or None


def problems(stage: Stage) -> dict[str, str]:
    """What the node says is wrong with it: details by code."""
    found: dict[str, str] = {}
    for problem in stage.node_status("pi").get("problems", ()):
        found[problem["code"]] = f"{found.get(problem['code'], '')} {problem.get('detail', '')}".strip()
    return found


def workers(stage: Stage) -> list[psutil.Process]:
    return [p for p in processes_in(stage.directory / "pi") if "batuta.dataflow.worker" in p.cmdline()]


def patiently(ask: Callable[[], Any]) -> Any:
    """For `wait_for`, while a hub or broker is on its way: nobody's answer is no answer yet."""
    with contextlib.suppress(BatutaError, OSError):
        return ask() or None
    return None


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- Nobody there, and kill -9 ----------------------------------------------------------------------------------------


def test_a_model_answers_again_after_a_cold_boot_without_its_hub(stage: Stage, digits: Digits) -> None:
    play(stage)
    digest = serve(stage, digits)
    address, home = stage.mqtt_of("pi"), stage.directory / "pi" / "node"
    with Device(address) as device:
        device.show("before", digits.held_out[0])
        name = device.read("before", 10)["instance"]
    artifact = home / "artifacts" / "sha256" / digest[7:]
    before = (artifact.stat().st_ino, artifact.stat().st_mtime_ns)
    stage.kill_hub()
    stage.kill_node("pi")
    assert processes_in(stage.directory) == []

    began = time.monotonic()
    stage.restart_node("pi")
    with Device(address) as device:
        for n, image in enumerate(digits.held_out[:5]):
            device.show(f"after-{n}", image)
        answers = [device.read(f"after-{n}", 10 - (time.monotonic() - began)) for n in range(5)]
    assert time.monotonic() - began < 10
    assert [a["instance"] for a in answers] == [name] * 5
    assert sum(int(a["value"]) == i.label for a, i in zip(answers, digits.held_out, strict=False)) >= 4
    assert processes_in(stage.hub_state) == [], "there was nobody to fetch from"
    assert (artifact.stat().st_ino, artifact.stat().st_mtime_ns) == before
    assert files(home / "artifacts" / "partial") == []
    wait_for("a word about the hub", lambda: "nobody listens there" in stage.log_tail("pi", 50) or None, 15)


def test_a_killed_model_worker_comes_back_after_a_pause_and_says_why(stage: Stage, digits: Digits) -> None:
    play(stage)
    serve(stage, digits)
    with Device(stage.mqtt_of("pi")) as device:
        (worker,) = workers(stage)
        kill([worker])
        device.show("meanwhile", digits.held_out[0])
        ill = wait_for("the reason", lambda: i if (i := instance(stage))["phase"] == "backoff" else None, 10)
        assert ill["reason"]["code"] == "exited"
        assert "SIGKILL" in ill["reason"]["detail"]
        assert ill["starts"] == 1
        wait_for("a second start", lambda: ready(stage), 20)
        well = instance(stage)
        assert (well["starts"], well["reason"]) == (2, None)
        assert well["since"] - ill["since"] >= 800, "one second, less up to a fifth"
        assert device.read("meanwhile", 10)["value"] == digits.held_out[0].label
        device.show("afterwards", digits.held_out[1])
        device.read("afterwards", 10)
        assert [r["id"] for r in device.readings] == ["meanwhile", "afterwards"]


# --- Full disks -------------------------------------------------------------------------------------------------------


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
        wait_for("frames", lambda: len(camera.published) > 10 or None, 10)
        disk.fill()
        push(stage.client, digits.second, name="digits", version="2", task="classification")
        stage.client.apply(READER.format(version="2"))
        refused = wait_for(
            "the refused version", lambda: i if (i := instance(stage, revision=2))["phase"] == "backoff" else None, 20
        )
        assert refused["reason"]["code"] == "disk_full"
        assert "kept spare" in refused["reason"]["detail"]
        told = wait_for(
            "both reasons",
            lambda: t if "the ledger" in (t := problems(stage).get("disk_full", "")) and "write error" in t else None,
            20,
        )
        assert "no space left on device" in told.lower()
        assert stage.node_status("pi")["health"]["word"] in ("degraded", "failing")
        assert ready(stage, revision=1), "the version that runs goes on"
        stuck = len(camera.published)
        disk.free()
        wait_for("the next version", lambda: ready(stage, revision=2), 30)
        wait_for("frames again", lambda: len(camera.published) > stuck + 10 or None, 20)
        wait_for("nothing to tell any more", lambda: "disk_full" not in problems(stage) or None, 30)
        assert "its store had given up" in problems(stage)["broker_restarted"]
    finally:
        camera.finish()
    published = [frame.id for frame in camera.published]
    arrived: list[str] = []

    def all_there() -> bool | None:
        arrived[:] = [json.loads(row["payload"])["id"] for row in stage.client.up("normal", limit=2_000)]
        return set(published) <= set(arrived) or None

    wait_for("every reading", all_there, 20)
    assert len(arrived) == len(set(arrived)), "each once"


def test_a_node_that_begins_on_a_full_disk_ends_in_words(stage: Stage, disk_for: Callable[[str], Disk]) -> None:
    disk = disk_for("pi")
    play(stage)
    stage.client.apply(SLEEPER.format(name="sleeper", runs="at-least-once"))
    wait_for("the program", lambda: ready(stage, "sleeper"), 20)
    stage.kill_node("pi")
    disk.fill()
    stage.restart_node("pi")
    assert stage.nodes["pi"].running.wait(20) == 1
    said = stage.log_tail("pi", 3)
    assert f"the disk of {stage.directory / 'pi' / 'node'} is full" in said
    assert "next: free some space" in said
    assert "Traceback" not in stage.log_tail("pi", 100)
    assert processes_in(stage.directory / "pi") == []
    disk.free()
    killed_at = stage.node_status("pi")["reportedAt"]
    stage.restart_node("pi")
    wait_for("the node", lambda: stage.node_status("pi")["reportedAt"] > killed_at or None, 20)
    wait_for("the program", lambda: ready(stage, "sleeper"), 20)
    assert instance(stage, "sleeper")["starts"] == 2


def test_a_full_disk_at_the_hub_refuses_in_words_and_hears_again_when_there_is_room(
    stage: Stage, disk_for: Callable[[str], Disk]
) -> None:
    disk = disk_for("hub-machine")
    play(stage)
    stage.client.apply(SLEEPER.format(name="first", runs="at-least-once"))
    wait_for("the program", lambda: ready(stage, "first"), 20)
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
    said = wait_for("a refusal", refusal, 40)
    assert "the disk of the hub is full" in said
    assert "free some space" in said
    checks = {check.name: check for check in stage.client.doctor()}
    assert (checks["disk"].result, "free some space" in checks["disk"].next_step) == ("fail", True)
    assert {p.pid for p in processes_in(stage.directory / "pi")} >= node
    disk.free()
    wait_for("the broker", lambda: "the broker is well again" in stage.log_tail("hub", 50) or None, 20)
    wait_for(
        "a write", lambda: patiently(lambda: stage.client.apply(SLEEPER.format(name="last", runs="at-least-once"))), 20
    )
    wait_for("a report", lambda: patiently(lambda: ready(stage, "last")), 20)
    assert ready(stage, "first")
    assert instance(stage, "first")["starts"] == 1


# --- Bytes that are not what they should be ---------------------------------------------------------------------------


def spoil(path: Path) -> bytes:
    """One bit of a file is not what it was; returns what it was."""
    was = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(was[:-1] + bytes([was[-1] ^ 1]))
    return was


def test_bytes_that_are_not_what_their_digest_says_are_never_run_and_why_says_so(stage: Stage, digits: Digits) -> None:
    play(stage)
    digest = push(stage.client, digits.first, name="digits", version="1", task="classification").digest
    at_hub = stage.hub_state / "hub" / "artifacts" / "sha256" / digest[7:]
    at_node = stage.directory / "pi" / "node" / "artifacts" / "sha256" / digest[7:]
    spoil(at_hub)
    stage.client.apply(READER.format(version="1"))

    def refused() -> Mapping[str, Any] | None:
        found = instance(stage)
        return found if found["phase"] == "backoff" and found["reason"]["code"] == "digest_mismatch" else None

    said = wait_for("the refusal", refused, 20)
    assert "from the hub" in said["reason"]["detail"]
    assert (said["starts"], workers(stage), at_node.exists()) == (0, [], False)
    why = run("why", "reader", state=stage.hub_state)
    assert why.code == 0, why.err
    assert "the bytes are not what their digest says" in why.out
    assert "next: push the artifact again" in why.out
    assert "all is well" not in why.out
    # What the next step says does mend it.
    assert push(stage.client, digits.first, name="digits", version="1").action == "unchanged"
    wait_for("the model", lambda: ready(stage), 30)

    # The node loses power, and a bit of its disk; and the hub's copy went bad once more.
    stage.kill_node("pi")
    was = spoil(at_node)
    spoil(at_hub)
    stage.restart_node("pi")
    wait_for("the refusal", refused, 20)
    assert "is damaged on this disk" in problems(stage)["digest_mismatch"]
    assert (workers(stage), at_node.exists()) == ([], False)
    assert files(stage.directory / "pi" / "node" / "artifacts" / "corrupt") == [at_node.name]
    push(stage.client, digits.first, name="digits", version="1")
    wait_for("the model", lambda: ready(stage), 30)
    wait_for("nothing to tell any more", lambda: "digest_mismatch" not in problems(stage) or None, 10)
    assert at_node.read_bytes() == was


# --- Ports, clocks ----------------------------------------------------------------------------------------------------


def test_a_port_that_was_taken_meanwhile_is_said_and_devices_find_the_next(stage: Stage, digits: Digits) -> None:
    play(stage)
    serve(stage, digits)
    host, port = stage.mqtt_of("pi")
    stage.kill_node("pi")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
        taken.listen()
        stage.restart_node("pi")
        said = wait_for("the report", lambda: problems(stage).get("port_taken"), 30)
        _, moved = stage.mqtt_of("pi")
        assert f"{port} is taken, now {moved}" in said
        assert moved != port
        wait_for("the model", lambda: ready(stage), 30)
        with Device((host, moved)) as device:
            device.show("there", digits.held_out[0])
            device.read("there", 10)


# A clock of its own for every Python process below: the machine's is not ours to set, and its broker keeps that one.
WRONG_CLOCK = """\
import os, time
def _ahead(real, unit, file=os.environ.get("CLOCK_AHEAD", "")):
    def now():
        try:
            with open(file) as said:
                return real() + int(said.read()) * unit
        except (OSError, ValueError):
            return real()
    return now
time.time, time.time_ns = _ahead(time.time, 1), _ahead(time.time_ns, 10**9)
"""


class WrongClock:
    """What is started in here has a clock that can be set."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.file = directory / "ahead"
        self._patch = patch
        (directory / "clock").mkdir()
        (directory / "clock" / "sitecustomize.py").write_text(WRONG_CLOCK)
        self.environment = {"PYTHONPATH": str(directory / "clock"), "CLOCK_AHEAD": str(self.file)}

    def __enter__(self) -> None:
        for name, value in self.environment.items():
            self._patch.setenv(name, value)

    def __exit__(self, *_: object) -> None:
        for name in self.environment:
            self._patch.delenv(name)

    def set(self, ahead_s: int) -> None:
        fresh = self.file.with_name("ahead.new")
        fresh.write_text(str(ahead_s))
        fresh.replace(self.file)


DAY_S = 86_400


@pytest.fixture
def wrong_clock(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> WrongClock:
    stage.directory.mkdir(exist_ok=True)
    return WrongClock(stage.directory, monkeypatch)


def two_sleepers(stage: Stage) -> None:
    """One that must never run twice, and one that may."""
    for name, runs in (("never", "never-twice"), ("least", "at-least-once")):
        stage.client.apply(SLEEPER.format(name=name, runs=runs))
        wait_for(name, lambda name=name: ready(stage, name), 20)  # type: ignore[misc]


def sleeping(stage: Stage) -> set[int]:
    return {p.pid for p in processes_in(stage.directory) if "sleep" in p.cmdline()}


def test_a_nodes_clock_that_is_set_by_a_day_moves_nothing_and_is_told(stage: Stage, wrong_clock: WrongClock) -> None:
    stage.start_hub()
    with wrong_clock:
        stage.start_node("pi", "home")
    wait_for("the node", lambda: stage.online("pi"), 30)
    two_sleepers(stage)
    before, serial = sleeping(stage), stage.node_status("pi")["serial"]
    for ahead_s, words in ((DAY_S, "86400 s ahead"), (0, "86400 s back")):
        wrong_clock.set(ahead_s)
        wait_for("the report", lambda words=words: words in problems(stage).get("clock_jumped", "") or None, 10)  # type: ignore[misc]
        assert abs(stage.node_status("pi")["reportedAt"] / 1000 - time.time() - ahead_s) < 60, "it speaks the new time"
        assert stage.online("pi")
    assert (sleeping(stage), stage.node_status("pi")["serial"]) == (before, serial)
    assert [instance(stage, name)["starts"] for name in ("never", "least")] == [1, 1]
    # With such a clock nobody joins: no certificate would hold.
    wrong_clock.set(DAY_S)
    ran = run("join", "-", "--name", "pj", state=stage.directory / "pj", stdin=stage.client.create_token("home").token,
              env=wrong_clock.environment)  # fmt: skip
    assert_refused(ran, "clock is far from the hub's", "set the clock")
    assert "+86400 s" in ran.err


def test_a_hubs_clock_that_is_set_by_a_day_decides_nothing(stage: Stage, wrong_clock: WrongClock) -> None:
    from tests.e2e.test_survival import decided

    with wrong_clock:
        stage.start_hub()
    for name in ("pi", "pj"):
        stage.start_node(name, "home")
    for name in ("pi", "pj"):
        wait_for(name, lambda name=name: stage.online(name), 30)  # type: ignore[misc]
    two_sleepers(stage)
    before, rows = sleeping(stage), decided(stage)
    for ahead_s, words in ((DAY_S, "clock went 86400 s ahead"), (0, "clock went 86400 s back")):
        epoch = stage.client.hub()["epoch"]
        wrong_clock.set(ahead_s)
        wait_for("the next hub", lambda e=epoch: patiently(lambda: stage.client.hub()["epoch"] > e), 30)  # type: ignore[misc]
        assert words in stage.log_tail("hub", 20)
        for name in ("pi", "pj"):
            wait_for(name, lambda name=name: patiently(lambda: stage.online(name)), 20)  # type: ignore[misc]
        assert decided(stage) == rows
    assert sleeping(stage) == before
    assert [instance(stage, name)["starts"] for name in ("never", "least")] == [1, 1]


# --- Joining ----------------------------------------------------------------------------------------------------------


def assert_refused(ran: Ran, *words: str) -> None:
    """It ended with 1, in words, with a next step, and nothing else."""
    assert ran.code == 1, ran
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert "\n  next: " in ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err


def join(stage: Stage, name: str, token: str, directory: str = "") -> Ran:
    return run("join", "-", "--name", name, "--state", str(stage.directory / (directory or name)), stdin=token)


def test_a_token_that_is_no_good_is_refused_in_words_and_harms_nobody(stage: Stage) -> None:
    play(stage)
    stage.client.apply(SLEEPER.format(name="sleeper", runs="at-least-once"))
    wait_for("the program", lambda: ready(stage, "sleeper"), 20)
    before = {p.pid for p in processes_in(stage.directory / "pi")}
    make = stage.client.create_token

    expired = make("home", ttl_ms=1_000)
    used = next(t for t in stage.client.tokens() if t.used_by == "pi")
    assert used.state == "used"
    wait_for("its end", lambda: {t.id: t.state for t in stage.client.tokens()}[expired.id] == "expired" or None, 5)
    assert_refused(join(stage, "pj", expired.token), "this token ended", "batuta token create")
    assert_refused(join(stage, "pj", make("home", name="pk").token), "this token is for node pk, not pj", "--name pk")
    assert_refused(join(stage, "pj", make("home").token[:-9]), "whole")
    assert_refused(join(stage, "Not A Name", make("home").token, "pj"), "cannot be a node's name")
    revoked = make("home")
    stage.client.revoke_token(revoked.id)
    assert_refused(join(stage, "pj", revoked.token), "knows no such token", "revoked")
    # Another machine may not take the name of one that is there; and its token is not spent by that.
    fresh = make("home").token
    assert_refused(join(stage, "pi", fresh, "pj"), "another machine is already called pi", "--name")
    assert files(stage.directory / "pj" / "node" / "identity") == ["key.pem"]
    once = Once(stage, fresh)
    assert once.spent()
    assert_refused(join(stage, "pk", fresh), "used already")

    assert {p.pid for p in processes_in(stage.directory / "pi")} == before
    assert processes_in(stage.directory / "pj") == []
    assert stage.online("pi")
    assert instance(stage, "sleeper")["starts"] == 1


class Once:
    """Spends a token on a node that is only declared: a unit is printed and nothing runs."""

    def __init__(self, stage: Stage, token: str) -> None:
        self.ran = run("join", "-", "--name", "pj", "--state", str(stage.directory / "pj"), "--print-unit", stdin=token)

    def spent(self) -> bool:
        return self.ran.code == 0 and "ExecStart=" in self.ran.out


def test_a_hub_that_is_set_up_anew_is_another_one_and_both_ends_say_so(stage: Stage) -> None:
    play(stage)
    stage.client.apply(SLEEPER.format(name="sleeper", runs="at-least-once"))
    wait_for("the program", lambda: ready(stage, "sleeper"), 20)
    before, old = sleeping(stage), stage.client.create_token("home").token
    ports = (stage.hub_state / "hub" / "ports.json").read_bytes()
    stage.kill_hub()
    shutil.rmtree(stage.hub_state)
    (stage.hub_state / "hub").mkdir(parents=True)
    (stage.hub_state / "hub" / "ports.json").write_bytes(ports)  # the same address, as on the same machine
    stage.start_hub()

    assert_refused(join(stage, "pj", old), "shows another root certificate", "make a new token")
    assert not (stage.directory / "pj" / "node" / "identity" / "node.json").exists()
    said = wait_for("the running node", lambda: t if "does not answer" in (t := stage.log_tail("pi", 20)) else None, 20)
    home = stage.directory / "pi" / "node"
    assert "shows another root certificate than the one that the node joined by" in said
    assert f"move {home} away" in said
    doctor = json.loads(run("doctor", "-o", "json", state=stage.directory / "pi").out)["checks"]
    check = next(c for c in doctor if c["name"] == "the hub's certificate")
    assert (check["result"], "set up anew" in check["nextStep"]) == ("fail", True)
    new = stage.client.create_token("home", name="pi").token
    assert_refused(join(stage, "pi", new), "of an earlier hub at the same address", f"move {home} away")
    assert sleeping(stage) == before, "what runs goes on"

    # What the next step says: end it, move its state away, join anew.
    stage.nodes["pi"].running.send_signal(signal.SIGINT)
    assert stage.nodes["pi"].running.wait(20) == 0
    assert sleeping(stage) == set()
    home.rename(home.with_name("node-of-the-old-hub"))
    stage.start_node("pi", "home")
    wait_for("the node", lambda: stage.online("pi"), 30)
