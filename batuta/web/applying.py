"""Server-side apply: a manager says its part of a document, and the hub keeps who said what."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batuta.errors import BatutaError, Refused
from batuta.hub.declare import timestamp
from batuta.kinds import manifest
from batuta.kinds.base import API_VERSION, Problem
from batuta.kinds.documents import read
from batuta.web.answers import Wrong
from batuta.web.fieldsets import whole, written
from batuta.web.ownership import (
    Conflict,
    Writer,
    after_apply,
    after_update,
    entries_of,
    merge,
    owned_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.requests import Request

    from batuta.fabric.clock import Clock
    from batuta.hub.declare import Owners
    from batuta.kinds.base import Resource

NAME_MAX = 128


class FieldConflict(BatutaError):
    """Others hold fields that an apply would change."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        first = f'conflict with "{conflicts[0].manager.name}" using {API_VERSION}: {written(conflicts[0].path)}'
        count = "1 conflict" if len(conflicts) == 1 else f"{len(conflicts)} conflicts"
        super().__init__(f"Apply failed with {count}: {first}", next_step="apply with force=true to take them over")
        self.causes = [
            {
                "reason": "FieldManagerConflict",
                "message": f'conflict with "{c.manager.name}" using {API_VERSION}',
                "field": written(c.path),
            }
            for c in conflicts
        ]


class Applied(NamedTuple):
    """What an apply makes of a resource, and who owns what then."""

    resource: Resource
    managed: tuple[dict[str, Any], ...]


def writer_of(request: Request, operation: str) -> Writer:
    """Who writes: what the request says, or else the program that asks."""
    name = request.query_params.get("fieldManager", "")
    if len(name) > NAME_MAX or not name.isprintable():
        raise Wrong(400, f"fieldManager is printable text of {NAME_MAX} characters at most")
    if not name and operation == "Apply":
        raise Wrong(400, "fieldManager is needed to apply", next_step="say who applies: ?fieldManager=NAME")
    program = request.headers.get("user-agent", "").partition("/")[0].partition(" ")[0]
    return Writer(name or program[:NAME_MAX] or "unknown", operation)


def config_of(text: str) -> dict[str, Any]:
    """The document of an apply: YAML, or JSON, which is YAML too."""
    documents = list(islice(read(text), 2))
    problems = [p for d in documents for p in ([d] if isinstance(d, Problem) else d.problems)]
    if problems:
        raise Refused(problems)
    if len(documents) != 1 or isinstance(documents[0], Problem) or not isinstance(documents[0].value, dict):
        raise Wrong(400, "an apply has one document, a mapping")
    config: dict[str, Any] = documents[0].value
    metadata = config.get("metadata")
    if not isinstance(metadata, dict):
        raise Wrong(400, "metadata is a mapping with a name")
    if metadata.get("managedFields"):
        raise Wrong(400, "metadata.managedFields must be empty when something is applied")
    config.pop("status", None)
    return config


def applied(
    kind: type[Resource],
    before: Resource | None,
    config: dict[str, Any],
    manager: Writer,
    clock: Clock,
    *,
    decode: Callable[[Any], Resource],
    force: bool,
) -> Applied:
    """The resource after an apply. Raises Refused when it is none, FieldConflict when others stand against it."""
    entries = before.metadata.managed_fields if before is not None else ()
    base = manifest.to_document(before, server_fields=False) if before is not None else {}
    owned = owned_in(entries)
    found = merge(owned, kind, base, config, manager)
    resource = decode(found.document)
    old = whole(before) if before is not None else {}
    kept, conflicts = after_apply(owned, found, old, whole(resource), manager, force=force)
    if conflicts:
        raise FieldConflict(conflicts)
    return Applied(resource, entries_of(kept, entries, timestamp(clock.now())))


def by_update(manager: Writer, clock: Clock, said: Sequence[Mapping[str, Any]] | None = None) -> Owners:
    """Who owns what after a write that is no apply. `said` is what the writer itself put into managedFields."""

    def owners(after: Resource, before: Resource | None) -> tuple[dict[str, Any], ...]:
        entries = before.metadata.managed_fields if before is not None else ()
        owned = owned_in(entries if said is None else said)
        if before is None:
            # What nobody wrote is nobody's: defaults of a new resource have no owner.
            kept = after_update(owned, type(after), {}, manifest.to_document(after, server_fields=False), manager)
        else:
            kept = after_update(owned, type(after), whole(before), whole(after), manager)
        return entries_of(kept, entries if said is None else said, timestamp(clock.now()))

    return owners


def managed_in(resource: Resource, before: Resource | None) -> Sequence[Mapping[str, Any]] | None:
    """The managedFields that a writer means to set; None when it leaves them alone. Raises Wrong."""
    said = resource.metadata.managed_fields
    if not said or (before is not None and said == before.metadata.managed_fields):
        return None
    if said == ({},):
        return ()
    try:
        owned_in(said)
    except (ValueError, TypeError, AttributeError, msgspec.DecodeError) as error:
        raise Wrong(422, f"metadata.managedFields cannot be read: {error}") from None
    return said
