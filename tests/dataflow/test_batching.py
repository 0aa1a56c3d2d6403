"""Batching: what runs together and keeps its own, who goes first, who is turned away, and deadlines."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx.helper as oh
import pytest

from batuta.dataflow.oip.batching import Batching, Job
from batuta.dataflow.oip.faults import Fault

spec = importlib.util.spec_from_file_location("serving_for_tests", Path(__file__).with_name("serving_for_tests.py"))
assert spec is not None
assert spec.loader is not None
serving = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serving)
served, ask, tensor = serving.served, serving.ask, serving.tensor

INFER = "/v2/models/m/infer"


class Slow:
    """An engine whose runs last until they are let go; it sums rows, so that mixing would be seen."""

    platform, runs_on = "test", "test"

    def __init__(self) -> None:
        from batuta.dataflow.oip.datatypes import Port

        self.inputs = (Port("x", "FP32", (-1, 1)),)
        self.outputs = (Port("y", "FP32", (-1, 1)),)
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def run(self, feeds: Any) -> list[Any]:
        assert self.go.wait(60)
        self.sizes.append(len(feeds["x"]))
        if (feeds["x"] == 666).any():
            raise RuntimeError("poison")
        return [feeds["x"] * 2]

    def tensors(self, outputs: Any) -> list[Any]:
        return list(outputs)


def job(value: float, said: dict[float, Any], **more: Any) -> Job:
    def done(outputs: Any, fault: Any) -> None:
        assert value not in said, "told once"
        said[value] = fault if outputs is None else float(outputs[0][0, 0])

    return Job({"x": np.float32([[value]])}, 1, done, **more)


async def all_said(said: dict[float, Any], count: int) -> None:
    await serving.until(lambda: len(said) >= count)


async def test_what_waits_together_runs_together_and_keeps_its_own(tmp_path: Path) -> None:
    engine = Slow()
    batching = Batching(engine, batch=8)
    batching.try_out()
    assert batching.mixes
    engine.sizes.clear()
    said: dict[float, Any] = {}
    for i in range(20):
        batching.submit(job(float(i), said))
    await all_said(said, 20)
    assert said == {float(i): 2.0 * i for i in range(20)}
    assert engine.sizes == [8, 8, 4]
    # One that fails is alone in that; those it ran with are answered.
    for value in (1.0, 666.0, 3.0):
        said.pop(value, None)
        batching.submit(job(value, said))
    await all_said(said, 21)
    assert (said[1.0], said[3.0]) == (2.0, 6.0)
    assert "poison" in str(said[666.0])
    assert batching.guests == 0
    batching.close()


async def test_the_urgent_goes_first_and_the_full_house_turns_away_the_least_urgent(tmp_path: Path) -> None:
    engine = Slow()
    batching = Batching(engine, batch=1, room=10)
    batching._run_s = 1.0  # it is expected to take long, so it runs in its thread
    engine.go.clear()
    said: dict[float, Any] = {}
    order: list[float] = []
    batching.submit(job(100.0, said))
    await asyncio.sleep(0)
    for i in range(4):
        batching.submit(job(float(i), said, urgency=2))
    with pytest.raises(Fault) as bulk:
        batching.submit(job(50.0, said, urgency=2))
    assert (bulk.value.code, bulk.value.status) == ("overloaded", 503)
    assert bulk.value.retry_after_s >= 1
    for i in range(10, 14):
        batching.submit(job(float(i), said))
    batching.submit(job(20.0, said, urgency=0))
    batching.submit(job(21.0, said, urgency=0))
    assert isinstance(said[3.0], Fault), "the newest of the least urgent gave way"
    assert batching.guests == 10
    engine.sizes.clear()
    run = engine.run

    def noting(feeds: Any) -> list[Any]:
        order.append(float(feeds["x"][0, 0]))
        return run(feeds)

    engine.run = noting  # type: ignore[method-assign]
    engine.go.set()
    await all_said(said, 11)
    assert order == [20.0, 21.0, 10.0, 11.0, 12.0, 13.0, 0.0, 1.0, 2.0]
    assert batching.guests == 0
    batching.close()


async def test_a_deadline_is_told_when_it_passes_not_when_the_run_ends(tmp_path: Path) -> None:
    engine = Slow()
    batching = Batching(engine, batch=1)
    batching._run_s = 1.0
    engine.go.clear()
    said: dict[float, Any] = {}
    loop = asyncio.get_running_loop()
    batching.submit(job(1.0, said, deadline=loop.time() + 0.02))
    batching.submit(job(2.0, said, deadline=loop.time() + 0.02))
    await all_said(said, 2)
    assert {fault.code for fault in said.values()} == {"deadline_passed"}
    assert batching.guests == 0
    engine.go.set()
    assert (await batching.run({"x": np.float32([[4]])}, 1))[0][0, 0] == 8.0
    assert engine.sizes == [1, 1], "what was over before it began was not run"
    batching.close()


async def test_lingering_ends_with_the_tightest_deadline(tmp_path: Path) -> None:
    engine = Slow()
    batching = Batching(engine, batch=64, linger_ms=60_000)
    batching.try_out()
    said: dict[float, Any] = {}
    engine.sizes.clear()
    batching.submit(job(1.0, said))
    batching.submit(job(2.0, said, deadline=asyncio.get_running_loop().time() + 1.0))
    await all_said(said, 2)
    assert (said[1.0], said[2.0]) == (2.0, 4.0), "answered in time, both"
    assert engine.sizes == [2]
    batching.close()


async def test_rows_that_belong_together_are_never_joined(tmp_path: Path) -> None:
    """A sum over the first dimension: time steps, not a batch."""
    nodes = [oh.make_node("CumSum", ["x", "zero"], ["y"])]
    nodes.insert(0, oh.make_node("Constant", [], ["zero"], value=oh.make_tensor("zero", serving.T.INT64, [], [0])))
    path = serving.saved(tmp_path / "m.onnx", nodes, [("x", "FP32", (None, 1))], [("y", "FP32", (None, 1))])
    async with served(path) as here:
        assert not here.batching.mixes
        body = {"inputs": [tensor([1.0, 2.0, 3.0], [3, 1])]}
        found = await asyncio.gather(*(ask(here.port, INFER, body) for _ in range(8)))
        assert {tuple(json.loads(each[2])["outputs"][0]["data"]) for each in found} == {(1.0, 3.0, 6.0)}
