"""Release: an application with its references resolved, as an immutable revision.

A new revision is made only when the resolved content differs from the newest one. Each component remembers the revision
in which *what runs* last changed: how many there are and where they may be is not what runs, so scaling an application
or adding a variant to a model restarts nothing. What cannot be resolved is a Reason, and the previous release keeps
running: the order in which documents are applied must not matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.core.decided import Release, Released, VersionChoice
from batuta.core.reasons import Reason
from batuta.core.rollout import begin
from batuta.core.trusted import trusted_of
from batuta.core.vouch import signers_of, vouched
from batuta.kinds.application import Failover, Placement, Replicas

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from batuta.core.draft import Draft
    from batuta.core.state import State
    from batuta.kinds.application import Component
    from batuta.kinds.model import Variant

RELEASES_KEPT = 10


class _Resolved(NamedTuple):
    component: Component
    version: VersionChoice | None
    signers: tuple[tuple[str, ...], ...]


class Resolved(NamedTuple):
    """The release to follow, if any, and why it is not the one that people wrote."""

    release: Release | None
    reasons: tuple[Reason, ...] = ()


def release(draft: Draft, app: str) -> Resolved:
    """The newest release of an application, made now if what is declared asks for one."""
    application = draft.state.application(app)
    known = draft.releases(app)
    if application is None:
        for old in known:
            draft.drop_release(old)
        if (over := draft.rollout(app)) is not None:
            draft.drop_rollout(over)
        return Resolved(None)
    newest = known[-1] if known else None
    rollout = draft.rollout(app)
    trusted = trusted_of(draft, rollout) if rollout is not None and rollout.phase != "done" else None
    namespace, name = app.split("/")
    resolved: list[_Resolved] = []
    reasons: list[Reason] = []
    for component in application.spec.components:
        version = resolve(draft.state, namespace, component)
        if isinstance(version, VersionChoice):
            version = vouched(draft.state, app, application, component, version)
        signers = signers_of(draft.state, app, application, component)
        if isinstance(version, Reason):
            reasons.append(version)
        elif isinstance(signers, Reason):
            reasons.append(signers)
        else:
            resolved.append(_Resolved(component, version, signers))
    if reasons:
        return Resolved(newest, tuple(reasons))
    if newest is not None and resolved == [(r.component, r.version, r.signers) for r in newest.components]:
        return Resolved(newest)
    revision = newest.revision + 1 if newest is not None else 1
    # What runs as in the newest one is left alone; so is what runs as in the one that a rollout would go back to.
    before = [{r.component.name: r for r in each.components} for each in (newest, trusted) if each is not None]
    components = []
    for each in resolved:
        earlier = (release.get(each.component.name) for release in before)
        same = (r for r in earlier if r is not None and _is_same(r, each))
        kept = next((r.revision for r in same), revision)
        components.append(Released(component=each.component, revision=kept, version=each.version, signers=each.signers))
    made = Release(namespace=namespace, application=name, revision=revision, components=tuple(components), at=draft.now)
    draft.write_release(made)
    if newest is not None and _changed(newest, made):
        rollout = begin(app, revision, newest.revision, draft.now, rollout)
        draft.write_rollout(rollout)
    pinned = {rollout.previous} if rollout is not None else set()
    for old_release in surplus(known, pinned):
        draft.drop_release(old_release)
    return Resolved(made)


def _is_same(earlier: Released, now: _Resolved) -> bool:
    return earlier.signers == now.signers and runs_the_same(earlier, now.component, now.version)


def surplus(known: Sequence[Release], pinned: Collection[int] = ()) -> list[Release]:
    """Of releases, oldest first, those to be forgotten when one more is made: first those that changed nothing that
    runs, then the oldest; never one that a rollout may go back to."""
    many = max(0, len(known) + 1 - RELEASES_KEPT)
    free = [r for r in known if r.revision not in pinned]
    idle = [r for i, r in enumerate(known) if i and r in free and not _changed(known[i - 1], r)]
    return (idle + [r for r in free if r not in idle])[:many]


def _changed(before: Release, after: Release) -> bool:
    """Did a release change what runs?"""
    was, now = ({r.component.name: r.revision for r in release.components} for release in (before, after))
    return was != now


def resolve(state: State, namespace: str, component: Component) -> VersionChoice | Reason | None:
    """The model version that a component names, with all its variants; None for a component without a model."""
    use = component.model
    if use is None:
        return None
    model = state.model(namespace, use.name)
    if model is None:
        return Reason(code="model_missing", subject=f"component/{component.name}", detail=f"{namespace}/{use.name}")
    version = model.spec.version(use.version)
    if version is None or not version.variants:
        known = ", ".join((*(v.version for v in model.spec.versions), *sorted(model.spec.aliases))) or "none"
        detail = f"{use.name} {use.version}; there is: {known}"
        return Reason(code="version_missing", subject=f"component/{component.name}", detail=detail)
    return VersionChoice(
        name=use.name, version=version.version, variants=version.variants,
        signature=version.signature, labels=version.labels, golden=version.golden,
        before=version.before, after=version.after, transform=version.transform, drift=version.drift,
        transform_signatures=version.transform_signatures,
    )  # fmt: skip


def runs_the_same(old: Released, component: Component, version: VersionChoice | None) -> bool:
    """Would instances of the old release do exactly what the new one asks? Then they are left alone."""
    if _what_runs(old.component, old.version) != _what_runs(component, version):
        return False
    if old.version is None or version is None:
        return old.version is version
    before, after = old.version, version
    if _what_is_told(before) != _what_is_told(after):
        return False
    files = {_file(v, after) for v in after.variants}
    return all(_file(v, before) in files for v in before.variants)


def _what_is_told(version: VersionChoice) -> tuple[object, ...]:
    """All of a version but its files."""
    return (
        version.name, version.version, version.signature, version.labels, version.before, version.after,
        version.transform, version.transform_signatures if version.signers else (), version.signers,
    )  # fmt: skip


def _file(variant: Variant, version: VersionChoice) -> tuple[object, ...]:
    """What of a variant a node has: its bytes, and where signers are asked for, who vouches for them."""
    return variant.name, variant.format, variant.digest, variant.signatures if version.signers else ()


def _what_runs(component: Component, version: VersionChoice | None) -> Component:
    """The component without what only says how many, where and how patiently, nor by which name a version was asked."""
    use = component.model
    if use is not None and version is not None:
        use = msgspec.structs.replace(use, version=version.version)
    return msgspec.structs.replace(
        component, model=use, replicas=Replicas(count=1), placement=Placement(), failover=Failover(), slo=None
    )
