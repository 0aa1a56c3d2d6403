"""Who may ask. Everything needs the bearer token but a few paths that say nothing of substance.

On loopback the Host header must name loopback: a page in the user's browser that lets its own name point to 127.0.0.1
is turned away before anything is read.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from batuta.web.answers import refusal, said

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from batuta.hub.counters import Counters

OPEN_ON_LOOPBACK: Final = frozenset({"/healthz", "/readyz", "/version", "/metrics"})
OPEN_ON_TLS: Final = frozenset({"/healthz", "/readyz", "/version", "/ca.pem", "/enrol"})
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})


class Access:
    """One listener's door before the application."""

    def __init__(self, app: ASGIApp, token: str, counters: Counters, *, is_tls: bool) -> None:
        self._app = app
        self._token = token.encode()
        self._counters = counters
        self._is_tls = is_tls
        self._open = OPEN_ON_TLS if is_tls else OPEN_ON_LOOPBACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key: value for key, value in scope["headers"] if key in (b"host", b"authorization")}
        refused = self._why_not(scope["path"], headers)
        if refused is None:
            await self._app(scope, receive, send)
            return
        code, word, message, next_step = refused
        self._counters.add("requests_refused", word)
        answer = said(refusal(code, message, next_step=next_step), code)
        if code == 401:
            answer.headers["WWW-Authenticate"] = "Bearer"
        await answer(scope, receive, send)

    def _why_not(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str, str, str] | None:
        if not self._is_tls and _host(headers.get(b"host", b"")) not in LOOPBACK:
            return 403, "host", "this address is for this machine alone", "ask for http://127.0.0.1 or http://localhost"
        if path in self._open:
            return None
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if not token:
            return 401, "no_token", "a bearer token is needed", "the hub's own is in <state>/hub/admin.token"
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            return 401, "token", "the bearer token is not one of this hub's", "see <state>/hub/admin.token"
        return None


def _host(header: bytes) -> str:
    """The host of a Host header without its port."""
    text = header.decode("latin-1").strip().lower()
    return text if text.endswith("]") else text.rpartition(":")[0] or text
