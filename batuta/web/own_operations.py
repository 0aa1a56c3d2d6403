"""Operations that are no kind's: discovery, reviews, and all that Batuta has beside the conventions of Kubernetes.

A test holds these rows against the routes of the application: none is missing, and none leads nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from batuta.kinds.base import API_VERSION
from batuta.web.operations import DRY_RUN, FIELD_MANAGER, JSON, NUMBER, TEXT, YES, Operation, Parameter, meta

if TYPE_CHECKING:
    from collections.abc import Mapping

_BASE: Final = f"/apis/{API_VERSION}"
_APPLICATION: Final = f"{_BASE}/namespaces/{{namespace}}/applications/{{name}}"
_FLAG: Final = f"{_BASE}/namespaces/{{namespace}}/flags/{{name}}"
_POD: Final = "/api/v1/namespaces/{namespace}/pods/{name}"
_OCTETS: Final = "application/octet-stream"
_TEXT: Final = {"type": "string"}
_MANIFEST: Final[Mapping[str, Mapping[str, Any]]] = {"application/yaml": _TEXT}
_ROLLOUT: Final = f"{_BASE}/namespaces/{{namespace}}/rollouts/{{name}}"
_OBJECT: Final[Mapping[str, Mapping[str, Any]]] = {JSON: {"type": "object"}}


def _with(*names: str) -> dict[str, Any]:
    return {"type": "object", "required": list(names)}


def _word(name: str, sentence: str, **schema: Any) -> Parameter:
    return Parameter(name, schema or _TEXT, sentence)


_FILE = _word("file", "What to call the body where problems are shown.")
_NAMESPACE = _word("namespace", "Where documents belong that name no namespace.")
_FOLLOW = Parameter("follow", YES, "Go on with what is printed from now on.")
_LIMIT = Parameter("limit", NUMBER, "At most so many.")
_AFTER = Parameter("after", NUMBER, "Behind this sequence.")
_TAIL = Parameter("tail", NUMBER, "So many of its last lines.")

_KUBERNETES: Final = (
    Operation("GET", "/api", "Which versions of the core group are here.", (200,), answer=_with("kind")),
    Operation("GET", "/apis", "Which groups are here.", (200,), answer=_with("kind")),
    Operation("GET", f"/apis/{API_VERSION.split('/', maxsplit=1)[0]}", "Which versions our group has.", (200,)),
    Operation("GET", _BASE, "Which kinds are here.", (200,), answer=_with("kind", "resources")),
    Operation("GET", "/api/v1", "Which core views are here.", (200,), answer=_with("kind", "resources")),
    Operation("GET", "/version", "Versions: of this hub, and of the conventions it keeps.", (200,),
              answer=_with("major", "minor", "gitVersion", "batuta"), is_open=True),
    Operation("GET", "/openapi/v3", "Which documents like this one are here.", (200,), answer=_with("paths")),
    Operation("GET", "/openapi/v3/{path}", "One of them.", (200, 404), answer=_with("openapi", "paths")),
    Operation("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "May I do that?",
              (201, 400, 408, 413, 415), bodies=_OBJECT, answer=_with("kind", "status")),
    Operation("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", "Who am I?", (201,),
              bodies={JSON: {}}, needs_body=False, answer=_with("kind", "status")),
    Operation("GET", "/apis/policy", "A group that only evictions are of.", (200,)),
    Operation("GET", "/apis/policy/v1", "The same: nothing is kept in it.", (200,)),
    Operation("POST", f"{_POD}/eviction", "Drain the cordoned node that it is on.",
              (201, 400, 404, 408, 409, 413, 415, 422, 429, 503), bodies=_OBJECT, needs_body=False,
              answer=meta("Status"), query=(DRY_RUN, FIELD_MANAGER)),
    Operation("GET", f"{_POD}/log", "What an instance printed.", (200, 400, 404, 503), answers_with=TEXT, answer=_TEXT,
              query=(_FOLLOW, Parameter("tailLines", NUMBER, "So many of its last lines."),
                     _word("container", "Its component; there is one."))),
)  # fmt: skip

_MANIFESTS: Final = (
    Operation("POST", "/apply", "Declare every document of a body, or none.",
              (200, 400, 408, 409, 413, 415, 422, 503), bodies=_MANIFEST, answer=_with("kind", "items", "dryRun"),
              query=(DRY_RUN, FIELD_MANAGER, _FILE, _NAMESPACE)),
    Operation("POST", "/diff", "What the documents of a body would change and move.", (200, 400, 408, 413, 415, 422),
              bodies=_MANIFEST, answer=_with("kind", "items", "steps"), query=(_FILE, _NAMESPACE)),
    Operation("POST", "/optimize", "Which moves would pay for themselves.", (200, 400), bodies={JSON: {}},
              needs_body=False, answer=_with("kind", "moves", "lookedAt", "isWhole"),
              query=(_word("horizon", "Within what time: `1h`."), _LIMIT)),
    Operation("GET", "/moves", "What is being moved, and what policies have moved.", (200,),
              answer=_with("kind", "items")),
    Operation("POST", "/moves", "Move the instances of a body, or none.", (200, 400, 408, 409, 413, 415, 422, 503),
              bodies=_OBJECT, answer=_with("kind", "items", "dryRun"), query=(DRY_RUN,)),
    Operation("POST", "/rehearsal", "All tables as of now, and what the documents of a body would declare.",
              (200, 400, 408, 413, 415, 422), bodies=_MANIFEST, needs_body=False, query=(_FILE, _NAMESPACE)),
    Operation("GET", "/recording", "What was declared and decided of late, to play it again.", (200, 404),
              answers_with="application/gzip", answer=_TEXT),
    Operation("GET", f"{_APPLICATION}/why", "Why each instance is where it is, and others are not.", (200, 404),
              answer=_with("application", "items"),
              query=(_word("component", "Of this component alone."), _word("node", "And why not on this node."))),
    Operation("GET", f"{_FLAG}/evaluation", "What a key gets of a flag, and which rule says so.", (200, 404),
              answer=_with("flag", "namespace", "items", "nodes"),
              query=(_word("node", "On this node alone."), _word("key", "For this targetingKey."))),
    Operation("GET", f"{_APPLICATION}/log", "What its instances printed.", (200, 400, 404, 503),
              answers_with=TEXT, answer=_TEXT,
              query=(_FOLLOW, _TAIL, _word("component", "Of this one alone."), _word("instance", "Of this alone."))),
)  # fmt: skip


def _ask(word: str, sentence: str) -> Operation:
    return Operation(
        "POST", f"{_ROLLOUT}/{word}", sentence, (200, 400, 404, 408, 409, 413, 415, 422, 503), bodies=_OBJECT,
        needs_body=False, answer=meta("Status"), query=(DRY_RUN, *((FIELD_MANAGER,) if word == "undo" else ())),
    )  # fmt: skip


_ROLLOUTS: Final = (
    _ask("pause", "Nothing changes any more, in either direction. `reason` is for people."),
    _ask("resume", "Go on where it was paused."),
    _ask("approve", "Let the next wave begin when this one is through."),
    _ask("abort", "No further node gets the release; those that have it keep it."),
    _ask("undo", "Every node gets back what it had; with `to`, declare that release again."),
    _ask("retry", "Begin anew with the first wave, as if no node had refused the release."),
    Operation("GET", f"{_APPLICATION}/history", "Its kept releases: what each changed, and its files by digest.",
              (200, 404, 503), answer=_with("application", "items")),
    Operation("GET", f"{_APPLICATION}/difference", "In which fields two of its releases differ.", (200, 400, 404),
              answer=_with("application", "fields"),
              query=(Parameter("from", NUMBER, "The one release."), Parameter("to", NUMBER, "The other."))),
)  # fmt: skip

_JOINING: Final = (
    Operation("GET", "/tokens", "Tokens of both sorts, never a secret.", (200,), answer=_with("items")),
    Operation("POST", "/tokens", "A token by which machines join.", (201, 400, 408, 413, 415, 422, 503),
              bodies=_OBJECT, needs_body=False, answer=_with("id", "token")),
    Operation("POST", "/tokens/api", "A token for a person or a program.", (201, 400, 408, 413, 415, 422, 503),
              bodies=_OBJECT, needs_body=False, answer=_with("id", "token", "role")),
    Operation("DELETE", "/tokens/{id}", "Revoke a token of either sort.", (200, 404, 503), answer=meta("Status")),
    Operation("POST", "/enrol", "A machine becomes a node.", (200, 202, 400, 403, 408, 409, 413, 415, 422, 503),
              bodies=_OBJECT, is_open=True),
    Operation("POST", f"{_BASE}/nodes/{{name}}/approve", "Let a waiting machine become a node.",
              (200, 404, 409, 422, 503), answer=meta("Status")),
    Operation("GET", "/ca.pem", "The certificate of this hub's authority.", (200,), is_open=True,
              answers_with="application/x-pem-file", answer=_TEXT),
    Operation("GET", "/hub", "Where this hub is.", (200,), answer=_with("version", "epoch")),
)  # fmt: skip

_DATA: Final = (
    Operation("PUT", "/artifacts/{digest}", "Bring the bytes of an artifact.", (201, 400, 408, 413, 422, 503, 507),
              bodies={_OCTETS: {"type": "string", "format": "binary"}}, answer=_with("digest", "size")),
    Operation("GET", "/artifacts/{digest}", "The bytes of an artifact.", (200, 206, 400, 404, 416, 422),
              answers_with=_OCTETS, answer=_TEXT),
    Operation("HEAD", "/artifacts/{digest}", "Are its bytes here, and how many?", (200, 404, 422),
              answers_with=_OCTETS, answer=_TEXT),
    Operation("GET", "/data/up/{priority}", "What nodes forwarded.", (200, 400, 404), answer=_with("items"),
              query=(_AFTER, _LIMIT)),
    Operation("GET", "/audit", "Who did what.", (200, 400, 503), answer=_with("items", "last"),
              query=(_word("since", "From this instant in milliseconds, or so long ago: `1h`."),
                     _word("who", "Of this asker alone."), _word("what", "About things that begin so."),
                     _word("name", "About things of this name."), _word("verb", "Of this verb alone."),
                     _LIMIT, _AFTER,
                     Parameter("wait", NUMBER, "Wait so many milliseconds for the next."))),
)  # fmt: skip

_HEALTH: Final = (
    Operation("GET", "/healthz", "Does it answer?", (200,), answers_with=TEXT, answer=_TEXT, is_open=True),
    Operation("GET", "/readyz", "Can it work?", (200, 503), answers_with=TEXT, answer=_TEXT, refuses_with=TEXT,
              is_open=True),
    Operation("GET", "/metrics", "Every count and measure, for Prometheus. Over HTTPS it takes a token.",
              (200, 401, 403), answers_with=TEXT, answer=_TEXT, is_open=True),
    Operation("GET", "/doctor", "What passes, what fails, and what helps.", (200,), answer=_with("checks")),
)  # fmt: skip

OWN: Final[tuple[Operation, ...]] = (*_KUBERNETES, *_MANIFESTS, *_ROLLOUTS, *_JOINING, *_DATA, *_HEALTH)
