"""Artifacts over HTTP: whole files by digest, streamed in both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import FileResponse, Response
from starlette.routing import Route

from batuta.errors import ArtifactRefused, NotFound
from batuta.web.answers import said
from batuta.web.bodies import chunks_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from batuta.hub.hub import Hub


def file_routes(hub: Hub) -> list[Route]:
    files = Files(hub)
    return [
        Route("/artifacts/{digest}", files.put, methods=["PUT"]),
        Route("/artifacts/{digest}", files.get, methods=["GET", "HEAD"]),
    ]


class Files:
    """Endpoints for artifacts."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def put(self, request: Request) -> Response:
        digest = request.path_params["digest"]
        self._hub.artifacts.path(digest)
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._hub.config.artifact_bytes_max:
            raise ArtifactRefused("too_large", f"an artifact has {self._hub.config.artifact_bytes_max} bytes at most")
        await self._hub.audit.accepted("upload", f"artifacts/{digest}", None, {"bytes": length})
        size = await self._hub.artifacts.put(digest, chunks_of(request))
        return said({"digest": digest, "size": size}, 201)

    async def get(self, request: Request) -> Response:
        digest = request.path_params["digest"]
        path = await self._hub.artifacts.whole(digest)
        if path is None:
            raise NotFound(f"the hub has no {digest}", next_step="batuta model push")
        return FileResponse(path, media_type="application/octet-stream", headers={"ETag": f'"{digest}"'})
