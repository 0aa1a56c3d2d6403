"""Two real workers beside each other, two real models: one is shown what the other answers, or answers its share."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from batuta.core.beside import HEADER_INSTANCE, HEADER_KEY, belongs, salt_of
from batuta.core.decided import Beside, Capture, Instance, ModelOrder
from batuta.core.observed import Handover
from batuta.core.worker import PULSE_FILE, Pulse
from batuta.fabric import subjects
from batuta.fabric.broker import free_port
from batuta.kinds.application import Input, Output, Serve
from batuta.kinds.base import Bytes, decode_hook
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
worker = beside("model_worker_tests", "e2e/test_model_worker.py")

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
INPUTS = (Input(topic="cameras/+/frame"),)
OUTPUTS = (Output(topic="meters/{1}/reading"),)
CAPTURE = Capture(consumer="default_reader_read", topics=("cameras/+/frame",), outputs=OUTPUTS)
OLD, BETTER, BROKEN = ("sha256:" + digit * 64 for digit in "123")
FRAMES = 600


class Digits:
    """Three classifiers of digits: one that learned little, one that learned more, one whose words are mixed up."""

    def __init__(self, directory: Path) -> None:
        from skl2onnx import to_onnx
        from sklearn.datasets import load_digits
        from sklearn.linear_model import LogisticRegression

        images, classes = load_digits(return_X_y=True)
        self.images = (images / 16).astype(np.float32)
        mixed = np.random.default_rng(0).permutation(classes[:1200])
        made = {
            OLD: LogisticRegression(max_iter=200).fit(self.images[:400], classes[:400]),
            BETTER: LogisticRegression(max_iter=200).fit(self.images[:1200], classes[:1200]),
            BROKEN: LogisticRegression(max_iter=20).fit(self.images[:1200], mixed),
        }
        self.paths = {digest: directory / f"{digest[-1]}.onnx" for digest in made}
        for digest, model in made.items():
            exported = to_onnx(model, self.images[:1], options={"zipmap": False}, target_opset=17)
            self.paths[digest].write_bytes(exported.SerializeToString())
        self.says = {digest: model.predict(self.images) for digest, model in made.items()}

    def agree(self, digest: str, numbers: range) -> float:
        """The truth that a trial must find."""
        return float(np.mean(self.says[OLD][numbers] == self.says[digest][numbers]))

    def frame(self, number: int) -> bytes:
        return msgspec.json.encode(self.images[number % len(self.images)].tolist())

    def request(self, number: int, **more: Any) -> dict[str, Any]:
        return {"inputs": [serving.tensor(self.images[number].tolist(), [1, 64], name="X")], **more}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits(tmp_path_factory.mktemp("digits"))


def order_of(node: Any, digits: Digits, digest: str, trial: Beside | None = None, port: int | None = None) -> Order:
    revision = int(digest[-1])
    model = ModelOrder(
        name="digits", version=str(revision), batch=16,
        variant=Variant(name="fp32", format="onnx", digest=digest, size_bytes=Bytes(1)),
    )  # fmt: skip
    made = Instance(
        namespace="default", application="reader", component="read", revision=revision, slot="0", epoch=revision,
        model=model, inputs=INPUTS, outputs=OUTPUTS, memory_bytes=Bytes(256 << 20), beside=trial,
        serve=Serve(port=port) if port is not None else None,
    )  # fmt: skip
    directory = node.directory / "instances" / "default" / "reader" / f"read-{revision}-0"
    return Order(made, directory, {digest: digits.paths[digest]}, node.for_instances(), (node.name,))


def pulse(order: Order) -> Pulse:
    return msgspec.json.decode((order.directory / PULSE_FILE).read_bytes(), type=Pulse, dec_hook=decode_hook)


def handover(order: Order) -> Handover:
    return pulse(order).measures.handover or Handover(to="")


class Pair:
    """An old worker and a new one on one node."""

    def __init__(self, node: Any, old: Order, new: Order) -> None:
        self.node, self.old, self.new = node, old, new
        self.runtime = ModelRuntime()

    async def start(self, order: Order) -> int:
        handle = await self.runtime.start(order)
        await worker.ready(self.runtime, order)
        return int(handle["pid"])

    async def stop(self, order: Order) -> None:
        await self.runtime.stop(order.instance.name, 5_000)

    async def gone(self, order: Order) -> None:
        async def is_so() -> bool:
            return (await self.runtime.inspect(order.instance.name)).state == "gone"

        await site.until(is_so)

    async def met(self) -> None:
        """The old one has heard of the new one."""
        await site.until(lambda: handover(self.old).to == self.new.instance.name)


@contextlib.asynccontextmanager
async def pair(directory: Path, digits: Digits, digest: str, trial: Beside) -> AsyncIterator[tuple[Pair, Any, Any]]:
    async with site.site_of(directory, ["na"]) as (node,), worker.kept(node, CAPTURE) as inbox:
        port = free_port("127.0.0.1")
        made = Pair(node, order_of(node, digits, OLD, port=port), order_of(node, digits, digest, trial))
        device = site.Device(node, "meters/#")
        try:
            yield made, device, inbox
        finally:
            device.close()
            await made.stop(made.old)
            await made.stop(made.new)
            await made.runtime.close()


@pytest.mark.parametrize(("digest", "least", "most"), [(BETTER, 0.9, 1.0), (BROKEN, 0.0, 0.3)])
async def test_in_shadow_the_old_one_answers_and_the_new_one_is_compared(
    tmp_path: Path, digits: Digits, digest: str, least: float, most: float
) -> None:
    async with pair(tmp_path, digits, digest, Beside(mode="shadow")) as (both, device, inbox):
        await both.start(both.old)
        await both.start(both.new)
        await both.met()
        for i in range(FRAMES):
            device.publish(f"cameras/c{i}/frame", digits.frame(i))
        await site.until(lambda: len(device.heard) >= FRAMES)
        await site.until(lambda: inbox.books()[0].stored == 0)
        assert sorted(worker.numbers(device.heard)) == list(range(FRAMES))
        assert {said["instance"] for _, said in device.heard} == {both.old.instance.name}
        assert all(said["value"] == digits.says[OLD][int(said["source"][9:-6])] for _, said in device.heard)

        await site.until(lambda: handover(both.old).shown + handover(both.old).dropped == FRAMES)
        await site.until(lambda: pulse(both.new).measures.answered == handover(both.old).shown)
        books, said = handover(both.old), pulse(both.new)
        assert said.measures.errors == 0
        sample = said.measures.sample
        assert sample is not None
        assert sample.compared == books.shown
        found, truth = sample.agreed / sample.compared, digits.agree(digest, range(FRAMES))
        print(f"agreed {found:.3f} of {sample.compared}, in truth {truth:.3f}; dropped {books.dropped}")
        assert least <= truth <= most
        if not books.dropped:
            assert found == pytest.approx(truth, abs=1e-9)

        # Requests too, at the port of the old one, each in the form in which it came.
        port = both.old.instance.serve.port
        for i in range(50):
            status, headers, body = await serving.ask(port, "/v2/models/digits/infer", digits.request(i))
            assert (status, json.loads(body)["model_version"]) == (200, "1"), headers
        await site.until(lambda: handover(both.old).shown + handover(both.old).dropped == FRAMES + 50)
        await site.until(lambda: pulse(both.new).measures.sample.compared == handover(both.old).shown)


async def test_a_new_one_killed_in_shadow_is_missed_by_nobody_and_an_old_one_finds_it_again(
    tmp_path: Path, digits: Digits
) -> None:
    async with pair(tmp_path, digits, BETTER, Beside(mode="shadow")) as (both, device, inbox):
        old_pid, new_pid = await both.start(both.old), await both.start(both.new)
        await both.met()
        for i in range(FRAMES):
            device.publish(f"cameras/c{i}/frame", digits.frame(i))
        await site.until(lambda: len(device.heard) >= 50)
        os.kill(new_pid, 9)
        await both.gone(both.new)
        await site.until(lambda: len(device.heard) >= FRAMES)
        await both.start(both.new)
        os.kill(old_pid, 9)
        await both.gone(both.old)
        await both.start(both.old)
        await both.met()
        for i in range(FRAMES, FRAMES + 100):
            device.publish(f"cameras/c{i}/frame", digits.frame(i))
        await site.until(lambda: len(device.heard) >= FRAMES + 100)
        await site.until(lambda: pulse(both.new).measures.answered > 0)
        await site.until(lambda: inbox.books()[0].stored == 0)
        assert sorted(worker.numbers(device.heard)) == list(range(FRAMES + 100)), "each answered, and once"


async def test_in_split_the_new_one_answers_its_share_and_when_it_dies_the_old_one_does(
    tmp_path: Path, digits: Digits
) -> None:
    async with pair(tmp_path, digits, BETTER, Beside(mode="split", share=0.3)) as (both, device, inbox):
        await both.start(both.old)
        pid = await both.start(both.new)
        await both.met()
        salt, new = salt_of(both.new.instance), both.new.instance.name
        its = {i for i in range(FRAMES) if belongs(f"cameras/c{i}/frame", salt, 0.3)}
        for i in range(FRAMES):
            device.publish(f"cameras/c{i}/frame", digits.frame(i))
        await site.until(lambda: len(device.heard) >= FRAMES)
        await site.until(lambda: inbox.books()[0].stored == 0)
        by_new = {int(t.split("/")[1][1:]) for t, said in device.heard if said["instance"] == new}
        await site.until(lambda: sum(_split(handover(both.old))) == len(its))
        asked = handover(both.old)
        print(f"{len(by_new)} of {len(its)} were answered by the new one; {asked}")
        assert by_new <= its
        assert len(by_new) == asked.answered
        assert len(by_new) > len(its) / 2
        for topic, said in device.heard:
            number = int(topic.split("/")[1][1:])
            digest = BETTER if number in by_new else OLD
            assert said["value"] == digits.says[digest][number]
            assert said["model"] == f"digits:{digest[-1]}"

        # It is killed in the middle: nothing is lost, nothing is answered twice.
        for i in range(FRAMES, 3 * FRAMES):
            device.publish(f"cameras/c{i}/frame", digits.frame(i))
        await site.until(lambda: len(device.heard) >= FRAMES + 100)
        os.kill(pid, 9)
        await site.until(lambda: len(device.heard) >= 3 * FRAMES)
        await site.until(lambda: inbox.books()[0].stored == 0)
        assert sorted(worker.numbers(device.heard)) == list(range(3 * FRAMES)), "each answered, and once"
        await site.until(lambda: handover(both.old).asked > asked.asked)
        print(f"after kill -9: {handover(both.old)}")


async def test_requests_of_a_key_are_answered_by_one_release_and_the_answer_says_by_which(
    tmp_path: Path, digits: Digits
) -> None:
    async with pair(tmp_path, digits, BETTER, Beside(mode="split", share=0.5)) as (both, _, _):
        await both.start(both.old)
        pid = await both.start(both.new)
        await both.met()
        port, salt = both.old.instance.serve.port, salt_of(both.new.instance)
        names = {True: both.new.instance.name, False: both.old.instance.name}
        path = "/v2/models/digits/infer"
        late = 0
        for i in range(60):
            key = f"device-{i % 20}"
            more = [{"headers": {HEADER_KEY: key}}, {"parameters": {"key": key}}, {"id": key}][i % 3]
            headers = more.pop("headers", None)
            status, said, body = await serving.ask(port, path, digits.request(i, **more), headers)
            its = belongs(key, salt, 0.5)
            late += its and said[HEADER_INSTANCE.lower()] != names[True]
            answered = json.loads(body)
            assert status == 200
            if said[HEADER_INSTANCE.lower()] == names[True]:
                assert its
                assert (answered["model_version"], answered["outputs"][0]["data"]) == ("2", [digits.says[BETTER][i]])
            else:
                assert (answered["model_version"], answered["outputs"][0]["data"]) == ("1", [digits.says[OLD][i]])
        await site.until(
            lambda: sum(_split(handover(both.old))) == sum(belongs(f"device-{i % 20}", salt, 0.5) for i in range(60))
        )
        assert late == sum(_split(handover(both.old))) - handover(both.old).answered

        # Who names a version is answered by that one.
        mine = next(f"k{i}" for i in range(100) if belongs(f"k{i}", salt, 0.5))
        _, said, body = await serving.ask(port, "/v2/models/digits/versions/1/infer", digits.request(0, id=mine))
        assert json.loads(body)["model_version"] == "1"

        # On the fabric the answer says the same.
        client = await both.node.connect()
        reply = await client.request(
            subjects.infer("na", both.old.instance.name), json.dumps(digits.request(0)).encode(), 30,
            headers={HEADER_KEY: mine},
        )  # fmt: skip
        assert reply.headers[HEADER_INSTANCE] in names.values()
        await client.close()

        os.kill(pid, 9)
        for i in range(20):
            status, said, body = await serving.ask(port, path, digits.request(i, id=mine))
            assert (status, json.loads(body)["model_version"]) == (200, "1")


async def test_one_that_hangs_is_left_alone_and_the_old_one_answers(tmp_path: Path, digits: Digits) -> None:
    import signal

    async with pair(tmp_path, digits, BETTER, Beside(mode="split", share=1.0)) as (both, device, inbox):
        await both.start(both.old)
        pid = await both.start(both.new)
        await both.met()
        os.kill(pid, signal.SIGSTOP)
        try:
            for i in range(300):
                device.publish(f"cameras/c{i}/frame", digits.frame(i))
            await site.until(lambda: len(device.heard) >= 300)
            await site.until(lambda: inbox.books()[0].stored == 0)
            assert sorted(worker.numbers(device.heard)) == list(range(300)), "each answered, and once"
            assert {said["instance"] for _, said in device.heard} == {both.old.instance.name}
            await site.until(lambda: handover(both.old).late == 300)
        finally:
            os.kill(pid, signal.SIGCONT)
        i = 300

        async def answers_again() -> bool:
            nonlocal i
            device.publish(f"cameras/c{i}/frame", digits.frame(i))
            i += 1
            await asyncio.sleep(0.1)
            return any(said["instance"] == both.new.instance.name for _, said in device.heard)

        await site.until(answers_again)


def _split(books: Handover) -> tuple[int, ...]:
    return (books.answered, books.late, books.failed, books.lost)
