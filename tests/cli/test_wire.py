"""What a bad network does to the client: a scripted server over real sockets, as a real hub does not misbehave."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from batuta.client import Client
from batuta.errors import ArtifactRefused, BatutaError, FabricUnavailable, NotFound, Refused, Stale
from batuta.kinds import Node
from batuta.wire import Wire, failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NODES = "/apis/batuta.dev/v1/nodes"


class Script:
    """Answers one connection after the other with one step each; a step writes bytes and may hang up."""

    def __init__(self) -> None:
        self.steps: list[Callable[[Script, socket.socket, str, bytes], None]] = []
        self.asked: list[str] = []
        self.released = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            while line := reader.readline():
                length = 0
                while (header := reader.readline().strip()) != b"":
                    name, _, value = header.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                self.asked.append(line.decode().rpartition(" ")[0])
                step = self.steps.pop(0)
                if getattr(step, "before_body", False):
                    step(self, connection, self.asked[-1], b"")
                    return
                step(self, connection, self.asked[-1], reader.read(length))
                if getattr(step, "hangs_up", False):
                    return

    def close(self) -> None:
        self.released.set()
        self._server.close()


@pytest.fixture
def script() -> Iterator[Script]:
    made = Script()
    yield made
    made.close()
    assert made.steps == [], "not all of the script was played"


def says(document: dict[str, Any], status: int = 200, *, hangs_up: bool = False) -> Any:
    body = json.dumps(document).encode()

    def step(_script: Script, connection: socket.socket, _asked: str, _body: bytes) -> None:
        connection.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    step.hangs_up = hangs_up  # type: ignore[attr-defined]
    return step


def streams(*events: dict[str, Any], holds: bool = False, cut: bytes = b"") -> Any:
    """A chunked answer, one event a chunk; then it ends, or stays silent, or breaks off in the middle of a line."""

    def step(script: Script, connection: socket.socket, _asked: str, _body: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in events:
            line = json.dumps(event).encode() + b"\n"
            connection.sendall(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        if holds:
            script.released.wait(20)
        elif cut:
            connection.sendall(b"ff\r\n" + cut)
        else:
            connection.sendall(b"0\r\n\r\n")

    step.hangs_up = holds or bool(cut)  # type: ignore[attr-defined]
    return step


def hangs_up(_script: Script, _connection: socket.socket, _asked: str, _body: bytes) -> None:
    """Ends without a word."""


hangs_up.hangs_up = True  # type: ignore[attr-defined]


def node(name: str, version: int, state: str = "online") -> dict[str, Any]:
    return {
        "kind": "Node",
        "apiVersion": "batuta.dev/v1",
        "metadata": {"name": name, "resourceVersion": str(version)},
        "spec": {"site": "lab"},
        "status": {"state": state},
    }


def listing(version: int, *items: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "NodeList", "metadata": {"resourceVersion": str(version)}, "items": list(items)}


def told(client: Client, count: int, **options: Any) -> list[tuple[str, str, str]]:
    seen = []
    for event in client.watch(Node, **options):
        seen.append((event.type, event.found.resource.metadata.name, str(event.found.status["state"])))
        if len(seen) == count:
            break
    return seen


# --- One question, one answer ---


def test_a_kept_connection_that_has_ended_is_opened_again(script: Script) -> None:
    script.steps = [says(listing(1), hangs_up=True), says(listing(2))]
    with Client(script.url) as client:
        assert client.list(Node) == ()
        assert client.list(Node) == ()
    assert script.asked == [f"GET {NODES}"] * 2


def test_a_first_connection_without_an_answer_is_unavailable(script: Script) -> None:
    script.steps = [hangs_up]
    with pytest.raises(FabricUnavailable) as unavailable:
        Client(script.url).list(Node)
    assert unavailable.value.next_step


def test_a_token_is_never_asked_for_twice(script: Script) -> None:
    """Had the first request been heard after all, a second one would make a second token that nobody knows of."""
    script.steps = [says(listing(1)), hangs_up]
    with Client(script.url) as client:
        client.list(Node)
        with pytest.raises(FabricUnavailable):
            client.create_token("lab")
    assert script.asked == [f"GET {NODES}", "POST /tokens"]


def test_a_silent_hub_is_given_up(script: Script) -> None:
    def silent(script: Script, _connection: socket.socket, _asked: str, _body: bytes) -> None:
        script.released.wait(20)

    script.steps = [silent]
    with pytest.raises(FabricUnavailable, match="did not answer in time"):
        Client(script.url, timeout_s=0.1).list(Node)


def test_what_is_no_json_is_an_error_with_words(script: Script) -> None:
    def page(_script: Script, connection: socket.socket, _asked: str, _body: bytes) -> None:
        connection.sendall(b"HTTP/1.1 500 X\r\nContent-Length: 5\r\n\r\n<html")

    script.steps = [page]
    with pytest.raises(BatutaError, match="<html"):
        Client(script.url).list(Node)


def test_a_resource_of_a_newer_hub_says_so(script: Script) -> None:
    script.steps = [says({**node("a", 1), "spec": {"site": "lab", "orbit": "low"}})]
    with pytest.raises(BatutaError, match="orbit") as error:
        Client(script.url).get(Node, "a")
    assert "same version" in error.value.next_step


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (404, {"message": "no"}, NotFound),
        (410, {"message": "gone"}, Stale),
        (409, {"reason": "Conflict"}, Stale),
        (409, {"reason": "AlreadyExists", "problems": [{"path": "metadata.name", "message": "taken"}]}, Refused),
        (422, {"details": {"causes": [{"field": "spec", "reason": "x", "message": "bad"}]}}, Refused),
        (422, {"details": {"code": "digest_mismatch"}}, ArtifactRefused),
        (503, {}, FabricUnavailable),
        (401, {"message": "no token"}, BatutaError),
        (500, {}, BatutaError),
    ],
)
def test_every_refusal_has_its_error(status: int, answer: dict[str, Any], error: type[BatutaError]) -> None:
    made = failure(status, answer, "http://hub")
    assert type(made) is error
    assert str(made)


def test_all_problems_come_with_their_places() -> None:
    problems = [
        {"path": "spec.a", "code": "x", "message": "one", "hint": "h", "file": "f.yaml", "line": 3, "column": 7},
        {"path": "spec.b", "code": "y", "message": "two", "unheard": "of"},
    ]
    made = failure(422, {"problems": problems}, "http://hub")
    assert isinstance(made, Refused)
    assert [str(problem) for problem in made.problems] == ["f.yaml:3:7: spec.a: one, h", "spec.b: two"]


def test_an_address_that_is_none_is_refused() -> None:
    for address in ("127.0.0.1:8400", "ftp://hub", "http://"):
        with pytest.raises(BatutaError, match="is not the address of a hub"):
            Wire(address, "", "", 1.0)


# --- Watching ---


def test_a_watch_goes_on_where_its_stream_broke(script: Script) -> None:
    script.steps = [
        says(listing(5, node("a", 5))),
        streams({"type": "MODIFIED", "object": node("a", 6, "late")}, cut=b'{"type":"MODI'),
        streams({"type": "ADDED", "object": node("b", 7)}, holds=True),
    ]
    assert told(Client(script.url), 3) == [
        ("ADDED", "a", "online"),
        ("MODIFIED", "a", "late"),
        ("ADDED", "b", "online"),
    ]
    assert [asked.partition("resourceVersion=")[2].partition("&")[0] for asked in script.asked] == ["", "5", "6"]


def test_a_bookmark_moves_the_place_and_is_not_told(script: Script) -> None:
    bookmark = {"kind": "Node", "metadata": {"resourceVersion": "99"}}
    script.steps = [
        says(listing(5, node("a", 5))),
        streams({"type": "BOOKMARK", "object": bookmark}),
        streams({"type": "ADDED", "object": node("b", 100)}, holds=True),
    ]
    assert told(Client(script.url), 2) == [("ADDED", "a", "online"), ("ADDED", "b", "online")]
    assert "resourceVersion=99" in script.asked[2]


@pytest.mark.parametrize("how", ["status", "event"])
def test_a_forgotten_place_is_read_again_and_only_the_difference_is_told(script: Script, how: str) -> None:
    expired = {"kind": "Status", "code": 410, "message": "too old"}
    forgotten = says(expired, 410, hangs_up=True) if how == "status" else streams({"type": "ERROR", "object": expired})
    script.steps = [
        says(listing(5, node("a", 5), node("b", 5), node("c", 5))),
        forgotten,
        says(listing(9, node("a", 5), node("b", 8, "offline"), node("d", 9))),
        streams(holds=True),
    ]
    assert told(Client(script.url), 6) == [
        ("ADDED", "a", "online"), ("ADDED", "b", "online"), ("ADDED", "c", "online"),
        ("DELETED", "c", "online"), ("MODIFIED", "b", "offline"), ("ADDED", "d", "online"),
    ]  # fmt: skip
    script.steps.clear()


def test_a_watch_ends_on_time_and_waiting_too_long_is_an_error(script: Script) -> None:
    script.steps = [says(listing(5, node("a", 5, "late"))), streams(holds=True)]
    with pytest.raises(BatutaError, match="not as awaited"):
        Client(script.url).wait(Node, "a", lambda found: found.status["state"] == "online", timeout_s=0.3)


def test_a_hub_that_stays_away_ends_a_watch(script: Script) -> None:
    script.steps = [says(listing(5)), *[hangs_up] * 20]
    watching = Client(script.url).watch(Node, patience_s=0.2)
    with pytest.raises(FabricUnavailable):
        next(watching)
    script.steps.clear()


def test_a_line_without_end_is_bounded(script: Script, monkeypatch) -> None:
    monkeypatch.setattr("batuta.wire.LINE_BYTES_MAX", 100)
    script.steps = [streams({"type": "ADDED", "object": "x" * 1000})]
    with pytest.raises(BatutaError, match="a line of more than"):
        list(Wire(script.url, "", "", 1.0).stream("/", {}, timeout_s=1.0))


# --- Artifacts ---


def test_an_artifact_travels_once_and_says_how_far_it_is(script: Script, tmp_path) -> None:
    blob = bytes(range(256)) * 4096
    (tmp_path / "blob").write_bytes(blob)
    taken: list[bytes] = []

    def take(_script: Script, connection: socket.socket, asked: str, body: bytes) -> None:
        taken.append(body)
        connection.sendall(b"HTTP/1.1 201 X\r\nContent-Length: 2\r\n\r\n{}")

    def has_it(_script: Script, connection: socket.socket, _asked: str, _body: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 X\r\nContent-Length: 1048576\r\n\r\n")

    def has_it_not(_script: Script, connection: socket.socket, _asked: str, _body: bytes) -> None:
        connection.sendall(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")

    script.steps = [has_it_not, take, has_it]
    seen: list[tuple[int, int]] = []
    with Client(script.url) as client:
        digest, size = client.push_artifact(tmp_path / "blob", lambda done, of: seen.append((done, of)))
        assert client.push_artifact(tmp_path / "blob") == (digest, size)
    assert digest == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    assert taken == [blob]
    assert seen[-1] == (len(blob), len(blob))
    assert seen == sorted(seen)


def test_an_upload_refused_half_way_says_why(script: Script, tmp_path) -> None:
    (tmp_path / "blob").write_bytes(b"x" * (8 << 20))

    def has_it_not(_script: Script, connection: socket.socket, _asked: str, _body: bytes) -> None:
        connection.sendall(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")

    def no_room(_script: Script, connection: socket.socket, _asked: str, _body: bytes) -> None:
        body = json.dumps({"message": "the hub's disk is full", "details": {"code": "disk_full"}}).encode()
        connection.sendall(f"HTTP/1.1 507 X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)
        # Read on, so that the answer is not lost in a reset, but slowly enough that the sender would block.
        while connection.recv(1 << 20):
            pass

    no_room.before_body = True  # type: ignore[attr-defined]
    script.steps = [has_it_not, no_room]
    with pytest.raises(ArtifactRefused, match="disk is full"):
        Client(script.url).push_artifact(tmp_path / "blob")
