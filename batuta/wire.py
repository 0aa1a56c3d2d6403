"""One hub over HTTP: a connection that is kept, streams of lines, uploads, and errors in Batuta's own words.

`batuta.client` says what to ask; this module only carries it. Nothing is retried that could happen twice, every answer
is bounded, and a token never travels unencrypted beyond this machine.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec

from batuta.errors import ArtifactRefused, BatutaError, FabricUnavailable, NotFound, Refused, Stale
from batuta.kinds.base import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ANSWER_BYTES_MAX = 256 * 2**20
LINE_BYTES_MAX = 16 * 2**20
CHUNK_BYTES = 2**18


class Silent(FabricUnavailable):
    """A stream that had begun said nothing for too long."""


class HungUp(BatutaError):
    """Somebody ended the conversation from this side."""


class _Question(NamedTuple):
    method: str
    path: str
    query: Mapping[str, str] = {}
    body: bytes | Upload | None = None
    content_type: str = "application/json"


class Wire:
    """One hub, one kept connection, one thread."""

    def __init__(self, server: str, token: str, ca: str, timeout_s: float) -> None:
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BatutaError(
                f"{server!r} is not the address of a hub", next_step="write it like http://127.0.0.1:8400"
            )
        if token and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise BatutaError(
                f"the token would cross the network unencrypted on its way to {parts.hostname}",
                next_step="use the hub's https:// address",
            )
        self.server = server.rstrip("/")
        self._timeout_s = timeout_s
        self._host, self._port = parts.hostname, parts.port
        self._is_tls, self._ca = parts.scheme == "https", ca
        self._base = parts.path.rstrip("/")
        self._token = token
        self._kept: http.client.HTTPConnection | None = None
        self._streams: set[socket.socket] = set()
        self._is_hung_up = False

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def hang_up(self) -> None:
        """End every stream at once, from whichever thread: whoever reads one gets HungUp. Nothing is asked again."""
        self._is_hung_up = True
        for each in tuple(self._streams):
            with contextlib.suppress(OSError):  # It has ended by itself meanwhile.
                each.shutdown(socket.SHUT_RDWR)

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes | Upload | None = None,
        *,
        content_type: str = "application/json",
        may_repeat: bool = True,
    ) -> dict[str, Any]:
        """One question, one answer, on the kept connection. Raises what the hub's refusal means."""
        was_kept = self._kept is not None
        connection = self._kept or self._connection(self._timeout_s)
        self._kept = None
        try:
            answer = self._send(connection, _Question(method, path, query or {}, body, content_type))
            read = answer.read(ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            # A connection that was kept too long ends without a word; only then is it fair to ask again.
            if was_kept and may_repeat and not isinstance(error, TimeoutError):
                return self.ask(method, path, query, body, content_type=content_type, may_repeat=False)
            raise self._unavailable(error) from error
        if len(read) > ANSWER_BYTES_MAX:
            connection.close()
            raise BatutaError(f"the hub's answer is larger than {ANSWER_BYTES_MAX >> 20} MiB")
        if answer.will_close:
            connection.close()
        else:
            self._kept = connection
        return self._understood(answer.status, read)

    def text(self, path: str) -> str:
        """An answer that is no JSON, whole."""
        return "".join(f"{line.decode()}\n" for line in self.stream(path, {}, timeout_s=self._timeout_s))

    def stream(self, path: str, query: Mapping[str, str], *, timeout_s: float | None) -> Iterator[bytes]:
        """The lines of an answer, as they come. Silent after `timeout_s` without one; closing it hangs up."""
        connection = self._connection(timeout_s)
        has_begun = False
        sock: socket.socket | None = None
        try:
            connection.connect()
            sock = connection.sock
            self._streams.add(sock)
            answer = self._send(connection, _Question("GET", path, query))
            if answer.status != 200:
                self._understood(answer.status, answer.read(ANSWER_BYTES_MAX))
                raise BatutaError(f"the hub answered {answer.status} where a stream was expected")
            has_begun = True
            while line := answer.readline(LINE_BYTES_MAX):
                if not line.endswith(b"\n") and len(line) >= LINE_BYTES_MAX:
                    raise BatutaError(f"the hub sent a line of more than {LINE_BYTES_MAX >> 20} MiB")
                yield line.rstrip(b"\r\n")
            self._check_hung_up()
        except (OSError, http.client.HTTPException) as error:
            self._check_hung_up()
            if has_begun and isinstance(error, TimeoutError):
                raise Silent(f"the hub at {self.server} said nothing for {timeout_s:g} s") from error
            raise self._unavailable(error) from error
        finally:
            if sock is not None:
                self._streams.discard(sock)
            connection.close()

    def pieces(self, path: str) -> Iterator[bytes]:
        """An answer that is no text, piece by piece."""
        connection = self._connection(self._timeout_s)
        try:
            answer = self._send(connection, _Question("GET", path))
            if answer.status != 200:
                self._understood(answer.status, answer.read(ANSWER_BYTES_MAX))
                raise BatutaError(f"the hub answered {answer.status} where bytes were expected")
            while piece := answer.read(CHUNK_BYTES):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(error) from error
        finally:
            connection.close()

    def _check_hung_up(self) -> None:
        if self._is_hung_up:
            raise HungUp("this client has hung up")

    def _send(self, connection: http.client.HTTPConnection, question: _Question) -> http.client.HTTPResponse:
        asked = urlencode({k: v for k, v in question.query.items() if v})
        target = f"{self._base}{question.path}{'?' if asked else ''}{asked}"
        headers = {"Accept": "application/json", "User-Agent": "batuta"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if question.body is not None:
            headers["Content-Type"] = question.content_type
            headers["Content-Length"] = str(len(question.body))
        try:
            connection.request(question.method, target, question.body, headers)
        except (BrokenPipeError, ConnectionResetError):
            # A hub that refuses an upload may close before it has read it all; its answer says why.
            if not isinstance(question.body, Upload):
                raise
        return connection.getresponse()

    def _connection(self, timeout_s: float | None) -> http.client.HTTPConnection:
        assert self._host is not None
        self._check_hung_up()
        if not self._is_tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s, blocksize=CHUNK_BYTES)
        import ssl

        try:
            trust = ssl.create_default_context(cafile=self._ca or None)
        except OSError as error:
            raise BatutaError(f"the authority file {self._ca} cannot be read") from error
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=timeout_s, context=trust, blocksize=CHUNK_BYTES
        )

    def _unavailable(self, error: BaseException) -> FabricUnavailable:
        what = "did not answer in time" if isinstance(error, TimeoutError) else "does not answer"
        return FabricUnavailable(
            f"the hub at {self.server} {what}", next_step="start one with `batuta up`, or see `batuta doctor`"
        )

    def _understood(self, status: int, read: bytes) -> dict[str, Any]:
        try:
            answer = msgspec.json.decode(read) if read else {}
        except msgspec.DecodeError:
            answer = {"message": read[:200].decode(errors="replace")}
        if not isinstance(answer, dict):
            answer = {"items": answer}
        if status >= 400:
            raise failure(status, answer, self.server)
        return answer


class Upload:
    """A file's bytes on their way: a length for the header, and a call for the progress bar."""

    def __init__(self, file: IO[bytes], size_bytes: int, on_progress: Callable[[int, int], None] | None) -> None:
        self._file, self._size_bytes, self._on_progress, self._sent_bytes = file, size_bytes, on_progress, 0

    def __len__(self) -> int:
        return self._size_bytes

    def read(self, size_bytes: int = CHUNK_BYTES) -> bytes:
        chunk = self._file.read(size_bytes)
        self._sent_bytes += len(chunk)
        if self._on_progress is not None and chunk:
            self._on_progress(self._sent_bytes, self._size_bytes)
        return chunk


def failure(status: int, answer: Mapping[str, Any], server: str) -> BatutaError:
    """What a Kubernetes `Status` means here."""
    message = str(answer.get("message") or f"the hub answered {status}")
    next_step = str(answer.get("nextStep") or "")
    if status == 404:
        return NotFound(message, next_step=next_step)
    if status == 410 or (status == 409 and answer.get("reason") == "Conflict"):
        return Stale(message, next_step=next_step or "read it again, then try again")
    if status in (401, 403):
        step = "check BATUTA_TOKEN_FILE, or run as the user who runs the hub"
        return BatutaError(f"the hub at {server} refuses: {message}", next_step=next_step or step)
    if problems := _problems(answer):
        return Refused(problems)
    if status in (502, 503, 504):
        return FabricUnavailable(message, next_step=next_step or "try again in a moment, or see `batuta doctor`")
    code = (answer.get("details") or {}).get("code")
    if code:
        return ArtifactRefused(str(code), message, next_step=next_step)
    return BatutaError(message, next_step=next_step or "see `batuta doctor`")


def _problems(answer: Mapping[str, Any]) -> list[Problem]:
    """Every problem: our own list with positions when there is one, else the causes that any Kubernetes API gives."""
    details = answer.get("details") or {}
    problems = []
    for said in answer.get("problems") or details.get("problems") or ():
        known = {k: said[k] for k in ("path", "code", "message", "hint", "file", "line", "column") if k in said}
        problems.append(msgspec.convert({"path": "", "code": "refused", "message": "", **known}, Problem))
    if problems:
        return problems
    return [
        Problem(path=str(c.get("field", "")), code=str(c.get("reason", "")), message=str(c.get("message", "")))
        for c in details.get("causes") or ()
    ]
