"""The mesh as users have it: a real hub, real nodes at three sites, real models; programs that ask by name."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from batuta.demo.stage import kill, processes_in, wait_for
from batuta.mesh import InferenceFailed, Mesh, Outputs
from batuta.model_push import push

if TYPE_CHECKING:
    from batuta.demo.digits import Digits
    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MODEL = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: reader}
spec:
  components:
  - name: read
    model: {name: digits, version: "1"}
    replicas: {perSite: 1}
    placement: {where: 'site.name in ["south", "west"]'}
    resources: {cpu: 100m, memory: 128Mi}
"""
ASKER = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: asker}
spec:
  components:
  - name: ask
    process:
      command:
      - PYTHON
      - -c
      - "import os, time; open('url', 'w').write(os.environ['BATUTA_INFERENCE_URL']); time.sleep(9999)"
    replicas: {everyNode: true}
    placement: {where: 'site.name == "north"'}
    resources: {cpu: 10m, memory: 64Mi}
"""
SITES = """\
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: eu}
---
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: north}
spec: {parent: eu}
---
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: west}
spec: {parent: eu}
"""


def url_of(stage: Stage, node: str) -> str:
    return str(stage.node_status(node)["inference"])


def gateways_of(stage: Stage, node: str) -> list[Any]:
    return [p for p in processes_in(stage.nodes[node].state) if "batuta.dataflow.gateway" in p.cmdline()]


def asked(mesh: Mesh, digits: Digits, **options: Any) -> Outputs:
    pixels = [list(digits.held_out[0].pixels)]
    return mesh.infer("digits", {"image": pixels}, **options)


def test_a_program_asks_by_name_and_is_answered_by_the_nearest_site(stage: Stage, digits: Digits) -> None:
    stage.start_hub()
    stage.client.apply(SITES)
    for name in ("north", "south", "west"):
        stage.start_node(f"{name}-1", name)
    for name in ("north", "south", "west"):
        wait_for(name, lambda name=name: stage.online(f"{name}-1"), 60)  # type: ignore[misc]
    push(stage.client, digits.first, name="digits", version="1")
    stage.client.apply(MODEL)
    stage.client.apply(ASKER.replace("PYTHON", sys.executable))
    for application, count in (("reader", 2), ("asker", 1)):
        wait_for(application, lambda a=application, n=count: _ready(stage, a) == n or None, 90)  # type: ignore[misc]
    url = url_of(stage, "north-1")
    told = next((stage.nodes["north-1"].state / "node" / "instances").glob("default/asker/*/url"))
    assert told.read_text() == url
    # Nobody has asked yet: no gateway runs anywhere, and no memory is spent on one.
    assert not any(gateways_of(stage, f"{name}-1") for name in ("north", "south", "west"))

    with Mesh(url) as mesh:
        # The link had no right to the namespace when it was made, and the gateway of the other site sleeps.
        said = _first(mesh, digits)
        assert (said.nearness, said.node, said.version) == ("region", "west-1", "1")
        assert len(gateways_of(stage, "west-1")) == 1
        assert len(said["probabilities"][0]) == 10
        assert 0 <= said["label"][0] <= 9
        for _ in range(20):
            assert asked(mesh, digits).nearness == "region"
        _with_triton(url, digits, said)
        with pytest.raises(InferenceFailed) as refused:
            Mesh(url, namespace="team").infer("digits", {"image": [[0.0] * 64]})
        assert "runs nothing of namespace 'team'" in refused.value.message

        # A gateway that dies is there again; whoever had a connection makes a new one, and notices nothing.
        kill(gateways_of(stage, "north-1"))
        assert asked(mesh, digits).nearness == "region"

        # What gateways counted is in the hub's metrics.
        def counted() -> bool | None:
            text = _metrics(stage)
            rows = [line for line in text.splitlines() if line.startswith("batuta_mesh_latency_milliseconds_count")]
            return any('nearness="region"' in row and 'model="digits"' in row for row in rows) or None

        wait_for("the books", counted, 90)
        assert "batuta_mesh_calls_total" in _metrics(stage)

        # The region's instance is lost: what is further away answers.
        stage.kill_node("west-1")
        further = asked(mesh, digits, deadline_ms=20_000)
        assert (further.nearness, further.node) == ("hub", "south-1")


def _with_triton(url: str, digits: Digits, said: Outputs) -> None:
    """A client that knows nothing of Batuta, with binary tensors."""
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        assert client.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, 64]
        assert [row["name"] for row in client.get_model_repository_index()] == ["digits"]
        image = triton.InferInput("image", [1, 64], "FP32")
        image.set_data_from_numpy(np.array([digits.held_out[0].pixels], np.float32))
        wanted = triton.InferRequestedOutput("probabilities", binary_data=True)
        answer = client.infer("digits", [image], outputs=[wanted]).as_numpy("probabilities")
        assert np.allclose(answer, said["probabilities"], atol=1e-6)
    finally:
        client.close()


def _first(mesh: Mesh, digits: Digits) -> Outputs:
    until = time.monotonic() + 60
    while True:
        try:
            return asked(mesh, digits, deadline_ms=20_000)
        except InferenceFailed as failed:
            # A link that is being made anew, and a gateway that is being started, may take longer than a call waits.
            if failed.code not in ("nobody_well", "deadline_passed", "not_ready") or time.monotonic() > until:
                raise


def _ready(stage: Stage, application: str) -> int:
    return sum(i.get("phase") == "ready" for i in stage.instances(application))


def _metrics(stage: Stage) -> str:
    run = json.loads((stage.hub_state / "hub" / "run.json").read_bytes())
    with urllib.request.urlopen(f"http://127.0.0.1:{run['ports']['http']}/metrics", timeout=10) as answer:
        return str(answer.read().decode())
