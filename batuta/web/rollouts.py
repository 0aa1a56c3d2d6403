"""Rollouts as Kubernetes clients and ours read them: listed and watched as any resource is, and never declared."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from starlette.routing import Route

from batuta.core.view_changes import changed
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

BASE: Final = f"/apis/{API_VERSION}"
ANEW_MS: Final = 10_000
"""What is over is computed anew at least so often: an update window may have opened."""


def rollout_view(hub: Hub) -> View:
    return View(
        hub, Rollout.__name__, RolloutSketches(), partial(cells_of, Rollout), columns_of(Rollout),
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


class RolloutSketches:
    """One for each application whose newest release is not its first. Those that are over are computed anew only when
    something of their application may have changed, and now and then: of a large fleet one takes many milliseconds."""

    def __init__(self) -> None:
        self._looked: tuple[State, int] | None = None
        self._known: dict[str, _Known] = {}
        """By application."""

    def __call__(self, hub: Hub) -> Iterator[Sketch]:
        state, now = hub.loop.state, hub.clock.now()
        maybe = changed("applications", *self._between(state, now)) if self._looked is not None else None
        before, self._known = self._known, {}
        self._looked = (state, now)
        for app, row in sorted(state.rollouts.items()):
            known = before.get(app)
            is_same = known is not None and known.row is row and row.is_over and now - known.at < ANEW_MS
            if known is None or not is_same or maybe is None or Ref("applications", *app.split("/")).key in maybe:
                known = _Known(row, now, _drawn(state, app, row, now))
            self._known[app] = known
            if known.document is not None:
                mark = (msgspec.json.encode(known.document),)
                yield Sketch(row.namespace, row.application, mark, partial(dict, known.document))

    def _between(self, state: State, now: int) -> tuple[State, State, int, int]:
        assert self._looked is not None
        before, was = self._looked
        return before, state, was, now


class _Known(NamedTuple):
    """One rollout as it was computed last."""

    row: core.Rollout
    at: int
    document: dict[str, Any] | None


def _drawn(state: State, app: str, row: core.Rollout, now: int) -> dict[str, Any] | None:
    status = rollout_status(state, app, now)
    if not status:
        return None
    return _document(state, app, row, status | {"progress": f"{status['wave']}/{len(status['waves'])}"})


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
