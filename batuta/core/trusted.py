"""Trusted: the release that a rollout goes back to, and the one that is to run once it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from batuta.core.decided import Release, Released
    from batuta.core.draft import Draft
    from batuta.core.rollout import Rollout
    from batuta.kinds.application import Component


def trusted_of(draft: Draft, rollout: Rollout) -> Release | None:
    """The release that a rollout goes back to."""
    return next((r for r in draft.releases(rollout.app) if r.revision == rollout.previous), None)


def followed(draft: Draft, app: str) -> Release | None:
    """The release that is to run: the newest, or the trusted one once the newest was undone."""
    newest = draft.releases(app)[-1:]
    rollout = draft.rollout(app)
    if not newest or rollout is None or rollout.phase != "undone":
        return newest[0] if newest else None
    trusted = trusted_of(draft, rollout)
    return newest[0] if trusted is None else as_now(draft, trusted, newest[0])


def as_now(draft: Draft, trusted: Release, newest: Release) -> Release:
    """What ran then, and how many, where and how patiently as now. The same object while nothing of it changes."""
    known: dict[str, tuple[Release, Release, Release]] = draft.fleet.kept.setdefault("as_now", {})
    app = f"{trusted.namespace}/{trusted.application}"
    found = known.get(app)
    if found is None or found[0] is not trusted or found[1] is not newest:
        present = {r.component.name: r.component for r in newest.components}
        components = tuple(_with_present(r, present.get(r.component.name)) for r in trusted.components)
        found = known[app] = (trusted, newest, msgspec.structs.replace(trusted, components=components))
    return found[2]


def _with_present(released: Released, present: Component | None) -> Released:
    if present is None:
        return released
    component = msgspec.structs.replace(
        released.component, replicas=present.replicas, placement=present.placement, failover=present.failover,
        slo=present.slo,
    )  # fmt: skip
    return msgspec.structs.replace(released, component=component)
