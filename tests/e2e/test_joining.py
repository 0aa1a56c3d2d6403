"""Machines that cannot join, or whose hub is another one by now. The table is in test_misfortunes.py."""

from __future__ import annotations

import json
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from batuta.demo.stage import processes_in, wait_for
from tests.cli.running import Ran, run
from tests.e2e.playing import SLEEPER, assert_refused, files, instance, play, problems, ready, sleeping

if TYPE_CHECKING:
    from batuta.demo.stage import Stage

pytestmark = pytest.mark.e2e


def join(stage: Stage, name: str, token: str, directory: str = "") -> Ran:
    return run("join", "-", "--name", name, "--state", str(stage.directory / (directory or name)), stdin=token)


def test_a_token_that_is_no_good_is_refused_in_words_and_harms_nobody(stage: Stage) -> None:
    play(stage)
    stage.client.apply(SLEEPER.format(name="sleeper", runs="at-least-once"))
    wait_for("the program", lambda: ready(stage, "sleeper"), 120)
    before = {p.pid for p in processes_in(stage.directory / "pi")}
    make = stage.client.create_token

    expired = make("home", ttl_ms=1_000)
    used = next(t for t in stage.client.tokens() if t.used_by == "pi")
    assert used.state == "used"
    wait_for("its end", lambda: {t.id: t.state for t in stage.client.tokens()}[expired.id] == "expired" or None, 120)
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
    wait_for("the program", lambda: ready(stage, "sleeper"), 120)
    before, old = sleeping(stage), stage.client.create_token("home").token
    ports = (stage.hub_state / "hub" / "ports.json").read_bytes()
    stage.kill_hub()
    shutil.rmtree(stage.hub_state)
    (stage.hub_state / "hub").mkdir(parents=True)
    (stage.hub_state / "hub" / "ports.json").write_bytes(ports)  # the same address, as on the same machine
    stage.start_hub()

    assert_refused(join(stage, "pj", old), "shows another root certificate", "make a new token")
    assert not (stage.directory / "pj" / "node" / "identity" / "node.json").exists()
    said = wait_for(
        "the running node", lambda: t if "does not answer" in (t := stage.log_tail("pi", 120)) else None, 120
    )
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
    wait_for("the node", lambda: stage.online("pi"), 120)


def test_two_machines_with_one_copied_disk_are_none_and_both_say_so(stage: Stage) -> None:
    play(stage)
    stage.client.apply(SLEEPER.format(name="sleeper", runs="never-twice"))
    wait_for("the program", lambda: ready(stage, "sleeper"), 120)
    shutil.copytree(stage.directory / "pi", stage.directory / "copy", ignore=lambda *_: ["agent.lock"])
    stage.nodes["copy"] = stage.nodes["pi"]._replace(name="copy", state=stage.directory / "copy")
    stage.restart_node("copy")

    wait_for("the reason", lambda: problems(stage).keys() & {"two_machines"} or None, 120)
    # Neither holds its lease any more, so what must never run twice runs nowhere.
    wait_for("the end of both", lambda: not sleeping(stage) or None, 120)
    status = stage.node_status("pi")
    assert any("two machines say that they are this node" in problem["sentence"] for problem in status["problems"])
    assert status["link"]["word"] != "online"

    stage.kill_node("copy")
    wait_for("nothing to tell any more", lambda: (stage.online("pi") and not problems(stage)) or None, 120)
    wait_for("the one that is left", lambda: (sleeping(stage) and ready(stage, "sleeper")) or None, 120)
    assert len(sleeping(stage)) == 1
