"""Declaring: the one way into the desired table. Admit, stamp, write; all of what was asked, or nothing.

People and enrolment come through here alike. What is wrong comes back as Refused with every Problem; what somebody
else changed meanwhile comes back as Stale.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batuta.core.admission import admit, admit_removal
from batuta.core.state import Change
from batuta.errors import NotFound, Refused, Stale
from batuta.kinds.base import Metadata, Problem, Resource
from batuta.kinds.node import Node

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from batuta.core.state import State
    from batuta.fabric.clock import Clock
    from batuta.hub.counters import Counters
    from batuta.hub.store import Store
    from batuta.kinds.base import Ref


Owners = Callable[[Resource, Resource | None], tuple[dict[str, Any], ...]]
"""Says who owns which fields of a resource, seeing what it replaces: its `managedFields`."""


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

    async def create(self, resource: Resource, *, dry_run: bool = False, owners: Owners | None = None) -> Resource:
        """A new resource; raises AlreadyThere when the name is taken."""
        async with self._one_at_a_time:
            if self._state().get(resource.ref) is not None:
                what = f"{resource.plural} {resource.metadata.name!r} already exists"
                raise AlreadyThere([Problem(path="metadata.name", code="already_exists", message=what)])
            return (await self._write([resource], dry_run=dry_run, owners=owners))[0].resource

    async def apply(
        self,
        resources: Sequence[Resource],
        *,
        dry_run: bool = False,
        unless: Callable[[State], None] | None = None,
        owners: Owners | None = None,
    ) -> list[Declared]:
        """All of these as declared, whatever was before. `unless` may raise, seeing the state that is written over."""
        async with self._one_at_a_time:
            if unless is not None:
                unless(self._state())
            return await self._write(resources, dry_run=dry_run, owners=owners)

    async def add(self, missing: Callable[[State], Sequence[Resource]]) -> list[Declared]:
        """Those that `missing` says are not there, seeing the state that is written over."""
        async with self._one_at_a_time:
            return await self._write(missing(self._state()), dry_run=False)

    async def settle(self, resources: Callable[[State], Sequence[Resource]]) -> list[Declared]:
        """As `add`; but who enrols machines also says which of them wait for approval."""
        async with self._one_at_a_time:
            return await self._write(resources(self._state()), dry_run=False, settles=True)

    async def delete(
        self, ref: Ref, *, dry_run: bool = False, unless: Callable[[State], None] | None = None
    ) -> Resource:
        """Removes a resource, or marks it while it has finalizers. Raises NotFound, or Refused when others need it."""
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
            if self.keep is not None and not dry_run:
                await self.keep("delete", str(ref), resource, None)
            if resource.metadata.finalizers:
                return await self._mark(resource, dry_run=dry_run)
            if not dry_run:
                await self._remove(ref)
        return resource

    async def _remove(self, ref: Ref) -> None:
        # A crash in between leaves a node that cannot connect, never one that can and is not there.
        if self.before_removal is not None:
            await self.before_removal(ref)
        await self._store.delete_resource(ref, self._store.revision("desired", ref.key))

    async def _mark(self, resource: Resource, *, dry_run: bool) -> Resource:
        """To be removed as soon as the last of its finalizers is."""
        metadata = resource.metadata
        if metadata.deletion_timestamp is not None:
            return resource
        at = timestamp(self._clock.now())
        metadata = msgspec.structs.replace(metadata, deletion_timestamp=at, deletion_grace_period_seconds=0)
        marked = msgspec.structs.replace(resource, metadata=metadata)
        if not dry_run:
            if self.keep is not None:
                await self.keep("delete", str(resource.ref), resource, marked)
            await self._store.put_resource(marked, self._store.revision("desired", resource.ref.key))
        return marked

    async def _write(
        self, resources: Sequence[Resource], *, dry_run: bool, owners: Owners | None = None, settles: bool = False
    ) -> list[Declared]:
        state = self._state()
        if not settles:
            resources = [_as_pending(resource, state.get(resource.ref)) for resource in resources]
        # Each is judged beside all the others, so that an application may come with the model it needs, in any order.
        beside = state.with_changes(Change("desired", r.ref.key, r) for r in resources)
        problems = [
            msgspec.structs.replace(p, about=str(r.ref))
            for r in resources
            for p in (
                *r.problems(),
                *admit(r, beside, state),
                *_ending_problems(r, state),
                *(() if settles else _pending_problems(r, state)),
            )
        ]
        if problems:
            self._refuse(problems)
        declared = [self._stamped(r, state.get(r.ref), owners) for r in resources]
        if not dry_run:
            await self._keep_all(declared, state)
            for each in declared:
                if is_released(each.resource):
                    await self._remove(each.resource.ref)
                elif each.action != "unchanged":
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

    def _stamped(self, resource: Resource, before: Resource | None, owners: Owners | None) -> Declared:
        """With the metadata that is the hub's to write."""
        theirs = resource.metadata
        kept = before.metadata.managed_fields if before is not None else ()
        managed = owners(resource, before) if owners is not None else kept
        if before is None:
            metadata = _with(
                theirs,
                resource,
                uid=str(uuid.uuid4()),
                generation=1,
                creation_timestamp=self._born(),
                managed_fields=managed,
            )
            return Declared(msgspec.structs.replace(resource, metadata=metadata), "created")
        mine = before.metadata
        same_spec = _spec(before) == _spec(resource)
        metadata = _with(
            theirs,
            resource,
            uid=mine.uid,
            generation=(mine.generation or 0) + (not same_spec),
            creation_timestamp=mine.creation_timestamp,
            managed_fields=managed,
            deletion_timestamp=mine.deletion_timestamp,
            deletion_grace_period_seconds=mine.deletion_grace_period_seconds,
        )
        after = msgspec.structs.replace(resource, metadata=metadata)
        return Declared(after, "unchanged" if after == before else "configured")

    def _born(self) -> str:
        """Now, and later than any before: the order of joining must not hang on how fast nodes join."""
        self._born_at = max(self._clock.now(), self._born_at + 1)
        at = datetime.fromtimestamp(self._born_at / 1000, UTC)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def timestamp(at: int) -> str:
    """An instant in whole seconds, as Kubernetes clients write them."""
    return datetime.fromtimestamp(at // 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def is_released(resource: Resource) -> bool:
    """It was to be removed, and nothing holds it any more."""
    return resource.metadata.deletion_timestamp is not None and not resource.metadata.finalizers


def _ending_problems(resource: Resource, state: State) -> list[Problem]:
    """What is wrong with changing one that is about to be removed."""
    before = state.get(resource.ref)
    if before is None or before.metadata.deletion_timestamp is None:
        return []
    new = sorted(set(resource.metadata.finalizers) - set(before.metadata.finalizers))
    if new:
        message = f"it is being deleted, so {new[0][:80]!r} cannot be added"
        return [Problem(path="metadata.finalizers", code="ending", message=message)]
    return [] if resource.metadata.finalizers else admit_removal(before, state)


def _as_pending(resource: Resource, before: Resource | None) -> Resource:
    """Whoever labels a machine that waits for approval has not approved it by that."""
    if not isinstance(resource, Node) or not isinstance(before, Node) or not before.spec.pending:
        return resource
    return msgspec.structs.replace(resource, spec=msgspec.structs.replace(resource.spec, pending=True))


def _pending_problems(resource: Resource, state: State) -> list[Problem]:
    before = state.get(resource.ref)
    if (
        not isinstance(resource, Node)
        or not resource.spec.pending
        or (isinstance(before, Node) and before.spec.pending)
    ):
        return []
    message = "only enrolment says that a machine waits for approval; to keep work away, set spec.unschedulable"
    return [Problem(path="spec.pending", code="not_yours", message=message)]


def _with(metadata: Metadata, resource: Resource, **stamps: object) -> Metadata:
    return msgspec.structs.replace(
        metadata,
        namespace=resource.ref.namespace or None,
        resource_version=None,
        self_link=None,
        generate_name=None,
        **{"deletion_timestamp": None, "deletion_grace_period_seconds": None, **stamps},
    )


def _spec(resource: Resource) -> object:
    return getattr(resource, "spec", None)
