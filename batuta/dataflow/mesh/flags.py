"""The node's flags over HTTP: the OpenFeature Remote Evaluation Protocol (OFREP), for any provider that speaks it.

    POST  /ofrep/v1/evaluate/flags/KEY    what one key of the caller's gets of a flag
    POST  /ofrep/v1/evaluate/flags        the same of all flags; with ETag, so that a caller need not read it twice

Both also below `/flags/NAMESPACE`, which is what instances are told as BATUTA_FLAGS_URL; without it the header
`Batuta-Namespace` says whose flags are meant, and `default` when nobody says. The sheet is a file that the node agent
writes: it is read again when it is another one, so a change counts from the next request on.
"""

from __future__ import annotations

import hashlib
import logging
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec

from batuta.core.flags import Denied, Given, evaluate, read
from batuta.core.observed import Mesh
from batuta.dataflow.mesh.http import Response
from batuta.kinds.base import DEFAULT_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batuta.core.flags import FlagOrder
    from batuta.dataflow.mesh.http import Request

NAMESPACE: Final = "batuta-namespace"
TOLD_MAX: Final = 256
"""Of so many flags it is remembered when somebody asked for them last."""
MINUTE_MS: Final = 60_000
_PATH = re.compile(r"^(?:/flags/([^/]+))?/ofrep/v1/evaluate/flags(?:/([^/]+))?$")

log = logging.getLogger("gateway")


class NoFlags(Exception):
    """The sheet cannot be read; what it says would be a guess."""


class FlagDoor:
    """Answers for one node. `clock_ms` is the wall clock."""

    def __init__(self, file: Path, clock_ms: Callable[[], int]) -> None:
        self.file = file
        self.clock_ms = clock_ms
        self.asked_at: dict[str, int] = {}
        """By `namespace/flag`: when somebody asked for it last, to the minute."""
        self._seen: tuple[int, int, int] | None = None
        self._flags: dict[str, dict[str, FlagOrder]] = {}
        """By namespace, then name."""

    def remember(self, books: Path) -> None:
        """What an earlier gateway said of when flags were asked for; without its books they begin anew."""
        try:
            self.asked_at.update(msgspec.json.decode(books.read_bytes(), type=Mesh).flags)
        except (OSError, msgspec.MsgspecError) as error:
            log.debug("no books of before: %s", error)

    def answer(self, request: Request) -> Response | None:
        """None for a request that is not about flags."""
        found = _PATH.match(request.path)
        if found is None:
            return None
        namespace = unquote(found[1] or request.headers.get(NAMESPACE, "")) or DEFAULT_NAMESPACE
        key = unquote(found[2]) if found[2] else None
        said: dict[str, Any] = {"key": key} if key is not None else {}
        if request.method != "POST":
            return _json(
                405, said | {"errorCode": "GENERAL", "errorDetails": f"{request.path[:200]} is asked with POST"}
            )
        try:
            flags = self._read().get(namespace, {})
            targeting = _targeting_key(request.body)
        except NoFlags as error:
            return _json(500, {"errorDetails": str(error)})
        except _Misasked as error:
            return _json(400, said | {"errorCode": error.code, "errorDetails": str(error)})
        if key is None:
            return self._all(flags, targeting, request.headers.get("if-none-match", ""))
        order = flags.get(key)
        if order is None:
            details = f"there is no flag {key[:80]!r} in namespace {namespace[:80]!r}"
            return _json(404, said | {"errorCode": "FLAG_NOT_FOUND", "errorDetails": details})
        self._note(order)
        answer = _told(order, evaluate(order, targeting))
        return _json(400 if "errorCode" in answer else 200, answer)

    def _all(self, flags: dict[str, FlagOrder], targeting: str | None, known: str) -> Response:
        for order in flags.values():
            self._note(order)
        body = msgspec.json.encode({"flags": [_told(order, evaluate(order, targeting)) for order in flags.values()]})
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        # A tag may come back marked as weak, by whatever compressed the answer on its way.
        if known.strip() == "*" or tag in [each.strip().removeprefix("W/") for each in known.split(",")]:
            return Response(304, headers=(("ETag", tag),))
        return _json(200, body, ("ETag", tag))

    def _note(self, order: FlagOrder) -> None:
        if order.key in self.asked_at or len(self.asked_at) < TOLD_MAX:
            self.asked_at[order.key] = self.clock_ms() // MINUTE_MS * MINUTE_MS

    def _read(self) -> dict[str, dict[str, FlagOrder]]:
        try:
            stat = self.file.stat()
        except FileNotFoundError:
            self._seen, self._flags = None, {}  # this node was never told of any
            return self._flags
        except OSError as error:
            raise NoFlags(f"the flags of this node cannot be read: {error.strerror}") from None
        seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen != self._seen:
            try:
                sheet = read(self.file.read_bytes())
            except (OSError, ValueError) as error:
                log.warning("%s: %s", self.file.name, error)
                raise NoFlags("the flags of this node cannot be read; its agent asks for them anew") from None
            by_namespace: dict[str, dict[str, FlagOrder]] = {}
            for order in sheet.flags:
                by_namespace.setdefault(order.namespace, {})[order.name] = order
            self._seen, self._flags = seen, by_namespace
        return self._flags


class _Misasked(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _targeting_key(body: bytes) -> str | None:
    """From `{"context": {"targetingKey": …}}`; all of it may be left out."""
    try:
        asked = msgspec.json.decode(body) if body.strip() else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _Misasked("PARSE_ERROR", f"the body is not JSON: {error}"[:300]) from None
    if not isinstance(asked, dict):
        raise _Misasked("PARSE_ERROR", "the body is no JSON object")
    context = asked.get("context")
    if context is None:
        return None
    if not isinstance(context, dict):
        raise _Misasked("INVALID_CONTEXT", "context is no JSON object")
    key = context.get("targetingKey")
    if key is not None and not isinstance(key, str):
        raise _Misasked("INVALID_CONTEXT", "targetingKey is no text")
    return key


def _told(order: FlagOrder, given: Given | Denied) -> dict[str, Any]:
    if isinstance(given, Denied):
        return {"key": order.name, "errorCode": given.code, "errorDetails": given.message}
    metadata: dict[str, Any] = {"namespace": order.namespace}
    if given.rule:
        metadata["rule"] = given.rule
    return {
        "key": order.name, "value": given.value, "variant": given.variant, "reason": given.why, "metadata": metadata,
    }  # fmt: skip


def _json(status: int, value: object, *headers: tuple[str, str]) -> Response:
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Response(status, body, headers=headers)
