"""Heads of HTTP requests: read once each.

A client that keeps its connection sends the same head again and again, byte for byte. What it means follows from the
bytes alone, so it is remembered, and all but the first request of a kind cost one look into a table. The reading itself
is llhttp's, which refuses what two readers might read in two ways.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import httptools

from batuta.core.beside import ANY_VERSION, HEADER_KEY, HEADER_VERSION
from batuta.core.serving import CLASSES, HEADER_CLASS, HEADER_DEADLINE, HEADER_JSON_BYTES
from batuta.dataflow.oip.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD_BYTES_MAX: Final = 16 * 1024
REMEMBERED_MAX: Final = 1024
REMEMBERED_BYTES_MAX: Final = 2048
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class Head:
    """What a request says before its body."""

    __slots__ = (
        "chunked", "encoding", "expects", "fault", "http10", "infers", "json_bytes", "keep_alive", "key", "length",
        "method", "path", "pinned", "timeout_ms", "urgency",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = ""
        self.path: tuple[str, ...] = ()
        """Its parts, decoded: `("v2", "models", "digits", "infer")`."""
        self.length = 0
        self.chunked = False
        """It says its length piece by piece."""
        self.json_bytes: int | None = None
        self.keep_alive = True
        self.http10 = False
        self.expects = False
        """It waits to be told to go on."""
        self.encoding = ""
        self.urgency = 1
        self.timeout_ms: float | None = None
        self.key = ""
        self.pinned = False
        """It names a version."""
        self.infers: bool | None = None
        """It asks for an inference; None as long as nobody has looked."""
        self.fault: Fault | None = None
        """Why it cannot be answered."""


class Heads:
    """Those seen so far."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def read(self, data: bytes) -> Head:
        """`data` ends with the empty line."""
        if (known := self._known.get(data)) is not None:
            return known
        head = _Reading(data).head
        if len(data) <= REMEMBERED_BYTES_MAX and head.fault is None:
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            self._known[data] = head
        return head


class _Reading:
    """One pass of the parser; it calls back."""

    def __init__(self, data: bytes) -> None:
        self.head = Head()
        self._url = b""
        self._fields: dict[str, str] = {}
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # Nobody has to upgrade: it is answered as it is.
        except httptools.HttpParserError as error:
            self.head.fault = Fault("malformed", f"not HTTP: {error}")
            return
        try:
            self._understand(parser)
        except Fault as fault:
            self.head.fault = fault

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def _understand(self, parser: Any) -> None:
        head, fields = self.head, self._fields
        head.method = parser.get_method().decode("ascii")
        head.http10 = parser.get_http_version() == "1.0"
        head.keep_alive = parser.should_keep_alive()
        head.expects = fields.get("expect", "").lower() == "100-continue"
        head.chunked = "transfer-encoding" in fields
        head.length = int(fields.get("content-length", "0"))
        head.encoding = fields.get("content-encoding", "").lower().replace("identity", "")
        if head.encoding not in ("", "gzip", "deflate"):
            raise Fault("encoding_unknown", f"{head.encoding!r} is not understood; gzip and deflate are")
        path = self._url.decode("latin-1").partition("?")[0]
        head.path = tuple(unquote(part) for part in path.strip("/").split("/"))
        head.key = fields.get(HEADER_KEY.lower(), "")
        head.pinned = fields.get(HEADER_VERSION.lower(), "" if "versions" in head.path else ANY_VERSION) != ANY_VERSION
        if (size := fields.get(HEADER_JSON_BYTES.lower())) is not None:
            head.json_bytes = _number(HEADER_JSON_BYTES, size, int)
        if (left := fields.get(HEADER_DEADLINE.lower())) is not None:
            head.timeout_ms = _number(HEADER_DEADLINE, left, float)
        if (urgency := fields.get(HEADER_CLASS.lower())) is not None:
            if urgency not in CLASSES:
                raise Fault("malformed", f"{HEADER_CLASS} is one of {', '.join(CLASSES)}")
            head.urgency = CLASSES.index(urgency)
        if (origin := fields.get("origin")) is not None and urlsplit(origin).hostname not in _LOOPBACK:
            # A page in somebody's browser reaches loopback too; it has no business here.
            raise Fault("forbidden", f"pages of {origin[:100]} may not ask here")


def _number(name: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        found = kind(text)
    except ValueError:
        found = -1
    if not math.isfinite(found) or found < 0:
        raise Fault("malformed", f"{name} is a number, not {text[:40]!r}")
    return found
