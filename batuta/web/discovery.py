"""What is served here: versions and kinds, as Kubernetes clients ask for them, aggregated or one by one."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from batuta import __version__
from batuta.kinds import API_VERSION
from batuta.web.answers import said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from batuta.hub.hub import Hub
    from batuta.web.sources import Source

KUBERNETES: Final = ("1", "32", "v1.32.0")
"""The version whose conventions are kept: clients compare it with their own."""
POLICY: Final = ("policy", "v1")
"""A group with nothing in it: kubectl looks for it before it asks for evictions."""
DISCOVERY_VERSIONS: Final = ("v2", "v2beta1")


def discovery_routes(hub: Hub, sources: Sequence[Source]) -> list[Route]:
    group, version = API_VERSION.split("/")
    named = {"groupVersion": API_VERSION, "version": version}
    groups = [{"name": group, "versions": [named], "preferredVersion": named}]
    evicting = {"groupVersion": "/".join(POLICY), "version": POLICY[1]}
    groups.append({"name": POLICY[0], "versions": [evicting], "preferredVersion": evicting})
    core = [source for source in sources if source.api_version == "v1"]
    ours = [source for source in sources if source.api_version == API_VERSION]

    async def api(request: Request) -> Response:
        plain = {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        return _aggregated(request, "", "v1", core) or said(plain)

    async def apis(request: Request) -> Response:
        plain = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        return _aggregated(request, group, version, ours, POLICY) or said(plain)

    async def apis_group(_request: Request) -> Response:
        return said({"kind": "APIGroup", "apiVersion": "v1", **groups[0]})

    async def policy(request: Request) -> Response:
        if request.url.path.strip("/").endswith(POLICY[1]):
            return said(_resources("/".join(POLICY), ()))
        return said({"kind": "APIGroup", "apiVersion": "v1", **groups[1]})

    async def resources(_request: Request) -> Response:
        return said(_resources(API_VERSION, ours))

    async def core_resources(_request: Request) -> Response:
        return said(_resources("v1", core))

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

    # Some Python clients end the roots with a slash.
    return [
        *(Route(path, api) for path in ("/api", "/api/")),
        *(Route(path, apis) for path in ("/apis", "/apis/")),
        *(Route(f"/apis/{group}{end}", apis_group) for end in ("", "/")),
        *(Route(f"/apis/{place}{end}", policy) for place in (POLICY[0], "/".join(POLICY)) for end in ("", "/")),
        *(Route(f"/apis/{API_VERSION}{end}", resources) for end in ("", "/")),
        *(Route(f"/api/v1{end}", core_resources) for end in ("", "/")),
        *(Route(path, versions) for path in ("/version", "/version/")),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
    ]


def subresources(source: Source) -> list[tuple[str, dict[str, str], list[str]]]:
    """What lies below each object: name, what it answers with, and what can be done with it."""
    own = _gvk(source)
    found = []
    if source.api_version == API_VERSION:
        found.append(("status", own, ["get"]))
    if source.is_scalable:
        scale = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
        found.append(("scale", scale, ["get", "patch", "update"]))
    if source.kind == "Pod":
        found.append(("log", own, ["get"]))
        found.append(("eviction", {"group": POLICY[0], "version": POLICY[1], "kind": "Eviction"}, ["create"]))
    return found


def _aggregated(
    request: Request, group: str, version: str, sources: Sequence[Source], empty: tuple[str, str] | None = None
) -> Response | None:
    """One document for everything, when the client asks for it: then it asks nothing else."""
    wanted = _wanted(request.headers.get("accept", ""))
    if wanted is None:
        return None
    resources = [
        {
            "resource": source.plural,
            "responseKind": _gvk(source),
            "scope": "Namespaced" if source.namespaced else "Cluster",
            "singularResource": source.kind.lower(),
            "verbs": list(source.verbs),
            "shortNames": list(source.short_names),
            "categories": list(source.categories),
            "subresources": [
                {"subresource": name, "responseKind": kind, "verbs": verbs}
                for name, kind, verbs in subresources(source)
            ],
        }
        for source in sources
    ]
    versions = [{"version": version, "resources": resources, "freshness": "Current"}]
    items = [{"metadata": {"name": group} if group else {}, "versions": versions}]
    if empty is not None:
        nothing = {"version": empty[1], "resources": [], "freshness": "Current"}
        items.append({"metadata": {"name": empty[0]}, "versions": [nothing]})
    answer = {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{wanted}",
        "metadata": {},
        "items": items,
    }
    media = f"application/json;g=apidiscovery.k8s.io;v={wanted};as=APIGroupDiscoveryList"
    return Response(msgspec.json.encode(answer), headers={"Content-Type": media})


def _wanted(accept: str) -> str | None:
    """The version of the aggregated list that the client likes best; None when it wants the plain ones."""
    for part in accept.split(","):
        media, *said_words = (word.strip() for word in part.split(";"))
        parameters = dict(word.partition("=")[::2] for word in said_words)
        if media != "application/json":
            continue
        if parameters.get("as") != "APIGroupDiscoveryList":
            return None
        if parameters.get("g") == "apidiscovery.k8s.io" and parameters.get("v") in DISCOVERY_VERSIONS:
            return parameters["v"]
    return None


def _resources(api_version: str, sources: Sequence[Source]) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for source in sources:
        named = {"namespaced": source.namespaced, "kind": source.kind}
        found.append(
            {
                "name": source.plural,
                "singularName": source.kind.lower(),
                **named,
                "verbs": list(source.verbs),
                "shortNames": list(source.short_names),
                "categories": list(source.categories),
            }
        )
        for name, kind, verbs in subresources(source):
            found.append({"name": f"{source.plural}/{name}", "singularName": "", **named, **kind, "verbs": verbs})
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": found}


def _gvk(source: Source) -> dict[str, str]:
    group, _, version = source.api_version.rpartition("/")
    return {"group": group, "version": version, "kind": source.kind}
