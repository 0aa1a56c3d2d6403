"""The application: every route, in one list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from batuta.errors import BatutaError, FabricUnavailable
from batuta.fabric.broker_health import ROOM_BYTES, room_bytes
from batuta.hub.feed import TooOld
from batuta.kinds import KINDS
from batuta.web.access import Access
from batuta.web.actions import action_routes
from batuta.web.answers import on_error
from batuta.web.auditing import auditing_routes
from batuta.web.core import Core
from batuta.web.discovery import discovery_routes
from batuta.web.doctor import doctor_routes
from batuta.web.evictions import eviction_routes
from batuta.web.files import file_routes
from batuta.web.flags import flag_routes
from batuta.web.foreseen import foreseen_routes
from batuta.web.joining import joining_routes
from batuta.web.metrics import metrics_routes
from batuta.web.moving import moving_routes
from batuta.web.openapi import openapi_routes
from batuta.web.rehearsing import rehearsing_routes
from batuta.web.resources import KindApi
from batuta.web.reviews import review_routes
from batuta.web.rollout_asks import rollout_ask_routes
from batuta.web.rollouts import rollout_routes, rollout_view

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from batuta.hub.hub import Hub
    from batuta.web.sources import Source


def application(hub: Hub) -> Starlette:
    """The API of a hub, without a door."""
    kinds = [KindApi(hub, kind) for kind in KINDS]
    core = Core(hub)
    rollouts = rollout_view(hub)

    async def unavailable(request: Request, error: Exception) -> Response:
        return await on_error(request, _explained(hub, error))

    sources: list[Source] = [*core.views, *(kind.source for kind in kinds), rollouts]
    return Starlette(
        routes=[
            *discovery_routes(hub, sources),
            *openapi_routes(sources),
            *core.routes(),
            *eviction_routes(hub),
            *(route for kind in kinds for route in kind.routes()),
            *rollout_routes(hub, rollouts),
            *rollout_ask_routes(hub),
            *action_routes(hub),
            *flag_routes(hub),
            *foreseen_routes(hub),
            *moving_routes(hub),
            *rehearsing_routes(hub),
            *joining_routes(hub),
            *auditing_routes(hub),
            *review_routes(),
            *file_routes(hub),
            *metrics_routes(hub),
            *doctor_routes(hub),
        ],
        exception_handlers={
            FabricUnavailable: unavailable,
            BatutaError: on_error,
            TooOld: on_error,
            HTTPException: on_error,
            500: on_error,
        },
    )


def _explained(hub: Hub, error: Exception) -> Exception:
    """A broker that cannot write says nothing to whoever waits for its answer; we can look why."""
    if not isinstance(error, FabricUnavailable) or room_bytes(hub.config.directory) >= ROOM_BYTES:
        return error
    message = f"the disk of the hub is full: {error.message}"
    return FabricUnavailable(message, next_step="free some space on the hub's machine, then try again")


def doors(hub: Hub, token: str) -> tuple[ASGIApp, ASGIApp]:
    """The same API behind both doors: plain on loopback, and TLS."""
    app = application(hub)
    return Access(app, hub, token, is_tls=False), Access(app, hub, token, is_tls=True)
