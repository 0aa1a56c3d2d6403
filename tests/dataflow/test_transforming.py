"""A version's own Python: it computes, and can do nothing else."""

from __future__ import annotations

import importlib.util
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from batuta.core.decided import ModelOrder
from batuta.dataflow.confined import ALLOWED
from batuta.dataflow.engines import Unfit
from batuta.dataflow.oip.transformed import Transformed
from batuta.dataflow.scoring import Scorer
from batuta.dataflow.transforming import Transform, arrays_of, message_of
from batuta.kinds.base import Bytes
from batuta.kinds.model import Variant

if TYPE_CHECKING:
    from collections.abc import Iterator

spec = importlib.util.spec_from_file_location("serving_for_tests", Path(__file__).with_name("serving_for_tests.py"))
assert spec is not None
assert spec.loader is not None
serving = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serving)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() not in ALLOWED, reason="no list of kernel calls for this processor"),
]
KEEP = b"\ndef before(inputs): return inputs\n"
GOOD = b"""
import numpy as np

def before(inputs):
    return {"x": np.asarray(inputs["x"], np.float32).reshape(1, 4) / 2}

def after(outputs):
    best = outputs["y"].argmax(axis=1)
    return {"best": best, "word": np.array([f"class {i}" for i in best])}
"""


@pytest.fixture
def transform() -> Iterator[Transform]:
    made = Transform(GOOD)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"import socket; socket.socket()", "not permitted|No module"),
        (b"import ctypes, errno; assert ctypes.CDLL(None, use_errno=True).socket(2, 1, 0) >= 0", "AssertionError"),
        (b"import os; os.fork()", "not permitted"),
        (b"import os; os.execv('/bin/true', ['true'])", "not permitted"),
        (b"import os; os.kill(os.getppid() if False else 1, 0)", "not permitted"),
        (b"import os; os.listdir('/')", "not permitted"),
        (b"open('/etc/passwd')", "not permitted"),
        (b"open('here', 'w')", "not permitted"),
        (b"import sqlite3", "No module|not permitted"),
        (b"import os; assert not os.environ; raise ValueError('nothing there')", "nothing there"),
        (b"def before(inputs", "SyntaxError"),
        (b"raise SystemExit", "SystemExit"),
    ],
)
def test_what_it_cannot_do(text: bytes, why: str) -> None:
    with pytest.raises(Unfit, match=why) as unfit:
        Transform(text + KEEP)
    assert unfit.value.code == "artifact_unreadable"


def test_a_file_with_neither_function_is_none() -> None:
    with pytest.raises(Unfit, match="neither before nor after"):
        Transform(b"x = 1")


def test_it_comes_back_after_it_thinks_too_long_or_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batuta.dataflow.transforming.CALL_S", 1.0)
    text = b"""
import numpy as np, os

def before(inputs):
    match int(inputs["x"][0]):
        case 1:
            while True:
                pass
        case 2:
            return {"x": np.ones(10**10)}
        case 3:
            os._exit(1)
        case 4:
            return {"x": np.array([1j])}
        case 5:
            return 5
    return inputs
"""
    made = Transform(text)
    try:
        for value, why in ((1, "too long"), (2, "MemoryError"), (3, "ended"), (4, "handed over"), (5, "items")):
            with pytest.raises(ValueError, match=why):
                made.before({"x": np.float32([value])})
            assert made.before({"x": np.float32([9])})["x"][0] == 9
        assert made.restarts == 2
    finally:
        made.close()


@pytest.mark.parametrize("shape", [[2], [-1], [10**12]])
def test_nothing_it_says_is_trusted(shape: list[int]) -> None:
    import msgspec

    good = msgspec.msgpack.decode(message_of({"x": np.float32([1])}))
    good[0][0][2] = shape
    with pytest.raises(ValueError, match=r"no array|another size"):
        arrays_of(msgspec.msgpack.encode(good))


async def test_the_same_by_topic_and_by_request(tmp_path: Path, transform: Transform) -> None:
    async with serving.served(serving.echo(tmp_path / "m.onnx")) as here:
        here.endpoint.shaped = transformed = Transformed(here.engine, transform)
        variant = Variant(name="v", format="onnx", digest="sha256:" + "0" * 64, size_bytes=Bytes(1))
        scorer = Scorer(here.engine, ModelOrder(name="m", version="1", variant=variant), None, transformed)
        item = scorer.decode(b'{"id": "a", "data": [[2, 4], [9, 8]]}', "json")
        assert (item.id, item.tensor.tolist()) == ("a", [1.0, 2.0, 4.5, 4.0])
        assert await scorer.score([item.tensor], here.batching.run) == [{"best": 2, "word": "class 2"}]

        asked = {"inputs": [serving.tensor([2, 4, 9, 8], [2, 2], "INT64")]}
        status, _, body = await serving.ask(here.port, "/v2/models/m/infer", asked)
        assert status == 200, body
        found = {each["name"]: each["data"] for each in json.loads(body)["outputs"]}
        assert found == {"best": [2], "word": ["class 2"]}
        raw = {"inputs": [serving.tensor([1.0, 2.0, 3.0, 4.0], [1, 4])]}
        _, _, body = await serving.ask(here.port, "/v2/models/m/infer", raw)
        assert json.loads(body)["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0], "the model's own tensors pass by"
        wrong = {"inputs": [serving.tensor([1, 2], [2], "INT64")]}
        status, _, body = await serving.ask(here.port, "/v2/models/m/infer", wrong)
        assert (status, "cannot reshape" in body.decode()) == (400, True)
