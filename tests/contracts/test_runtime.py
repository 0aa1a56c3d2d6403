"""What every runtime promises, asked of every tenant: real processes, real model workers, a simulated machine."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import onnx
import onnx.helper as oh
import pytest

from batuta.core.decided import Instance, ModelOrder
from batuta.errors import RuntimeFailure
from batuta.kinds.application import Input, ProcessUse
from batuta.kinds.base import Bytes
from batuta.kinds.container import Archive, ContainerUse
from batuta.kinds.model import Variant
from batuta.runtimes import processes
from batuta.runtimes.base import Order
from batuta.runtimes.container import ContainerRuntime
from batuta.runtimes.container_order import Whose
from batuta.runtimes.model import ModelRuntime
from batuta.runtimes.process import ProcessRuntime
from batuta.runtimes.simulated import Machine, Script, SimulatedRuntime
from tests.engines import Built, Engine, cleared, docker, podman  # noqa: F401  fixtures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.runtimes.base import Condition, Runtime

DIGEST = "sha256:" + "0" * 64


class Tenant(Protocol):
    """One way to run instances, and orders that behave in known ways under it."""

    def runtime(self) -> Runtime: ...
    def lasting(self, name: str = "last") -> Order: ...
    def ending(self) -> Order: ...
    def impossible(self) -> tuple[Order, str]: ...
    def kill(self, order: Order, handle: dict[str, Any]) -> None: ...


def instance(component: str, **more: Any) -> Instance:
    return Instance(namespace="default", application="app", component=component, revision=1, slot="0", epoch=1, **more)


class RealProcesses:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def runtime(self) -> Runtime:
        return ProcessRuntime()

    def order(self, component: str, *command: str) -> Order:
        made = instance(component, process=ProcessUse(command=command))
        return Order(made, self.directory / component, {}, {"node": "n1"})

    def lasting(self, name: str = "last") -> Order:
        return self.order(name, "sleep", "600")

    def ending(self) -> Order:
        return self.order("end", "sh", "-c", "echo the last words >&2; exit 7")

    def impossible(self) -> tuple[Order, str]:
        return self.order("none", "no-such-command-anywhere"), "command_missing"

    def kill(self, order: Order, handle: dict[str, Any]) -> None:
        import os

        os.kill(handle["pid"], 9)


class RealWorkers(RealProcesses):
    """The broker is a port that listens and greets like one, as long as no worker has to answer anything."""

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory)
        self.port = port
        self.model = directory / "model.onnx"
        one = oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 2])
        two = oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 2])
        graph = oh.make_graph([oh.make_node("Identity", ["x"], ["y"])], "g", [one], [two])
        onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9), self.model)

    def runtime(self) -> Runtime:
        return ModelRuntime()

    def made(self, component: str, artifact: Path) -> Order:
        variant = Variant(name="fp32", format="onnx", digest=DIGEST, size_bytes=Bytes(1))
        model = ModelOrder(name="m", version="1", variant=variant)
        inputs = (Input(topic="a/+"),)
        broker = {"url": f"nats://127.0.0.1:{self.port}", "node": "n1"}
        return Order(
            instance(component, model=model, inputs=inputs),
            self.directory / component,
            {DIGEST: artifact},
            broker,
            ("n1",),
        )

    def lasting(self, name: str = "last") -> Order:
        return self.made(name, self.model)

    def ending(self) -> Order:
        broken = self.directory / "broken.onnx"
        broken.write_bytes(b"the last words of no model")
        return self.made("end", broken)

    def impossible(self) -> tuple[Order, str]:
        return self.made("none", self.model)._replace(artifacts={}), "artifact_missing"


class Simulated:
    def __init__(self) -> None:
        self.machine = Machine(
            {"end": Script(ends_after_ms=20, ends_with="exit status 7: the last words"),
             "none": Script(refuses="command_missing")}
        )  # fmt: skip

    def runtime(self) -> Runtime:
        return SimulatedRuntime(self.machine)

    def lasting(self, name: str = "last") -> Order:
        return Order(instance(name), Path("/nowhere"), {}, {})

    def ending(self) -> Order:
        return self.lasting("end")

    def impossible(self) -> tuple[Order, str]:
        return self.lasting("none"), "command_missing"

    def kill(self, order: Order, handle: dict[str, Any]) -> None:
        del self.machine.running[order.instance.name]


class RealContainers:
    """A real Podman, and an image of one static program."""

    def __init__(self, directory: Path, engine: Engine) -> None:
        self.directory = directory
        self.engine = engine
        self.built = Built(directory)

    def runtime(self) -> Runtime:
        whose = Whose(home=str(self.directory), node="n1")
        return ContainerRuntime(str(self.engine.socket), whose, self.directory / "container")

    def order(self, component: str, line: str, image: str = "") -> Order:
        archive = Archive(digest=self.built.digest, size_bytes=Bytes(self.built.size))
        use = ContainerUse(image=image or self.built.image, archive=archive, args=(line,))
        made = instance(component, container=use)
        return Order(made, self.directory / component, {self.built.digest: self.built.path}, {"node": "n1"})

    def lasting(self, name: str = "last") -> Order:
        return self.order(name, "exec sleep 600")

    def ending(self) -> Order:
        return self.order("end", "echo the last words >&2; exit 7")

    def impossible(self) -> tuple[Order, str]:
        return self.order("none", "true", f"localhost/other@sha256:{'0' * 64}"), "digest_mismatch"

    def kill(self, order: Order, handle: dict[str, Any]) -> None:
        self.engine.kill_container(str(handle["id"]))


@pytest.fixture
def broker_port(tmp_path: Path) -> Iterator[int]:
    """A real broker, as small as can be."""
    from batuta.fabric.broker import find_binary, free_port

    port = free_port("127.0.0.1")
    journal = tmp_path / "broker.log"
    child = subprocess.Popen(
        [find_binary(), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", tmp_path / "js", "-l", journal]
    )
    yield port
    child.terminate()
    child.wait()


@pytest.fixture(params=["process", "onnx", "simulated", pytest.param("podman", marks=pytest.mark.slow),
                        pytest.param("docker", marks=pytest.mark.slow)])  # fmt: skip
def tenant(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tenant]:
    if request.param in ("podman", "docker"):
        for engine in cleared(request.getfixturevalue(request.param)):
            yield RealContainers(tmp_path, engine)
            assert engine.containers(node="n1") == [], "a test left containers behind"
        return
    if request.param == "simulated":
        yield Simulated()
        return
    if request.param == "process":
        yield RealProcesses(tmp_path)
    else:
        yield RealWorkers(tmp_path, request.getfixturevalue("broker_port"))
    left = [seen for component in tmp_path.iterdir() for seen in processes.marked("BATUTA_DIRECTORY", str(component))]
    assert left == [], "a test left processes behind"


async def until(runtime: Runtime, name: str, *states: str, timeout_s: float = 80.0) -> Condition:
    """The condition once its state is one of these."""
    async with asyncio.timeout(timeout_s):
        while (condition := await runtime.inspect(name)).state not in states:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return condition


async def test_it_starts_becomes_ready_and_stops(tenant: Tenant) -> None:
    runtime, order = tenant.runtime(), tenant.lasting()
    name = order.instance.name
    assert runtime.available()
    handle = await runtime.start(order)
    assert handle
    assert all(isinstance(key, str) and isinstance(value, (int, str)) for key, value in handle.items())
    condition = await until(runtime, name, "ready")
    assert condition.measures is not None
    await runtime.stop(name, 5_000)
    assert (await runtime.inspect(name)).state == "gone"
    await runtime.stop(name, 5_000)
    await runtime.close()


async def test_what_ended_says_how(tenant: Tenant) -> None:
    runtime, order = tenant.runtime(), tenant.ending()
    await runtime.start(order)
    condition = await until(runtime, order.instance.name, "gone")
    if isinstance(tenant, RealWorkers):
        assert (condition.code, condition.final) == ("artifact_unreadable", True)
        assert "ONNX Runtime cannot load it" in condition.detail
    else:
        assert condition.code == "exited"
        assert condition.detail == "exit status 7: the last words"
    await runtime.stop(order.instance.name, 0)
    await runtime.close()


async def test_what_cannot_be_started_says_why(tenant: Tenant) -> None:
    runtime = tenant.runtime()
    order, code = tenant.impossible()
    with pytest.raises(RuntimeFailure) as failure:
        await runtime.start(order)
    assert failure.value.code == code
    assert (await runtime.inspect(order.instance.name)).state == "gone"
    await runtime.close()


async def test_it_outlives_its_runtime_and_is_found_again(tenant: Tenant) -> None:
    first, order = tenant.runtime(), tenant.lasting()
    name = order.instance.name
    handle = await first.start(order)
    await until(first, name, "ready")
    await first.close()
    second = tenant.runtime()
    assert await second.recover(order, handle)
    await until(second, name, "ready")
    assert await second.recover(order, handle), "asked again, it says the same"
    await second.stop(name, 5_000)
    assert (await second.inspect(name)).state == "gone"
    await second.close()


async def test_with_a_lease_it_is_not_found_by_another_agent(tenant: Tenant) -> None:
    """Its own ended, so it should have ended; whatever of it is left is ended now."""
    if isinstance(tenant, RealContainers):
        pytest.skip("containers take no lease: refused with the document, and by the runtime")
    first, order = tenant.runtime(), tenant.lasting()
    order = order._replace(instance=msgspec.structs.replace(order.instance, lease_ms=5_000))
    handle = await first.start(order)
    assert await first.recover(order, handle), "its own agent knows it"
    await first.close()
    second = tenant.runtime()
    assert not await second.recover(order, handle)
    assert (await second.inspect(order.instance.name)).state == "gone"
    again = await second.start(order)
    assert again["starts"] == 2
    await second.stop(order.instance.name, 5_000)
    await second.close()


async def test_it_is_found_again_without_a_handle(tenant: Tenant) -> None:
    """The node agent died before it had written the handle down."""
    first, order = tenant.runtime(), tenant.lasting()
    await first.start(order)
    await first.close()
    second = tenant.runtime()
    assert await second.recover(order, {})
    await second.stop(order.instance.name, 5_000)
    await second.close()


async def test_what_died_meanwhile_is_not_found(tenant: Tenant) -> None:
    first, order = tenant.runtime(), tenant.lasting()
    handle = await first.start(order)
    await first.close()
    tenant.kill(order, handle)
    second = tenant.runtime()
    async with asyncio.timeout(60):
        while await second.recover(order, handle):
            assert (await until(second, order.instance.name, "gone")).state == "gone"
            await second.stop(order.instance.name, 0)
    await second.close()


async def test_another_is_not_taken_for_it(tenant: Tenant) -> None:
    runtime, order = tenant.runtime(), tenant.lasting()
    handle = await runtime.start(order)
    other = tenant.runtime()
    assert not await other.recover(tenant.lasting("other"), handle)
    await other.close()
    await runtime.stop(order.instance.name, 5_000)
    await runtime.close()


async def test_it_starts_again_after_it_ended_and_counts_its_starts(tenant: Tenant) -> None:
    runtime, order = tenant.runtime(), tenant.ending()
    first = await runtime.start(order)
    await until(runtime, order.instance.name, "gone")
    second = await runtime.start(order)
    assert (first["starts"], second["starts"]) == (1, 2)
    await until(runtime, order.instance.name, "gone")
    await runtime.stop(order.instance.name, 0)
    await runtime.close()


async def test_two_starts_make_one(tenant: Tenant) -> None:
    runtime, order = tenant.runtime(), tenant.lasting()
    await runtime.start(order)
    with pytest.raises(RuntimeFailure) as failure:
        await runtime.start(order)
    assert failure.value.code == "start_failed"
    await runtime.stop(order.instance.name, 5_000)
    await runtime.close()


async def test_news_of_its_surroundings_does_not_restart_it(tenant: Tenant) -> None:
    runtime, order = tenant.runtime(), tenant.lasting()
    handle = await runtime.start(order)
    await until(runtime, order.instance.name, "ready")
    await runtime.update(order._replace(neighbours=("n1", "n2")))
    await until(runtime, order.instance.name, "ready")
    assert await runtime.recover(order, handle)
    await runtime.stop(order.instance.name, 5_000)
    await runtime.close()


async def test_what_is_unknown_is_gone(tenant: Tenant) -> None:
    runtime = tenant.runtime()
    assert (await runtime.inspect("default/app/nobody-1-0")).state == "gone"
    await runtime.stop("default/app/nobody-1-0", 1_000)
    await runtime.close()
