"""The audit: every write, before it is done, with who asked for it; and every refusal of one.

An entry is kept first and the write follows, so a write whose entry cannot be kept does not happen. What was accepted
and failed after all gets a second entry with the same request. Entries are only ever appended; the log's bounds in
size and age are the fabric's (`LOG_LIMITS`), and its oldest entries go first.
"""

from __future__ import annotations

import hashlib
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from batuta.errors import BatutaError, FabricUnavailable
from batuta.hub.bell import Bell
from batuta.kinds.base import Record, Resource, encode_hook

if TYPE_CHECKING:
    from batuta.core.standing import Moved
    from batuta.fabric.base import Fabric
    from batuta.fabric.clock import Clock
    from batuta.hub.counters import Counters

SPEC_BYTES_MAX: Final = 128 * 1024
"""A larger document is kept as its hash and size."""
REFUSALS_A_MINUTE_MAX: Final = 60
"""Of one asker. Refusals beyond are counted only, so that nobody can push what others did out of the log."""
HIDDEN: Final = "(hidden)"
_SECRET_WORDS: Final = re.compile(r"secret|passw|token|credential|api_?key|private_?key", re.IGNORECASE)

Outcome = Literal["accepted", "unchanged", "refused", "failed"]


class AuditEntry(Record):
    """One line of the audit."""

    at: int
    request: str
    """Ties the entries of one request together; the answer carries it as `Audit-Id`."""
    who: str
    """`token/<id>`, `local` for the machine's own user, `anonymous`, `hub`, or `policy/<name>` for what one moves."""
    name: str
    role: str
    address: str
    verb: str
    what: str
    outcome: Outcome
    code: int = 0
    """HTTP status of a refusal or failure."""
    message: str = ""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


class Asker:
    """Who asks for what is being done, as far as the audit must know; and what it has heard of this request."""

    __slots__ = ("address", "is_dry_run", "kept", "name", "request", "role", "verb", "what", "who")

    def __init__(
        self,
        who: str,
        name: str = "",
        role: str = "",
        address: str = "",
        *,
        verb: str = "",
        what: str = "",
        request: str = "",
    ) -> None:
        self.who, self.name, self.role, self.address = who, name, role, address
        self.verb, self.what, self.request = verb, what, request
        self.kept = 0
        self.is_dry_run = False


_HUB: Final = Asker("hub", "hub", "admin")
ASKER: ContextVar[Asker] = ContextVar("asker", default=_HUB)
"""Set by the door for as long as a request lasts; what the hub does by itself, it does as `hub`."""


class Audit:
    """Writes the log."""

    def __init__(self, fabric: Fabric, clock: Clock, counters: Counters) -> None:
        self.log = fabric.log("audit")
        self.newest = 0
        """The sequence of the last entry that this process wrote; 0 before the first."""
        self.appended = Bell()
        self.unavailable = ""
        """Why the last entry could not be kept; empty when it was."""
        self._clock = clock
        self._counters = counters
        self._refusals: dict[str, tuple[int, int]] = {}

    async def accepted(self, verb: str, what: str, before: object = None, after: object = None) -> None:
        """Call it before the write. It raises FabricUnavailable when the entry cannot be kept: then do not write."""
        asker = ASKER.get()
        try:
            await self._append(asker, "accepted", verb=asker.verb or verb, what=what, before=before, after=after)
        except BatutaError as error:
            self._counters.add("audit_entries_lost", "accepted")
            raise FabricUnavailable(
                "the audit cannot be written, so nothing was changed", next_step="see `batuta doctor`"
            ) from error

    async def moved(self, row: Moved) -> None:
        """A policy moves something unasked. Call it before the move begins, as `accepted`."""
        what, slot = f"applications/{row.namespace}/{row.application}", f"{row.component}/{row.slot}"
        asked = ASKER.set(Asker(f"policy/{row.policy}", row.policy, "policy"))
        try:
            await self.accepted("move", what, {"on": row.node}, {"on": row.to, "slot": slot, "why": row.why})
        finally:
            ASKER.reset(asked)

    async def ended(self, asker: Asker, outcome: Outcome, code: int = 0, message: str = "") -> None:
        """How a request ended that changed nothing, or not all that was accepted. Never raises: it is too late."""
        if outcome == "refused" and not self._may_keep_refusal(asker.who):
            self._counters.add("audit_entries_lost", "too_many_refusals")
            return
        try:
            await self._append(asker, outcome, verb=asker.verb, what=asker.what, code=code, message=message[:1000])
        except BatutaError:
            self._counters.add("audit_entries_lost", outcome)

    async def _append(self, asker: Asker, outcome: Outcome, **said: Any) -> None:
        entry = AuditEntry(
            at=self._clock.now(),
            request=asker.request,
            who=asker.who,
            name=asker.name,
            role=asker.role,
            address=asker.address,
            outcome=outcome,
            **{**said, "before": spoken(said.get("before")), "after": spoken(said.get("after"))},
        )
        try:
            appended = await self.log.append("write", msgspec.json.encode(entry, enc_hook=encode_hook))
        except BatutaError as error:
            self.unavailable = error.message
            raise
        self.unavailable = ""
        asker.kept += 1
        self.newest = max(self.newest, appended.sequence)
        self._counters.add("audit_entries", outcome)
        self.appended.ring()

    def _may_keep_refusal(self, who: str) -> bool:
        minute = self._clock.now() // 60_000
        self._refusals = {each: (at, n) for each, (at, n) in self._refusals.items() if at == minute}
        count = self._refusals.get(who, (minute, 0))[1] + 1
        self._refusals[who] = (minute, count)
        return count <= REFUSALS_A_MINUTE_MAX


def spoken(value: object) -> dict[str, Any] | None:
    """A declaration as the audit keeps it: without secrets, without the hub's own stamps, and never too large."""
    if value is None:
        return None
    if isinstance(value, Resource):
        encoded = msgspec.json.encode(value, enc_hook=encode_hook)
        document: Any = msgspec.json.decode(encoded)
        metadata = {k: v for k, v in document.get("metadata", {}).items() if k not in ("managedFields", "uid")}
        document = {**{k: v for k, v in document.items() if k not in ("apiVersion", "status")}, "metadata": metadata}
    else:
        document = msgspec.json.decode(msgspec.json.encode(value, enc_hook=encode_hook))
    document = without_secrets(document, is_secret_kind=document.get("kind") == "Secret")
    size = len(encoded := msgspec.json.encode(document))
    if size > SPEC_BYTES_MAX:
        return {"bytes": size, "sha256": hashlib.sha256(encoded).hexdigest()}
    kept: dict[str, Any] = document
    return kept


def without_secrets(value: Any, *, is_secret_kind: bool = False) -> Any:
    """The same with every value hidden whose name says that it is a secret, and all data of a Secret."""
    if isinstance(value, list):
        return [without_secrets(each, is_secret_kind=is_secret_kind) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: HIDDEN
        if _is_secret(key, each, is_secret_kind=is_secret_kind)
        else without_secrets(each, is_secret_kind=is_secret_kind)
        for key, each in value.items()
    }


def _is_secret(key: str, value: Any, *, is_secret_kind: bool) -> bool:
    if is_secret_kind and key in ("spec", "data", "stringData"):
        return True
    return isinstance(value, str) and _SECRET_WORDS.search(key) is not None
