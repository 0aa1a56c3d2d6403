"""Declaring: the one way into the desired table. Admit, stamp, write; all of what was asked, or nothing.

People and enrolment come through here alike. What is wrong comes back as Refused with every Problem; what somebody
else changed meanwhile comes back as Stale.
"""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.core.admission import admit, admit_removal
from batuta.core.state import Change
from batuta.errors import NotFound, Refused, Stale
from batuta.kinds.base import Metadata, Problem, Resource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from batuta.core.state import State
    from batuta.fabric.clock import Clock
    from batuta.hub.counters import Counters
    from batuta.hub.store import Store
    from batuta.kinds.base import Ref


class Declared(NamedTuple):
    """What became of one resource."""

    resource: Resource
    action: str
    """`created`, `configured` or `unchanged`."""


class AlreadyThere(Refused):
    """A new resource would take the name of one that exists."""


class Declarations:
    """Writes what people declare."""

    def __init__(self, store: Store, clock: Clock, counters: Counters, state: Callable[[], State]) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._state = state
        self._one_at_a_time = asyncio.Lock()
        self._born_at = 0
        self.before_removal: Callable[[Ref], Awaitable[None]] | None = None
        """Told of every resource that is about to be deleted."""
        self.keep: Callable[[str, str, object, object], Awaitable[None]] | None = None
        """Told of every write before it is done: verb, what, before, after. What it raises stops the write."""

    async def create(self, resource: Resource, *, dry_run: bool = False) -> Resource:
        """A new resource; raises AlreadyThere when the name is taken."""
        async with self._one_at_a_time:
            if self._state().get(resource.ref) is not None:
                what = f"{resource.plural} {resource.metadata.name!r} already exists"
                raise AlreadyThere([Problem(path="metadata.name", code="already_exists", message=what)])
            return (await self._write([resource], dry_run=dry_run))[0].resource

    async def apply(
        self,
        resources: Sequence[Resource],
        *,
        dry_run: bool = False,
        unless: Callable[[State], None] | None = None,
    ) -> list[Declared]:
        """All of these as declared, whatever was before. `unless` may raise, seeing the state that is written over."""
        async with self._one_at_a_time:
            if unless is not None:
                unless(self._state())
            return await self._write(resources, dry_run=dry_run)

    async def add(self, missing: Callable[[State], Sequence[Resource]]) -> list[Declared]:
        """Those that `missing` says are not there, seeing the state that is written over."""
        async with self._one_at_a_time:
            return await self._write(missing(self._state()), dry_run=False)

    async def delete(
        self, ref: Ref, *, dry_run: bool = False, unless: Callable[[State], None] | None = None
    ) -> Resource:
        """Removes a resource; raises NotFound, or Refused when others need it."""
        async with self._one_at_a_time:
            state = self._state()
            resource = state.get(ref)
            if resource is None:
                raise NotFound(f"there is no {ref.plural} {ref.name!r}")
            if unless is not None:
                unless(state)
            problems = admit_removal(resource, state)
            if problems:
                self._refuse(problems)
            if not dry_run:
                if self.keep is not None:
                    await self.keep("delete", str(ref), resource, None)
                # A crash in between leaves a node that cannot connect, never one that can and is not there.
                if self.before_removal is not None:
                    await self.before_removal(ref)
                await self._store.delete_resource(ref, self._store.revision("desired", ref.key))
        return resource

    async def _write(self, resources: Sequence[Resource], *, dry_run: bool) -> list[Declared]:
        state = self._state()
        # Each is judged beside all the others, so that an application may come with the model it needs, in any order.
        beside = state.with_changes(Change("desired", r.ref.key, r) for r in resources)
        problems = [
            msgspec.structs.replace(p, about=str(r.ref))
            for r in resources
            for p in (*r.problems(), *admit(r, beside, state))
        ]
        if problems:
            self._refuse(problems)
        declared = [self._stamped(r, state.get(r.ref)) for r in resources]
        if not dry_run:
            await self._keep_all(declared, state)
            for each in declared:
                if each.action != "unchanged":
                    key = each.resource.ref.key
                    try:
                        await self._store.put_resource(each.resource, self._store.revision("desired", key))
                    except Stale:
                        self._counters.add("declarations_refused", "stale")
                        await self._store.reread("desired", key)
                        raise
        return declared

    async def _keep_all(self, declared: list[Declared], state: State) -> None:
        for each in declared:
            if self.keep is not None and each.action != "unchanged":
                verb = "create" if each.action == "created" else "apply"
                await self.keep(verb, str(each.resource.ref), state.get(each.resource.ref), each.resource)

    def _refuse(self, problems: list[Problem]) -> None:
        for problem in problems:
            self._counters.add("declarations_refused", problem.code)
        raise Refused(problems)

    def _stamped(self, resource: Resource, before: Resource | None) -> Declared:
        """With the metadata that is the hub's to write."""
        theirs = resource.metadata
        if before is None:
            metadata = _with(theirs, resource, uid=str(uuid.uuid4()), generation=1, creation_timestamp=self._born())
            return Declared(msgspec.structs.replace(resource, metadata=metadata), "created")
        mine = before.metadata
        same_spec = _spec(before) == _spec(resource)
        metadata = _with(
            theirs,
            resource,
            uid=mine.uid,
            generation=(mine.generation or 0) + (not same_spec),
            creation_timestamp=mine.creation_timestamp,
        )
        after = msgspec.structs.replace(resource, metadata=metadata)
        return Declared(after, "unchanged" if after == before else "configured")

    def _born(self) -> str:
        """Now, and later than any before: the order of joining must not hang on how fast nodes join."""
        self._born_at = max(self._clock.now(), self._born_at + 1)
        at = datetime.fromtimestamp(self._born_at / 1000, UTC)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _with(metadata: Metadata, resource: Resource, **stamps: object) -> Metadata:
    return msgspec.structs.replace(
        metadata,
        namespace=resource.ref.namespace or None,
        resource_version=None,
        self_link=None,
        generate_name=None,
        deletion_timestamp=None,
        deletion_grace_period_seconds=None,
        **stamps,
    )


def _spec(resource: Resource) -> object:
    return getattr(resource, "spec", None)
