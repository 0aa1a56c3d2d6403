"""History: the releases of an application that are kept, what each of them changed, and the way back to one.

A release names what runs by digest, so to go back is to run the same bytes. How many there are, where they may be and
how patiently they are healed is not what runs: that stays as it is now, whatever release is gone back to. A bounded
number is kept; those that changed nothing that runs are forgotten first, so that scaling pushes nothing out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from batuta.core.reasons import Reason
from batuta.core.release import resolve
from batuta.kinds.base import Record, encode_hook
from batuta.kinds.difference import FieldChange, differences

if TYPE_CHECKING:
    from batuta.core.decided import Release, Released, VersionChoice
    from batuta.core.state import State
    from batuta.kinds.application import Application, Component


class Pin(Record):
    """A file or image that a release names, by digest."""

    component: str
    what: str
    """`model digits 2 int8`, `image registry.example/reader`."""
    digest: str


class Chapter(Record):
    """One kept release."""

    revision: int
    at: int
    is_newest: bool
    pins: tuple[Pin, ...]
    changes: tuple[FieldChange, ...]
    """Against the one before it that is kept; none for the first."""


def history(state: State, app: str) -> tuple[Chapter, ...]:
    """Every kept release, the newest first."""
    kept = state.releases.get(app, ())
    chapters = [
        Chapter(
            revision=release.revision, at=release.at, is_newest=release is kept[-1], pins=pins(release),
            changes=difference(kept[i - 1], release) if i else (),
        )
        for i, release in enumerate(kept)
    ]  # fmt: skip
    return tuple(reversed(chapters))


def difference(older: Release, newer: Release) -> tuple[FieldChange, ...]:
    """In which fields two releases differ: what was written, and what its references came to."""
    was, now = ([_plain(released) for released in release.components] for release in (older, newer))
    return tuple(differences(was, now, "components"))


def pins(release: Release) -> tuple[Pin, ...]:
    """All that a release names, by digest."""
    found: list[Pin] = []
    for released in release.components:
        name, version, container = released.component.name, released.version, released.component.container
        for variant in version.variants if version is not None else ():
            what = f"model {version.name} {version.version} {variant.name}" if version is not None else ""
            found.append(Pin(component=name, what=what, digest=variant.digest))
        if container is not None:
            found.append(Pin(component=name, what=f"image {container.name}", digest=container.digest))
    return tuple(found)


def returned(state: State, app: str, revision: int | None = None) -> Application | Reason:
    """The application as it has to be declared for a kept release to run again; without a revision, the one before the
    newest. A name that has come to mean something else since is never taken for what it meant: that is a Reason."""
    application, kept = state.application(app), state.releases.get(app, ())
    subject = f"application/{app.rpartition('/')[2]}"
    if revision is None and len(kept) > 1:
        revision = kept[-2].revision
    release = next((release for release in kept if release.revision == revision), None)
    if application is None or release is None:
        known = ", ".join(str(release.revision) for release in kept) or "none"
        return Reason(code="release_unknown", subject=subject, detail=f"{revision or 'an earlier one'}; kept: {known}")
    present = {component.name: component for component in application.spec.components}
    components = tuple(_as_it_ran(released, present.get(released.component.name)) for released in release.components)
    for component, released in zip(components, release.components, strict=True):
        found = resolve(state, release.namespace, component)
        if isinstance(found, Reason):
            return found
        if released.version is not None and (found is None or _files(found) != _files(released.version)):
            detail = f"model {released.version.name} {released.version.version} has other files now"
            return Reason(code="release_gone", subject=f"component/{component.name}", detail=detail)
    spec = msgspec.structs.replace(application.spec, components=components)
    return msgspec.structs.replace(application, spec=spec)


def _as_it_ran(released: Released, present: Component | None) -> Component:
    """The component with what ran then, and how many, where and how patiently as now."""
    component, use = released.component, released.component.model
    if use is not None and released.version is not None:
        # By the version that the name meant: an alias may mean another one by now.
        component = msgspec.structs.replace(
            component, model=msgspec.structs.replace(use, version=released.version.version)
        )
    if present is None:
        return component
    return msgspec.structs.replace(
        component, replicas=present.replicas, placement=present.placement, failover=present.failover, slo=present.slo
    )


def _files(version: VersionChoice) -> frozenset[tuple[str, str]]:
    return frozenset((variant.name, variant.digest) for variant in version.variants)


def _plain(released: Released) -> dict[str, Any]:
    """A component of a release, by name, for comparing: without how fast its variants turned out to be."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(released.component, enc_hook=encode_hook))
    if released.version is not None:
        variants = [{"name": v.name, "format": v.format, "digest": v.digest} for v in released.version.variants]
        found["resolved"] = {"version": released.version.version, "variants": variants}
    return found
