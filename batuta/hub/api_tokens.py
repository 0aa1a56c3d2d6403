"""API tokens: who may ask this hub, as what, where, and until when.

A token is `batuta-api.<id>.<secret>`, and its secret 256 random bits. Only the SHA-256 of it is kept: a secret that
nobody can guess needs no slow hash. When a token was last used is known at once and written now and then, so that
reading costs no writes.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from batuta.errors import BatutaError, NotFound, Refused
from batuta.fabric.tasks import end
from batuta.kinds.base import NAME_PATTERN, Problem, Record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batuta.fabric.base import Fabric, Table
    from batuta.fabric.clock import Clock
    from batuta.hub.counters import Counters

ROLES: Final = ("viewer", "operator", "admin")
"""Each may do all that those before it may."""
EVERY_NAMESPACE: Final = "*"
PREFIX: Final = "batuta-api"
TTL_MS: Final = 30 * 86_400_000
TTL_MAX_MS: Final = 366 * 86_400_000
TOKENS_MAX: Final = 10_000
FORGET_AFTER_MS: Final = 30 * 86_400_000
"""A token that ended so long ago is listed no more."""
USE_WRITTEN_EVERY_MS: Final = 60_000


class ApiToken(Record):
    """A token as the hub keeps it. The hash never leaves the hub."""

    id: str
    name: str
    role: str
    namespaces: tuple[str, ...]
    digest: str
    created_at: int
    created_by: str
    expires_at: int
    used_at: int = 0
    used_from: str = ""


class ApiTokenWanted(Record):
    """What a new API token is for."""

    name: Annotated[str, Meta(max_length=63)] = ""
    role: str = "viewer"
    namespaces: Annotated[tuple[Annotated[str, Meta(max_length=63)], ...], Meta(max_length=64)] = ("default",)
    ttl_ms: Annotated[int, Meta(ge=1_000, le=TTL_MAX_MS)] = TTL_MS


class TokenDenied(BatutaError):
    """A bearer token that opens nothing. `word` is what is counted."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message, next_step="make one with `batuta token create --api`")
        self.word = word


class ApiTokens:
    """Every API token of this hub."""

    def __init__(self, fabric: Fabric, clock: Clock, counters: Counters) -> None:
        self._table: Table = fabric.table("api-tokens")
        self._clock = clock
        self._counters = counters
        self._rows: dict[str, ApiToken] = {}
        self._used: set[str] = set()
        self._one_at_a_time = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None
        self.keep: Callable[[str, str, object, object], Awaitable[None]] = _kept_nowhere
        """Told of each write before it is done: verb, what, before, after. What it raises stops the write."""

    async def open(self) -> None:
        for key in await self._table.keys():
            entry = await self._table.get(key)
            if entry is not None and entry.value is not None:
                self._rows[key] = msgspec.json.decode(entry.value, type=ApiToken)

    async def close(self) -> None:
        await end(self._writing)
        try:
            await self._write_uses()
        except BatutaError:
            self._counters.add("token_uses_unwritten", by=len(self._used))

    def all(self) -> list[ApiToken]:
        return sorted(self._rows.values(), key=lambda row: (row.created_at, row.id))

    def knows(self, token_id: str) -> bool:
        return token_id in self._rows

    async def create(self, wanted: ApiTokenWanted, created_by: str) -> tuple[str, ApiToken]:
        """A token and its row; the text is shown once and kept nowhere."""
        _check(wanted)
        async with self._one_at_a_time:
            await self._forget_old()
            now, token_id, secret = self._clock.now(), secrets.token_hex(6), secrets.token_urlsafe(32)
            row = ApiToken(
                id=token_id,
                name=wanted.name or f"{wanted.role}-{token_id}",
                role=wanted.role,
                namespaces=wanted.namespaces,
                digest=_digest(secret),
                created_at=now,
                created_by=created_by,
                expires_at=now + wanted.ttl_ms,
            )
            await self.keep("create", f"tokens/{token_id}", None, public(row))
            await self._table.put(token_id, msgspec.json.encode(row), 0)
            self._rows[token_id] = row
        return f"{PREFIX}.{token_id}.{secret}", row

    async def revoke(self, token_id: str) -> None:
        """From now on it opens nothing."""
        async with self._one_at_a_time:
            row = self._rows.get(token_id)
            if row is None:
                raise NotFound(f"there is no token {token_id[:80]!r}")
            await self.keep("revoke", f"tokens/{token_id}", public(row), None)
            await self._table.delete(token_id)
            self._rows.pop(token_id, None)
            self._used.discard(token_id)

    def recognise(self, text: str, address: str) -> ApiToken:
        """Whose token this is; raises TokenDenied when it opens nothing."""
        prefix, _, rest = text.partition(".")
        token_id, _, secret = rest.partition(".")
        row = self._rows.get(token_id) if prefix == PREFIX else None
        # Compared also when there is no such row, so that time tells nobody which ids exist.
        if not hmac.compare_digest(_digest(secret), row.digest if row is not None else "0" * 64) or row is None:
            raise TokenDenied("token", "the bearer token is not one of this hub's")
        now = self._clock.now()
        if now >= row.expires_at:
            raise TokenDenied("token_expired", f"the bearer token {row.name!r} has expired")
        row = self._rows[token_id] = msgspec.structs.replace(row, used_at=now, used_from=address)
        self._used.add(token_id)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_uses_soon(), name="token uses")
        return row

    def holds(self, token_id: str) -> bool:
        """Is it still good? Asked while an answer streams."""
        row = self._rows.get(token_id)
        return row is not None and self._clock.now() < row.expires_at

    async def _write_uses_soon(self) -> None:
        await self._clock.sleep_until(self._clock.now() + USE_WRITTEN_EVERY_MS)
        try:
            await self._write_uses()
        except BatutaError:
            # They stay marked, and the next use writes them.
            self._counters.add("token_uses_unwritten", by=len(self._used))

    async def _write_uses(self) -> None:
        async with self._one_at_a_time:
            for token_id in sorted(self._used):
                self._used.discard(token_id)
                try:
                    await self._table.put(token_id, msgspec.json.encode(self._rows[token_id]))
                except BatutaError:
                    self._used.add(token_id)
                    raise

    async def _forget_old(self) -> None:
        for row in self.all():
            if self._clock.now() - row.expires_at > FORGET_AFTER_MS:
                await self._table.delete(row.id)
                self._rows.pop(row.id, None)
                self._used.discard(row.id)
        if len(self._rows) >= TOKENS_MAX:
            message = f"there are {len(self._rows)} tokens, which is the most; revoke some"
            raise Refused([Problem(path="", code="too_many_tokens", message=message)])


def public(row: ApiToken) -> dict[str, object]:
    """A row without its hash: what lists and the audit show."""
    said: dict[str, object] = msgspec.to_builtins(row)
    said.pop("digest")
    return said


def _check(wanted: ApiTokenWanted) -> None:
    problems = []
    if wanted.role not in ROLES:
        message = f"{wanted.role[:40]!r} is no role: {', '.join(ROLES)}"
        problems.append(Problem(path="role", code="unknown", message=message))
    if not wanted.namespaces:
        problems.append(Problem(path="namespaces", code="required", message="name one, or `*` for every one"))
    for i, name in enumerate(wanted.namespaces):
        if name != EVERY_NAMESPACE and not re.fullmatch(NAME_PATTERN, name):
            problems.append(Problem(path=f"namespaces[{i}]", code="wrong_name", message=f"{name!r} is no namespace"))
    if wanted.name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]*", wanted.name):
        message = f"{wanted.name!r}: letters, digits and . _ @ - only"
        problems.append(Problem(path="name", code="wrong_name", message=message))
    if wanted.role == "admin" and EVERY_NAMESPACE not in wanted.namespaces:
        message = "an admin's rights know no namespaces: write `*`"
        problems.append(Problem(path="namespaces", code="contradiction", message=message))
    if problems:
        raise Refused(problems)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


async def _kept_nowhere(_verb: str, _what: str, _before: object, _after: object) -> None:
    """Stands in until the audit is there, which is before anybody can ask."""
