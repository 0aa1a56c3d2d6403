"""Bad input against a hub that is really served: each gets a precise answer, and nothing of it is stored."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import pytest

from batuta.context import context
from batuta.demo.stage import Stage, processes_in
from batuta.fabric.clock import SystemClock
from batuta.fabric.nats import connect_hub
from batuta.hub.run import read_run, read_secrets
from batuta.web.bodies import BODY_BYTES_MAX, PATIENCE_S
from batuta.web.patience import HEAD_S
from tests.web.bad_requests import BAD, SITES, Bad, site

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

pytestmark = pytest.mark.e2e

MANIFESTS = sorted((Path(__file__).parents[1] / "kinds" / "bad").glob("*.yaml"))
GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "refused.md"
HUNDRED_MB = 100 * 2**20
GROWTH_MAX_BYTES = 48 * 2**20
"""A body of the largest size that is read, once in parts and once whole, its text, and room for the allocator."""


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """One hub, as a process of its own, asked by hand."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        where, self.token = context(stage.hub_state)[:2]
        parts = urlsplit(where)
        self.host, self.port = str(parts.hostname), int(parts.port or 80)

    def ask(self, method: str, path: str, body: bytes | Iterable[bytes] = b"", **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            every = {"Authorization": f"Bearer {self.token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
            connection.request(method, path, body or None, every, encode_chunked=not isinstance(body, bytes))
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        finally:
            connection.close()

    def head(self, method: str, path: str, *more: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {self.token}", *more]
        return "\r\n".join([*lines, "", ""]).encode()

    def raw(self, *parts: bytes, pause_s: float = 0.0, whole: bool = True) -> bytes:
        """These bytes, and all that comes until the hub hangs up; not `whole`, only its first answer."""
        heard = b""
        with socket.create_connection((self.host, self.port), timeout=60) as talk:
            for part in parts:
                try:
                    talk.sendall(part)
                except OSError:
                    break  # it has hung up: what it said before may still be read
                time.sleep(pause_s)
            try:
                while (whole or not _is_answer(heard)) and (data := talk.recv(65536)):
                    heard += data
            except ConnectionResetError:
                pass
        return heard

    # --- What is stored ---

    def desired(self) -> dict[str, bytes]:
        """The table itself, asked of the broker."""

        async def read() -> dict[str, bytes]:
            ports, password = read_run(self.stage.hub_state).ports, read_secrets(self.stage.hub_state).hub_password
            fabric = await connect_hub(f"nats://127.0.0.1:{ports.client}", "hub", password, SystemClock())
            try:
                rows = {}
                for name in ("desired", "tokens", "enrolled"):
                    table = fabric.table(name)
                    for key in await table.keys():
                        entry = await table.get(key)
                        if entry is not None and entry.value is not None:
                            rows[f"{name}/{key}"] = entry.value
                return rows
            finally:
                await fabric.close()

        return asyncio.run(read())

    def accepted(self) -> list[str]:
        """Writes that the audit says were done: accepted, and no second entry says that they failed after all."""
        items = self.ask("GET", "/audit?limit=5000").json["items"]
        failed = {i["request"] for i in items if i["outcome"] == "failed"}
        done = [i for i in items if i["outcome"] == "accepted" and i["request"] not in failed]
        return [f"{i['sequence']} {i['verb']} {i['what']}" for i in done]

    def process(self) -> psutil.Process:
        return next(p for p in processes_in(self.stage.hub_state) if "batuta.web" in p.cmdline())


def _is_answer(heard: bytes) -> bool:
    head, end, body = heard.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return bool(end) and length is not None and len(body) >= int(length[1])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    stage = Stage(tmp_path_factory.mktemp("stage"))
    try:
        stage.start_hub()
        served = Served(stage)
        assert served.ask("POST", SITES, site("there"), Content_Type="application/json").status == 201
        yield served
    finally:
        killed = stage.close()
    assert killed == [], "these did not end when asked to"


@pytest.fixture
def untouched(hub: Served) -> Iterator[None]:
    """What is stored is the same before and after, and the hub is well."""
    before = hub.desired(), hub.accepted()
    yield
    assert (hub.desired(), hub.accepted()) == before
    assert hub.ask("GET", "/readyz").status == 200


def refused(answer: Answer, status: int) -> dict[str, Any]:
    """Its Status, which must be one."""
    assert answer.status == status, answer
    said: dict[str, Any] = answer.json
    assert (said["kind"], said["status"], said["code"]) == ("Status", "Failure", status)
    assert said["message"]
    return said


def ask(hub: Served, bad: Bad) -> Answer:
    headers = {"Content_Type": bad.media, **{name.replace("-", "_"): value for name, value in bad.headers}}
    return hub.ask(bad.method, bad.path, bad.body, **headers)


@pytest.mark.usefixtures("untouched")
def test_every_bad_manifest_is_refused_with_all_of_its_problems(hub: Served) -> None:
    assert len(MANIFESTS) >= 50
    for path in MANIFESTS:
        answer = hub.ask("POST", f"/apply?file={path.name}", path.read_bytes(), Content_Type="application/yaml")
        if path.stem == "49-not-utf-8":
            assert "not UTF-8: byte " in refused(answer, 400)["message"]
            continue
        said = refused(answer, 422)
        assert f"{said['message']}\n" == path.with_suffix(".expected").read_text(), path.name
        assert said["reason"] == "Invalid"
        # One cause for each problem; what is wrong with the YAML itself has no field.
        assert len(said["details"]["causes"]) == len(said["problems"]) == len(said["message"].splitlines())


@pytest.mark.usefixtures("untouched")
def test_every_bad_request_gets_a_precise_answer(hub: Served) -> None:
    assert len(BAD) >= 40
    assert len({bad.name for bad in BAD}) == len(BAD)
    wrong = []
    for bad in BAD:
        answer = ask(hub, bad)
        text = answer.body.decode(errors="replace")
        try:
            said = refused(answer, bad.status)
            if bad.words not in json.dumps(said, ensure_ascii=False):
                wrong.append(f"{bad.name}: {bad.words!r} is not in {text[:400]}")
        except (AssertionError, ValueError):
            wrong.append(f"{bad.name}: {answer.status}, not {bad.status}: {text[:400]}")
    assert not wrong, "\n".join(wrong)


# --- Too much ---


def parts(size: int) -> Iterator[bytes]:
    """So many bytes of remarks, a mebibyte at a time."""
    for _ in range(size // 2**20):
        yield b"#" * (2**20 - 1) + b"\n"


class Memory:
    """The most memory that a process had since this was asked for, in bytes."""

    def __init__(self, process: psutil.Process) -> None:
        self._proc = Path(f"/proc/{process.pid}")
        (self._proc / "clear_refs").write_text("5")  # the kernel begins to count anew
        self.before = self.peak()

    def peak(self) -> int:
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("path", ["/apply", SITES, "/diff", "/tokens"])
def test_a_hundred_megabytes_are_refused_and_cost_no_memory(hub: Served, path: str) -> None:
    media = "application/json" if path in (SITES, "/tokens") else "application/yaml"
    memory = Memory(hub.process())
    # Said beforehand, nothing of it is read; in chunks, no more of it than is allowed.
    known = hub.raw(
        hub.head("POST", path, f"Content-Type: {media}", f"Content-Length: {HUNDRED_MB}"),
        *parts(HUNDRED_MB),
        whole=False,
    )
    assert known.startswith(b"HTTP/1.1 413 "), known[:200]
    said = json.loads(known.partition(b"\r\n\r\n")[2])
    assert (said["kind"], said["reason"]) == ("Status", "RequestEntityTooLarge")
    assert f"{BODY_BYTES_MAX} bytes at most" in said["message"]
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts(2 * 2**20)] * 50
    chunked = hub.raw(
        hub.head("POST", path, f"Content-Type: {media}", "Transfer-Encoding: chunked"),
        *chunks,
        b"0\r\n\r\n",
        whole=False,
    )
    assert chunked.startswith(b"HTTP/1.1 413 "), chunked[:200]
    assert memory.peak() - memory.before < GROWTH_MAX_BYTES


@pytest.mark.usefixtures("untouched")
def test_who_may_not_write_is_not_listened_to(hub: Served) -> None:
    memory = Memory(hub.process())
    head = f"POST /apply HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {HUNDRED_MB}\r\n\r\n".encode()
    heard = hub.raw(head, *parts(HUNDRED_MB), whole=False)
    assert heard.startswith(b"HTTP/1.1 401 "), heard[:200]
    assert memory.peak() - memory.before < GROWTH_MAX_BYTES


# --- Too slow, and no HTTP ---


@pytest.mark.usefixtures("untouched")
def test_nobody_is_waited_for_for_ever(hub: Served) -> None:
    """All at once, because each takes the hub's patience: a head and bodies that stop, or drip."""
    head = hub.head("POST", "/apply", "Content-Type: application/yaml", "Content-Length: 5000")
    chunked = hub.head("POST", SITES, "Content-Type: application/json", "Transfer-Encoding: chunked")
    upload = hub.head("PUT", f"/artifacts/sha256:{'1' * 64}", "Content-Length: 5000")
    drips = [b"x"] * int(4 * PATIENCE_S)
    talks: dict[str, tuple[list[bytes], float]] = {
        "half of a head": ([b"GET /healthz HTTP/1.1\r\nHost: 127.0"], 0),
        "a head in drips": ([b"GET /healthz HTTP/1.1\r\nX: ", *drips], 0.5),
        "half of a second head": ([hub.head("GET", "/healthz"), b"GET /heal"], 0.2),
        "nothing at all": ([], 0),
        "half of a body": ([head, b"kind: Site\n"], 0),
        "a body in drips": ([head, *drips], 0.5),
        "a chunk and no more": ([chunked, b"3\r\n{  \r\n"], 0),
        "half of an artifact": ([upload, b"some"], 0),
        "a body that nobody asked for": ([hub.head("GET", "/healthz", "Content-Length: 5000"), b"x"], 0),
    }
    heard: dict[str, bytes] = {}

    def talk(name: str) -> None:
        said, pause_s = talks[name]
        heard[name] = hub.raw(*said, pause_s=pause_s)

    threads = [threading.Thread(target=talk, args=(name,)) for name in talks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert heard.keys() == talks.keys(), "every one of them was hung up on"
    slow = {name for name, answer in heard.items() if answer.startswith(b"HTTP/1.1 408 ")}
    assert slow == {"half of a head", "a head in drips", "half of a body", "a body in drips", "a chunk and no more",
                    "half of an artifact"}  # fmt: skip
    for name in slow:
        assert json.loads(heard[name].rpartition(b"\r\n\r\n")[2])["reason"] == "Timeout", heard[name]
    assert heard["half of a second head"].startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in heard["half of a second head"]
    assert heard["nothing at all"] == b""
    assert heard["a body that nobody asked for"].startswith(b"HTTP/1.1 200 ")
    assert min(HEAD_S, PATIENCE_S) > 1


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,  # TLS to the plain port
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",  # no Host
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /apply HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /apply HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST /apply HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\0b\r\n\r\n",
    ],
    ids=["tls", "version", "no host", "two hosts", "negative", "two lengths", "packed", "long path", "many", "nul"],
)
def test_what_is_no_http_is_answered_and_hung_up_on(hub: Served, said: bytes) -> None:
    heard = hub.raw(said, whole=False)
    status = int(heard.split()[1])
    assert 400 <= status < 500 or status == 501, heard[:300]
    assert json.loads(heard.partition(b"\r\n\r\n")[2])["kind"] == "Status"


# --- The page ---

SHOWN = {
    "an unknown key": "a key that no kind has",
    "half of a condition": "a condition that ends too early",
    "an unknown field in a condition": "a condition about something that is not there",
    "two types in one component": "a component that is two things",
    "a ring of sites": "sites that are each other's parents",
    "the same twice": "one name declared twice",
    "an alias bomb": "a YAML bomb: nine times nine times nine…",
    "a manifest that is no UTF-8": "bytes that are no text",
    "XML": "a format that is not read",
    "a packed body": "a packed body",
    "a body too large": "a body that is too large",
    "a body in drips": "a body that drips in",
}


def test_the_page_shows_the_real_messages(hub: Served) -> None:
    """BATUTA_REWRITE=1 writes it anew."""
    large = Bad("a body too large", "POST", "/apply", b"#" * (BODY_BYTES_MAX + 1), 413, "", "application/yaml")
    found: dict[str, Answer] = {bad.name: ask(hub, bad) for bad in (*BAD, large) if bad.name in SHOWN}
    heard = hub.raw(
        hub.head("POST", "/apply", "Content-Type: application/yaml", "Content-Length: 9"), b"kind: S", whole=False
    )
    found["a body in drips"] = Answer(int(heard.split()[1]), heard.partition(b"\r\n\r\n")[2])
    rows = []
    for name, words in SHOWN.items():
        said = refused(found[name], found[name].status)
        message = re.sub(r"in \d+ s", "in 15 s", said["message"].splitlines()[0]).replace("|", "\\|")
        rows.append(f"| {words} | {said['code']} {said['reason']} | `{message}` |")
    page = PAGE.format(rows="\n".join(rows), count=len(BAD) + len(MANIFESTS))
    if os.environ.get("BATUTA_REWRITE"):
        GUIDE.write_text(page)
    assert GUIDE.read_text() == page


PAGE = """\
# What is refused, and in which words

Whatever is wrong with a request is said at once, all of it, and nothing of the request is stored. Every refusal is a
Kubernetes `Status`: `message` is for people, `details.causes` has one entry for each problem with its field, `problems`
adds line and column, and `nextStep`, where there is one, says what to do. The exit code of `batuta` is then 3 for
refused documents and 1 for anything else.

`tests/web/test_bad_input.py` sends {count} bad requests to a hub that is really served, compares the tables and the
audit before and after, and writes this table from the answers.

| what was sent | status | message |
|---|---|---|
{rows}

A manifest has at most 4 MiB, 10000 documents, 500000 values, repeated ones counted, and 64 levels; a request has at
most 8 MiB. A request's head has 10 s to arrive; a body may stand still for 15 s, and takes no longer than that plus one
second for each 4 KiB. What is too slow is answered 408.
"""
