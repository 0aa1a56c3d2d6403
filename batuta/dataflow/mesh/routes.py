"""What the door answers: the paths of the Open Inference Protocol, version 2, and of its repository extension.

    GET   /v2, /v2/health/live, /v2/health/ready
    GET   /v2/models/NAME[/versions/VERSION][/ready]
    POST  /v2/models/NAME[/versions/VERSION]/infer
    POST  /v2/repository/index, /v2/repository/models/NAME/load, …/unload
    POST  /flags/NAMESPACE/ofrep/v1/evaluate/flags[/KEY]   feature flags: see `mesh.flags`
    GET   /batuta/mesh                                 who is known, and how each fares: for people

Beside the protocol's own, these headers are understood: `Batuta-Namespace` and `Batuta-Application` say which model of
that name is meant, `Batuta-Deadline-Ms` and `Batuta-Class` how urgent it is, `traceparent` whose work it is part of.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec

from batuta import __version__
from batuta.core import mesh_breaker, mesh_deadline
from batuta.core.beside import HEADER_KEY
from batuta.core.mesh import NEARNESS
from batuta.core.serving import CLASSES, HEADER_CLASS, HEADER_DEADLINE, HEADER_JSON_BYTES
from batuta.dataflow.mesh.call import clock_ms
from batuta.dataflow.mesh.cards import Wanted
from batuta.dataflow.mesh.http import Response
from batuta.dataflow.mesh.talk import JSON, Ask, Reply, refusal
from batuta.kinds.base import DEFAULT_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.serving import Class
    from batuta.dataflow.mesh.call import Calls
    from batuta.dataflow.mesh.cards import Cards, Known
    from batuta.dataflow.mesh.flags import FlagDoor
    from batuta.dataflow.mesh.http import Request
    from batuta.dataflow.mesh.talk import Verb

NAMESPACE: Final = "batuta-namespace"
APPLICATION: Final = "batuta-application"
NODE_NAME: Final = "batuta-gateway"

_WORD = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,252}$")
_MODEL = re.compile(r"^/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(infer|ready))?$")
_REPOSITORY = re.compile(r"^/v2/repository/models/([^/]+)/(load|unload)$")


class Routes:
    """Answers requests."""

    def __init__(self, calls: Calls, cards: Cards, is_ready: Callable[[], bool], flags: FlagDoor | None = None) -> None:
        self.calls = calls
        self.cards = cards
        self.is_ready = is_ready
        self.flags = flags

    async def __call__(self, request: Request) -> Response:
        if self.flags is not None and (answer := self.flags.answer(request)) is not None:
            return answer
        try:
            return _response(await self._answer(request))
        except ValueError as error:
            return _response(refusal("malformed", str(error)))

    async def _answer(self, request: Request) -> Reply:
        if found := _MODEL.match(request.path):
            verb: Verb = "infer" if found[3] == "infer" else "ready" if found[3] == "ready" else "metadata"
            if request.method != ("POST" if verb == "infer" else "GET"):
                return refusal("method_wrong", f"{request.path} is asked with {'POST' if verb == 'infer' else 'GET'}")
            ask = self._ask(request, _word(found[1], "model"), found[2], verb)
            return self._ready(ask) if verb == "ready" else await self.calls.call(ask)
        match request.method, request.path:
            case "GET", "/v2" | "/v2/":
                extensions = ["binary_tensor_data", "model_repository"]
                return _json({"name": NODE_NAME, "version": __version__, "extensions": extensions})
            case "GET", "/v2/health/live":
                return _json({"live": True})
            case "GET", "/v2/health/ready":
                ready = self.is_ready()
                return _json({"ready": ready})._replace(status=200 if ready else 503)
            case "POST", "/v2/repository/index":
                return self._index(request)
            case "GET", "/batuta/mesh":
                return _json(self._known())
        if found := _REPOSITORY.match(request.path):
            return self._repository(_word(found[1], "model"), found[2])
        return refusal("unknown", f"there is no {request.method} {request.path[:200]} here")

    # --- One call ---

    def _ask(self, request: Request, model: str, version: str | None, verb: Verb) -> Ask:
        headers = request.headers
        urgency = headers.get(HEADER_CLASS.lower(), "normal")
        if urgency not in CLASSES:
            raise ValueError(f"{HEADER_CLASS}: {urgency[:40]!r} is none of {', '.join(CLASSES)}")
        asked = headers.get(HEADER_DEADLINE.lower(), "")
        if asked and not (asked.isascii() and asked.isdigit() and len(asked) < 16):
            raise ValueError(f"{HEADER_DEADLINE}: {asked[:40]!r} is no number of milliseconds")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise ValueError("the body is compressed; say it plainly")
        return Ask(
            namespace=_word(headers.get(NAMESPACE, DEFAULT_NAMESPACE), "namespace"),
            model=model,
            version=_word(version, "version") if version else "",
            application=_word(headers[APPLICATION], "application") if headers.get(APPLICATION) else "",
            verb=verb,
            urgency=_class(urgency),
            deadline=mesh_deadline.begins(int(asked) if asked else None, clock_ms()),
            body=request.body,
            json_bytes=_line(headers.get(HEADER_JSON_BYTES.lower(), "")),
            content_type=_line(headers.get("content-type", JSON)),
            key=_line(headers.get(HEADER_KEY.lower(), "")),
            traceparent=headers.get("traceparent", ""),
            tracestate=_line(headers.get("tracestate", "")),
        )

    def _ready(self, ask: Ask) -> Reply:
        """From what is heard; nobody is asked."""
        now = clock_ms()
        found = self.cards.of(Wanted(ask.namespace, ask.model, ask.version, ask.application), now)
        if any(_is_well(known, now) for known in found):
            return _json({"name": ask.model, "ready": True})
        if found:
            return refusal("not_ready", f"none of {len(found)} instances of {ask.model!r} is ready")
        return refusal("unknown", f"nobody at this site serves {ask.model!r} in namespace {ask.namespace!r}")

    # --- The repository ---

    def _index(self, request: Request) -> Reply:
        """Every model within reach, once for each version; those of other namespaces bear it in their names."""
        try:
            wanted = msgspec.json.decode(request.body or b"{}", type=dict[str, Any])
        except msgspec.MsgspecError as error:
            return refusal("malformed", f"the body is not a JSON object: {error}")
        now = clock_ms()
        only = request.headers.get(NAMESPACE)
        rows: dict[tuple[str, str, str], list[Known]] = {}
        for known in self.cards.all(now):
            card = known.card
            if card.namespace == (only or DEFAULT_NAMESPACE):
                rows.setdefault((card.namespace, card.model, card.version), []).append(known)
        out = []
        for (_, model, version), instances in sorted(rows.items(), key=lambda row: row[0]):
            well = [known for known in instances if _is_well(known, now)]
            if well or wanted.get("ready") is not True:
                nearest = min((NEARNESS.index(known.nearness) for known in well), default=None)
                reason = "" if nearest is not None else _why_not(instances, now)
                out.append(
                    {"name": model, "version": version, "state": "READY" if well else "UNAVAILABLE", "reason": reason}
                )
        return _json(out)

    def _repository(self, model: str, verb: str) -> Reply:
        """What runs where is decided from what people declared; a program on a node has no right to change that."""
        what = "serve it" if verb == "load" else "stop serving it"
        return refusal(
            "placed_by_applications",
            f"models are not {verb}ed by request: instances follow from what is declared. To {what}, change the "
            f"application whose component names model {model!r}, with `batuta apply`",
        )

    # --- For people ---

    def _known(self) -> dict[str, Any]:
        now = clock_ms()
        tally = self.calls.tally
        return {
            "node": self.cards.node,
            "instances": [
                {
                    "instance": known.card.instance,
                    "node": known.card.node,
                    "namespace": known.card.namespace,
                    "model": known.card.model,
                    "version": known.card.version,
                    "nearness": known.nearness,
                    "ready": known.card.ready,
                    "breaker": mesh_breaker.state(known.breaker, now),
                    "inFlight": max(known.in_flight, known.card.in_flight),
                    "latencyMs": round(known.latency_ms, 3) if known.latency_ms is not None else known.card.p50_ms,
                    "heardMsAgo": now - known.heard_at,
                }
                for known in sorted(self.cards.all(now), key=lambda k: (NEARNESS.index(k.nearness), k.key))
            ],
            "calls": dict(sorted(tally.calls.items())),
            "retries": tally.retries,
            "hedges": tally.hedges,
            "shed": dict(sorted(tally.shed.items())),
            "underWay": self.calls.gate.under_way,
            "waiting": self.calls.gate.length,
        }


def _is_well(known: Known, now: int) -> bool:
    return known.card.ready and mesh_breaker.state(known.breaker, now) != "open"


def _why_not(instances: list[Known], now: int) -> str:
    failing = sum(mesh_breaker.state(known.breaker, now) == "open" for known in instances)
    return f"{len(instances)} instances: {sum(not k.card.ready for k in instances)} not ready, {failing} failing"


def _class(word: str) -> Class:
    return next(each for each in CLASSES if each == word)


def _word(text: str, what: str) -> str:
    word = unquote(text)
    if not _WORD.match(word):
        raise ValueError(f"{word[:60]!r} cannot be the name of a {what}")
    return word


def _line(text: str) -> str:
    """A header's value as it may be passed on: a line break would begin another header."""
    if "\r" in text or "\n" in text or len(text) > 1024:
        raise ValueError("a header's value cannot be passed on")
    return text


def _json(value: object) -> Reply:
    return Reply(200, msgspec.json.encode(value))


def _response(reply: Reply) -> Response:
    headers = list(reply.headers)
    if reply.code:
        headers.append(("Batuta-Error", reply.code))
    if reply.json_bytes:
        headers.append((HEADER_JSON_BYTES, reply.json_bytes))
    return Response(reply.status, reply.body, reply.content_type, tuple(headers))
