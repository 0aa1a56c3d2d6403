"""Engines as the node agent meets them: where their sockets are, and what of their HTTP it believes."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from batuta.agent.config import AgentConfig
from batuta.agent.engines import Engines, find
from batuta.agent.news import Ailing
from batuta.core.observed import Inventory
from batuta.errors import RuntimeFailure
from batuta.runtimes import container_http
from batuta.runtimes.container_http import EngineRefused, EngineSocket, whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A path that is short enough for a socket."""
    import shutil
    import tempfile

    directory = tempfile.mkdtemp(prefix="batuta-sock-")
    yield f"{directory}/engine.sock"
    shutil.rmtree(directory)


@asynccontextmanager
async def saying(place: str, answer: bytes, heard: list[bytes] | None = None) -> AsyncIterator[EngineSocket]:
    """An engine that answers every request with these bytes, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(x.split(b":")[1]) for x in said.split(b"\r\n") if x.lower().startswith(b"content-length")), 0
        )
        said += await reader.readexactly(length)
        if heard is not None:
            heard.append(said)
        writer.write(answer)
        with suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, place)
    try:
        yield EngineSocket(place)
    finally:
        server.close()
        await server.wait_closed()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        OK + b'Content-Length: 7\r\n\r\n{"a":1}',
        OK + b'Transfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n4;x=y\r\n":1}\r\n0\r\n\r\n',
        OK + b'\r\n{"a":1}',
    ],
)
async def test_bodies_of_a_length_in_chunks_and_to_the_end_are_read(place: str, answer: bytes) -> None:
    async with saying(place, answer) as engine:
        assert await engine.ask("GET", "/info") == {"a": 1}


async def test_what_is_asked_is_whole_and_escaped(place: str) -> None:
    heard: list[bytes] = []
    async with saying(place, OK + b"Content-Length: 0\r\n\r\n", heard) as engine:
        assert await engine.ask("POST", "/containers/create", {"name": "a b&c"}, {"x": "y"}) is None
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1.41/containers/create?name=a+b%26c HTTP/1.1\r\n")
    assert body == b'{"x":"y"}'


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        OK + b"Content-Length: 100\r\n\r\nshort",
        OK + b"Content-Length: many\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"X: " + b"y" * (container_http.HEAD_BYTES_MAX * 2) + b"\r\n\r\n",
        OK + b"X: y\r\n" * 20_000 + b"\r\n",
        OK + f"Content-Length: {container_http.ANSWER_BYTES_MAX + 1}\r\n\r\n".encode()
        + b"x" * (container_http.ANSWER_BYTES_MAX + 1),
    ],
)  # fmt: skip
async def test_what_is_no_answer_counts_as_none(place: str, answer: bytes) -> None:
    async with saying(place, answer) as engine:
        with pytest.raises(RuntimeFailure) as failure:
            await engine.ask("GET", "/info")
    assert failure.value.code == "engine_unreachable"


async def test_a_refusal_carries_the_engines_words(place: str) -> None:
    said = b'{"message":"no such image"}'
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(said) + said
    async with saying(place, answer) as engine:
        with pytest.raises(EngineRefused) as refused:
            await engine.ask("GET", "/images/x/json")
    assert (refused.value.status, refused.value.message) == (404, "no such image")


async def test_nobody_there_and_somebody_mute_are_both_unreachable(place: str) -> None:
    with pytest.raises(RuntimeFailure) as failure:
        await EngineSocket(place).ask("GET", "/info")
    assert failure.value.code == "engine_unreachable"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(place)
        mute.listen()
        with pytest.raises(RuntimeFailure) as failure:
            await EngineSocket(place).ask("GET", "/info", timeout_s=0.05)
    assert failure.value.code == "engine_unreachable"


async def test_a_file_is_sent_as_it_is(place: str, tmp_path: Path) -> None:
    file, heard = tmp_path / "image.tar", list[bytes]()
    file.write_bytes(bytes(range(256)) * 1000)
    async with saying(place, OK + b"\r\n", heard) as engine, engine.open("POST", "/images/load", upload=file) as answer:
        assert await whole(answer.pieces, 10) == b""
    assert heard[0].partition(b"\r\n\r\n")[2] == file.read_bytes()


def test_the_users_own_engine_comes_before_the_machines(place: str) -> None:
    run = place.removesuffix("/engine.sock")
    own = f"{run}/docker.sock"
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(own)
        assert find("", {"XDG_RUNTIME_DIR": run}, user=1000) == own
        assert find(own) == own
        assert find("none", {"XDG_RUNTIME_DIR": run}, user=1000) == ""
    assert find(f"{run}/not-there") == ""
    open(place, "wb").close()
    assert find(place) == "", "a file is no socket"


async def test_a_named_engine_that_is_away_is_said_and_offers_nothing(place: str, tmp_path: Path) -> None:
    told: list[object] = []
    engines = Engines(AgentConfig(state=str(tmp_path), engine=place), "pi", {}, told.append)
    await engines.open(is_needed=False)
    inventory = Inventory(runtimes=("process",))
    assert engines.beside(inventory) is inventory
    ailing = [news for news in told if isinstance(news, Ailing)]
    assert [news.reason.code for news in ailing if news.reason is not None] == ["engine_unreachable"]


async def test_an_engine_that_answers_is_offered_with_its_version(place: str, tmp_path: Path) -> None:
    said = b'{"Version":"4.3.1","Components":[{"Name":"Podman Engine"}]}'
    answer = OK + b"Content-Length: %d\r\n\r\n" % len(said) + said
    runtimes: dict[str, object] = {}
    async with saying(place, answer):
        engines = Engines(AgentConfig(state=str(tmp_path), engine=place), "pi", runtimes, lambda _: None)  # type: ignore[arg-type]
        await engines.open(is_needed=False)
    inventory = Inventory(runtimes=("process",))
    found = engines.beside(inventory)
    assert (found.runtimes, found.engines) == (("container", "process"), {"container": "podman 4.3.1"})
    assert engines.beside(inventory) is found
    assert list(runtimes) == ["container"]


async def test_none_is_none_even_when_containers_are_remembered(tmp_path: Path) -> None:
    runtimes: dict[str, object] = {}
    engines = Engines(AgentConfig(state=str(tmp_path), engine="none"), "pi", runtimes, lambda _: None)  # type: ignore[arg-type]
    await engines.open(is_needed=True)
    assert runtimes == {}
