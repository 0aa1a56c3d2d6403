"""Scaling: the `scale` subresource of kinds that may have one number of replicas. The class says where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from batuta.errors import Refused
from batuta.kinds.base import Problem
from batuta.web.ages import instant_ms, timestamp
from batuta.web.answers import Wrong
from batuta.web.fieldsets import whole
from batuta.web.sources import at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.kinds.base import Resource, Scale


def scale_of(resource: Resource, document: Mapping[str, Any]) -> dict[str, Any]:
    """The Scale of a resource as shown. Raises Wrong when it has no one number."""
    scale = type(resource).scale
    assert scale is not None
    wanted = _count(_part(resource, scale), scale, resource)
    shown = at(document, ".".join(("status", *scale.parts))) or [{}]
    metadata = document["metadata"]
    kept = {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion") if key in metadata}
    created = timestamp(instant_ms(metadata.get("creationTimestamp")))
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {**kept, "creationTimestamp": created},
        "spec": {"replicas": wanted},
        "status": {"replicas": shown[0].get(scale.ready, 0)},
    }


def scaled(resource: Resource, document: dict[str, Any], scale: object) -> dict[str, Any]:
    """The document with the number that a Scale asks for."""
    where = type(resource).scale
    assert where is not None
    wanted = at(scale, "spec.replicas") if isinstance(scale, dict) else None
    _check_known(scale)
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 0:
        raise Wrong(422, "spec.replicas of a Scale is a whole number from 0")
    _count(_part(resource, where), where, resource)
    parts: Any = document["spec"]
    for step in where.parts:
        parts = parts[step]
    inner = parts[0]
    for step in where.wanted[:-1]:
        inner = inner.setdefault(step, {})
    inner[where.wanted[-1]] = wanted
    return document


def _check_known(scale: object) -> None:
    """Raises Refused: what a Scale cannot say is not overheard."""
    spec = at(scale, "spec") if isinstance(scale, dict) else None
    unknown = [key for key in scale if key not in _HEAD] if isinstance(scale, dict) else []
    unknown += [f"spec.{key}" for key in spec if key != "replicas"] if isinstance(spec, dict) else []
    if unknown:
        message = "a Scale has no such field"
        raise Refused([Problem(path=path[:80], code="unknown_field", message=message) for path in unknown[:20]])


_HEAD: Final = ("kind", "apiVersion", "metadata", "spec", "status")


def _part(resource: Resource, scale: Scale) -> Mapping[str, Any]:
    parts = at({"spec": whole(resource)["spec"]}, ".".join(("spec", *scale.parts)))
    what = f"{resource.ref.plural} {resource.ref.name!r}"
    if not isinstance(parts, list) or len(parts) != 1:
        raise Wrong(
            422,
            f"{what} has {len(parts or [])} {scale.parts[-1]}, so there is no one number to scale",
            next_step=f"change {'.'.join(scale.wanted)} of the one that is meant: kubectl edit, or batuta apply",
        )
    part: Mapping[str, Any] = parts[0]
    return part


def _count(part: Mapping[str, Any], scale: Scale, resource: Resource) -> int:
    count = at(part, ".".join(scale.wanted))
    if not isinstance(count, int):
        field = ".".join(scale.wanted)
        autoscale = at(part, ".".join((*scale.wanted[:-1], "autoscale")))
        if autoscale:
            low, high = autoscale.get("min", 1), autoscale.get("max")
            message = f"{resource.ref.plural} {resource.ref.name!r} is autoscaled between {low} and {high}"
            raise Wrong(422, message, next_step="change min or max of its autoscale, or declare a count instead")
        message = f"{resource.ref.plural} {resource.ref.name!r} follows the fleet and has no {field} to scale"
        raise Wrong(422, message, next_step=f"declare {field} first")
    return count
