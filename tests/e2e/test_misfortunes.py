"""What goes wrong on real machines, on real processes: each says clearly what it is, and does no damage.

A test without a file is here; `survival: x` is test_x of test_survival.py, and so on.

misfortune               test                                what it asserts
-----------------------  ----------------------------------  ---------------------------------------------------------
cold boot, no hub        a_model_answers_again               MQTT answered from the ledger, nothing fetched
                         survival: a_machine_comes_up        a program runs again in 10 s
kill -9: node agent      survival: a_killed_agent            same process, one start, same serial
                         agent: kill_9_of_the_agent          broker and program adopted, twice in a row
                         survival: ctrl_c_before_the_agent   at any moment the next one ends what was left
kill -9: model worker    a_killed_model_worker               backoff, `exited` with the signal, starts 2, answered once
         program         survival: a_killed_instance         starts 2
worker crash loop        crash_loop: at_every_start          `memory_exceeded`, ever longer pauses, nobody else notices;
                         crash_loop: of_a_request            it serves the others; a good version mends both
kill -9: hub             survival: a_killed_hub              same processes; every decided row of the same revision
                         hub: the_hub_process_dies           no decision, epoch 2, old watches get 410
kill -9: broker          agent: a_broker_that_dies           same ports, `broker_restarted`; hub: every row is there
kill -9: in a rollout    rollout_kills                       hub, agent, worker at each of ten steps: the same end, one
                                                             process on every node, none twice
full disk: node          full_disks: a_full_disk_at_a_node   `disk_full` of broker, ledger, fetch; old version serves;
                                                             each frame answered once; all well when there is room
                         full_disks: a_broker_that_dies      begins again from what was put by; the node is heard
                         full_disks: a_node_that_begins      ends in words; ledger, artifacts: neither is damaged
full disk: hub           full_disks: a_full_disk_at_the_hub  refused in words, doctor fails; then writes and hears again
corrupt ledger           agent: a_corrupt_ledger             `ledger_corrupt`, found again and not started again
                         ledger: damage_is_set_aside         every kind of damage; the older generation is used
corrupt artifact         bytes_that_are_not                  never run, set aside, `digest_mismatch`, fetched again
wrong digest             bytes_that_are_not                  node refuses; status and `why` say it; a push mends it
port taken: hub          hub: two_hubs_cannot_share          ends with 1, names the port; parts: next one if not asked
port taken: MQTT         a_port_that_was_taken               `port_taken` names both, devices are served at the next
                         agent: a_port_that_is_taken         the same at the first start
clock a day off: node    wrong_clocks: a_nodes_clock         `clock_jumped`, leases kept; joining: `clock_wrong`
                 hub     wrong_clocks: a_hubs_clock          it begins anew, no row changes, nothing moves
                         node, clock, never_twice            waits and leases in virtual time
hub set up anew          joining: a_hub_that_is_set_up_anew  old token, running node, doctor say so; the way back
token: expired, used...  joining: a_token_that_is_no_good    each in words with a next step; hub: the codes over HTTP
two nodes, one name      joining: a_token_that_is_no_good    `name_taken`, the first one is not disturbed
two nodes, one disk      joining: two_machines               `two_machines`; what never runs twice runs nowhere
join interrupted         survival: ctrl_c_while_it_asks      130, no words, no process, no identity left
link cut                 demo: act 3; rig                    answered meanwhile, delivered once afterwards
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from batuta.demo.stage import kill, processes_in, wait_for
from batuta.model_push import push
from tests.cli.running import run
from tests.e2e.playing import READER, Device, files, instance, play, problems, ready, serve, workers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from batuta.demo.digits import Digits
    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_model_answers_again_after_a_cold_boot_without_its_hub(stage: Stage, digits: Digits) -> None:
    play(stage)
    digest = serve(stage, digits)
    address, home = stage.mqtt_of("pi"), stage.directory / "pi" / "node"
    with Device(address) as device:
        device.show("before", digits.held_out[0])
        name = device.read("before", 120)["instance"]
    artifact = home / "artifacts" / "sha256" / digest[7:]
    before = (artifact.stat().st_ino, artifact.stat().st_mtime_ns)
    stage.kill_hub()
    stage.kill_node("pi")
    assert processes_in(stage.directory) == []

    stage.restart_node("pi")
    with Device(address) as device:
        for n, image in enumerate(digits.held_out[:5]):
            device.show(f"after-{n}", image)
        answers = [device.read(f"after-{n}", 120) for n in range(5)]
    assert [a["instance"] for a in answers] == [name] * 5
    assert sum(int(a["value"]) == i.label for a, i in zip(answers, digits.held_out, strict=False)) >= 4
    assert processes_in(stage.hub_state) == [], "there was nobody to fetch from"
    assert (artifact.stat().st_ino, artifact.stat().st_mtime_ns) == before
    assert files(home / "artifacts" / "partial") == []
    wait_for("a word about the hub", lambda: "nobody listens there" in stage.log_tail("pi", 50) or None, 120)


def test_a_killed_model_worker_comes_back_after_a_pause_and_says_why(stage: Stage, digits: Digits) -> None:
    play(stage)
    serve(stage, digits)
    with Device(stage.mqtt_of("pi")) as device:
        kill(workers(stage))
        device.show("meanwhile", digits.held_out[0])
        deaths = 1

        def ill() -> Mapping[str, Any] | None:
            """A pause that was over before anybody looked is followed by a longer one."""
            nonlocal deaths
            found = instance(stage)
            if found["phase"] == "ready" and found["starts"] == deaths + 1:
                kill(workers(stage))
                deaths += 1
            return found if found["phase"] == "backoff" else None

        seen = wait_for("the reason", ill, 120)
        assert seen["reason"]["code"] == "exited"
        assert "SIGKILL" in seen["reason"]["detail"]
        assert seen["starts"] == deaths
        wait_for("another start", lambda: ready(stage), 120)
        well = instance(stage)
        assert (well["starts"], well["reason"]) == (deaths + 1, None)
        assert well["since"] - seen["since"] >= 800, "one second at least, less up to a fifth"
        assert device.read("meanwhile", 120)["value"] == digits.held_out[0].label
        device.show("afterwards", digits.held_out[1])
        device.read("afterwards", 120)
        assert [r["id"] for r in device.readings] == ["meanwhile", "afterwards"]


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

    said = wait_for("the refusal", refused, 120)
    assert "from the hub" in said["reason"]["detail"]
    assert (said["starts"], workers(stage), at_node.exists()) == (0, [], False)
    why = run("why", "reader", state=stage.hub_state)
    assert why.code == 0, why.err
    assert "the bytes are not what their digest says" in why.out
    assert "next: push the artifact again" in why.out
    assert "all is well" not in why.out
    # What the next step says does mend it.
    assert push(stage.client, digits.first, name="digits", version="1").action == "unchanged"
    wait_for("the model", lambda: ready(stage), 120)

    # The node loses power, and a bit of its disk; and the hub's copy went bad once more.
    stage.kill_node("pi")
    was = spoil(at_node)
    spoil(at_hub)
    stage.restart_node("pi")
    wait_for("the refusal", refused, 120)
    assert "is damaged on this disk" in problems(stage)["digest_mismatch"]
    assert (workers(stage), at_node.exists()) == ([], False)
    assert files(stage.directory / "pi" / "node" / "artifacts" / "corrupt") == [at_node.name]
    push(stage.client, digits.first, name="digits", version="1")
    wait_for("the model", lambda: ready(stage), 120)
    wait_for("nothing to tell any more", lambda: "digest_mismatch" not in problems(stage) or None, 120)
    assert at_node.read_bytes() == was


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
        said = wait_for("the report", lambda: problems(stage).get("port_taken"), 120)
        _, moved = stage.mqtt_of("pi")
        assert f"{port} is taken, now {moved}" in said
        assert moved != port
        wait_for("the model", lambda: ready(stage), 120)
        with Device((host, moved)) as device:
            device.show("there", digits.held_out[0])
            device.read("there", 120)
