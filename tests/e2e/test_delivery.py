"""A large model on its way to a site, through a thin cable, and what may happen to it: real processes throughout."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from batuta.agent.partial import NAME_BYTES
from batuta.demo.cable import Cable
from batuta.demo.stage import wait_for
from batuta.errors import BatutaError, NotFound
from batuta.fabric import subjects
from batuta.fabric.nats import connect_hub
from batuta.kinds import Application
from batuta.model_push import push
from tests.cli.running import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WIDTH = 256
PATIENCE_S = 180.0
READER = """
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: {name}}}
spec:
  priority: {priority}
  components:
  - name: read
    model: {{name: layers, version: "{version}"}}
    inputs:  [{{topic: "in/+/x", tensor: x}}]
    outputs: [{{topic: "results/{{1}}/y"}}]
    replicas: {{everyNode: true}}
    resources: {{memory: 200Mi}}
"""


def model(path: Path, megabytes: int, seed: int, tuned: tuple[int, ...] = ()) -> Path:
    """A chain of matrices, each a quarter of a megabyte; some of them trained a little further."""
    chance = np.random.default_rng(seed)
    layers = chance.normal(0, WIDTH**-0.5, (megabytes * 4, WIDTH, WIDTH)).astype(np.float32)
    layers[list(tuned)] += np.float32(0.001)
    nodes, weights, value = [], [], "x"
    for n, layer in enumerate(layers):
        weights.append(numpy_helper.from_array(layer, f"w{n}"))
        after = "y" if n == len(layers) - 1 else f"h{n}"
        nodes.append(helper.make_node("MatMul", [value, f"w{n}"], [after]))
        value = after
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


class Site:
    """Nodes at the far end of one cable."""

    def __init__(self, stage: Stage, *names: str, mbit: float) -> None:
        self.stage, self.names = stage, names
        stage.start_hub()
        self.cable = Cable(stage.leaf_address(), bits_per_s=mbit * 1e6, delay_s=0.02)
        port = self.cable.start()
        for name in names:
            stage.start_node(name, "shop", via=port)
        for name in names:
            wait_for(name, lambda name=name: stage.online(name), PATIENCE_S)  # type: ignore[misc]

    def push(self, path: Path, version: str = "1") -> tuple[str, int]:
        size = path.stat().st_size
        return push(self.stage.client, path, name="layers", version=version).digest, size

    def artifacts(self, name: str) -> Path:
        return self.stage.directory / name / "node" / "artifacts"

    def has(self, name: str, digest: str) -> bool | None:
        return (self.artifacts(name) / "sha256" / digest[7:]).exists() or None

    def all_have(self, digest: str) -> None:
        for name in self.names:
            wait_for(f"the file at {name}", lambda name=name: self.has(name, digest), PATIENCE_S)  # type: ignore[misc]
            data = (self.artifacts(name) / "sha256" / digest[7:]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == digest[7:]
            assert list((self.artifacts(name) / "partial").iterdir()) == []

    def arrived(self, name: str, digest: str) -> int:
        """Chunks that are in the half-made file, checked and noted."""
        try:
            noted = (self.artifacts(name) / "partial" / f"{digest[7:]}.have").read_bytes()[NAME_BYTES:]
        except FileNotFoundError:
            return 0
        return noted.count(1)

    def arrives(self, name: str, digest: str, count: int) -> None:
        wait_for(f"{count} chunks", lambda: self.arrived(name, digest) >= count or None, PATIENCE_S)

    def told(self, name: str) -> dict[str, Any]:
        """What a node says of its artifacts when it is asked by the hub's operator."""
        found: dict[str, Any] = self.doctor(name)["artifacts"]
        return found

    def doctor(self, name: str) -> dict[str, Any]:
        home = self.stage.hub_state / "hub"
        port = json.loads((home / "run.json").read_bytes())["ports"]["client"]
        password = json.loads((home / "secrets.json").read_bytes())["hubPassword"]

        async def ask() -> dict[str, Any]:
            fabric = await connect_hub(f"nats://127.0.0.1:{port}", "hub", password)
            try:
                return msgspec.json.decode(await fabric.request(subjects.tell(name, "doctor"), b"", 30))
            finally:
                await fabric.close()

        return asyncio.run(ask())


@pytest.fixture
def site_of(stage: Stage) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(*names: str, mbit: float = 16.0) -> Site:
        made.append(Site(stage, *names, mbit=mbit))
        return made[-1]

    try:
        yield make
    finally:
        stage.close()
        for site in made:
            site.cable.close()


def waiting(stage: Stage, application: str, code: str) -> Mapping[str, Any] | None:
    """An instance that says this is why it is not ready."""
    try:
        components = stage.client.get(Application, application).status["components"]
    except (NotFound, BatutaError):
        return None
    for component in components:
        for instance in component["instances"]:
            if instance["reason"] is not None and instance["reason"]["code"] == code:
                return dict(instance["reason"])
    return None


def test_cuts_a_kill_and_a_hub_that_restarts_lose_nothing_that_had_come(
    site_of: Callable[..., Site], tmp_path: Path
) -> None:
    site = site_of("shop-0", "shop-1", "shop-2")
    stage = site.stage
    digest, size = site.push(model(tmp_path / "m.onnx", 12, 1))
    before = site.cable.bytes_carried
    stage.client.apply(READER.format(name="reader", version="1", priority=0))

    site.arrives("shop-1", digest, 20)
    said = wait_for("how far it is", lambda: waiting(stage, "reader", "fetching"), PATIENCE_S)
    assert " of 12.6 MB" in said["detail"], said
    site.cable.cut()
    site.cable.mend()
    site.arrives("shop-1", digest, 60)
    had = site.arrived("shop-1", digest)
    stage.kill_node("shop-1")
    assert site.arrived("shop-1", digest) >= had, "what is noted is on the disk"
    had = site.arrived("shop-1", digest)
    stage.restart_node("shop-1")
    site.arrives("shop-1", digest, had + 10)
    stage.kill_hub()
    stage.start_hub()
    site.all_have(digest)
    # The killed node fetched no more than what it had not.
    told = site.told("shop-1")
    recipe = (site.artifacts("shop-1") / "recipes" / digest[7:]).read_bytes()
    total = len(recipe) // 40
    assert told["refused"] == 0
    assert told["fetchedBytes"] <= size - had * size // total * 0.8
    # 1.02 to 1.06 of it as a rule. On a busy machine cards of neighbours come late, and what two did not know of each
    # other was brought in by both: 1.3 and 1.6 were seen.
    carried = site.cable.bytes_carried - before
    books = {name: site.told(name) for name in site.names}
    assert carried < 2 * size, f"and the site not one copy for each node: {carried / size:.2f}, {books}"
    for name in site.names:
        assert stage.node_status(name)["link"]["word"] == "online" or wait_for(
            name,
            lambda name=name: stage.online(name),
            PATIENCE_S,  # type: ignore[misc]
        )


def test_a_fine_tune_moves_what_changed_and_damage_at_a_neighbour_does_not_spread(
    site_of: Callable[..., Site], tmp_path: Path
) -> None:
    site = site_of("shop-0", "shop-1", mbit=100.0)
    stage = site.stage
    digest, size = site.push(model(tmp_path / "a.onnx", 10, 2))
    stage.client.apply(READER.format(name="reader", version="1", priority=0))
    site.all_have(digest)
    tuned, _ = site.push(model(tmp_path / "b.onnx", 10, 2, tuned=(7, 22)), "2")
    before = site.cable.bytes_carried
    stage.client.delete(Application, "reader")
    stage.client.apply(READER.format(name="second", version="2", priority=0))
    site.all_have(tuned)
    assert site.cable.bytes_carried - before < 0.2 * size, "two of forty layers"

    # A machine comes to the site; the file that its neighbours would give it has gone bad on one of them.
    path = site.artifacts("shop-0") / "sha256" / tuned[7:]
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"rot")
    port = site.cable.port
    stage.start_node("shop-2", "shop", via=port)
    site.names = ("shop-1", "shop-2")
    site.all_have(tuned)
    assert site.told("shop-2")["refused"] == 0, "nobody was given a wrong chunk"


def test_outside_its_hours_a_site_fetches_only_what_matters_and_says_so(
    site_of: Callable[..., Site], tmp_path: Path
) -> None:
    site = site_of("shop-0", mbit=100.0)
    stage = site.stage
    digest, _ = site.push(model(tmp_path / "a.onnx", 1, 3))
    # A window that opens once in four years: it is closed while this test runs, unless it runs on a leap day.
    stage.client.apply(
        """
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: shop}
spec:
  uplink:
    windows: [{opens: "0 0 29 2 *", closes: "1 0 29 2 *"}]
    budget: {perDay: 10Mi}
"""
    )
    stage.client.apply(READER.format(name="reader", version="1", priority=0))
    said = wait_for("why it waits", lambda: waiting(stage, "reader", "window_closed"), PATIENCE_S)
    assert said["detail"].startswith("0 0 29 2 * to 1 0 29 2 *, UTC; ")
    assert said["waits"] is True
    why = run("why", "reader", state=stage.hub_state)
    assert "its artifact waits for the hours in which the uplink takes it" in why.out
    assert not site.has("shop-0", digest)
    # What the business needs waits for no hour.
    stage.client.apply(READER.format(name="reader", version="1", priority=100))
    site.all_have(digest)
