"""Two new models on real processes: one that agrees goes through shadow and split and is switched in; one that does not
is stopped by the agreement that it has not, having answered nobody."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt import publish

from batuta.demo.cameras import Camera, Onlooker
from batuta.demo.digits import prepare
from batuta.demo.stage import Stage, wait_for
from batuta.errors import BatutaError
from batuta.kinds import Application
from batuta.model_push import push

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
NODES = ("pi-1", "pi-2")
CAMERAS = 12
MANIFEST = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: reader}
spec:
  components:
  - name: read
    model: {name: digits, version: "VERSION"}
    inputs:  [{topic: "cameras/+/frame", tensor: image}]
    outputs: [{topic: "meters/{1}/reading"}]
    replicas: {everyNode: true}
    resources: {cpu: 100m, memory: 128Mi}
    failover: {after: 1h}
  rollout:
    waves: ["1 node", "100%"]
    soak: 3s
    shadow: 4s
    split: 50%
    leastAnswers: 60
    gates:
    - agreement.share >= 0.8
    - errors.rate < 0.2
"""


def mixed_up(directory: Path) -> Path:
    """A model of the same inputs and outputs that learned wrong labels."""
    import numpy as np
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits(return_X_y=True)
    made = LogisticRegression(max_iter=50).fit(images, (labels + 1 + np.arange(len(labels)) % 2) % 10)
    exported = to_onnx(
        made, initial_types=[("image", FloatTensorType([None, 64]))], options={id(made): {"zipmap": False}},
        target_opset=17,
    )  # fmt: skip
    path = directory / "mixed.onnx"
    path.write_bytes(exported.SerializeToString())
    return path


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage")
    try:
        made.start_hub()
        for name in NODES:
            made.start_node(name, "lab")
        for name in NODES:
            wait_for(name, lambda name=name: made.online(name), 120)  # type: ignore[misc]
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


def rollout(stage: Stage, release: int) -> dict[str, Any]:
    """The status of this release's rollout; empty while there is none."""
    try:
        found = stage.client.rollouts.get("reader")
    except BatutaError:
        return {}
    return dict(found.status) if found.resource.spec.release == release else {}


def hears_all(panel: Onlooker, addresses: list[tuple[str, int]]) -> bool | None:
    """Does what is published at either node reach the panel by now? What came before it listened is not told again.
    Without acknowledgement, as answers travel between the brokers of a site."""
    for name, address in zip(NODES, addresses, strict=True):
        word = {"id": name, "value": 0, "instance": "default/reader/read-0-0", "node": name}
        publish.single("meters/none/reading", json.dumps(word), qos=0, hostname=address[0], port=address[1])
    return {r.id for r in list(panel.readings)} >= set(NODES) or None


def release_of(instance: str) -> int:
    return int(instance.rpartition("/")[2].split("-")[1])


def test_a_model_that_agrees_is_switched_in_and_one_that_does_not_answers_nobody(stage: Stage, tmp_path: Path) -> None:
    digits = prepare(tmp_path)
    files = {"first": digits.first, "second": digits.second, "mixed": mixed_up(tmp_path)}
    for version, path in files.items():
        push(stage.client, path, name="digits", version=version, task="classification")
    stage.client.apply(MANIFEST.replace("VERSION", "first"))
    stage.client.wait(Application, "reader", lambda found: found.status["ready"] == "2/2", timeout_s=180)
    addresses = [stage.mqtt_of(name) for name in NODES]
    panel = Onlooker("lab", addresses[:1])
    cameras = [
        Camera(f"c{i}", "lab", [addresses[i % 2]], itertools.cycle(digits.held_out[i * 9 :]), 4.0)
        for i in range(CAMERAS)
    ]
    panel.start()
    wait_for("the panel to hear of both nodes", lambda: hears_all(panel, addresses), 120)
    for camera in cameras:
        camera.start()
    try:
        wait_for("answers", lambda: len(panel.readings) > 100 or None, 120)

        stage.client.apply(MANIFEST.replace("VERSION", "second"))
        seen: dict[tuple[int, str], int] = {}

        def through() -> bool | None:
            told = rollout(stage, 2)
            if told:
                trial = told["trial"]["mode"] if told["trial"] else "whole"
                answered = sum(release_of(r.instance) == 2 for r in list(panel.readings))
                seen.setdefault((told["wave"], trial), answered)
                assert told["phase"] in ("rolling", "soaking", "done"), told["reason"]
            return (told.get("phase") == "done") or None

        wait_for("the model that agrees to be everywhere", through, 300)
        assert list(seen) == [(wave, how) for wave in (1, 2) for how in ("shadow", "split", "whole")]
        print({f"wave {wave}, {how}": n for (wave, how), n in seen.items()})
        assert seen[1, "split"] == 0, "in shadow it answered nobody"
        assert seen[1, "whole"] > 0, "in split it answered its share"
        wait_for("all its nodes", lambda: {i["revision"] for i in stage.instances("reader")} == {2} or None, 120)

        stage.client.apply(MANIFEST.replace("VERSION", "mixed"))
        wait_for("the verdict", lambda: rollout(stage, 3).get("phase") == "undone" or None, 300)
        told = rollout(stage, 3)
        assert told["reason"]["code"] == "gate_broken"
        assert "agreement.share" in told["reason"]["sentence"]
        print(told["reason"]["sentence"])
    finally:
        for camera in cameras:
            camera.finish()
    published = {frame.id for camera in cameras for frame in camera.published}

    def unanswered() -> list[str]:
        return sorted(published - {r.id for r in list(panel.readings)})

    with contextlib.suppress(BatutaError):
        wait_for("every answer", lambda: not unanswered() or None, 120)
    assert unanswered() == []
    panel.finish()
    panel.readings = [r for r in panel.readings if r.id not in NODES]
    ids = [r.id for r in panel.readings]
    assert len(ids) == len(set(ids)), "each was answered once"
    answered = {release: sum(release_of(r.instance) == release for r in panel.readings) for release in (1, 2, 3)}
    print(f"{len(published)} frames, answered by release: {answered}")
    assert answered[3] == 0, "the model that does not agree has answered nobody"
    assert answered[2] > 0
