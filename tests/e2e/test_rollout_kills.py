"""Kill -9 of the hub, a node agent and what runs, at every step of a rollout on real processes: it comes to the same
end, nothing runs twice on the way, and nothing is forgotten. In the twin, every state: tests/laws/test_rollout_kills.py

step        what is seen when the kill falls
----------  ------------------------------------------------------------------
begun       the rollout is there, and its first wave is under way
starting    the first process of the new release runs, and is not ready
both        it is ready, and the old one has not ended
watched     the first wave is through and is watched
second      the second wave is under way
last        the second wave is through and is watched
done        the rollout is done
undoing     somebody asked to undo it in its first wave
returning   the old one was started again, and the new one has not ended
undone      every node has what it had
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx
import onnx.helper as oh
import psutil
import pytest

from batuta.demo.stage import Stage, kill, processes_in, wait_for
from batuta.errors import BatutaError, NotFound
from batuta.kinds import Application, Model
from batuta.model_push import push
from tests.e2e.playing import patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NODES = ("pi-1", "pi-2")
FORWARD = ("begun", "starting", "both", "watched", "second", "last", "done")
BACK = ("undoing", "returning", "undone")
OVER = ("done", "undone")
VICTIMS = ("hub", "agent", "worker")
PATIENCE_S = 180

# It holds a lock for as long as it runs: of what may run once on each node, one for each release and node; of what must
# never run twice, one for all. Who finds it taken says so. It takes its time to be ready, and to end.
WORKER = """
import fcntl, os, signal, sys, time
word, locks = sys.argv[1:]
def end(*_):
    time.sleep(0.8)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
name = os.environ["BATUTA_INSTANCE"].replace("/", "_") if os.environ["BATUTA_COMPONENT"] == "each" else "one"
mine = open(f"{locks}/{name}", "w")
try:
    fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    with open(f"{locks}/twice", "a") as said:
        said.write(f"{word} {os.environ['BATUTA_INSTANCE']} {os.environ['BATUTA_NODE']}\\n")
if os.path.exists("ready"):
    os.remove("ready")
time.sleep(0.8)
open("ready", "w").close()
while True:
    time.sleep(3600)
"""
ROLLOUT = """\
  rollout:
    waves: ["1 node", "100%"]
    soak: 1s
    probation: PROBATION
"""
APPLICATION = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: runner}
spec:
  components:
  - name: each
    process: {command: [PYTHON, WORKER, WORD, LOCKS], ready: {exec: [test, -e, ready], every: 300ms}, stopGrace: 5s}
    replicas: {everyNode: true}
    resources: {cpu: 10m, memory: 32Mi}
    failover: {after: 1h}
  - name: one
    process: {command: [PYTHON, WORKER, WORD, LOCKS], stopGrace: 5s}
    replicas: {count: 1}
    runs: never-twice
    resources: {cpu: 10m, memory: 32Mi}
"""
READER = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: reader}
spec:
  components:
  - name: read
    model: {name: digits, version: "WORD"}
    inputs: [{topic: "cameras/+/frame", tensor: image}]
    outputs: [{topic: "meters/{1}/reading"}]
    replicas: {everyNode: true}
    resources: {cpu: 100m, memory: 128Mi}
    failover: {after: 1h}
"""


class Run(NamedTuple):
    """A process of an application, as the machine has it."""

    node: str
    component: str
    revision: int
    process: psutil.Process
    is_ready: bool


class Town:
    """A hub, two nodes, and what arrives at them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stage = Stage(directory / "stage")
        self.locks, self.worker = directory / "locks", directory / "worker.py"
        self.locks.mkdir()
        self.worker.write_text(WORKER)
        self.words = (f"w{n}" for n in itertools.count())

    def open(self) -> None:
        self.stage.start_hub()
        for name in NODES:
            self.stage.start_node(name, "lab")
        for name in NODES:
            wait_for(name, lambda name=name: self.stage.online(name), PATIENCE_S)  # type: ignore[misc]

    # --- What there is ---

    def rollout(self, application: str, release: int) -> dict[str, Any]:
        """The status of this release's rollout; empty while there is none, and while nobody answers."""
        with contextlib.suppress(BatutaError, OSError):
            found = self.stage.client.rollouts.get(application)
            return dict(found.status) if found.resource.spec.release == release else {}
        return {}

    def becomes_whole(self, application: str) -> None:
        status: Mapping[str, Any] = {}

        def is_whole() -> bool | None:
            nonlocal status
            found = patiently(lambda: self.stage.client.get(Application, application))
            status = found.status if found is not None else {}
            there = [i for c in status.get("components", ()) for i in c["instances"]]
            # One that was undone is degraded, for it is not what people wished for.
            is_well = status.get("state") in ("ok", "degraded") and all(i["ready"] for i in there)
            return (is_well and {i["node"] for i in there} == set(NODES)) or None

        try:
            wait_for("it to be whole", is_whole, PATIENCE_S)
        except BatutaError:
            raise AssertionError(f"{application} is not whole: {status}") from None

    def newest(self, application: str) -> int:
        """The release that was made last; 0 for none."""
        with contextlib.suppress(NotFound):
            return max(chapter.revision for chapter in self.stage.client.rollouts.history(application))
        return 0

    def declare(self, application: str, manifest: str) -> int:
        """The release that comes of it, when it is made."""
        known = self.newest(application)
        self.stage.client.apply(manifest)
        return wait_for("the release", lambda: ((n := self.newest(application)) > known and n) or None, PATIENCE_S)

    def runs(self, application: str) -> list[Run]:
        """All that runs of it, whatever anybody says."""
        found = []
        for process in processes_in(self.directory):
            with contextlib.suppress(psutil.Error):
                words, said = process.cmdline(), process.environ()
                if str(self.worker) not in words and "batuta.dataflow.worker" not in words:
                    continue
                if said.get("BATUTA_APPLICATION") == application and process.status() != psutil.STATUS_ZOMBIE:
                    is_ready = any((Path(process.cwd()) / sign).exists() for sign in ("ready", "oip.sock"))
                    place = said["BATUTA_NODE"], said["BATUTA_COMPONENT"], int(said["BATUTA_REVISION"])
                    found.append(Run(*place, process, is_ready))
        return found

    # --- Steps ---

    def at(self, step: str, application: str, release: int) -> str | None:
        """The node at which this step is seen; any node when the rollout was quicker than we are."""
        status = self.rollout(application, release)
        if step not in ("done", "undone") and status.get("phase") in OVER:
            print(f"{step} of release {release} was over before it was seen")
        phase, wave = status.get("phase"), status.get("wave")
        named = status.get("named", {})
        done, updating = [*named.get("done", ()), NODES[0]], [*named.get("updating", ()), NODES[0]]
        if step == "begun":
            return updating[0] if status else None
        if step in ("starting", "both", "returning"):
            return self._at_processes(step, application, release) or (NODES[0] if phase in OVER else None)
        reached = {
            "watched": phase == "soaking", "second": wave == 2, "last": wave == 2 and phase == "soaking",
            "undoing": phase in ("undoing", "undone"),
        }  # fmt: skip
        if phase in OVER or reached.get(step, False):
            return updating[0] if step == "second" else done[0]
        return None

    def _at_processes(self, step: str, application: str, release: int) -> str | None:
        first = [run for run in self.runs(application) if run.component != "one"]
        for node in NODES:
            new = [run for run in first if run.node == node and run.revision == release]
            old = [run for run in first if run.node == node and run.revision != release]
            if step == "starting" and any(not run.is_ready for run in new):
                return node
            if step != "starting" and new and old and all(run.is_ready for run in (new if step == "both" else old)):
                return node
        return None

    # --- Deaths ---

    def kill(self, victim: str, node: str, application: str) -> None:
        """And what is not started again by itself is, as its supervisor would."""
        if victim == "hub":
            epoch = self.stage.client.hub()["epoch"]
            kill([p for p in processes_in(self.stage.hub_state) if "batuta.web" in p.cmdline()])
            wait_for("the next hub", lambda: patiently(lambda: self.stage.client.hub()["epoch"] > epoch), PATIENCE_S)
        elif victim == "agent":
            agent = self.stage.nodes[node].running
            agent.kill()
            agent.wait(60)
            self.stage.restart_node(node)
        else:
            kill([run.process for run in self.runs(application) if run.node == node])


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with tempfile.TemporaryDirectory(prefix="batuta-test-") as directory:
        made = Town(Path(directory))
        try:
            made.open()
            yield made
        finally:
            for name in ("hub", *NODES):
                print(f"--- {name}:\n{made.stage.log_tail(name, 40)}")
            killed = made.stage.close()
        assert killed == [], "these did not end when asked to"
        assert processes_in(Path(directory)) == []


def saved(directory: Path, version: str) -> Path:
    """A model whose scores are its input, under another name for each version."""
    image, scores = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64]) for name in ("image", "scores"))
    graph = oh.make_graph([oh.make_node("Identity", ["image"], ["scores"])], f"same-{version}", [image], [scores])
    path = directory / f"{version}.onnx"
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def programs(town: Town, probation: str = "0s") -> tuple[str, Callable[[], int]]:
    """An application of programs that runs; and what declares another release of it."""

    def declare() -> int:
        written = (APPLICATION + ROLLOUT).replace("PYTHON", sys.executable).replace("WORKER", str(town.worker))
        written = written.replace("LOCKS", str(town.locks)).replace("WORD", next(town.words))
        return town.declare("runner", written.replace("PROBATION", probation))

    return "runner", _running(town, "runner", declare)


def _running(town: Town, application: str, declare: Callable[[], int]) -> Callable[[], int]:
    """Whatever the case before left behind is over when this returns."""
    if not patiently(lambda: town.stage.client.get(Application, application)):
        declare()
    town.becomes_whole(application)
    return declare


def ends(town: Town, application: str, release: int, phase: str) -> None:
    """It ends so, and on every node there is one process of the release that is to be there, and no other."""

    def is_over() -> bool | None:
        return town.rollout(application, release).get("phase") == phase or None

    wait_for(f"release {release} to be {phase}", is_over, PATIENCE_S)
    town.becomes_whole(application)
    expected = release if phase == "done" else town.rollout(application, release)["previous"]

    def there() -> bool | None:
        found = [(run.node, run.revision) for run in town.runs(application) if run.component != "one"]
        ones = [run.revision for run in town.runs(application) if run.component == "one"]
        wanted = [expected] if application == "runner" else []
        return (sorted(found) == [(node, expected) for node in NODES] and ones == wanted) or None

    try:
        wait_for("one process on every node", there, PATIENCE_S)
    except BatutaError:
        raise AssertionError(f"there run {town.runs(application)}, not release {expected}") from None
    twice = town.locks / "twice"
    assert not twice.exists(), twice.read_text()


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("step", FORWARD)
def test_a_release_arrives_whoever_dies_on_its_way(town: Town, step: str, victim: str) -> None:
    application, declare = programs(town)
    release = declare()
    node = wait_for(step, lambda: town.at(step, application, release), PATIENCE_S)
    town.kill(victim, node, application)
    ends(town, application, release, "done")


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("step", BACK)
def test_a_release_is_undone_whoever_dies_on_its_way_back(town: Town, step: str, victim: str) -> None:
    application, declare = programs(town)
    release = declare()
    wait_for("its first wave", lambda: town.at("watched", application, release), PATIENCE_S)
    town.stage.client.rollouts.undo(application)
    node = wait_for(step, lambda: town.at(step, application, release), PATIENCE_S)
    town.kill(victim, node, application)
    ends(town, application, release, "undone")


def test_who_was_killed_on_probation_takes_it_when_asked_again(town: Town) -> None:
    """Its node cannot know who killed it: it goes back by itself, the rollout goes on with the other, and to ask again
    brings it there too."""
    application, declare = programs(town, probation="10m")
    release = declare()
    node = wait_for("its first wave", lambda: town.at("watched", application, release), PATIENCE_S)
    kill([r.process for r in town.runs(application) if (r.node, r.component, r.revision) == (node, "each", release)])

    def is_turned_down() -> bool | None:
        status = town.rollout(application, release)
        is_there = [down["node"] for down in status.get("turnedDown", ())] == [node]
        return (is_there and status["phase"] == "done") or None

    wait_for("the rollout to go on without it", is_turned_down, PATIENCE_S)
    each = {r.node: r.revision for r in town.runs(application) if r.component == "each"}
    assert each[node] < release
    town.stage.client.rollouts.retry(application)
    ends(town, application, release, "done")


@pytest.mark.parametrize(("step", "victim"), [("starting", "agent"), ("both", "worker"), ("watched", "hub")])
def test_a_model_arrives_whoever_dies_on_its_way(town: Town, step: str, victim: str) -> None:
    if not patiently(lambda: town.stage.client.get(Model, "digits")):
        for version in ("1", "2"):
            push(town.stage.client, saved(town.directory, version), name="digits", version=version)

    def declare() -> int:
        found = patiently(lambda: town.stage.client.get(Application, "reader"))
        is_first = bool(found) and found.resource.spec.components[0].model.version == "1"
        written = (READER + ROLLOUT).replace("WORD", "2" if is_first else "1").replace("PROBATION", "0s")
        return town.declare("reader", written)

    release = _running(town, "reader", declare)()
    node = wait_for(step, lambda: town.at(step, "reader", release), PATIENCE_S)
    town.kill(victim, node, "reader")
    ends(town, "reader", release, "done")
