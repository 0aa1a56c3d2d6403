"""Rollouts as Kubernetes clients and ours read them: listed and watched as any resource is, and never declared."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.routing import Route

from batuta.core.view_rollout import rollout_status
from batuta.kinds.base import API_VERSION, Ref, encode_hook
from batuta.kinds.rollout import Rollout, RolloutSpec
from batuta.web.ages import timestamp
from batuta.web.reading import Reading
from batuta.web.sources import cells_of, columns_of
from batuta.web.views import Sketch, View

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.core import rollout as core
    from batuta.core.state import State
    from batuta.hub.hub import Hub

BASE = f"/apis/{API_VERSION}"


def rollout_view(hub: Hub) -> View:
    return View(
        hub, Rollout.__name__, rollout_sketches, partial(cells_of, Rollout), columns_of(Rollout),
        namespaced=True, short_names=Rollout.short_names, categories=("batuta",), selectable=("status.phase",),
        api_version=API_VERSION,
    )  # fmt: skip


def rollout_routes(hub: Hub, view: View) -> list[Route]:
    reading = Reading(hub, view)
    inside = f"{BASE}/namespaces/{{namespace}}/{view.plural}"
    return [
        Route(inside, reading.list_or_watch, methods=["GET"]),
        Route(f"{inside}/{{name}}", reading.get, methods=["GET"]),
        Route(f"{inside}/{{name}}/status", reading.get, methods=["GET"]),
        Route(f"{BASE}/{view.plural}", reading.list_or_watch, methods=["GET"]),
    ]


def rollout_sketches(hub: Hub) -> Iterator[Sketch]:
    """One for each application whose newest release is not its first."""
    state, now = hub.loop.state, hub.clock.now()
    for app, row in sorted(state.rollouts.items()):
        status = rollout_status(state, app, now)
        if not status:
            continue
        document = _document(state, app, row, status | {"progress": f"{status['wave']}/{len(status['waves'])}"})
        yield Sketch(row.namespace, row.application, (msgspec.json.encode(document),), partial(dict, document))


def _document(state: State, app: str, row: core.Rollout, status: Any) -> dict[str, Any]:
    application = state.application(app)
    spec = RolloutSpec(release=row.revision, previous=row.previous)
    if application is not None:
        said = application.spec.rollout
        spec = RolloutSpec(
            release=row.revision, previous=row.previous, waves=said.waves or (), soak_ms=said.soak_ms,
            gates=said.gates, on_failure=said.on_failure, approvals=said.approvals, shadow_ms=said.shadow_ms,
            split=said.split,
        )  # fmt: skip
    metadata: dict[str, Any] = {
        "name": row.application,
        "namespace": row.namespace,
        "uid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"batuta.dev/rollout/{app}/{row.revision}/{row.began_at}")),
        "generation": row.revision,
        "creationTimestamp": timestamp(row.began_at),
        "labels": dict(application.metadata.labels) if application is not None else {},
    }
    if application is not None:
        owner = {"apiVersion": API_VERSION, "kind": "Application", "name": row.application}
        metadata["ownerReferences"] = [{**owner, "uid": application.metadata.uid or "", "controller": True}]
    return {
        "kind": "Rollout",
        "apiVersion": API_VERSION,
        "metadata": metadata,
        "spec": msgspec.to_builtins(spec, enc_hook=encode_hook),
        "status": msgspec.to_builtins(status, enc_hook=encode_hook),
    }


def ref_of(app: str) -> Ref:
    return Ref(Rollout.plural, *app.split("/"))
