"""Two releases beside each other: whose a key is, when answers are the same, and what is dropped when."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from batuta.core.beside import belongs, salt_of, socket_name
from batuta.core.decided import Instance
from batuta.dataflow.beside import newcomer as newcomers
from batuta.dataflow.beside import wire
from batuta.dataflow.beside.agreement import rows, same
from batuta.dataflow.beside.newcomer import Newcomer, shown
from batuta.dataflow.beside.requests import key_of
from batuta.dataflow.mesh.talk import Ask, of_release
from batuta.dataflow.mesh.unix import UnixPath
from batuta.dataflow.oip.heads import Heads
from batuta.dataflow.oip.messages import Call, Given
from batuta.dataflow.unix import listen_unix

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

KEYS = [f"cameras/{i}/frame" for i in range(5_000)]


def instance(revision: int = 1, slot: str = "0") -> Instance:
    return Instance(namespace="default", application="reader", component="read", revision=revision, slot=slot, epoch=1)


def test_a_share_is_of_that_size_grows_without_taking_back_and_is_another_for_another_release() -> None:
    salt = salt_of(instance(2))
    smaller, larger = ({key for key in KEYS if belongs(key, salt, share)} for share in (0.2, 0.35))
    assert len(smaller) == pytest.approx(1_000, abs=120)
    assert len(larger) == pytest.approx(1_750, abs=140)
    assert smaller < larger
    assert not any(belongs(key, salt, 0.0) for key in KEYS)
    assert all(belongs(key, salt, 1.0) for key in KEYS)
    other = {key for key in KEYS if belongs(key, salt_of(instance(3)), 0.2)}
    assert len(other & smaller) == pytest.approx(200, abs=60)
    assert salt_of(instance(2, "berlin-0")) == salt, "a key is the same release's at every node"
    assert belongs("Zähler 7", salt, 1.0)


def test_two_slots_never_meet_at_one_socket() -> None:
    names = {socket_name(instance(slot=slot)) for slot in ("0", "1", "b-0", "n1")}
    assert len(names) == 4
    assert all(name.startswith(".") for name in names)


SAME = [
    ({"value": 3, "scores": [0.1, 0.9]}, {"value": 3, "scores": [0.4, 0.6]}),
    ({"value": 3, "label": "cat"}, {"value": 7, "label": "cat"}),
    ({"value": "cat", "label": "cat"}, {"value": "cat", "label": "cat"}),
    ({"value": 20.0}, {"value": 20.9}),
    ({"value": 0.0004}, {"value": 0.0}),
    ({"value": [1.0, 2.0, 3.0]}, {"value": [1.01, 2.02, 2.99]}),
    ({"value": None}, {"value": None}),
    ({"value": 5}, {"value": 5.1}),
    ({"box": [10.0, 10.0], "kind": "car"}, {"box": [10.1, 10.1], "kind": "car"}),
]
OTHER = [
    ({"value": 3, "scores": [0.1, 0.9]}, {"value": 4, "scores": [0.1, 0.9]}),
    ({"value": 3, "label": "cat"}, {"value": 3, "label": "dog"}),
    ({"value": 20.0}, {"value": 22.0}),
    ({"value": [1.0, 2.0]}, {"value": [1.0, 2.0, 3.0]}),
    ({"value": [1.0, 2.0]}, {"value": [2.0, 1.0]}),
    ({"value": None}, {"value": 3}),
    ({"value": float("nan")}, {"value": 1.0}),
    ({"value": True}, {"value": 1.5}),
    ({"value": 1}, {"values": 1}),
    ({"box": [10.0], "kind": "car"}, {"box": [10.0], "kind": "bus"}),
    ({"box": [10.0]}, {"box": [10.0], "kind": "bus"}),
]


@pytest.mark.parametrize(("old", "new"), SAME)
def test_answers_of_one_mind(old: Any, new: Any) -> None:
    assert same(old, new)
    assert same(new, old)


@pytest.mark.parametrize(("old", "new"), OTHER)
def test_answers_of_two_minds(old: Any, new: Any) -> None:
    assert not same(old, new)
    assert not same(new, old)


def f(*values: Any) -> Given:
    return Given("FP32", np.array(values, np.float32))


def words(*values: Any) -> Given:
    made = np.empty(np.shape(values), object)
    made[...] = values
    return Given("BYTES", made)


def ints(*values: Any) -> Given:
    return Given("INT64", np.array(values, np.int64))


@pytest.mark.parametrize(
    ("old", "new", "own", "expected"),
    [
        # Scores of classes: whatever else is there, the largest decides.
        ({"p": f([0.1, 0.9], [0.8, 0.2])}, {"p": f([0.4, 0.6], [0.3, 0.7])}, ["p"], (2, 1)),
        ({"l": ints(1, 0), "p": f([0, 1], [1, 0])}, {"l": ints(1, 0), "p": f([0, 1], [1, 0])}, ["l", "p"], (2, 2)),
        ({"p": f([0.1, np.nan])}, {"p": f([0.1, np.nan])}, ["p"], (1, 0)),
        # Shaped: the best first, in words where there are some. Their scores are sorted, and say nothing.
        ({"classes": ints([3, 1]), "labels": words([b"a", b"b"]), "scores": f([0.9, 0.1])},
         {"classes": ints([4, 1]), "labels": words([b"a", b"c"]), "scores": f([0.8, 0.2])}, ["p"], (1, 1)),
        ({"classes": ints([3, 1]), "labels": words([b"", b""])},
         {"classes": ints([4, 1]), "labels": words([b"", b""])}, ["p"], (1, 0)),
        ({"scores": f([0.9, 0.1])}, {"scores": f([0.2, 0.1])}, ["p"], (1, 0)),
        # The protocol's classification.
        ({"p": words([b"0.93:7", b"0.05:1"])}, {"p": words([b"0.81:7", b"0.15:2"])}, ["p"], (1, 1)),
        ({"p": words([b"0.93:7", b"0.05:1"])}, {"p": words([b"0.93:1", b"0.05:7"])}, ["p"], (1, 0)),
        # Numbers, row by row; every output counts.
        ({"y": f([10.0], [20.0])}, {"y": f([10.2], [30.0])}, ["y"], (2, 1)),
        ({"y": f([10.0]), "n": ints([3])}, {"y": f([10.0]), "n": ints([4])}, ["y", "n"], (1, 0)),
        ({"y": f(1.0)}, {"y": f(1.0, 2.0)}, ["y"], (2, 0)),
        ({"y": f(1.0)}, {"z": f(1.0)}, ["y"], (1, 0)),
        ({"y": Given("BF16", np.array([[0x3F80]], np.uint16))}, {"y": f([1.0])}, ["y"], (1, 1)),
    ],
)  # fmt: skip
def test_tensors_are_compared_row_by_row(old: Any, new: Any, own: Any, expected: tuple[int, int]) -> None:
    assert tuple(rows(old, new, own)) == expected


def test_a_request_belongs_by_the_key_it_names_else_by_its_id_else_by_itself() -> None:
    call = Call({}, id="seven", parameters={"key": 12})
    body = memoryview(b"abc")
    assert key_of("door", call, body) == "door"
    assert key_of("", call, body) == "12"
    assert key_of("", call._replace(parameters={}), body) == "seven"
    plain = Call({})
    assert key_of("", plain, body) == key_of("", plain, memoryview(b"abc")) != key_of("", plain, memoryview(b"abd"))


class Stub:
    """Somebody at the meeting place, who says what the test says."""

    def __init__(self, directory: Path, hello: wire.Hello, serve: Callable[[Any, Any], Awaitable[None]]) -> None:
        self._listening = listen_unix(directory / socket_name(instance()))
        self._hello = hello
        self._serve = serve
        self.met = 0

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._welcome, sock=self._listening)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.met += 1
        writer.write(wire.packed(self._hello))
        try:
            await self._serve(reader, writer)
        except EOFError:
            pass
        finally:
            writer.close()

    def close(self) -> None:
        self._server.close()


def hello(mode: Any = "split", **more: Any) -> wire.Hello:
    said = {"format": wire.FORMAT, "instance": "default/reader/read-2-0", "model": "m:2", "mode": mode,
            "share": 1.0, "salt": "s", "inputs": True}  # fmt: skip
    return wire.Hello(**(said | more))


async def silent(reader: asyncio.StreamReader, _writer: Any) -> None:
    """Reads nothing and says nothing."""
    await asyncio.sleep(3_600)


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while True:
            if true():
                return
            await asyncio.sleep(0.005)


@pytest.fixture
def complaints() -> list[str]:
    return []


async def meeting(directory: Path, stub: Stub, complaints: list[str]) -> tuple[Newcomer, asyncio.Task[None]]:
    await stub.open()
    mine = directory / "read-1-0"
    mine.mkdir()
    found = Newcomer(instance(), mine, complaints.append)
    return found, asyncio.create_task(found.run())


async def ended(task: asyncio.Task[None], stub: Stub) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    stub.close()


async def test_what_is_not_read_is_dropped_and_counted_and_nobody_waits(tmp_path: Path, complaints: list[str]) -> None:
    stub = Stub(tmp_path, hello("shadow"), silent)
    newcomer, task = await meeting(tmp_path, stub, complaints)
    await until(lambda: newcomer.is_shown)
    data = b"x" * 100_000
    for _ in range(400):
        newcomer.show(shown("a/b", data, said={"value": 1}), len(data))
        await asyncio.sleep(0)
    books = newcomer.books
    assert books is not None
    assert books.dropped > 250, "no more than eight megabytes wait"
    await ended(task, stub)
    books = newcomer.books
    assert books is not None
    assert books.shown + books.dropped == 400


async def test_late_answers_are_given_up_and_after_some_it_is_left_alone(tmp_path: Path, complaints: list[str]) -> None:
    stub = Stub(tmp_path, hello(), silent)
    newcomer, task = await meeting(tmp_path, stub, complaints)
    await until(lambda: newcomer.is_asked)
    for _ in range(newcomers.LATES):
        assert newcomer.takes("k")
        found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        newcomer.ask([shown("a/b", b"1")], [], found.set_result, within_s=0.02)
        (answer,) = await found
        assert answer.fault == "late"
    assert not newcomer.takes("k")
    books = newcomer.books
    assert books is not None
    assert (books.asked, books.late) == (newcomers.LATES, newcomers.LATES + 1)
    await until(lambda: newcomer.takes("k"))
    await ended(task, stub)


async def test_what_was_asked_of_one_that_dies_is_given_back_at_once(tmp_path: Path, complaints: list[str]) -> None:
    async def dies(reader: asyncio.StreamReader, _writer: Any) -> None:
        await wire.read(reader)

    stub = Stub(tmp_path, hello(), dies)
    newcomer, task = await meeting(tmp_path, stub, complaints)
    await until(lambda: newcomer.is_asked)
    found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    newcomer.ask([shown("a/b", b"1"), shown("a/c", b"2")], [], found.set_result, within_s=600)
    assert [answer.fault for answer in await found] == ["lost", "lost"]
    assert not newcomer.takes("k")
    await until(lambda: stub.met == 2)  # it looks again, and there is one again
    await ended(task, stub)


async def strange(_reader: Any, writer: Any) -> None:
    writer.write(wire.LENGTH.pack(wire.MESSAGE_BYTES_MAX + 1))
    await writer.drain()


@pytest.mark.parametrize(
    ("said", "serve"),
    [(hello(format=99), silent), (hello(), strange), (hello(instance="default/reader/read-1-0"), silent)],
)
async def test_whoever_cannot_be_understood_is_not_there(
    tmp_path: Path, complaints: list[str], said: wire.Hello, serve: Any
) -> None:
    stub = Stub(tmp_path, said, serve)
    newcomer, task = await meeting(tmp_path, stub, complaints)
    await until(lambda: complaints)
    assert not newcomer.takes("k")
    assert not newcomer.is_shown
    await ended(task, stub)


def beside(name: str, path: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


serving = beside("serving_for_tests", "dataflow/serving_for_tests.py")
INFER = "/v2/models/m/infer"


@pytest.fixture
def shared() -> Iterator[str]:
    """The key of a shared memory that holds 5, 6, 7, 8."""
    path = Path(f"/dev/shm/batuta-test-beside-{os.getpid()}")
    path.write_bytes(np.array([5, 6, 7, 8], np.float32).tobytes())
    yield f"/{path.name}"
    path.unlink()


async def fails(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every second request, and fails with the others."""
    while True:
        given = wire.handed.decode(await wire.read(reader))
        is_well = given.number % 2 == 0
        body = b'{"model_name":"m","model_version":"2","outputs":[]}'
        answer = wire.Answer(body=body) if is_well else wire.Answer("model_failed")
        writer.write(wire.packed(wire.Back(given.number, [answer])))


async def test_requests_that_the_new_one_fails_at_are_answered_by_the_old_one_and_shared_memory_never_leaves_it(
    tmp_path: Path, complaints: list[str], shared: str
) -> None:
    (tmp_path / "slot").mkdir()
    stub = Stub(tmp_path / "slot", hello(), fails)
    newcomer, task = await meeting(tmp_path / "slot", stub, complaints)
    await until(lambda: newcomer.is_asked)
    async with serving.served(serving.echo(tmp_path / "m.onnx")) as served:
        served.endpoint.newcomer = newcomer
        counted: list[float] = []
        served.endpoint.told = lambda ms, _fault: counted.append(ms)
        by = []
        for i in range(6):
            body = {"id": str(i), "inputs": [serving.tensor([1.0, 2.0, 3.0, 4.0], [1, 4])]}
            status, said, answer = await serving.ask(served.port, INFER, body)
            assert status == 200
            by.append((said["batuta-instance"].rpartition("/")[2], msgspec.json.decode(answer)["model_version"]))
        assert sorted(by) == [("read-1-0", "1")] * 3 + [("read-2-0", "2")] * 3
        assert len(counted) == 3, "what the new one answered is not the old one's work"
        books = newcomer.books
        assert books is not None
        assert (books.asked, books.answered, books.failed) == (6, 3, 3)

        region = {"shared_memory_region": "r", "shared_memory_byte_size": 16}
        path = "/v2/systemsharedmemory/region/r/register"
        status, _, _ = await serving.ask(served.port, path, {"key": shared, "offset": 0, "byte_size": 16})
        assert status == 200
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": region}]}
        for _ in range(3):
            _, _, answer = await serving.ask(served.port, INFER, body)
            assert msgspec.json.decode(answer)["outputs"][0]["data"] == [5.0, 6.0, 7.0, 8.0]
        books = newcomer.books
        assert books is not None
        assert books.asked == 6
    await ended(task, stub)


def test_a_gateway_says_whether_its_caller_named_a_version() -> None:
    ask = Ask("default", "m", "", "", "infer", "normal", 0, key="door")
    assert dict(of_release(ask, path=True)) == {"Batuta-Key": "door", "Batuta-Version": "any"}
    assert dict(of_release(ask, path=False)) == {"Batuta-Key": "door"}
    named = ask._replace(version="1", key="")
    assert dict(of_release(named, path=True)) == {}
    assert dict(of_release(named, path=False)) == {"Batuta-Version": "1"}

    def pinned(path: str, *lines: str) -> bool:
        return Heads().read("\r\n".join((f"POST {path} HTTP/1.1", "Content-Length: 0", *lines, "", "")).encode()).pinned

    assert pinned("/v2/models/m/versions/1/infer")
    assert not pinned("/v2/models/m/versions/1/infer", "Batuta-Version: any")
    assert not pinned("/v2/models/m/infer")
    assert pinned("/v2/models/m/infer", "Batuta-Version: 1")


async def test_a_gateway_hears_which_of_the_two_answered(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nBatuta-Instance: default/reader/read-2-0\r\nContent-Length: 2\r\n\r\n{}")

    server = await asyncio.start_unix_server(answer, sock=listen_unix(tmp_path / "oip.sock"))
    path = UnixPath(str(tmp_path / "oip.sock"))
    ask = Ask("default", "m", "", "", "infer", "normal", 0, key="door")
    assert (await path.send(ask, "1", 5_000, "")).by == "default/reader/read-2-0"
    assert b"Batuta-Key: door\r\nBatuta-Version: any\r\n" in heard[0]
    path.close()
    server.close()
