"""Containers end to end: a real hub, a real node, a real Podman, and an image made here of one static program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from batuta.demo.stage import processes_in, wait_for
from batuta.errors import BatutaError, NotFound, Refused
from batuta.fabric.broker import free_port
from batuta.kinds import Application
from batuta.model_sign import make_key
from tests.engines import Built, Engine, engine, podman  # noqa: F401  fixtures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
WAIT_S = 120

MANIFEST = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: box}}
spec:
  components:
  - name: run
    replicas: {{count: 1}}
    resources: {{cpu: 100m, memory: 48Mi}}
    container:
      image: {image}
      {archive}
      {more}
"""


class Box:
    """One node with an engine, and one application with one container."""

    def __init__(self, stage: Stage, engine: Engine) -> None:  # noqa: F811
        self.stage = stage
        self.engine = engine
        self.built = Built(stage.directory)

    def open(self, *more: str) -> None:
        self.stage.start_hub()
        self.stage.start_node("pi", "home", more=["--engine", str(self.engine.socket), *more])
        wait_for("the node", lambda: self.stage.online("pi"), WAIT_S)
        self.stage.client.push_artifact(self.built.path)

    def apply(self, line: str, *more: str, image: str = "", archive: str | None = None) -> None:
        if archive is None:
            archive = f'archive: {{digest: "{self.built.digest}", size: {self.built.size}}}'
        parts = [f"args: [{json.dumps(line)}]", "stopGrace: 1s", *more]
        said = MANIFEST.format(image=image or self.built.image, archive=archive, more="\n      ".join(parts))
        self.stage.client.apply(said)

    def instance(self) -> Mapping[str, Any]:
        found = self.stage.instances("box")
        return found[0] if found else {"phase": "none"}

    def ready(self) -> bool | None:
        return self.instance()["phase"] == "ready" or None

    def until_ready(self) -> str:
        try:
            wait_for("the container", self.ready, WAIT_S)
        except BatutaError as error:
            raise AssertionError(f"{error}: {self.stage.instances('box')}\n{self.stage.log_tail('pi')}") from error
        return self.container()

    def container(self) -> str:
        (found,) = self.engine.containers(node="pi")
        return str(found["Id"])

    def inspected(self) -> dict[str, Any]:
        found = self.engine.inspect(self.container())
        assert found is not None
        return found

    def until_reason(self, code: str) -> str:
        """The detail of the reason, once the instance has it."""

        def ask() -> str | None:
            # While neither is ready, the old release's instance and the new one's are both there.
            reasons = [i.get("reason") or {} for i in self.stage.instances("box")]
            return next((str(r.get("detail")) for r in reasons if r.get("code") == code), None)

        return wait_for(f"the reason {code}", ask, WAIT_S)

    def lines(self) -> list[str]:
        return list(self.stage.client.logs("box"))

    def until_line(self, is_meant: Callable[[str], bool]) -> str:
        return wait_for("the line", lambda: next((x for x in self.lines() if is_meant(x)), None), WAIT_S)

    def inventory(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.stage.node_status("pi")["inventory"]
        return found

    def node_process(self) -> psutil.Process:
        return psutil.Process(self.stage.nodes["pi"].running.pid)


@pytest.fixture
def box(stage: Stage, engine: Engine) -> Box:  # noqa: F811
    return Box(stage, engine)


def test_it_runs_is_restarted_survives_an_agent_and_goes_with_its_application(box: Box) -> None:
    box.open()
    foreign = box.engine.ask(
        "POST", "/containers/create", params={"name": "foreign"},
        json={"Image": _loaded(box.engine, box.built), "Cmd": ["sleep 600"], "HostConfig": {"NetworkMode": "host"}},
    )  # fmt: skip
    box.engine.ask("POST", f"/containers/{foreign['Id']}/start")
    wait_for("the engine", lambda: "container" in box.inventory()["runtimes"] or None, WAIT_S)
    assert box.inventory()["engines"]["container"].startswith("podman ")

    box.apply("echo begun as $BATUTA_START; exec sleep 3600", "env: {GREETING: hello}")
    first = box.until_ready()
    assert box.until_line(lambda line: "begun as" in line).endswith("begun as 1")

    # Killed, it is started again: another container, and the reason of the first one's end was told.
    box.engine.kill_container(first)
    second = wait_for("the next start", lambda: _another(box, first), WAIT_S)
    box.until_ready()
    assert box.engine.inspect(first) is None
    assert box.until_line(lambda line: line.endswith("begun as 2"))

    # The agent is killed -9 and comes back: the same container, untouched.
    agent = box.node_process()
    before = box.inspected()["State"]["StartedAt"]
    agent.send_signal(signal.SIGKILL)
    box.stage.nodes["pi"].running.wait(60)
    assert box.container() == second
    box.stage.restart_node("pi")
    wait_for("the node", lambda: box.stage.online("pi"), WAIT_S)
    serial = box.stage.node_status("pi").get("boot")
    box.until_ready()
    assert (box.container(), box.inspected()["State"]["StartedAt"]) == (second, before), serial
    assert len([line for line in box.lines() if line.endswith("begun as 2")]) == 1, "its log is not read twice"

    box.stage.client.delete(Application, "box")
    wait_for("its end", lambda: box.engine.containers(node="pi") == [] or None, WAIT_S)
    still = box.engine.inspect(str(foreign["Id"]))
    assert still is not None
    assert still["State"]["Running"], "what is not ours is not touched"


def _another(box: Box, first: str) -> str | None:
    """The one container there is, once it is not the first."""
    found = [str(each["Id"]) for each in box.engine.containers(node="pi")]
    return found[0] if len(found) == 1 and found != [first] else None


def _loaded(engine: Engine, built: Built) -> str:  # noqa: F811
    headers = {"Content-Type": "application/x-tar"}
    engine.ask("POST", "/images/load", content=built.path.read_bytes(), headers=headers)
    return built.id


def test_it_gets_what_was_declared_and_nothing_else(box: Box) -> None:
    shared = box.stage.directory / "shared"
    shared.mkdir()
    (shared / "note").write_text("of the machine")
    port = free_port("127.0.0.1")
    box.open("--allow-mount", str(shared))
    script = "; ".join(
        (
            "echo env=$GREETING $BATUTA_NODE $BATUTA_INSTANCE",
            "echo note=$(cat /note/note)",
            "touch /note/x 2>/dev/null && echo wrote-note",
            "touch /x 2>/dev/null && echo wrote-root",
            "touch /tmp/x && echo wrote-tmp",
            "touch /data/x && echo wrote-data",
            "touch /fast/x && echo wrote-fast",
            "echo nats=$BATUTA_NATS_URL creds=$(test -r $BATUTA_NATS_CREDENTIALS && echo readable)",
            "echo user=$(id -u)",
            "echo caps=$(cat /proc/self/status | while read k v; do case $k in CapEff:) echo $v;; esac; done)",
            f"echo ready > /tmp/index.html; exec httpd -f -p 127.0.0.1:{port} -h /tmp",
        )
    )
    box.apply(
        script,
        "env: {GREETING: hello}",
        "mounts:",
        f"- {{at: /note, host: {shared}, readOnly: true}}",
        "- {at: /data, volume: data}",
        "- {at: /fast, tmpfs: 4Mi}",
        "broker: true",
        "pids: 40",
        "cpuLimit: 500m",
        f"ready: {{http: {{port: {port}, path: /index.html}}, every: 200ms}}",
        "live: {exec: [test, -e, /tmp/index.html], every: 500ms, failures: 2}",
    )
    box.until_ready()
    said = dict(line.rpartition(" ")[2].split("=", 1) for line in box.lines() if "caps=" in line or "user=" in line)
    assert (said["user"], int(said["caps"], 16)) == ("0", 0)
    text = "\n".join(box.lines())
    assert "env=hello pi default/box/run-1-0" in text
    assert "note=of the machine" in text
    assert "creds=readable" in text
    assert "wrote-tmp" in text
    assert "wrote-data" in text
    assert "wrote-fast" in text
    assert "wrote-note" not in text
    assert "wrote-root" not in text
    host = box.inspected()["HostConfig"]
    assert (host["Memory"], host["PidsLimit"], host["ReadonlyRootfs"]) == (48 << 20, 40, True)
    assert host["NanoCpus"] == 500_000_000

    # Its liveness fails: it is started anew, by the node agent and not by the engine.
    first = box.container()
    box.engine.ask("GET", f"/containers/{first}/json")
    found = box.inspected()
    root = f"/proc/{found['State']['Pid']}/root/tmp/index.html"
    os.unlink(root)
    wait_for("another container", lambda: _another(box, first), WAIT_S)
    box.until_ready()


def test_more_memory_than_it_may_have_ends_it_and_says_so(box: Box) -> None:
    box.open()
    box.apply("echo hungry; tail -f -c 400m /dev/zero")
    detail = wait_for("the reason", lambda: _memory(box), WAIT_S)
    assert "48Mi allowed" in detail or "SIGKILL" in detail


def _memory(box: Box) -> str | None:
    reason = box.instance().get("reason") or {}
    detail = str(reason.get("detail", ""))
    return detail if reason.get("code") == "exited" and ("memory" in detail or "SIGKILL" in detail) else None


def test_a_wrong_image_a_missing_one_and_a_forbidden_path_each_say_why(box: Box) -> None:
    box.open("--no-pull")
    box.apply("exec sleep 60", image=f"localhost/box@sha256:{'1' * 64}")
    assert "the archive has no image sha256:111111111111" in box.until_reason("digest_mismatch")

    box.apply("exec sleep 60", image=f"registry.invalid/box@sha256:{'1' * 64}", archive="")
    assert "it pulls none" in box.until_reason("image_missing")

    box.apply("exec sleep 60", "mounts: [{at: /etc/host, host: /etc}]")
    assert "/etc" in box.until_reason("mount_refused")
    assert box.engine.containers(node="pi") == []


def test_an_engine_that_goes_away_is_said_and_its_container_is_found_again(box: Box) -> None:
    box.open()
    box.apply("exec sleep 3600")
    first = box.until_ready()
    pid = box.inspected()["State"]["Pid"]

    box.engine.kill()
    box.until_reason("engine_unreachable")
    wait_for("the node's word", lambda: _lost_engine(box) or None, WAIT_S)
    assert psutil.pid_exists(pid), "what runs goes on"

    box.engine.start()
    box.until_ready()
    wait_for("the node's word", lambda: not _lost_engine(box) or None, WAIT_S)
    assert (box.container(), box.inspected()["State"]["Pid"]) == (first, pid)


def test_an_agent_that_starts_while_the_engine_is_away_finds_the_container_when_it_is_back(box: Box) -> None:
    box.open()
    box.apply("exec sleep 3600")
    first = box.until_ready()
    box.engine.kill()
    box.node_process().send_signal(signal.SIGKILL)
    box.stage.nodes["pi"].running.wait(60)
    box.stage.restart_node("pi")
    box.until_reason("engine_unreachable")
    box.engine.start()
    box.until_ready()
    assert box.container() == first


def _lost_engine(box: Box) -> bool:
    status = box.stage.node_status("pi")
    problems = [problem["code"] for problem in status.get("problems", ())]
    return "engine_unreachable" in problems and "container" not in status["inventory"]["runtimes"]


def test_a_node_without_an_engine_is_refused_with_its_reason(stage: Stage) -> None:
    stage.start_hub()
    stage.start_node("pi", "home", more=["--engine", "none"])
    wait_for("the node", lambda: stage.online("pi"), WAIT_S)
    image = f"registry.example/box@sha256:{'1' * 64}"
    stage.client.apply(MANIFEST.format(image=image, archive="", more=""))

    def why() -> str | None:
        said = str(stage.client.get(Application, "box").status)
        return said if "runtime_missing" in said else None

    wait_for("the reason", why, WAIT_S)


def test_what_nobody_remembers_is_removed_when_the_agent_returns(box: Box) -> None:
    """The application is deleted while the node agent is down, and its ledger is lost with it."""
    box.open()
    box.apply("exec sleep 3600")
    box.until_ready()
    agent = box.node_process()
    agent.send_signal(signal.SIGKILL)
    box.stage.nodes["pi"].running.wait(60)
    for page in (box.stage.nodes["pi"].state / "node" / "ledger").glob("*"):
        page.unlink()
    box.stage.client.delete(Application, "box")
    box.stage.restart_node("pi")
    wait_for("its end", lambda: box.engine.containers(node="pi") == [] or None, WAIT_S)


def test_images_are_pushed_by_the_command_line(box: Box) -> None:
    """An archive, and one out of an engine; what is printed is what a component says."""
    box.open()
    _loaded(box.engine, box.built)

    def push(*words: str) -> str:
        command = [sys.executable, "-m", "batuta", "image", "push", "--state", str(box.stage.hub_state), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    said = push(str(box.built.path))
    assert f"image: {box.built.image}" in said
    assert box.built.digest in said
    name = "localhost/batuta-test:1"
    taken = push("--from-engine", name, "--engine", str(box.engine.socket))
    assert box.built.id in taken or box.built.manifest in taken

    box.apply("exec sleep 3600", **printed(taken))
    first = box.until_ready()

    # Whoever must sign has not, so a change waits; signed, it is loaded.
    private, public = make_key(box.stage.directory / "ours")
    box.stage.client.apply(GUARD.format(key=json.dumps(public.read_text())))
    box.apply("exec sleep 3601", **printed(taken))
    wait_for("the refusal", lambda: "signature_missing" in str(_status(box)) or None, WAIT_S)
    assert box.container() == first, "what ran runs on"
    signed = push(str(box.built.path), "--key", str(private))
    assert "signatures: [" in signed
    box.apply("exec sleep 3601", **printed(signed))
    wait_for("the signed one", lambda: _another(box, first), WAIT_S)
    box.until_ready()


GUARD = """\
apiVersion: batuta.dev/v1
kind: Policy
metadata: {{name: signed}}
spec: {{requireSigner: [{key}]}}
"""


def printed(said: str) -> dict[str, str]:
    """What `image push` printed, as a component says it."""
    _, image, *rest = (line.strip() for line in said.splitlines())
    return {"image": image.removeprefix("image: "), "archive": "\n      ".join(rest)}


def _status(box: Box) -> Mapping[str, Any]:
    return box.stage.client.get(Application, "box").status


def test_never_twice_is_refused(stage: Stage) -> None:
    stage.start_hub()
    said = MANIFEST.format(image=f"reg.example/box@sha256:{'1' * 64}", archive="", more="")
    with pytest.raises(Refused) as refused:
        stage.client.apply(said.replace("name: run", "name: run\n    runs: never-twice"))
    assert "never-twice" in str(refused.value)
    with pytest.raises(NotFound):
        stage.client.get(Application, "box")
    assert processes_in(stage.directory)
