"""The Open Inference Protocol: every datatype both ways, every wrong thing told apart, batches that mix nobody up."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest

from batuta.dataflow.oip.datatypes import DTYPES, packed, shortened, unpacked, widened

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
