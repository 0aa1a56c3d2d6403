"""The Open Inference Protocol: every datatype both ways, every wrong thing told apart, batches that mix nobody up."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import json
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import onnx.helper as oh
import pytest

from batuta.dataflow.oip.batching import Batching, Job
from batuta.dataflow.oip.datatypes import DTYPES, packed, shortened, unpacked, widened
from batuta.dataflow.oip.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

spec = importlib.util.spec_from_file_location("serving_for_tests", Path(__file__).with_name("serving_for_tests.py"))
assert spec is not None
assert spec.loader is not None
serving = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serving)
served, ask, raw, tensor, echo = serving.served, serving.ask, serving.raw, serving.tensor, serving.echo

INFER = "/v2/models/m/infer"
VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, True], "UINT8": [0, 7, 255], "UINT16": [0, 7, 65535], "UINT32": [0, 7, 4294967295],
    "UINT64": [0, 7, 18446744073709551615], "INT8": [-128, 0, 127], "INT16": [-32768, 0, 32767],
    "INT32": [-2147483648, 0, 2147483647], "INT64": [-9223372036854775808, 0, 9223372036854775807],
    "FP16": [-1.5, 0.0, 65504.0], "FP32": [-1.5, 0.0, 3.0], "FP64": [-1.5, 0.1, 1e300], "BF16": [-1.5, 0.0, 256.0],
    "BYTES": ["", "a", "grüße"],
}  # fmt: skip
# As the protocol's own document says it, for one model.
METADATA = {
    "type": "object", "required": ["name", "platform", "inputs", "outputs"],
    "properties": {
        "name": {"type": "string"}, "versions": {"type": "array", "items": {"type": "string"}},
        "platform": {"type": "string"},
        **{side: {"type": "array", "items": {"$ref": "#/$defs/tensor"}} for side in ("inputs", "outputs")},
    },
    "additionalProperties": False,
    "$defs": {"tensor": {
        "type": "object", "required": ["name", "datatype", "shape"], "additionalProperties": False,
        "properties": {
            "name": {"type": "string"}, "datatype": {"enum": [*VALUES]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": -1}},
        },
    }},
}  # fmt: skip
RESPONSE = {
    "type": "object", "required": ["model_name", "outputs"], "additionalProperties": False,
    "properties": {
        "model_name": {"type": "string"}, "model_version": {"type": "string"}, "id": {"type": "string"},
        "parameters": {"type": "object"},
        "outputs": {"type": "array", "items": {
            "type": "object", "required": ["name", "shape", "datatype"], "additionalProperties": False,
            "properties": {
                "name": {"type": "string"}, "datatype": {"enum": [*VALUES]}, "parameters": {"type": "object"},
                "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}}, "data": {"type": "array"},
            },
        }},
    },
}  # fmt: skip


def wire(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        words = np.empty(len(values), object)
        words[:] = [v.encode() for v in values]
        return packed(words)
    if datatype == "BF16":
        return shortened(np.float32(values)).tobytes()
    return np.array(values, DTYPES[datatype]).tobytes()


@pytest.mark.parametrize("datatype", sorted(VALUES))
async def test_every_datatype_both_ways(tmp_path: Path, datatype: str) -> None:
    values = VALUES[datatype]
    async with served(echo(tmp_path / "m.onnx", datatype, (None, 3))) as here:
        status, _, body = await ask(here.port, INFER, {"id": "q", "inputs": [tensor(values, [1, 3], datatype)]})
        assert status == 200, body
        said = json.loads(body)
        jsonschema.validate(said, RESPONSE)
        assert said["outputs"] == [{"name": "y", "datatype": datatype, "shape": [1, 3], "data": values}]
        assert (said["model_name"], said["model_version"], said["id"]) == ("m", "1", "q")
        nested = await ask(here.port, INFER, {"inputs": [tensor([values, values], [2, 3], datatype)]})
        assert json.loads(nested[2])["outputs"][0]["data"] == values * 2

        data = wire(datatype, values)
        given = {"name": "x", "shape": [1, 3], "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
        head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
        size = {"Inference-Header-Content-Length": str(len(head))}
        status, headers, body = await ask(here.port, INFER, head + data, size)
        assert status == 200, body
        cut = int(headers["inference-header-content-length"])
        assert body[cut:] == data
        assert json.loads(body[:cut])["outputs"][0]["parameters"] == {"binary_data_size": len(data)}
        # One output in binary and JSON for the request: what the output says goes before what the request says.
        plain = json.dumps(
            {"inputs": [given], "parameters": {"binary_data_output": True},
             "outputs": [{"name": "y", "parameters": {"binary_data": False}}]}
        ).encode()  # fmt: skip
        found = await ask(here.port, INFER, plain + data, {"Inference-Header-Content-Length": str(len(plain))})
        assert json.loads(found[2])["outputs"][0]["data"] == values
        if datatype != "BYTES":
            found = await ask(here.port, INFER, data, {"Inference-Header-Content-Length": "0"})
            assert found[2].endswith(data), "a body of nothing but the tensor"


async def test_what_is_there_to_be_asked(tmp_path: Path) -> None:
    async with served(echo(tmp_path / "m.onnx")) as here:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/v2/models/m/versions/1/ready"):
            assert (await ask(here.port, path))[0] == 200
        _, _, body = await ask(here.port, "/v2")
        assert json.loads(body)["name"] == "batuta"
        assert "binary_tensor_data" in json.loads(body)["extensions"]
        for path in ("/v2/models/m", "/v2/models/m/versions/1", "/v2/models/m?x=1"):
            _, _, body = await ask(here.port, path)
            jsonschema.validate(json.loads(body), METADATA)
            assert json.loads(body)["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        _, _, body = await ask(here.port, "/v2/repository/index", {})
        assert json.loads(body) == [{"name": "m", "version": "1", "state": "READY", "reason": ""}]
        assert (await ask(here.port, "/v2/repository/models/m/load", {}))[0] == 200
        assert (await ask(here.port, "/v2/repository/models/m/unload", {}))[0] == 501
        here.endpoint.is_ready = False
        assert (await ask(here.port, "/v2/models/m/ready"))[0] == 400
        status, headers, _ = await ask(here.port, INFER, {"inputs": [tensor([1.0] * 4, [1, 4])]})
        assert (status, headers["batuta-error"]) == (503, "not_ready")


GOOD = {"inputs": [tensor([1.0, 2.0, 3.0, 4.0], [1, 4])]}


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "why"),
    [
        ("/v2/models/other/infer", GOOD, {}, 404, "no model 'other'"),
        ("/v2/models/m/versions/9/infer", GOOD, {}, 404, "no version '9'"),
        ("/v2/nonsense", GOOD, {}, 404, "nothing at"),
        ("/v2/health/live", GOOD, {}, 405, "takes GET"),
        (INFER, b"{", {}, 400, "not a request"),
        (INFER, b"", {}, 400, "not a request"),
        (INFER, b"[" * 20_000, {}, 400, "not a request"),
        (INFER, b"\xff\xfe", {}, 400, "not a request"),
        (INFER, {"inputs": []}, {}, 400, "1 to 256 inputs"),
        (INFER, {"inputs": [tensor([1.0] * 4, [1, 4]), tensor([1.0] * 4, [1, 4])]}, {}, 400, "twice"),
        (INFER, {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32"}]}, {}, 400, "has no data"),
        (INFER, {"inputs": [tensor([1.0] * 4, [1, 4], "FP99")]}, {}, 400, "no datatype 'FP99'"),
        (INFER, {"inputs": [tensor([1.0] * 4, [1, 4], "FP64")]}, {}, 400, "is FP32, not FP64"),
        (INFER, {"inputs": [tensor([1.0] * 4, [1, 4], name="z")]}, {}, 400, "no input 'z'"),
        (INFER, {"inputs": [tensor([1.0] * 3, [1, 3])]}, {}, 400, r"has shape \[-1, 4\], not \[1, 3\]"),
        (INFER, {"inputs": [tensor([1.0] * 3, [1, 4])]}, {}, 400, "takes 4 values"),
        (INFER, {"inputs": [tensor([], [0, 4])]}, {}, 400, "is empty"),
        (INFER, {"inputs": [tensor([1.0] * 4, [1, -4])]}, {}, 400, "is no shape"),
        (INFER, {"inputs": [tensor([1.0] * 4, [10**9, 10**9])]}, {}, 400, "values; there are fewer"),
        (INFER, {"inputs": [tensor(["a", "b", "c", "d"], [1, 4])]}, {}, 400, "is a list of numbers"),
        (INFER, {"inputs": [tensor([True] * 4, [1, 4])]}, {}, 400, "is a list of numbers"),
        (INFER, {"inputs": [tensor([[1.0, 2.0], [3.0]], [1, 4])]}, {}, 400, "unequal"),
        (INFER, {"inputs": [tensor([1e300] * 4, [1, 4])]}, {}, 400, "too large for FP32"),
        (INFER, {**GOOD, "outputs": [{"name": "z"}]}, {}, 400, "no output 'z'"),
        (INFER, {**GOOD, "parameters": {"priority": "x"}}, {}, 400, "priority"),
        (INFER, {**GOOD, "parameters": {"timeout": -1}}, {}, 400, "timeout"),
        (INFER, GOOD, {"Inference-Header-Content-Length": "9999"}, 400, "9999 bytes of JSON"),
        (INFER, GOOD, {"Inference-Header-Content-Length": "x"}, 400, "is a number"),
        (INFER, GOOD, {"Batuta-Class": "urgent"}, 400, "critical, normal, bulk"),
        (INFER, GOOD, {"Batuta-Deadline-Ms": "0"}, 504, "deadline"),
        (INFER, GOOD, {"Content-Encoding": "br"}, 415, "'br' is not understood"),
        (INFER, GOOD, {"Content-Encoding": "gzip"}, 400, "decompressed"),
        (INFER, GOOD, {"Origin": "https://example.com"}, 403, "may not ask"),
        (
            INFER,
            {"inputs": [tensor(None, [1, 4], parameters={"shared_memory_region": "r"})]},
            {},
            400,
            "malformed|data",
        ),
        ("/v2/systemsharedmemory/region/r/register", {"key": "/../x", "byte_size": 4}, {}, 400, "shared memory"),
        ("/v2/systemsharedmemory/region/r/register", {"key": "/none-of-it", "byte_size": 4}, {}, 400, "opened"),
        ("/v2/cudasharedmemory/unregister", {}, {}, 501, "CUDA"),
    ],
)
async def test_wrong_requests(
    tmp_path: Path, path: str, body: Any, headers: dict[str, str], status: int, why: str
) -> None:
    import re

    async with served(echo(tmp_path / "m.onnx")) as here:
        found, said, text = await ask(here.port, path, body, headers)
        assert found == status, text
        assert set(json.loads(text)) == {"error"}
        assert re.search(why, json.loads(text)["error"]), text
        assert said["batuta-error"]
        assert (await ask(here.port, INFER, GOOD))[0] == 200, "the next one is answered"


async def test_wrong_http(tmp_path: Path) -> None:
    async with served(echo(tmp_path / "m.onnx"), body_bytes_max=1000) as here:
        post = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n"
        assert (await raw(here.port, b"nonsense\r\n\r\n"))[0] == 400
        assert (await raw(here.port, b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000))[0] == 431
        assert (await raw(here.port, post + b"Content-Length: 2147483648\r\n\r\n"))[0] == 413, "at once, unread"
        both = b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc"
        assert (await raw(here.port, post + both))[0] == 400
        assert (await raw(here.port, post + b"Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"a" * 2000))[0] == 413
        assert (await raw(here.port, post + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"))[0] == 400
        bomb = gzip.compress(b"a" * 100_000)
        assert (await ask(here.port, INFER, bomb, {"Content-Encoding": "gzip"}))[0] == 413
        body = json.dumps(GOOD).encode()
        assert (await ask(here.port, INFER, gzip.compress(body), {"Content-Encoding": "gzip"}))[0] == 200
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
        chunked = post + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        assert (await raw(here.port, chunked))[0] == 200
        assert here.listener.held_bytes == 0


async def test_pieces_and_pipelines(tmp_path: Path) -> None:
    """However the bytes of requests arrive, each is answered once and in order."""
    async with served(echo(tmp_path / "m.onnx")) as here:
        requests = []
        for i in range(20):
            body = json.dumps({"id": str(i), "inputs": [tensor([float(i)] * 4, [1, 4])]}).encode()
            requests.append(b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        everything = b"".join(requests)
        for step in (1, 7, 100, len(everything)):
            reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
            for at in range(0, len(everything), step):
                writer.write(everything[at : at + step])
                if step < 100:
                    await asyncio.sleep(0)
            ids = [json.loads((await serving.answer(reader))[2])["id"] for _ in requests]
            assert ids == [str(i) for i in range(20)]
            writer.close()
        assert here.listener.held_bytes == 0


async def test_a_client_that_goes_away_midway_harms_nobody(tmp_path: Path) -> None:
    async with served(echo(tmp_path / "m.onnx")) as here:
        for data in (b"POST", b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 500\r\n\r\nabc"):
            _, writer = await asyncio.open_connection("127.0.0.1", here.port)
            writer.write(data)
            await writer.drain()
            writer.transport.abort()
        await serving.until(lambda: not here.listener.connections)
        assert here.listener.held_bytes == 0
        assert (await ask(here.port, INFER, GOOD))[0] == 200


async def test_large_tensors_lie_as_they_came(tmp_path: Path) -> None:
    async with served(echo(tmp_path / "m.onnx", "FP32", (None, None))) as here:
        wanted = np.random.default_rng(0).random((64, 50_000), np.float32)
        data = wanted.tobytes()
        given = {"name": "x", "shape": [64, 50_000], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
        head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
        size = {"Inference-Header-Content-Length": str(len(head)), "Expect": "100-continue"}
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        lines = f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + len(data)}\r\n"
        writer.write(f"POST {INFER} HTTP/1.1\r\n{lines}Expect: {size['Expect']}\r\n\r\n".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(head + data)
        status, headers, body = await serving.answer(reader)
        writer.close()
        assert status == 200
        assert body[int(headers["inference-header-content-length"]) :] == data
        assert here.listener.held_bytes == 0


async def test_infinities_are_said_in_binary_only(tmp_path: Path) -> None:
    async with served(echo(tmp_path / "m.onnx", op="Log")) as here:
        status, _, body = await ask(here.port, INFER, {"inputs": [tensor([0.0, -1.0, 1.0, 2.0], [1, 4])]})
        assert status == 400
        assert "binary_data" in json.loads(body)["error"]
        asked = {"inputs": [tensor([0.0, -1.0, 1.0, 2.0], [1, 4])], "parameters": {"binary_data_output": True}}
        status, _, body = await ask(here.port, INFER, asked)
        assert status == 200
        assert np.isneginf(np.frombuffer(body[-16:], np.float32)[0])


async def test_classification(tmp_path: Path) -> None:
    async with served(echo(tmp_path / "m.onnx")) as here:
        asked = [{"name": "y", "parameters": {"classification": 2}}]
        _, _, body = await ask(here.port, INFER, {"inputs": [tensor([0.5, 4.0, 1.0, 2.0], [1, 4])], "outputs": asked})
        assert json.loads(body)["outputs"][0]["data"] == ["4.0:1", "2.0:3"]


# --- Batching ---


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


# --- Datatypes ---


def test_bf16_rounds_to_the_nearest() -> None:
    numbers = np.float32([1.0, -2.5, 3.14159, np.inf, -np.inf, 1e-40, 65280.0])
    back = widened(shortened(numbers))
    assert np.allclose(back[[0, 1, 2, 6]], numbers[[0, 1, 2, 6]], rtol=2**-8)
    assert np.isinf(back[3])
    assert back[4] == -np.inf
    assert np.isnan(widened(shortened(np.float32([np.nan])))[0])


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x05\0\0\0ab", b"\x01\0\0\0ab"])
def test_bytes_that_are_no_elements(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"bytes|element"):
        unpacked(memoryview(data), 1)


# --- A client from elsewhere ---


async def test_tritonclient(tmp_path: Path) -> None:
    async with served(echo(tmp_path / "m.onnx", "FP32", (None, 16))) as here:
        await asyncio.to_thread(_tritonclient, here.port)


def _tritonclient(port: int) -> None:
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException, shared_memory

    client = http.InferenceServerClient(f"localhost:{port}")
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("m")
        assert client.is_model_ready("m", "1")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "batuta"
        assert client.get_model_metadata("m")["inputs"][0]["shape"] == [-1, 16]
        assert client.get_model_repository_index()[0]["state"] == "READY"
        client.load_model("m")
        wanted = np.random.default_rng(1).random((3, 16), np.float32)
        given = http.InferInput("x", [3, 16], "FP32")
        for binary_in in (False, True):
            for binary_out in (False, True):
                given.set_data_from_numpy(wanted, binary_data=binary_in)
                asked = http.InferRequestedOutput("y", binary_data=binary_out)
                found = client.infer("m", [given], outputs=[asked], request_id="7", priority=1, timeout=10_000_000)
                assert np.allclose(found.as_numpy("y"), wanted)
                assert found.get_response()["id"] == "7"
        for packing in ("gzip", "deflate"):
            found = client.infer("m", [given], request_compression_algorithm=packing)
            assert np.allclose(found.as_numpy("y"), wanted)
        with pytest.raises(InferenceServerException, match="no model"):
            client.infer("other", [given])
        _through_shared_memory(client, http, shared_memory, wanted)
    finally:
        client.close()


def _through_shared_memory(client: Any, http: Any, shared_memory: Any, wanted: Any) -> None:
    region = shared_memory.create_shared_memory_region("r", f"/batuta-test-{socket.gethostname()}-{id(client)}", 4096)
    try:
        shared_memory.set_shared_memory_region(region, [wanted])
        client.register_system_shared_memory("r", region._shm_key, 4096)
        assert client.get_system_shared_memory_status()[0]["name"] == "r"
        given = http.InferInput("x", [3, 16], "FP32")
        given.set_shared_memory("r", wanted.nbytes)
        asked = http.InferRequestedOutput("y")
        asked.set_shared_memory("r", wanted.nbytes, offset=2048)
        client.infer("m", [given], outputs=[asked])
        found = shared_memory.get_contents_as_numpy(region, np.float32, [3, 16], offset=2048)
        assert np.allclose(found, wanted)
        client.unregister_system_shared_memory("r")
        assert client.get_system_shared_memory_status() == []
    finally:
        shared_memory.destroy_shared_memory_region(region)
