"""What is served here: versions and kinds, as Kubernetes clients ask for them."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import PlainTextResponse
from starlette.routing import Route

from batuta import __version__
from batuta.kinds import API_VERSION, KINDS
from batuta.web.answers import said

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.hub.hub import Hub

KUBERNETES: Final = ("1", "32", "v1.32.0")
"""The version whose conventions are kept: clients compare it with their own."""
VERBS: Final = ["create", "delete", "get", "list", "patch", "update", "watch"]


def discovery_routes(hub: Hub) -> list[Route]:
    group, version = API_VERSION.split("/")
    named = {"groupVersion": API_VERSION, "version": version}
    groups = [{"name": group, "versions": [named], "preferredVersion": named}]

    async def api(_request: Request) -> Response:
        return said({"kind": "APIVersions", "versions": [], "serverAddressByClientCIDRs": []})

    async def apis(_request: Request) -> Response:
        return said({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})

    async def apis_group(_request: Request) -> Response:
        return said({"kind": "APIGroup", "apiVersion": "v1", **groups[0]})

    async def resources(_request: Request) -> Response:
        answer = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": API_VERSION}
        return said({**answer, "resources": _resources()})

    async def versions(_request: Request) -> Response:
        major, minor, git = KUBERNETES
        build = {"platform": f"linux/{platform.machine()}", "compiler": "", "goVersion": "", "gitTreeState": ""}
        answer = {"major": major, "minor": minor, "gitVersion": f"{git}+batuta-{__version__}"}
        return said({**answer, **build, "gitCommit": "", "buildDate": "", "batuta": __version__})

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok")

    async def readyz(_request: Request) -> Response:
        if not hub.fabric.is_connected:
            return PlainTextResponse("the broker is not connected", 503)
        if hub.loop.unavailable:
            return PlainTextResponse(f"decisions cannot be written: {hub.loop.unavailable}", 503)
        return PlainTextResponse("ok")

    return [
        Route("/api", api),
        Route("/apis", apis),
        Route(f"/apis/{group}", apis_group),
        Route(f"/apis/{API_VERSION}", resources),
        Route("/version", versions),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
    ]


def _resources() -> list[dict[str, Any]]:
    found = []
    for kind in KINDS:
        name = kind.__name__
        common = {"singularName": name.lower(), "namespaced": kind.namespaced, "kind": name}
        found.append({"name": kind.plural, **common, "verbs": VERBS, "shortNames": list(kind.short_names)})
        found.append({"name": f"{kind.plural}/status", **common, "singularName": "", "verbs": ["get"]})
    return found
