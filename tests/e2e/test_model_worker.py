"""A real model, trained here, served by real workers from real brokers; killed, exchanged, fed nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from batuta.core.decided import Capture, Instance, ModelOrder
from batuta.core.worker import PULSE_FILE, Pulse, WorkerOrder
from batuta.dataflow.inbox import Inbox
from batuta.kinds.application import Input, Output
from batuta.kinds.base import Bytes, decode_hook, encode_hook
from batuta.kinds.model import Signature, Tensor, Variant
from batuta.runtimes.base import Order
from batuta.runtimes.model import ModelRuntime
from batuta.tuning import sketch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

spec = importlib.util.spec_from_file_location("site_for_tests", Path(__file__).parents[1] / "dataflow" / "site.py")
assert spec is not None
assert spec.loader is not None
site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site)

pytestmark = pytest.mark.e2e
DIGEST = "sha256:" + "1" * 64
SKETCH = "sha256:" + "2" * 64
INPUTS = (Input(topic="cameras/+/frame"),)
OUTPUTS = (Output(topic="meters/{1}/reading"), Output(forward="hub"))
CAPTURE = Capture(consumer="default_reader_read", topics=("cameras/+/frame",), outputs=OUTPUTS)


class Digits:
    """What scikit-learn makes of the digits, and what it says of each: the truth that workers must repeat."""

    def __init__(self, directory: Path) -> None:
        from skl2onnx import to_onnx
        from sklearn.datasets import load_digits
        from sklearn.linear_model import LogisticRegression

        images, classes = load_digits(return_X_y=True)
        images = images.astype(np.float32)
        made = LogisticRegression(max_iter=200).fit(images[:1200] / 16, classes[:1200])
        self.path = directory / "digits.onnx"
        onnx_model = to_onnx(made, images[:1] / 16, options={"zipmap": False}, target_opset=17)
        self.path.write_bytes(onnx_model.SerializeToString())
        self.images = images / 16
        self.says = made.predict(self.images)
        found = sketch.made({"X": self.images[:1200]})
        assert found is not None
        self.sketch = directory / "drift.json"
        self.sketch.write_bytes(sketch.written(found))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits(tmp_path_factory.mktemp("digits"))


def order_of(node: Any, digits: Digits, neighbours: tuple[str, ...], **more: Any) -> Order:
    revision = more.pop("revision", 1)
    model = ModelOrder(
        name="digits",
        version="2",
        variant=Variant(name="fp32", format="onnx", digest=DIGEST, size_bytes=Bytes(digits.path.stat().st_size)),
        signature=Signature(inputs=(Tensor(name="X", dtype="float32", shape=(-1, 64)),)),
        batch=more.pop("batch", 32),
        linger_ms=more.pop("linger_ms", 0),
        drift=SKETCH,
    )
    made = Instance(
        namespace="default", application="reader", component="read", revision=revision, slot="0", epoch=1,
        model=model, inputs=more.pop("inputs", INPUTS), outputs=OUTPUTS, memory_bytes=Bytes(256 << 20),
    )  # fmt: skip
    directory = node.directory / "instances" / f"read-{revision}"
    artifacts = {DIGEST: digits.path, SKETCH: digits.sketch}
    return Order(made, directory, artifacts, node.for_instances(), neighbours)


@contextlib.asynccontextmanager
async def kept(node: Any, *captures: Capture) -> AsyncIterator[Inbox]:
    """A node's stores, as its agent keeps them."""
    client = await node.connect()
    inbox = Inbox(client, node.name)
    inbox.follow(captures)
    await inbox.ensure()
    running = asyncio.create_task(inbox.run())
    try:
        yield inbox
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await client.close()


def pulse(order: Order) -> Pulse:
    return msgspec.json.decode((order.directory / PULSE_FILE).read_bytes(), type=Pulse, dec_hook=decode_hook)


async def ready(runtime: ModelRuntime, order: Order, *neighbours: str) -> None:
    async def is_so() -> bool:
        condition = await runtime.inspect(order.instance.name)
        assert condition.state != "gone", condition
        return condition.state == "ready" and set(pulse(order).reached) >= set(neighbours)

    await site.until(is_so, 20)


def frame(digits: Digits, number: int) -> bytes:
    return msgspec.json.encode(digits.images[number % len(digits.images)].tolist())


def numbers(heard: list[tuple[str, Any]]) -> list[int]:
    """Which frames were answered: each camera sends one frame, so its name is the frame's number."""
    return [int(topic.split("/")[1][1:]) for topic, _ in heard]


async def test_answers_are_right_and_heard_once_at_every_node_of_the_site(tmp_path: Path, digits: Digits) -> None:
    async with site.site_of(tmp_path, ["na", "nb"]) as (na, nb), kept(na, CAPTURE), kept(nb, CAPTURE):
        runtime, order = ModelRuntime(), order_of(na, digits, ("na", "nb"))
        await runtime.start(order)
        await ready(runtime, order)
        there, here = site.Device(na, "meters/#"), site.Device(nb, "meters/#")
        try:
            for i in range(200):
                (there if i % 2 else here).publish(f"cameras/c{i}/frame", frame(digits, i))
            await site.until(lambda: len(there.heard) >= 200 and len(here.heard) >= 200)
            for device in (there, here):
                assert sorted(numbers(device.heard)) == list(range(200))
                for topic, answer in device.heard:
                    number = int(topic.split("/")[1][1:])
                    assert answer["value"] == digits.says[number]
                    assert answer["model"] == "digits:2"
                    assert answer["instance"] == order.instance.name
                    assert answer["source"] == f"cameras/c{number}/frame"
                    assert len(answer["scores"]) == 10
            await site.until(lambda: pulse(order).measures.answered == 200)
            assert pulse(order).measures.errors == 0
            sample = pulse(order).measures.sample
            assert sample is not None
            assert (sample.answered, sample.errors, sum(sample.latency.values())) == (200, 0, 200)
            assert 0 < sum(sample.confidence) == sum(sample.inputs) <= 200
            assert sum(sample.reference) == 600, "every other one of those that the sketch was made from"
            assert sample.instance_ms > 0
            assert sample.memory_bytes is not None
        finally:
            there.close()
            here.close()
            await runtime.stop(order.instance.name, 5_000)
            await runtime.close()


async def test_a_worker_killed_midway_loses_and_doubles_nothing(tmp_path: Path, digits: Digits) -> None:
    total = 3_000
    async with site.site_of(tmp_path, ["na", "nb"]) as (na, nb), kept(na, CAPTURE), kept(nb, CAPTURE) as inbox:
        runtime, order = ModelRuntime(), order_of(na, digits, ("na", "nb"))
        handle = await runtime.start(order)
        await ready(runtime, order, "na", "nb")
        device = site.Device(nb, "meters/#")
        try:
            for i in range(total):
                device.publish(f"cameras/c{i}/frame", frame(digits, i))
            for goal in (300, 900):
                await site.until(lambda goal=goal: len(device.heard) >= goal)
                os.kill(int(handle["pid"]), 9)
                before = len(device.heard)
                await site.until(lambda: _state(runtime, order, "gone"))
                assert before < total, "it was killed midway"
                handle = await runtime.start(order)
            await device.all_kept(total)
            await site.until(lambda: len(set(numbers(device.heard))) == total, 60)
            await site.until(lambda: inbox.books()[0].stored == 0)
            assert sorted(numbers(device.heard)) == list(range(total)), "each answered, and once"
            await site.until(lambda: pulse(order).redelivered > 0)  # some frames were in hand when it was killed
            said = pulse(order)
            print(f"redelivered {said.redelivered}, answers that were there already {said.duplicates}")
            os.kill(int(handle["pid"]), 9)
            await site.until(lambda: _state(runtime, order, "gone"))
            before_that = pulse(order).measures.sample
            await runtime.start(order)
            await ready(runtime, order)
            sample = pulse(order).measures.sample
            assert before_that is not None
            assert sample is not None
            assert 0 < before_that.answered == sample.answered, "what the killed one had counted is not forgotten"
            assert sum(sample.latency.values()) == sample.answered
        finally:
            device.close()
            await runtime.stop(order.instance.name, 5_000)
            await runtime.close()


async def _state(runtime: ModelRuntime, order: Order, state: str) -> bool:
    return (await runtime.inspect(order.instance.name)).state == state


async def test_exchanging_revisions_loses_and_doubles_nothing(tmp_path: Path, digits: Digits) -> None:
    async with site.site_of(tmp_path, ["na", "nb"]) as (na, nb), kept(na, CAPTURE), kept(nb, CAPTURE) as inbox:
        runtime = ModelRuntime()
        old, new = order_of(na, digits, ("na", "nb")), order_of(nb, digits, ("na", "nb"), revision=2)
        await runtime.start(old)
        await ready(runtime, old, "nb")
        device = site.Device(nb, "meters/#")
        sent, enough = 0, asyncio.Event()

        async def publish_on() -> None:
            nonlocal sent
            while not enough.is_set():
                for _ in range(10):
                    device.publish(f"cameras/c{sent}/frame", frame(digits, sent))
                    sent += 1
                await asyncio.sleep(0.01)

        publishing = asyncio.create_task(publish_on())
        try:
            await site.until(lambda: len(device.heard) >= 200)
            await runtime.start(new)
            await ready(runtime, new, "nb")
            await runtime.stop(old.instance.name, 5_000)
            at_the_exchange = sent
            await site.until(lambda: sent >= at_the_exchange + 300)
            enough.set()
            await publishing
            await site.until(lambda: len(set(numbers(device.heard))) == sent, 60)
            await site.until(lambda: inbox.books()[0].stored == 0)
            assert sorted(numbers(device.heard)) == list(range(sent)), "each answered, and once"
            assert {answer["instance"] for _, answer in device.heard} == {old.instance.name, new.instance.name}
            assert pulse(old).state == "stopping", "it came to its end in order"
            print(f"{sent} frames, redelivered to the new one {pulse(new).redelivered}")
        finally:
            enough.set()
            await publishing
            device.close()
            await runtime.stop(old.instance.name, 5_000)
            await runtime.stop(new.instance.name, 5_000)
            await runtime.close()


async def test_nonsense_is_counted_refused_and_does_not_come_again(tmp_path: Path, digits: Digits) -> None:
    nonsense = [
        b"", b"{", b"\xff\xfe", b"[1,2,3]", b'{"image": 1}', b'["a"]', b"null", b"[" * 5_000, b"1e999",
        b"[[1],[2,3]]", msgspec.json.encode([1e300] * 64), msgspec.json.encode([True] * 64), b'{"data":[]}',
    ]  # fmt: skip
    async with site.site_of(tmp_path, ["na"]) as (na,), kept(na, CAPTURE) as inbox:
        runtime, order = ModelRuntime(), order_of(na, digits, ("na",))
        await runtime.start(order)
        await ready(runtime, order, "na")
        device = site.Device(na, "meters/#")
        try:
            for i, payload in enumerate(nonsense):
                device.publish(f"cameras/x{i}/frame", payload)
                device.publish(f"cameras/c{i}/frame", frame(digits, i))
            await site.until(lambda: len(device.heard) >= len(nonsense))
            await site.until(lambda: pulse(order).measures.errors == len(nonsense))
            await site.until(lambda: inbox.books()[0].stored == 0)
            await asyncio.sleep(2.5)  # longer than an unacknowledged frame stays away
            said = pulse(order)
            assert said.redelivered == 0
            assert len(said.last_errors) == 10
            assert all("cameras/x" in text for text in said.last_errors)
            assert sorted(numbers(device.heard)) == list(range(len(nonsense)))
            (flow,) = inbox.books()
            assert (flow.produced, flow.delivered, flow.stored, flow.shed) == (26, 13, 0, 13)
        finally:
            device.close()
            await runtime.stop(order.instance.name, 5_000)
            await runtime.close()


DEADLY = """
import os
from batuta.dataflow import scoring, worker

score = scoring.Scorer.score

async def deadly(self, items, run):
    if any(float(item.flat[0]) == 666 for item in items):
        os.kill(os.getpid(), 11)
    return await score(self, items, run)

scoring.Scorer.score = deadly
worker.main()
"""


async def test_a_frame_that_kills_the_worker_is_found_out_and_takes_no_other_along(
    tmp_path: Path, digits: Digits
) -> None:
    total, poison = 40, 7
    async with site.site_of(tmp_path, ["na"]) as (na,), kept(na, CAPTURE) as inbox:
        order = order_of(na, digits, ("na",))
        order.directory.mkdir(parents=True)
        (order.directory / "neighbours.json").write_bytes(b'["na"]')
        device = site.Device(na, "meters/#")
        deaths = 0
        try:
            for i in range(total):
                deadly = msgspec.json.encode([666.0] * 64)
                device.publish(f"cameras/c{i}/frame", deadly if i == poison else frame(digits, i))
            await device.all_kept(total)
            while True:
                given = WorkerOrder(
                    instance=order.instance, artifact=str(digits.path), directory=str(order.directory),
                    broker=dict(order.broker), start=deaths + 1,
                )  # fmt: skip
                worker = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", DEADLY, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
                )
                assert worker.stdin is not None
                worker.stdin.write(msgspec.json.encode(given, enc_hook=encode_hook))
                worker.stdin.close()
                ended = asyncio.create_task(worker.wait())
                stored = asyncio.create_task(site.until(lambda: inbox.books()[0].shed == 1, 60))
                await asyncio.wait({ended, stored}, return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    break
                stored.cancel()
                assert await ended == -11
                deaths += 1
                assert deaths < 10, "it would go on for ever"
            await site.until(lambda: pulse(order).measures.errors == 1)
            said = pulse(order)
            worker.terminate()
            await ended
            assert said.last_errors == (
                "cameras/c7/frame: the worker died 3 times while it ran on this and on nothing else",
            )
            await site.until(lambda: len(device.heard) >= total - 1)
            assert sorted(numbers(device.heard)) == [i for i in range(total) if i != poison]
            (flow,) = inbox.books()
            assert (flow.produced, flow.delivered, flow.stored, flow.shed) == (total, total - 1, 0, 1)
            # Thrice in company, before anything is suspected, and thrice alone.
            print(f"{deaths} deaths")
            assert deaths <= 7
        finally:
            device.close()


async def test_raw_frames_and_a_new_neighbour(tmp_path: Path, digits: Digits) -> None:
    """A neighbour that joins is served without a restart, also by a worker that an earlier agent started."""
    async with site.site_of(tmp_path, ["na", "nb"]) as (na, nb), kept(na, CAPTURE):
        raw = (Input(topic="cameras/+/frame", decode="raw"),)
        first, order = ModelRuntime(), order_of(na, digits, ("na",), inputs=raw)
        handle = await first.start(order)
        await ready(first, order, "na")
        await first.close()
        runtime = ModelRuntime()
        assert await runtime.recover(order, handle)
        await runtime.update(order._replace(neighbours=("na", "nb")))
        device = site.Device(na, "meters/#")
        async with kept(nb, CAPTURE):
            other = site.Device(nb)
            try:
                for i in range(50):
                    (other if i % 2 else device).publish(
                        f"cameras/c{i}/frame", digits.images[i].astype("<f4").tobytes()
                    )
                await site.until(lambda: len(device.heard) >= 50)
                assert sorted(numbers(device.heard)) == list(range(50))
                assert all(answer["value"] == digits.says[int(t.split("/")[1][1:])] for t, answer in device.heard)
                await ready(runtime, order, "na", "nb")
            finally:
                device.close()
                other.close()
                await runtime.stop(order.instance.name, 5_000)
                await runtime.close()


async def test_brokers_that_die_lose_no_answer(tmp_path: Path, digits: Digits) -> None:
    """The ingest node's broker is killed and comes back; the worker at the neighbour finds it again."""
    total = 600
    async with site.site_of(tmp_path, ["na", "nb"]) as (na, nb), kept(na, CAPTURE), kept(nb, CAPTURE) as inbox:
        runtime, order = ModelRuntime(), order_of(na, digits, ("na", "nb"))
        await runtime.start(order)
        await ready(runtime, order, "na", "nb")
        device, listener = site.Device(nb), site.Device(na, "meters/#")
        try:
            for i in range(total):
                device.publish(f"cameras/c{i}/frame", frame(digits, i))
            await device.all_kept(50)
            await nb.kill()
            await nb.start()
            await device.all_kept(total)
            client = await nb.connect()
            try:
                stream = client.jetstream()

                async def answered() -> set[str]:
                    return set((await stream.stream_info("out-nb-meters", subjects_filter=">")).state.subjects or {})

                async def all_answered() -> bool:
                    return len(await answered()) == total

                await site.until(all_answered, 30)
                await site.until(lambda: inbox.books()[0].stored == 0 and inbox.books()[0].delivered > 0)
            finally:
                await client.close()
        finally:
            device.close()
            listener.close()
            await runtime.stop(order.instance.name, 5_000)
            await runtime.close()


async def test_a_declared_signature_that_is_not_the_files_is_final(tmp_path: Path, digits: Digits) -> None:
    async with site.site_of(tmp_path, ["na"]) as (na,):
        runtime, order = ModelRuntime(), order_of(na, digits, ("na",))
        assert order.instance.model is not None
        wrong = Signature(inputs=(Tensor(name="X", dtype="float32", shape=(-1, 32)),))
        model = msgspec.structs.replace(order.instance.model, signature=wrong)
        order = order._replace(instance=msgspec.structs.replace(order.instance, model=model))
        await runtime.start(order)
        await site.until(lambda: _state(runtime, order, "gone"))
        condition = await runtime.inspect(order.instance.name)
        assert (condition.code, condition.final) == ("artifact_unreadable", True)
        assert "[-1, 64], declared as float32[-1, 32]" in condition.detail
        await runtime.close()
