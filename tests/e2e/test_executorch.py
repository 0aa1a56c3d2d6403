"""ExecuTorch: what its engine computes is what PyTorch says, and a node with it serves a `.pte` file.

Without it (it needs PyTorch) all but the last test are skipped: `make test-executorch` installs and runs them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pytest

from batuta.demo.stage import wait_for
from batuta.kinds.model import Model, Signature, Tensor
from tests.cli.running import run
from tests.e2e.playing import play, ready
from tests.interop.programs import Place, program

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HAS_IT = find_spec("executorch") is not None and find_spec("torch") is not None
if not HAS_IT:
    warnings.warn("ExecuTorch is not installed: its tests are skipped; `make test-executorch` runs them", stacklevel=1)
needs_it = pytest.mark.skipif(not HAS_IT, reason="ExecuTorch is not installed: `make test-executorch` runs this")

# The exporter belongs to a process of its own: in a worker there is none either.
EXPORT = """
import sys, numpy, torch
from executorch.exir import to_edge_transform_and_lower
from torch.export import Dim, export
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10), torch.nn.Softmax(-1))
network.eval()
here = sys.argv[1]
x = torch.rand(100, 64)
def save(name, rows, **more):
    program = to_edge_transform_and_lower(export(network, (x[:rows],), **more.pop("export", {})), **more)
    open(f"{here}/{name}.pte", "wb").write(program.to_executorch().buffer)
save("fixed", 1)
save("batch", 4, export={"dynamic_shapes": ({0: Dim("n", min=1, max=32)},)})
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
save("xnnpack", 1, partitioner=[XnnpackPartitioner()])
numpy.savez(f"{here}/said.npz", x=x.numpy(), y=network(x).detach().numpy())
"""
READER = """
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: reader}
spec:
  components:
  - name: read
    model: {name: digits, version: "1"}
    inputs:  [{topic: "frames/+/x", tensor: input_0}]
    outputs: [{topic: "answers/{1}/y"}]
    replicas: {count: 1}
    resources: {cpu: 100m, memory: 64Mi}
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("pte")
    command = [sys.executable, "-c", EXPORT, str(here)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2_000:]
    return here


@needs_it
@pytest.mark.parametrize(("name", "batch"), [("fixed", 1), ("batch", -1), ("xnnpack", 1)])
def test_it_computes_what_pytorch_says(exported: Path, name: str, batch: int) -> None:
    from batuta.dataflow.engines import load
    from batuta.dataflow.oip.datatypes import Port

    declared = Signature(
        inputs=(Tensor(name="image", dtype="float32", shape=(-1, 64)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(-1, 10)),),
    )
    path = str(exported / f"{name}.pte")
    assert load(path, "pte").inputs == (Port("input_0", "FP32", (batch, 64)),)
    engine = load(path, "pte", (), declared)
    assert (engine.platform, engine.runs_on) == ("executorch", "CPU")
    assert engine.inputs == (Port("image", "FP32", (batch, 64)),)
    assert engine.outputs == (Port("scores", "FP32", (batch, 10)),)
    said = np.load(exported / "said.npz")
    for rows in (1,) if batch == 1 else (1, 7, 32, 33, 100):
        x = said["x"][:rows]
        x.flags.writeable = False
        (y,) = engine.tensors(engine.run({"image": x}))
        assert np.allclose(y, said["y"][:rows], atol=1e-6)
        kept = y.copy()
        engine.run({"image": 1 - x})
        assert np.array_equal(y, kept), "what was answered is not written over"


@needs_it
def test_files_that_are_none(exported: Path, tmp_path: Path) -> None:
    from batuta.dataflow.engines import Unfit, load

    whole = (exported / "fixed.pte").read_bytes()
    hollow = program([Place((1, 64))], [Place((1, 10))])  # it says what goes in and out, and computes nothing
    for data in (b"", b"nonsense", whole[: len(whole) // 2], hollow):
        (tmp_path / "m").write_bytes(data)
        with pytest.raises(Unfit, match="cannot load") as unfit:
            load(str(tmp_path / "m"), "pte")
        assert unfit.value.code == "artifact_unreadable"


@needs_it
def test_a_node_proves_and_serves_it(stage: Stage, exported: Path, tmp_path: Path) -> None:
    play(stage)
    said = np.load(exported / "said.npz")
    np.savez(tmp_path / "some.npz", input_0=said["x"][:8])
    pushed = run(
        "model", "push", str(exported / "batch.pte"), "--name", "digits", "--version", "1", "--golden-from",
        str(tmp_path / "some.npz"), state=stage.hub_state,
    )  # fmt: skip
    assert pushed.code == 0, pushed.err
    (version,) = stage.client.get(Model, "digits").resource.spec.versions
    assert [(t.name, t.shape) for t in version.signature.inputs] == [("input_0", (-1, 64))]
    assert "pte" in stage.node_status("pi")["inventory"]["runtimes"]
    stage.client.apply(READER)
    wait_for("the model", lambda: ready(stage), 180)
    body = {"inputs": [{"name": "input_0", "datatype": "FP32", "shape": [3, 64], "data": said["x"][:3].tolist()}]}
    asked = urllib.request.Request(
        f"{stage.node_status('pi')['inference']}/v2/models/digits/infer", json.dumps(body).encode()
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        (output,) = json.load(answer)["outputs"]
    assert output["name"] == "output_0"
    assert np.allclose(np.reshape(output["data"], (3, 10)), said["y"][:3], atol=1e-6)


@pytest.mark.skipif(HAS_IT, reason="ExecuTorch is installed")
def test_without_it_the_file_is_kept_and_nodes_say_what_they_lack(stage: Stage, tmp_path: Path) -> None:
    play(stage)
    (tmp_path / "m.pte").write_bytes(program([Place((1, 64))], [Place((1, 10))]))
    pushed = run("model", "push", str(tmp_path / "m.pte"), "--name", "digits", "--version", "1", state=stage.hub_state)
    assert pushed.code == 0, pushed.err
    stage.client.apply(READER)
    why = wait_for("a reason", lambda: run("why", "reader", state=stage.hub_state).out or None, 60)
    assert "runtime" in why
    assert "batuta[executorch]" in why
