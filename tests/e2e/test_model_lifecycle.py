"""A model from its trainer to the answer at the edge: trained, pushed, optimised, signed, deployed, asked.

Whatever variant a node runs, what it answers is what ONNX Runtime says of the same file and the same input here.
"""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from batuta.demo.stage import wait_for
from batuta.kinds.model import Model
from batuta.model_push import push
from batuta.model_sign import make_key
from tests.cli.running import run
from tests.e2e.playing import READER, Device, instance, play, ready
from tests.e2e.test_model_signing import asked_for

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.demo.digits import Digits
    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HAS_TORCH = find_spec("torch") is not None
if not HAS_TORCH:
    warnings.warn("PyTorch is not installed: its test is skipped; `make test-torch` installs and runs it", stacklevel=1)


def write_data(digits: Digits, directory: Path) -> tuple[Path, Path]:
    """Inputs to calibrate with, and others with what is right."""
    pixels = np.array([image.pixels for image in digits.held_out], np.float32)
    np.savez(directory / "calibrate.npz", x=pixels[:120])
    np.savez(directory / "labelled.npz", x=pixels[120:], y=[image.label for image in digits.held_out[120:]])
    return directory / "calibrate.npz", directory / "labelled.npz"


def through(stage: Stage, file: Path, digits: Digits, here: Path, least: float) -> dict[str, Any]:
    """Push, optimise and sign; returns what `optimize` said of each variant."""
    calibrate, labelled = write_data(digits, here)
    private, public = make_key(here / "key")
    stage.client.apply(asked_for(public))
    names = ["--name", "digits", "--version", "1", "--task", "classification"]
    pushed = run("model", "push", str(file), *names, "--golden-from", str(calibrate), state=stage.hub_state)
    assert pushed.code == 0, pushed.err
    optimized = run(
        "model", "optimize", "digits:1", "--int8", "dynamic", "--int8", "static", "--fp16", "--calibrate",
        str(calibrate), "--evaluate", str(labelled), "--floor", f"accuracy={least}", "--hardware", "workshop", "-o",
        "json", state=stage.hub_state,
    )  # fmt: skip
    assert optimized.code == 0, optimized.out + optimized.err
    signed = run("model", "sign", "digits", "--key", str(private), state=stage.hub_state)
    assert signed.code == 0, signed.err
    return {v["name"]: v for v in json.loads(optimized.out)["variants"]}


def file_of(stage: Stage, here: Path, variant: str) -> Path:
    """The bytes that a node gets."""
    version = stage.client.get(Model, "digits").resource.spec.versions[0]
    chosen = next(v for v in version.variants if v.name == variant)
    stage.client.pull_artifact(chosen.digest, here / f"{variant}.onnx")
    return here / f"{variant}.onnx"


def answers_equal_a_direct_call(stage: Stage, digits: Digits, file: Path, version: str = "1") -> None:
    """Ten images through the stream; each answer is the session's own, to six digits."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    with Device(stage.mqtt_of("pi")) as device:
        for i, image in enumerate(digits.held_out[:10]):
            name = f"{version}-{i}"
            device.show(name, image)
            said = device.read(name, 120)
            outputs = dict(
                zip(
                    [o.name for o in session.get_outputs()],
                    session.run(None, {"image": np.array([image.pixels], np.float32)}), strict=True,
                )
            )  # fmt: skip
            scores = outputs["probabilities"][0]
            assert said["model"] == f"digits:{version}"
            assert said["value"] == int(np.argmax(scores))
            assert np.allclose(said["scores"], scores, atol=2e-6)


def test_scikit_learn_from_the_trainer_to_the_edge(stage: Stage, digits: Digits, tmp_path: Path) -> None:
    play(stage)
    variants = through(stage, digits.second, digits, tmp_path, 0.9)
    assert sorted(variants) == ["fp16", "fp32", "int8-dynamic", "int8-static"]
    assert variants["int8-static"]["sizeBytes"] < variants["fp32"]["sizeBytes"]
    stage.client.apply(READER.format(version="1"))
    wait_for("the model", lambda: ready(stage), 180)
    # Of all that fit, the best by accuracy is chosen; of equals, the one that is listed first.
    (version,) = stage.client.get(Model, "digits").resource.spec.versions
    best = max(version.variants, key=lambda v: v.quality["accuracy"])
    assert instance(stage)["model"]["variant"] == best.name
    answers_equal_a_direct_call(stage, digits, file_of(stage, tmp_path, best.name))
    # Each of the others alone, so that there is nothing to choose.
    for revision, name in enumerate((v.name for v in version.variants if v.name != best.name), 2):
        switched_to(stage, file_of(stage, tmp_path, name), name, tmp_path, revision)
        answers_equal_a_direct_call(stage, digits, tmp_path / f"{name}.onnx", name)


def switched_to(stage: Stage, file: Path, version: str, here: Path, revision: int) -> None:
    """A version of one file, signed and running."""
    push(stage.client, file, name="digits", version=version)
    signed = run("model", "sign", "digits", "--key", str(here / "key"), "--version", version, state=stage.hub_state)
    assert signed.code == 0, signed.err
    stage.client.apply(READER.format(version=version))
    wait_for(f"the version {version}", lambda: ready(stage, revision=revision), 180)
    wait_for("the end of the one before", lambda: len(stage.instances("reader")) == 1 or None, 60)


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed: `make test-torch` installs and runs this")
def test_pytorch_from_the_trainer_to_the_edge(stage: Stage, digits: Digits, tmp_path: Path) -> None:
    play(stage)
    variants = through(stage, trained_with_torch(tmp_path / "torch.onnx"), digits, tmp_path, 0.85)
    assert {"fp16", "fp32", "int8-dynamic", "int8-static"} == set(variants)
    assert variants["int8-static"]["sizeBytes"] < variants["fp32"]["sizeBytes"] / 2
    stage.client.apply(READER.format(version="1"))
    wait_for("the model", lambda: ready(stage), 180)
    chosen = instance(stage)["model"]["variant"]
    answers_equal_a_direct_call(stage, digits, file_of(stage, tmp_path, chosen))
    switched_to(stage, file_of(stage, tmp_path, "int8-static"), "int8-static", tmp_path, 2)
    answers_equal_a_direct_call(stage, digits, tmp_path / "int8-static.onnx", "int8-static")


def trained_with_torch(path: Path) -> Path:
    """A small convolutional network, trained on the images that the others were trained on, exported by PyTorch."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from torch import nn

    images, labels = load_digits(return_X_y=True)
    shown, _, shown_labels, _ = train_test_split(images, labels, test_size=0.2, random_state=7, stratify=labels)
    torch.manual_seed(7)
    torch.set_num_threads(1)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 36, 64), nn.ReLU(), nn.Linear(64, 10), nn.Softmax(1),
    )  # fmt: skip
    inputs, right = torch.tensor(shown, dtype=torch.float32), torch.tensor(shown_labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(12):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.nll_loss(torch.log(network(inputs[batch] / 16) + 1e-9), right[batch]).backward()
            optimizer.step()

    class Whole(nn.Module):
        """With the scaling that the cameras know nothing of."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.network(image / 16)
            return found

    torch.onnx.export(
        Whole().eval(), (inputs[:1],), str(path), input_names=["image"], output_names=["probabilities"],
        dynamic_axes={"image": {0: "n"}, "probabilities": {0: "n"}}, opset_version=17, dynamo=False,
    )  # fmt: skip
    return path
