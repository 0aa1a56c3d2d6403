"""Workers that die again and again: at every start, and on a certain request. The table is in test_misfortunes.py."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any

import onnx
import onnx.helper as oh
import pytest

from batuta.demo.stage import wait_for
from batuta.fabric.broker import free_port
from batuta.kinds import Application
from batuta.model_push import push
from tests.cli.running import run
from tests.e2e.playing import SLEEPER, instance, patiently, play, ready, sleeping

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LOOPER = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: looper}}
spec:
  components:
  - name: loop
    model: {{name: many, version: "{version}"}}
    serve: {{port: {port}}}
    replicas: {{count: 1}}
    resources: {{cpu: 100m, memory: 64Mi}}
    failover: {{after: 1h}}
"""
ALLOWED = "192Mi allowed"
"""64 MiB, and the 128 that a worker takes for itself."""
MODEST, GREEDY = 1_000, 50_000_000
PATIENCE_S = 120


def saved(path: Path, nodes: list[Any]) -> Path:
    """A model of one number `n` and one answer `y`."""
    ends = [oh.make_tensor_value_info("n", onnx.TensorProto.INT64, [1])]
    ends += [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])]
    graph = oh.make_graph(nodes, "many", ends[:1], ends[1:])
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def constant(name: str, datatype: int, value: float) -> Any:
    return oh.make_node("Constant", [], [name], value=oh.make_tensor(name, datatype, [1], [value]))


def greedy_when_asked(path: Path) -> Path:
    """Holds as many numbers as it is asked for, at once, and counts them."""
    return saved(path, [
        constant("one", onnx.TensorProto.FLOAT, 1.0), oh.make_node("Expand", ["one", "n"], ["many"]),
        oh.make_node("Exp", ["many"], ["more"]), oh.make_node("ReduceSum", ["more"], ["y"], keepdims=1),
    ])  # fmt: skip


def greedy_at_once(path: Path) -> Path:
    """Has a constant of 240 MB, which is made when the model is loaded."""
    return saved(path, [
        constant("one", onnx.TensorProto.FLOAT, 1.0), constant("size", onnx.TensorProto.INT64, 60_000_000),
        oh.make_node("Expand", ["one", "size"], ["many"]),
        oh.make_node("ReduceSum", ["many"], ["sum"], keepdims=1),
        oh.make_node("Cast", ["n"], ["asked"], to=onnx.TensorProto.FLOAT), oh.make_node("Mul", ["asked", "sum"], ["y"]),
    ])  # fmt: skip


def modest(path: Path) -> Path:
    """Gives the same answer and needs to hold nothing for it."""
    return saved(path, [
        oh.make_node("Cast", ["n"], ["asked"], to=onnx.TensorProto.FLOAT),
        constant("e", onnx.TensorProto.FLOAT, 2.718281828), oh.make_node("Mul", ["asked", "e"], ["y"]),
    ])  # fmt: skip


def answered(port: int, count: int) -> float | None:
    """What the worker says; None when it dies of the question, or is not there."""
    asked = {"inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [count]}]}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/v2/models/many/infer", json.dumps(asked))
        answer = connection.getresponse()
        said = json.loads(answer.read())
        return float(said["outputs"][0]["data"][0]) if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Beside:
    """A program that runs beside, and the node agent: neither may notice anything."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        stage.client.apply(SLEEPER.format(name="beside", runs="at-least-once"))
        wait_for("the program beside", lambda: ready(stage, "beside"), PATIENCE_S)
        self.pids = sleeping(stage)

    def noticed_nothing(self) -> bool:
        there = self.stage.nodes["pi"].running.poll() is None and sleeping(self.stage) == self.pids
        return there and instance(self.stage, "beside")["starts"] == 1


def looping(stage: Stage, starts: int) -> Mapping[str, Any] | None:
    """It has been started so often, and waits before it is started again."""
    found = instance(stage, "looper", 1)
    return found if found["phase"] == "backoff" and found["starts"] >= starts else None


def assert_told(stage: Stage, found: Mapping[str, Any]) -> None:
    assert found["reason"]["code"] == "memory_exceeded"
    assert ALLOWED in found["reason"]["detail"]
    said = run("why", "looper", state=stage.hub_state)
    assert ALLOWED in said.out, said
    assert "resources.memory" in said.out, said


def test_a_worker_that_dies_at_every_start_waits_ever_longer_and_says_why(stage: Stage, tmp_path: Path) -> None:
    play(stage)
    beside, port = Beside(stage), free_port("127.0.0.1")
    push(stage.client, greedy_at_once(tmp_path / "bad.onnx"), name="many", version="1")
    stage.client.apply(LOOPER.format(version="1", port=port))
    first = wait_for("the first end", lambda: looping(stage, 1), PATIENCE_S)
    again = wait_for("the third end", lambda: looping(stage, 3), PATIENCE_S)
    assert_told(stage, again)
    # A second and two, each less up to a fifth: it was not begun again at once.
    assert again["since"] - first["since"] >= (3 - first["starts"]) * 800
    wait_for(
        "the word", lambda: stage.client.get(Application, "looper").status["state"] == "failing" or None, PATIENCE_S
    )
    assert answered(port, MODEST) is None
    assert beside.noticed_nothing()

    push(stage.client, modest(tmp_path / "good.onnx"), name="many", version="2")
    stage.client.apply(LOOPER.format(version="2", port=port))
    wait_for("the good version", lambda: ready(stage, "looper", 2), PATIENCE_S)
    assert answered(port, MODEST) == pytest.approx(MODEST * 2.71828, rel=1e-3)
    wait_for("the end of the bad one", lambda: len(stage.instances("looper")) == 1 or None, PATIENCE_S)
    assert instance(stage, "looper")["reason"] is None
    assert beside.noticed_nothing()


def test_a_worker_that_dies_of_a_request_comes_back_for_the_others(stage: Stage, tmp_path: Path) -> None:
    play(stage)
    beside, port = Beside(stage), free_port("127.0.0.1")
    push(stage.client, greedy_when_asked(tmp_path / "bad.onnx"), name="many", version="1")
    stage.client.apply(LOOPER.format(version="1", port=port))
    wait_for("the model", lambda: ready(stage, "looper"), PATIENCE_S)
    assert answered(port, MODEST) == pytest.approx(MODEST * 2.71828, rel=1e-3)

    def ill() -> Mapping[str, Any] | None:
        """Whoever sends that once sends it again. Each pause is longer than the one before."""
        answered(port, GREEDY)
        return looping(stage, 2)

    assert_told(stage, wait_for("its illness", ill, PATIENCE_S))
    assert beside.noticed_nothing()
    # It is left alone, and serves everybody else as before.
    wait_for("its return", lambda: patiently(lambda: answered(port, MODEST)), PATIENCE_S)
    wait_for("the news of it", lambda: ready(stage, "looper"), PATIENCE_S)
    assert instance(stage, "looper")["starts"] >= 3
    assert beside.noticed_nothing()

    push(stage.client, modest(tmp_path / "good.onnx"), name="many", version="2")
    stage.client.apply(LOOPER.format(version="2", port=port))
    wait_for("the good version", lambda: ready(stage, "looper", 2), PATIENCE_S)
    wait_for("its answer", lambda: patiently(lambda: answered(port, GREEDY)), PATIENCE_S)
    assert instance(stage, "looper", 2)["starts"] == 1
    assert beside.noticed_nothing()
