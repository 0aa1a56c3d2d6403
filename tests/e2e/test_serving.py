"""Workers that are asked: at their socket, their port and on the fabric; too much, too often, beyond their memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import onnx.helper as oh
import psutil
import pytest

from batuta.core.decided import Capture, Instance, ModelOrder
from batuta.core.serving import HEADER_CLASS, HEADER_DEADLINE, HEADER_ERROR, HEADER_PATH, SOCKET_FILE, Card
from batuta.dataflow.unix import connect_unix
from batuta.fabric import subjects
from batuta.fabric.broker import free_port
from batuta.kinds.application import Input, Output, Serve
from batuta.kinds.base import Bytes
from batuta.kinds.model import Variant
from batuta.runtimes.base import Order
from batuta.runtimes.model import ModelRuntime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def beside(name: str, path: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


site = beside("site_for_tests", "dataflow/site.py")
serving = beside("serving_for_tests", "dataflow/serving_for_tests.py")

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
DIGEST = "sha256:" + "1" * 64
NAME = "default/reader/read-1-0"
INFER = "/v2/models/m/infer"
GOOD = {"inputs": [serving.tensor([1.0, 2.0, 3.0, 4.0], [1, 4])]}


def order_of(node: Any, path: Path, port: int | None, memory: int = 256, inputs: tuple[Input, ...] = ()) -> Order:
    variant = Variant(name="fp32", format="onnx", digest=DIGEST, size_bytes=Bytes(path.stat().st_size))
    made = Instance(
        namespace="default", application="reader", component="read", revision=1, slot="0", epoch=1,
        model=ModelOrder(name="m", version="1", variant=variant), memory_bytes=Bytes(memory << 20),
        serve=Serve(port=port) if port is not None else None, inputs=inputs,
        outputs=(Output(topic="meters/{1}/reading"),) if inputs else (),
    )  # fmt: skip
    return Order(made, node.directory / "instances" / "read-1", {DIGEST: path}, node.for_instances(), (node.name,))


@contextlib.asynccontextmanager
async def running(order: Order) -> AsyncIterator[tuple[ModelRuntime, psutil.Process]]:
    runtime = ModelRuntime()
    handle = await runtime.start(order)
    try:
        await site.until(lambda: is_in(runtime, "ready"))
        yield runtime, psutil.Process(int(handle["pid"]))
    finally:
        await runtime.stop(NAME, 5_000)
        await runtime.close()


@contextlib.asynccontextmanager
async def alone(directory: Path, path: Path, port: int, memory: int = 256) -> AsyncIterator[Any]:
    async with site.site_of(directory, ["na"]) as (na,), running(order_of(na, path, port, memory)) as found:
        yield found


async def is_in(runtime: ModelRuntime, state: str) -> bool:
    return (await runtime.inspect(NAME)).state == state


async def test_one_worker_is_asked_in_every_way(tmp_path: Path) -> None:
    port, cards = free_port("127.0.0.1"), []
    inputs = (Input(topic="cameras/+/frame"),)
    # A directory whose path is longer than a socket's may be.
    async with site.site_of(tmp_path / ("d" * 100), ["na", "nb"]) as (na, nb):
        order = order_of(na, serving.echo(tmp_path / "m.onnx"), port, inputs=inputs)
        client = await nb.connect()
        far = beside("model_worker_tests", "e2e/test_model_worker.py")
        device = site.Device(na, "meters/#")

        async def hear(message: Any) -> None:
            cards.append(msgspec.json.decode(message.data, type=Card))

        await client.subscribe(subjects.ALL_SERVING, cb=hear)
        capture = Capture(consumer=order.instance.consumer, topics=("cameras/+/frame",), outputs=order.instance.outputs)
        try:
            async with far.kept(na, capture), running(order):
                await site.until(lambda: cards and cards[-1].ready)
                card = cards[-1]
                assert (card.instance, card.node, card.model, card.version, card.port) == (NAME, "na", "m", "1", port)
                assert card.socket.endswith(SOCKET_FILE)

                status, _, body = await serving.ask(port, INFER, GOOD)
                assert (status, json.loads(body)["outputs"][0]["data"]) == (200, [1.0, 2.0, 3.0, 4.0])

                reader, writer = await asyncio.open_unix_connection(sock=connect_unix(card.socket))
                sent = json.dumps(GOOD).encode()
                writer.write(f"POST {INFER} HTTP/1.1\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent)
                assert (await serving.answer(reader))[2] == body
                writer.close()

                # From another node of the site.
                subject = subjects.infer("na", NAME)
                headers = {HEADER_CLASS: "critical", HEADER_DEADLINE: "5000"}
                found = await client.request(subject, sent, timeout=30, headers=headers)
                assert found.data == body
                assert HEADER_ERROR not in (found.headers or {})
                wrong = await client.request(subject, b"{", timeout=30)
                assert wrong.headers[HEADER_ERROR] == "malformed"
                late = await client.request(subject, sent, timeout=30, headers={HEADER_DEADLINE: "0"})
                assert late.headers[HEADER_ERROR] == "deadline_passed"
                described = await client.request(subject, b"", timeout=30, headers={HEADER_PATH: "/v2/models/m"})
                assert json.loads(described.data)["inputs"][0]["name"] == "x"

                # And topics go on as ever.
                device.publish("cameras/c1/frame", b"[1, 2, 3, 4]")
                await site.until(lambda: device.heard)
                assert device.heard[0][1]["scores"] == [1.0, 2.0, 3.0, 4.0]
            await site.until(lambda: not cards[-1].ready)
        finally:
            device.close()
            await client.close()


async def test_two_gigabytes_are_refused_unread_and_the_worker_goes_on(tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    async with alone(tmp_path, serving.echo(tmp_path / "m.onnx"), port) as (_, process):
        before = process.memory_info().rss
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST {INFER} HTTP/1.1\r\nContent-Length: {2 << 30}\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                writer.write(b"a" * (1 << 20))
        status, headers, body = await serving.answer(reader)
        assert (status, headers["batuta-error"]) == (413, "too_large")
        assert "2147483648" in json.loads(body)["error"]
        writer.close()
        assert process.memory_info().rss - before < 64 << 20
        assert (await serving.ask(port, INFER, GOOD))[0] == 200


async def test_ten_thousand_at_once_all_hear_something(tmp_path: Path) -> None:
    total, port = 10_000, free_port("127.0.0.1")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < total + 500:
        pytest.skip(f"this machine lets a process have {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, total + 500), hard))
    outcomes: dict[int, int] = {}
    sent = json.dumps(GOOD).encode()
    request = f"POST {INFER} HTTP/1.1\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent
    everybody, together = 0, asyncio.Event()

    async def one() -> None:
        nonlocal everybody
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        everybody += 1
        if everybody == total:
            together.set()
        await together.wait()
        with contextlib.suppress(ConnectionError):
            writer.write(request)
        status, headers, _ = await serving.answer(reader)
        assert status == 200 or (status == 503 and int(headers["retry-after"]) >= 1)
        outcomes[status] = outcomes.get(status, 0) + 1
        writer.close()

    try:
        async with alone(tmp_path, serving.echo(tmp_path / "m.onnx"), port) as (_, process):
            async with asyncio.timeout(240), asyncio.TaskGroup() as group:
                for _ in range(total):
                    group.create_task(one())
            assert sum(outcomes.values()) == total
            assert outcomes[200] > 0
            print(outcomes, process.memory_info().rss >> 20, "MiB")
            await site.until(lambda: asks_well(port))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def asks_well(port: int) -> bool:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        return bool((await serving.ask(port, INFER, GOOD))[0] == 200)
    return False


async def test_a_worker_over_its_memory_ends_with_a_reason(tmp_path: Path) -> None:
    """The model makes as much as it is asked to, and looks at all of it."""
    nodes = [
        oh.make_node("Constant", [], ["one"], value=oh.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1.0])),
        oh.make_node("Expand", ["one", "n"], ["many"]),
        oh.make_node("Exp", ["many"], ["more"]),
        oh.make_node("ReduceSum", ["more"], ["y"], keepdims=1),
    ]
    path = serving.saved(tmp_path / "m.onnx", nodes, [("n", "INT64", (1,))], [("y", "FP32", (1,))])
    port = free_port("127.0.0.1")
    greedy = {"inputs": [serving.tensor([50_000_000], [1], "INT64", "n")]}
    async with alone(tmp_path, path, port, memory=64) as (runtime, _):
        modest = {"inputs": [serving.tensor([1_000], [1], "INT64", "n")]}
        status, _, body = await serving.ask(port, INFER, modest)
        assert status == 200
        assert np.isclose(json.loads(body)["outputs"][0]["data"][0], 1_000 * np.e, rtol=1e-3)
        # More than the process can have at all is a fault of the request, and the worker goes on.
        status, _, body = await serving.ask(
            port, INFER, {"inputs": [serving.tensor([5_000_000_000], [1], "INT64", "n")]}
        )
        assert (status, "could not run" in body.decode()) == (500, True)
        assert (await serving.ask(port, INFER, modest))[0] == 200

        async def greedily() -> bool:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await serving.ask(port, INFER, greedy)
            return await is_in(runtime, "gone")

        await site.until(greedily)
        ended = await runtime.inspect(NAME)
        assert (ended.state, ended.code, ended.final) == ("gone", "memory_exceeded", False)
        assert "192Mi allowed" in ended.detail


async def test_a_port_that_is_taken_is_a_reason_and_passes(tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    async with site.site_of(tmp_path, ["na"]) as (na,):
        order, runtime = order_of(na, serving.echo(tmp_path / "m.onnx"), port), ModelRuntime()
        try:
            await runtime.start(order)
            await site.until(lambda: is_in(runtime, "gone"))
            ended = await runtime.inspect(NAME)
            assert (ended.code, ended.final) == ("port_taken", False)
            taken.close()
            await taken.wait_closed()
            await runtime.start(order)
            await site.until(lambda: is_in(runtime, "ready"))
            assert (await serving.ask(port, INFER, GOOD))[0] == 200
        finally:
            await runtime.stop(NAME, 5_000)
            await runtime.close()


async def test_a_real_worker_runs_the_versions_own_python(tmp_path: Path) -> None:
    port, text = free_port("127.0.0.1"), tmp_path / "transform.py"
    text.write_text(
        "import numpy as np\n"
        "def before(inputs): return {'x': np.resize(inputs['x'], (1, 4)).astype(np.float32)}\n"
        "def after(outputs): return {'sum': outputs['y'].sum(axis=1)}\n"
    )
    digest = f"sha256:{hashlib.sha256(text.read_bytes()).hexdigest()}"
    async with site.site_of(tmp_path, ["na"]) as (na,):
        order = order_of(na, serving.echo(tmp_path / "m.onnx"), port)
        assert order.instance.model is not None
        model = msgspec.structs.replace(order.instance.model, transform=digest)
        instance = msgspec.structs.replace(order.instance, model=model)
        assert instance.artifacts == (DIGEST, digest)
        order = order._replace(instance=instance, artifacts={**order.artifacts, digest: text})
        async with running(order) as (_, process):
            (confined,) = process.children()
            body = {"inputs": [serving.tensor([3], [1], "INT64")]}
            status, _, said = await serving.ask(port, INFER, body)
            assert (status, json.loads(said)["outputs"][0]["data"]) == (200, [12.0])
            # It dies alone: one request pays for it, or none.
            confined.kill()
            await site.until(lambda: asks_for(port, body))
            assert process.is_running()


async def asks_for(port: int, body: Any) -> bool:
    return bool((await serving.ask(port, INFER, body))[0] == 200)
