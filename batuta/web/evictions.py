"""What `kubectl drain` asks for, as far as it can be meant here; and what cannot be asked of a pod at all.

Nobody takes one instance off a machine: people say that a machine shall be empty, and the hub moves what can run
elsewhere, the new one ready before the old one stops. So an eviction from a cordoned node drains the node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.routing import Route

from batuta.errors import NotFound
from batuta.kinds import Node
from batuta.kinds.base import Ref
from batuta.web.answers import Wrong, said
from batuta.web.applying import by_update, writer_of
from batuta.web.bodies import body_of
from batuta.web.core_views import instance_of
from batuta.web.leniency import warning
from batuta.web.protobuf import PROTOBUF, fields, message_in
from batuta.web.queries import dry_run_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.hub.hub import Hub

POD: Final = "/api/v1/namespaces/{namespace}/pods/{name}"
BODY_BYTES_MAX: Final = 64 * 1024
DECIDES_WITHIN_MS: Final = 3_000
INSIDE: Final = ("exec", "attach", "portforward")


def eviction_routes(hub: Hub) -> list[Route]:
    evictions = Evictions(hub)
    return [
        Route(f"{POD}/eviction", evictions.evict, methods=["POST"]),
        *(Route(f"{POD}/{word}", nobody_gets_in, methods=["GET", "POST"], include_in_schema=False) for word in INSIDE),
    ]


class Evictions:
    """Empties nodes for clients that know it as taking away one pod after the other."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def evict(self, request: Request) -> Response:
        namespace, name = request.path_params["namespace"], request.path_params["name"]
        dry_run = dry_run_of(request) or await _is_dry_run(request)
        found = instance_of(self._hub, namespace, name)
        node = self._hub.loop.state.get(Ref(Node.plural, "", found[0])) if found is not None else None
        if found is None or not isinstance(node, Node):
            raise NotFound(f'pods "{name[:80]}" not found', next_step="kubectl get pods")
        if not (node.spec.unschedulable or node.spec.drain):
            # Also for whoever asks again after it moved: where it is now, nobody wants it to leave.
            message = f'pods "{name}" not found on a cordoned node: it is on {found[0]}, which takes new instances'
            raise NotFound(message, next_step=f"batuta node drain {found[0]}")
        if found[1].endswith(f"-{found[0]}"):
            message = f"{name} is for every node, so it ends only with its application, or with {found[0]}"
            raise Wrong(422, message, next_step=f"batuta node remove {found[0]}")
        if not node.spec.drain:
            spec = msgspec.structs.replace(node.spec, drain=True)
            owners = by_update(writer_of(request, "Update"), self._hub.clock)
            drained = msgspec.structs.replace(node, spec=spec)
            await self._hub.declarations.apply([drained], dry_run=dry_run, owners=owners)
        if not dry_run and (why := await self._why_it_stays(*found)):
            raise Wrong(429, f"{name} stays on {found[0]} until it can be elsewhere: {why}")
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        answer = said({**status, "message": f"{found[0]} is being drained"}, 201)
        text = f"{found[0]} is being drained: all that can run elsewhere moves, and it takes no more until uncordoned"
        answer.headers["Warning"] = warning(text)
        return answer

    async def _why_it_stays(self, node: str, instance: str) -> str:
        """What keeps it from moving, as soon as the hub has decided; empty when nothing does."""
        hub, until = self._hub, self._hub.clock.now() + DECIDES_WITHIN_MS
        while True:
            heard = hub.loop.turned.rings
            namespace, application, _ = instance.split("/")
            row = hub.feed.row(Ref("applications", namespace, application))
            status = msgspec.json.decode(row.body)["status"] if row is not None else {}
            parts = [(c["name"], i) for c in status.get("components", ()) for i in c["instances"]]
            here = [(c, i) for c, i in parts if i["name"] == instance and i["node"] == node]
            if not here:
                return ""
            component, mine = here[0]
            subject = f"component/{component}/{mine['slot']}"
            why = next((r["sentence"] for r in status.get("reasons", ()) if r.get("subject") == subject), "")
            elsewhere = any(i["slot"] == mine["slot"] and i["node"] != node for c, i in parts if c == component)
            if elsewhere or (why and mine["verdict"] in ("move", "hold")):
                return "" if elsewhere else str(why)
            if hub.clock.now() >= until:
                return ""
            await hub.loop.turned.wait(heard, hub.clock, until)


async def _is_dry_run(request: Request) -> bool:
    """From the Eviction's own deleteOptions; newer kubectl sends it as protobuf."""
    body = await body_of(request, BODY_BYTES_MAX)
    sort = request.headers.get("content-type", "").partition(";")[0].strip()
    if sort == PROTOBUF:
        # Eviction {1: metadata, 2: deleteOptions {5: dryRun}}
        return fields(fields(message_in(body)).get(2, b"")).get(5) == b"All"
    try:
        options: Any = msgspec.json.decode(body or b"{}", type=dict[str, Any]).get("deleteOptions") or {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise Wrong(400, f"the body is no Eviction: {error}") from None
    return isinstance(options, dict) and options.get("dryRun") == ["All"]


async def nobody_gets_in(request: Request) -> Response:
    """Exec, attach and port-forward: a shell in a machine of the fleet is not what this hub is for."""
    raise Wrong(
        405,
        f"{request.url.path.rpartition('/')[2]} is not possible: instances have no shell and no way in over the hub",
        next_step="see `kubectl logs -f`, `batuta logs` and `batuta why`",
    )
