"""Endpoints for tests: real sessions of ONNX Runtime behind real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import onnx
import onnx.helper as oh

from batuta.dataflow.engines import load
from batuta.dataflow.oip.batching import Batching
from batuta.dataflow.oip.endpoint import Endpoint
from batuta.dataflow.oip.http import Listener
from batuta.fabric.broker import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

T = onnx.TensorProto
KINDS = {
    "BOOL": T.BOOL, "UINT8": T.UINT8, "UINT16": T.UINT16, "UINT32": T.UINT32, "UINT64": T.UINT64, "INT8": T.INT8,
    "INT16": T.INT16, "INT32": T.INT32, "INT64": T.INT64, "FP16": T.FLOAT16, "FP32": T.FLOAT, "FP64": T.DOUBLE,
    "BF16": T.BFLOAT16, "BYTES": T.STRING,
}  # fmt: skip


def echo(path: Path, datatype: str = "FP32", shape: tuple[Any, ...] = (None, 4), op: str = "Identity") -> Path:
    """A model that says what it hears."""
    return saved(path, [oh.make_node(op, ["x"], ["y"])], [("x", datatype, shape)], [("y", datatype, shape)])


def saved(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Path:
    def infos(ports: list[Any]) -> list[Any]:
        return [oh.make_tensor_value_info(n, KINDS[d], s) for n, d, s in ports]

    graph = oh.make_graph(nodes, "g", infos(inputs), infos(outputs))
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9), path)
    return path


class Served:
    """One endpoint at a port of loopback."""

    def __init__(self, path: Path, room: int = 1024, **more: Any) -> None:
        self.engine = load(str(path), "onnx")
        self.batching = Batching(self.engine, more.pop("batch", 32), more.pop("linger_ms", 0), room)
        self.batching.try_out()
        self.endpoint = Endpoint("m", "1", self.engine, self.batching)
        self.listener = Listener(self.endpoint, **more)
        self.port = free_port("127.0.0.1")


@contextlib.asynccontextmanager
async def served(path: Path, **more: Any) -> AsyncIterator[Served]:
    made = Served(path, **more)
    await made.listener.listen(port=made.port)
    try:
        yield made
    finally:
        made.listener.close()
        await made.batching.drain(5)
        made.batching.close()


async def ask(
    port: int, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    verb = method or ("GET" if body is None else "POST")
    lines = [f"{verb} {path} HTTP/1.1", "Host: x", "Connection: close"]
    lines += [f"{k}: {v}" for k, v in ({"Content-Length": str(len(data))} | (headers or {})).items()]
    return await raw(port, "\r\n".join(lines).encode() + b"\r\n\r\n" + data)


async def raw(port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await answer(reader)
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(60):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def tensor(data: Any, shape: list[int], datatype: str = "FP32", name: str = "x", **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, **more}


async def until(true: Any, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            found = true()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.01)
