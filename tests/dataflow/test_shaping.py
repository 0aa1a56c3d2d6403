"""What is done to images before a model, and to its scores after it: the same by topic and by request."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx.helper as oh
import PIL.Image
import pytest

from batuta.core.decided import ModelOrder
from batuta.dataflow.engines import load
from batuta.dataflow.oip.datatypes import Port, packed
from batuta.dataflow.oip.shaped import Shaped
from batuta.dataflow.scoring import Scorer, meaning
from batuta.dataflow.shaping import item_of, named, shares
from batuta.kinds.base import Bytes
from batuta.kinds.model import Variant
from batuta.kinds.shaping import After, Before, shaping_problems

spec = importlib.util.spec_from_file_location("serving_for_tests", Path(__file__).with_name("serving_for_tests.py"))
assert spec is not None
assert spec.loader is not None
serving = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serving)

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Before(scale=1 / 255, mean=MEAN, std=STD)


def png(pixels: Any) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def resized(pixels: Any, height: int, width: int) -> Any:
    return np.asarray(PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BILINEAR))


def test_the_shape_of_the_input_says_what_is_not_said() -> None:
    chw = item_of(png(COLOURS), IMAGENET, Port("x", "FP32", (-1, 3, 4, 5)))
    wanted = (resized(COLOURS, 4, 5) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    assert chw.dtype == np.float32
    assert np.allclose(chw, wanted.transpose(2, 0, 1), atol=1e-5)
    hwc = item_of(png(COLOURS), None, Port("x", "UINT8", (-1, 6, 8, 3)))
    assert np.array_equal(hwc, COLOURS)
    assert np.array_equal(item_of(COLOURS, None, Port("x", "UINT8", (-1, 6, 8, 3))), COLOURS)
    grey = np.asarray(PIL.Image.fromarray(COLOURS).convert("L"))
    for shape in ((-1, 1, 6, 8), (-1, 6, 8, 1), (-1, 6, 8)):
        assert np.array_equal(item_of(png(COLOURS), None, Port("x", "UINT8", shape)).ravel(), grey.ravel())
    anything = item_of(png(COLOURS), Before(colour="bgr"), Port("x", "INT16", (-1, -1, -1, 3)))
    assert np.array_equal(anything, COLOURS[..., ::-1])


def test_fits() -> None:
    port = Port("x", "UINT8", (-1, 4, 4, 3))
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 255
    assert (item_of(png(wide), Before(fit="crop"), port) == 255).all(), "the middle"
    padded = item_of(png(np.full((4, 8, 3), 255, np.uint8)), Before(fit="pad"), port)
    assert (padded[0] == 0).all()
    assert (padded[1:3] == 255).all()


@pytest.mark.parametrize(
    ("data", "before", "shape", "why"),
    [
        (b"", None, (-1, 4, 4, 3), "neither JPEG nor PNG"),
        (png(COLOURS)[:60], None, (-1, 4, 4, 3), "neither JPEG nor PNG"),
        (b"GIF89a" + b"\0" * 100, None, (-1, 4, 4, 3), "neither JPEG nor PNG"),
        (png(COLOURS), None, (-1, 64), "no item of shape"),
        (png(COLOURS), None, (-1, 4, 4, 7), "7 channels"),
        (png(COLOURS), Before(resize=(9, 9)), (-1, 4, 4, 3), "the model takes"),
        (np.zeros((4, 4, 3), np.int32), None, (-1, 4, 4, 3), "pixels are UINT8"),
    ],
)
def test_what_is_no_image_for_this_model(data: Any, before: Any, shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        item_of(data, before, Port("x", "FP32", shape))


def test_an_image_too_large_is_refused_before_it_is_unpacked() -> None:
    chunk = png(COLOURS)
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + chunk[24:29]
    import zlib

    bomb = chunk[:12] + header + zlib.crc32(header).to_bytes(4, "big") + chunk[33:]
    with pytest.raises(ValueError, match="too large"):
        item_of(bomb, None, Port("x", "FP32", (-1, 4, 4, 3)))


SCORES = np.float32([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]])


def test_scores() -> None:
    soft = shares(SCORES, After(softmax=True))
    assert np.allclose(soft.sum(axis=1), 1)
    assert np.allclose(soft[0], np.exp(SCORES[0]) / np.exp(SCORES[0]).sum())
    assert np.allclose(shares(np.float32([[-1000, 0, 1000]]), After(sigmoid=True)), [[0, 0.5, 1]])
    assert shares(SCORES, After(top_k=1)) is SCORES
    said = named(SCORES, After(top_k=2, threshold=0.0), ("a", "b", "c"))
    assert said.classes.tolist() == [[1, 2], [0, -1]]
    assert said.labels.tolist() == [[b"b", b"c"], [b"a", b""]]
    assert said.scores.tolist() == [[3.0, 2.0], [0.0, 0.0]]
    assert meaning([SCORES], 2, ("a", "b", "c"), After(argmax=True)) == [
        {"value": 1, "label": "b"},
        {"value": 0, "label": "a"},
    ]
    assert meaning([SCORES], 2, (), After(threshold=2.5)) == [
        {"value": 1, "scores": {"1": 3.0}},
        {"value": None, "scores": {}},
    ]


def test_what_contradicts_itself_is_refused() -> None:
    wrong = [
        (Before(colour="grey", mean=MEAN), None, "mean"), (Before(std=(0.0,)), None, "std"),
        (None, After(softmax=True, sigmoid=True), "after"), (None, After(argmax=True, top_k=2), "argmax"),
    ]  # fmt: skip
    for before, after, where in wrong:
        (problem,) = shaping_problems("v", before, after)
        assert where in problem.path
    assert not list(shaping_problems("v", IMAGENET, After(softmax=True, top_k=5)))


def reds(path: Path) -> Path:
    """Sums each channel of an image: the brightest channel is the class."""
    nodes = [oh.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)]
    return serving.saved(path, nodes, [("x", "FP32", (None, 3, 4, 4))], [("y", "FP32", (None, 3))])


async def test_the_same_by_topic_and_by_request(tmp_path: Path) -> None:
    path = reds(tmp_path / "m.onnx")
    labels = ("red", "green", "blue")
    before, after = Before(scale=1 / 255, fit="crop"), After(softmax=True, top_k=2)
    image = np.zeros((20, 30, 3), np.uint8)
    image[..., 1] = 255
    async with serving.served(path) as here:
        here.endpoint.shaped = Shaped(here.engine, before, after, labels)
        variant = Variant(name="v", format="onnx", digest="sha256:" + "0" * 64, size_bytes=Bytes(1))
        order = ModelOrder(name="m", version="1", variant=variant, labels=labels, before=before, after=after)
        scorer = Scorer(load(str(path), "onnx"), order, None)
        item = scorer.decode(png(image), "image")
        (answer,) = await scorer.score([item.tensor], here.batching.run)
        assert answer["label"] == "green"
        share = float(np.exp(1) / (np.exp(1) + 2))
        assert answer["scores"]["green"] == pytest.approx(share, abs=1e-5)

        data = np.empty(2, object)
        data[:] = [png(image), png(255 - image)]
        tail = packed(data)
        given = {"name": "x", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
        head = json.dumps({"inputs": [given]}).encode()
        size = {"Inference-Header-Content-Length": str(len(head))}
        status, _, body = await serving.ask(here.port, "/v2/models/m/infer", head + tail, size)
        assert status == 200, body
        said = {each["name"]: each for each in json.loads(body)["outputs"]}
        assert said["labels"]["shape"] == [2, 2]
        assert said["labels"]["data"][0] == "green"
        assert set(said["labels"]["data"][2:]) == {"red", "blue"}
        assert said["classes"]["data"][0] == 1
        assert said["scores"]["data"][0] == pytest.approx(share, abs=1e-5)

        # As pixels; and the model's own tensors go in and come out as they are.
        pixels = serving.tensor(image.ravel().tolist(), [1, 20, 30, 3], "UINT8")
        _, _, body = await serving.ask(here.port, "/v2/models/m/infer", {"inputs": [pixels]})
        assert json.loads(body)["outputs"][1]["data"][0] == "green"
        raw = serving.tensor([1.0] * 16 + [3.0] * 16 + [2.0] * 16, [1, 3, 4, 4])
        _, _, body = await serving.ask(here.port, "/v2/models/m/infer", {"inputs": [raw]})
        assert json.loads(body)["outputs"] == [
            {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 3.0, 2.0]}
        ]
        named_too = {"inputs": [raw], "outputs": [{"name": "labels"}, {"name": "y"}]}
        _, _, body = await serving.ask(here.port, "/v2/models/m/infer", named_too)
        assert [each["data"] for each in json.loads(body)["outputs"]] == [["green", "blue"], [1.0, 3.0, 2.0]]

        nonsense = {"inputs": [serving.tensor([base64.b64encode(b"no image").decode()], [1], "BYTES")]}
        status, _, body = await serving.ask(here.port, "/v2/models/m/infer", nonsense)
        assert (status, "neither JPEG nor PNG" in body.decode()) == (400, True)
