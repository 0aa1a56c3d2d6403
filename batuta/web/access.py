"""The door: who asks, whether they may, and that every write is in the audit.

Everything needs a bearer token but a few paths that say nothing of substance. On loopback the Host header must name
loopback: a page in the user's browser that lets its own name point to 127.0.0.1 is turned away before anything is read.
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import msgspec

from batuta.hub.api_tokens import EVERY_NAMESPACE, TokenDenied
from batuta.hub.audit import ASKER, Asker
from batuta.web import rights
from batuta.web.answers import Wrong, refusal, said

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from batuta.core.state import State
    from batuta.hub.audit import Outcome
    from batuta.hub.hub import Hub
    from batuta.kinds.base import Ref

OPEN_ON_LOOPBACK: Final = frozenset({"/healthz", "/readyz", "/livez", "/version", "/metrics"})
OPEN_ON_TLS: Final = frozenset({"/healthz", "/readyz", "/livez", "/version", "/ca.pem", "/enrol"})
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
REFUSAL_BYTES_MAX: Final = 64 * 1024
WHAT_MAX: Final = 1024


class Who(msgspec.Struct, frozen=True):
    """Who a token belongs to, for the length of one request; kept in the scope as `batuta.who`."""

    id: str
    name: str
    role: str
    namespaces: tuple[str, ...]


LOCAL: Final = Who("local", "local", "admin", (EVERY_NAMESPACE,))
"""Whoever can read the hub's own token file: the machine's own user."""
ANONYMOUS: Final = Who("anonymous", "", "", ())


class _Denied(Exception):
    """An answer that ends before the application is asked."""

    def __init__(self, code: int, word: str, message: str, next_step: str) -> None:
        super().__init__(message)
        self.code, self.word, self.message, self.next_step = code, word, message, next_step


class _Revoked(Exception):
    """The token of a stream is good no more."""


class Access:
    """One listener's door before the application."""

    def __init__(self, app: ASGIApp, hub: Hub, token: str, *, is_tls: bool) -> None:
        self._app = app
        self._hub = hub
        self._token = token.encode()
        self._is_tls = is_tls
        self._open = OPEN_ON_TLS if is_tls else OPEN_ON_LOOPBACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path, headers = scope["method"], scope["path"], _headers(scope)
        address = (scope.get("client") or ("", 0))[0]
        who, denied = ANONYMOUS, None
        try:
            self._check_host(headers)
            if path not in self._open or "authorization" in headers:
                who = self._recognised(headers, address, must=path not in self._open)
            if path not in self._open:
                _check_right(who, method, path)
        except _Denied as error:
            denied = error
        asker = Asker(
            who.id,
            who.name,
            who.role,
            address,
            verb=rights.verb_of(method, path, headers.get("content-type", "")),
            what=rights.thing_at(path),
            request=secrets.token_hex(8),
        )
        asker.is_dry_run = rights.can_be_tried(path) and "All" in _query(scope).get("dryRun", ())
        heard = _Heard(send, asker, self._still_good(who))
        if denied is not None:
            await self._deny(denied, scope, receive, heard)
        else:
            mark = ASKER.set(asker)
            try:
                await self._app({**scope, "batuta.who": who}, receive, heard)
            except _Revoked:
                self._hub.counters.add("requests_refused", "revoked_meanwhile")
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            finally:
                ASKER.reset(mark)
        if rights.is_write(method, path):
            await self._close_audit(asker, heard, denied)

    def _check_host(self, headers: dict[str, str]) -> None:
        if not self._is_tls and _host(headers.get("host", "")) not in LOOPBACK:
            step = "ask for http://127.0.0.1 or http://localhost"
            raise _Denied(403, "host", "this address is for this machine alone", step)

    def _recognised(self, headers: dict[str, str], address: str, *, must: bool) -> Who:
        """Whose token came along. On an open path a wrong one is as good as none."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip()
        try:
            if not token:
                raise _Denied(
                    401, "no_token", "a bearer token is needed", "the hub's own is in <state>/hub/admin.token"
                )
            if scheme.lower() != "bearer":
                raise _Denied(401, "token", "the bearer token is not one of this hub's", "write `Bearer`, then a token")
            if hmac.compare_digest(token.encode("utf-8", "replace"), self._token):
                return LOCAL
            row = self._hub.api_tokens.recognise(token, address)
        except TokenDenied as error:
            if must:
                raise _Denied(401, error.word, error.message, error.next_step) from None
        except _Denied:
            if must:
                raise
        else:
            return Who(f"token/{row.id}", row.name, row.role, row.namespaces)
        return ANONYMOUS

    def _still_good(self, who: Who) -> Any:
        kind, _, token_id = who.id.partition("/")
        return (lambda: self._hub.api_tokens.holds(token_id)) if kind == "token" else (lambda: True)

    async def _deny(self, denied: _Denied, scope: Scope, receive: Receive, send: Send) -> None:
        self._hub.counters.add("requests_refused", denied.word)
        answer = said(refusal(denied.code, denied.message, next_step=denied.next_step), denied.code)
        if denied.code == 401:
            answer.headers["WWW-Authenticate"] = "Bearer"
        await answer(scope, receive, send)

    async def _close_audit(self, asker: Asker, heard: _Heard, denied: _Denied | None) -> None:
        """What the writer did not say itself: refusals, failures, and writes that changed nothing."""
        if denied is not None and denied.code == 401:
            return  # Whoever has no token has no place in the log; it is counted.
        if heard.status >= 400:
            if not asker.is_dry_run or heard.status == 403:
                outcome: Outcome = "failed" if asker.kept else "refused"
                await self._hub.audit.ended(asker, outcome, heard.status, heard.message())
        elif not asker.kept and not asker.is_dry_run:
            await self._hub.audit.ended(asker, "unchanged", heard.status)


class _Heard:
    """What is sent, seen on its way: the status, what a refusal says, and whether the token still holds."""

    def __init__(self, send: Send, asker: Asker, is_good: Any) -> None:
        self._send, self._asker, self._is_good = send, asker, is_good
        self.status = 0
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            marked = [*message.get("headers", ()), (b"audit-id", self._asker.request.encode())]
            message = {**message, "headers": marked}
        elif message["type"] == "http.response.body":
            if self.status >= 400 and len(self._body) < REFUSAL_BYTES_MAX:
                self._body += message.get("body", b"")[:REFUSAL_BYTES_MAX]
            if message.get("more_body") and not self._is_good():
                raise _Revoked
        await self._send(message)

    def message(self) -> str:
        try:
            answer = msgspec.json.decode(self._body)
        except msgspec.DecodeError:
            return ""
        return str(answer.get("message", "")) if isinstance(answer, dict) else ""


def check_documents(scope: Scope, state: State, refs: Iterable[Ref]) -> None:
    """Refuses, with 403, documents in one body of which some are not this asker's to write.

    Without a door, as in tests of the application alone, nothing is refused.
    """
    who, refs = scope.get("batuta.who"), list(dict.fromkeys(refs))
    if who is None:
        return
    # Should all of it be refused, the audit says what it was about.
    ASKER.get().what = ", ".join(map(str, refs))[:WHAT_MAX] or "apply"
    lacking = []
    for ref in refs:
        is_there = state.get(ref) is not None
        path = rights.place_of(ref, named=is_there)
        if why := rights.missing(who.role, who.namespaces, "PATCH" if is_there else "POST", path):
            lacking.append(f"{ref}: {why}")
    if lacking:
        raise Wrong(403, "; ".join(lacking), next_step="leave them out, or ask an admin for a token with that right")


def _check_right(who: Who, method: str, path: str) -> None:
    why = rights.missing(who.role, who.namespaces, method, path)
    if why:
        verb, thing = rights.verb_of(method, path), rights.thing_at(path)
        message = f"{who.name} may not {verb}{'' if verb == thing else f' {thing}'}: {why}"
        raise _Denied(403, "forbidden", message, "ask an admin for `batuta token create --api` with that right")


def _query(scope: Scope) -> dict[str, list[str]]:
    return parse_qs(scope.get("query_string", b"").decode("latin-1"))


def _headers(scope: Scope) -> dict[str, str]:
    wanted = (b"host", b"authorization", b"content-type")
    return {key.decode(): value.decode("latin-1") for key, value in scope["headers"] if key in wanted}


def _host(header: str) -> str:
    """The host of a Host header without its port."""
    text = header.strip().lower()
    return text if text.endswith("]") else text.rpartition(":")[0] or text
