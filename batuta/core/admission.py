"""Admission: may this be declared, or taken back, given what is declared already? Cross-resource checks only.

What a document says of itself is checked by its kind. What it refers to may come later (an application before its
model, a site before its parent): that is a Reason for waiting, not a Problem. Refused is only what could never come
right by itself, or would pull the ground from under others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.core.flags import SHEET_BYTES_MAX
from batuta.kinds.base import Problem
from batuta.kinds.flag import Flag
from batuta.kinds.model import Model
from batuta.kinds.nearest import did_you_mean
from batuta.kinds.node import Node
from batuta.kinds.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.core.state import State
    from batuta.kinds.application import Component
    from batuta.kinds.base import Resource
    from batuta.kinds.model import Version

FLAG_BYTES = 256
"""What a flag takes beside what is said in its spec: at most its names, and what they are wrapped in."""
NAMED_MAX = 5
"""How many users of a thing are named before the rest is counted."""


def admit(resource: Resource, state: State, before: State | None = None) -> list[Problem]:
    """What is wrong with declaring this. `state` may hold it already, with all that is declared in one go; `before` is
    the state without them, by which what must not change is compared (`state` itself when left out)."""
    if isinstance(resource, Site):
        return list(_site_problems(resource, state))
    if isinstance(resource, Node):
        return list(_node_problems(resource, state))
    if isinstance(resource, Model):
        return list(_model_problems(resource, state, state if before is None else before))
    if isinstance(resource, Flag):
        return list(_flag_problems(state))
    return []


def admit_removal(resource: Resource, state: State) -> list[Problem]:
    """What is wrong with taking this back: who needs it."""
    name = resource.metadata.name
    if isinstance(resource, Site):
        nodes = state.nodes_of_site.get(name, ())
        below = [s.metadata.name for s in state.sites() if s.spec.parent == name]
        found = [_needed(f"nodes of the site: {_some(nodes)}", "remove them first: `batuta node remove NAME`")]
        found += [_needed(f"sites below it: {_some(below)}", "give them another parent, or delete them first")]
        return [problem for problem, users in zip(found, (nodes, below), strict=True) if users]
    if isinstance(resource, Model):
        users = sorted(state.users_of_model.get(f"{resource.ref.namespace}/{name}", ()))
        return [_needed(f"applications that run it: {_some(users)}", "delete or change them first")] if users else []
    return []


def _site_problems(site: Site, state: State) -> Iterator[Problem]:
    seen, parent = [site.metadata.name], site.spec.parent
    while parent is not None:
        seen.append(parent)
        if parent in seen[:-1]:
            if parent == site.metadata.name and len(seen) > 2:
                chain = " → ".join(seen)
                yield Problem(
                    path="spec.parent", code="cycle", message=f"sites form a tree, and this closes a ring: {chain}"
                )
            return
        above = state.site(parent)
        parent = above.spec.parent if above is not None else None


def _flag_problems(state: State) -> Iterator[Problem]:
    """Every node holds all flags, so that any program may ask for any."""
    flags = [r for r in state.desired.values() if isinstance(r, Flag)]
    size = sum(len(msgspec.json.encode(flag.spec)) + FLAG_BYTES for flag in flags)
    if size > SHEET_BYTES_MAX:
        message = f"all {len(flags)} flags together have {size} bytes, and {SHEET_BYTES_MAX} are allowed"
        yield Problem(path="spec", code="too_large", message=message, hint="delete some, or give them smaller values")


def _node_problems(node: Node, state: State) -> Iterator[Problem]:
    if state.site(node.spec.site) is None:
        known = [s.metadata.name for s in state.sites()]
        yield Problem(
            path="spec.site", code="no_such_site", message=f"there is no site {node.spec.site!r}",
            hint=did_you_mean(node.spec.site, known, otherwise="declare it first, or join with `--site NAME`"),
        )  # fmt: skip


def _model_problems(model: Model, state: State, before: State) -> Iterator[Problem]:
    stored = before.model(model.ref.namespace, model.ref.name)
    if stored is None:
        return
    after = {v.version: (i, v) for i, v in enumerate(model.spec.versions)}
    for old in stored.spec.versions:
        if old.version in after:
            i, new = after[old.version]
            yield from _version_problems(f"spec.versions[{i}]", old, new)
            continue
        users = sorted(
            app
            for app in state.users_of_model.get(f"{model.ref.namespace}/{model.ref.name}", ())
            if any(
                (c.model.name, c.model.version) == (model.ref.name, old.version)
                for c in _components(state, app)
                if c.model is not None
            )
        )
        if users:
            yield Problem(
                path="spec.versions", code="needed",
                message=f"version {old.version!r} is left out, and still runs in {_some(users)}",
                hint="name another version there first",
            )  # fmt: skip


def _version_problems(here: str, old: Version, new: Version) -> Iterator[Problem]:
    """What a version is, it stays: nodes hold its bytes, and what they measured of it must stay comparable."""
    step = "push it as a new version"
    variants = {v.name: (j, v) for j, v in enumerate(new.variants)}
    for was in old.variants:
        if was.name not in variants:
            message = f"variant {was.name!r} of version {old.version!r} is stored and cannot be taken out"
            yield Problem(path=f"{here}.variants", code="immutable", message=message, hint=step)
            continue
        j, now = variants[was.name]
        for field in ("digest", "format", "size_bytes"):
            if getattr(was, field) != getattr(now, field):
                key = "size" if field == "size_bytes" else field
                message = f"the {key} of variant {was.name!r} of version {old.version!r} is stored and cannot change"
                yield Problem(path=f"{here}.variants[{j}].{key}", code="immutable", message=message, hint=step)
    for field in ("signature", "labels", "before", "after", "transform"):
        if getattr(old, field) and getattr(old, field) != getattr(new, field):
            message = f"the {field} of version {old.version!r} is stored and cannot change"
            yield Problem(path=f"{here}.{field}", code="immutable", message=message, hint=step)


def _components(state: State, app: str) -> tuple[Component, ...]:
    application = state.application(app)
    return application.spec.components if application is not None else ()


def _needed(who: str, next_step: str) -> Problem:
    return Problem(path="", code="needed", message=f"it is needed by {who}", hint=next_step)


def _some(names: list[str] | tuple[str, ...]) -> str:
    rest = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {rest} more" if rest > 0 else "")
