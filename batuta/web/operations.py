"""Operations: what can be asked of this hub, with which words and which answers, as data.

OpenAPI and the reference page are printed from these rows; for declared kinds and core views they follow from the
Source, so that nothing is written per kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from batuta.kinds.base import API_VERSION, NAME_PATTERN
from batuta.web.queries import DIGITS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batuta.web.sources import Source

JSON: Final = "application/json"
TEXT: Final = "text/plain"
MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"
STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"
APPLY_PATCH: Final = ("application/apply-patch+yaml", "application/apply-patch+json")

STATUSES: Final[dict[int, str]] = {
    200: "Done, or what was asked for.",
    201: "Made.",
    202: "Heard; an admin has to approve it.",
    206: "The part that was asked for.",
    400: "The request cannot be read: its query, its body, or how it is encoded.",
    401: "A good bearer token is needed.",
    403: "This token may not do that.",
    404: "There is no such thing.",
    405: "This cannot be done here.",
    408: "The body came too slowly.",
    409: "Somebody else was there first: the name is taken, it was changed meanwhile, or others own the fields.",
    410: "What happened since that resourceVersion is no longer known: list again.",
    413: "The body is too large.",
    415: "A body of this type is not understood here.",
    416: "There is no such part of it.",
    422: "The document is refused, with every problem, or it does not fit what else is declared.",
    429: "Not now: what must happen first has not happened yet. Try again.",
    500: "The hub failed at this; its journal says how.",
    503: "A part that is needed does not answer: the broker, the audit, or a node.",
    507: "The disk of the hub is full.",
}
ALWAYS: Final = (401, 403)
"""What the door may say to any request."""


class Parameter(NamedTuple):
    """One word of a query, or one part of a path."""

    name: str
    schema: Mapping[str, Any]
    sentence: str


class Operation(NamedTuple):
    """One method on one path."""

    method: str
    path: str
    sentence: str
    statuses: tuple[int, ...]
    """Beside those of ALWAYS. The first is how it ends when all is well."""
    query: tuple[Parameter, ...] = ()
    bodies: Mapping[str, Mapping[str, Any]] = {}
    """Schemas by media type; empty when no body is read."""
    needs_body: bool = True
    answer: Mapping[str, Any] = {"type": "object"}
    answers_with: str = JSON
    refuses_with: str = JSON
    action: str = ""
    """The verb that Kubernetes has for it."""
    source: Source | None = None
    is_open: bool = False
    """No token is needed."""

    @property
    def all_statuses(self) -> tuple[int, ...]:
        always = () if self.is_open else ALWAYS
        return (self.statuses[0], *sorted({*self.statuses[1:], *always}))


def _text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


YES: Final = {"type": "boolean"}
NUMBER: Final = {"type": "integer", "minimum": 0, "maximum": 10**DIGITS_MAX - 1}
VERSION: Final = _text(pattern="^[0-9]{0,15}$")

DRY_RUN = Parameter("dryRun", _text(enum=["All"]), "Judge all of it, store nothing.")
FIELD_MANAGER = Parameter("fieldManager", _text(maxLength=128), "Who writes; the program's name when left out.")
FIELD_VALIDATION = Parameter(
    "fieldValidation",
    _text(enum=["Strict", "Warn", "Ignore"]),
    "What becomes of fields that the kind has not: refused, which is the default; left out with a `Warning` header for"
    " each; or left out and only counted.",
)
FORCE = Parameter("force", YES, "Of an apply: take fields over that others own.")
WRITING = (DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION)
LABELS = Parameter(
    "labelSelector", _text(), "`a=b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`; split by commas."
)
LIST_WORDS = (
    Parameter("limit", NUMBER, "At most so many; 0 is all."),
    Parameter("continue", _text(), "The next page: `metadata.continue` of the one before."),
    Parameter("watch", YES, "Go on with what changes, as one JSON event a line."),
    Parameter("resourceVersion", VERSION, "Of a watch: begin after this; none or 0 begins with all there is."),
    Parameter("timeoutSeconds", NUMBER, "Of a watch: end after so long; 0 is never."),
    Parameter("allowWatchBookmarks", YES, "Of a watch: say now and then how far it has come."),
    Parameter("sendInitialEvents", YES, "Of a watch: all there is comes first, then a bookmark; or none of it."),
    Parameter(
        "resourceVersionMatch",
        _text(enum=["NotOlderThan"]),
        "Goes with sendInitialEvents; a list is always as of now, so never older.",
    ),
    Parameter("includeObject", _text(enum=["None", "Metadata", "Object"]), "Of a Table: what rows carry."),
)


def operations_of(source: Source) -> Iterator[Operation]:
    """All that can be done with one kind, or with one core view."""
    root = f"/apis/{source.api_version}" if "/" in source.api_version else f"/api/{source.api_version}"
    inside = f"{root}/namespaces/{{namespace}}/{source.plural}" if source.namespaced else f"{root}/{source.plural}"
    item = f"{inside}/{{name}}"
    own, many = reference(source.kind, source), reference(f"{source.kind}List", source)
    fields = Parameter(
        "fieldSelector",
        _text(),
        ", ".join(f"`{f}=x`" for f in ("metadata.name", "metadata.namespace", *source.selectable)),
    )
    listing: dict[str, Any] = {"query": (LABELS, fields, *LIST_WORDS), "answer": many, "source": source}
    yield Operation("GET", inside, "List, or watch.", (200, 400, 410), action="list", **listing)
    if source.namespaced:
        everywhere = f"{root}/{source.plural}"
        yield Operation("GET", everywhere, "List or watch all namespaces.", (200, 400, 410), action="list", **listing)
    one: dict[str, Any] = {"answer": own, "source": source}
    yield Operation("GET", item, "Get one.", (200, 404), action="get", **one)
    if "create" in source.verbs:
        yield Operation(
            "POST", inside, "Declare a new one.", (201, 400, 408, 409, 413, 415, 422, 503),
            query=WRITING, bodies={JSON: own}, action="post", **one,
        )  # fmt: skip
    if "update" in source.verbs:
        yield Operation(
            "PUT", item, "Replace one.", (200, 400, 404, 408, 409, 413, 415, 422, 503),
            query=WRITING, bodies={JSON: own}, action="put", **one,
        )  # fmt: skip
    if "patch" in source.verbs:
        yield _patch(source, item, own)
    if "delete" in source.verbs:
        yield Operation(
            "DELETE", item, "Delete one, as soon as its finalizers are gone.",
            (200, 400, 404, 408, 409, 413, 415, 422, 503),
            query=(DRY_RUN,), bodies={JSON: meta("DeleteOptions")}, needs_body=False, action="delete",
            answer={"oneOf": [meta("Status"), own]}, source=source,
        )  # fmt: skip
    if source.api_version == API_VERSION:
        yield Operation("GET", f"{item}/status", "Get one; its status is computed.", (200, 404), action="get", **one)
    if source.is_scalable:
        yield from _scaling(source, f"{item}/scale")


def _patch(source: Source, item: str, own: Mapping[str, Any]) -> Operation:
    statuses: tuple[int, ...] = (200, 400, 404, 408, 409, 413, 415, 422, 503)
    words: tuple[Parameter, ...]
    if "create" not in source.verbs:
        bodies: dict[str, Mapping[str, Any]] = {media: {"type": "object"} for media in (MERGE_PATCH, STRATEGIC_PATCH)}
        words, sentence = (DRY_RUN, FIELD_MANAGER), "Change its labels, its annotations, or whether it takes new work."
    else:
        bodies = {media: {"type": "object"} for media in (*APPLY_PATCH, MERGE_PATCH)}
        bodies[JSON_PATCH] = {"type": "array", "items": meta("PatchOperation")}
        words, statuses = (*WRITING, FORCE), (200, 201, *statuses[1:])
        sentence = "Change one by a merge patch or a JSON patch, or say one's part of it: server-side apply."
    return Operation(
        "PATCH", item, sentence, statuses, query=words, bodies=bodies, answer=own, action="patch", source=source
    )


def _scaling(source: Source, path: str) -> Iterator[Operation]:
    scale = meta("Scale")
    more: dict[str, Any] = {"answer": scale, "source": source}
    statuses = (200, 400, 404, 408, 409, 413, 415, 422, 503)
    patches: dict[str, Any] = {MERGE_PATCH: {"type": "object"}}
    patches[JSON_PATCH] = {"type": "array", "items": meta("PatchOperation")}
    yield Operation("GET", path, "Get its one number.", (200, 404, 422), action="get", **more)
    yield Operation(
        "PUT", path, "Set its one number.", statuses, query=WRITING, bodies={JSON: scale}, action="put", **more
    )
    yield Operation(
        "PATCH", path, "Set its one number.", statuses, query=WRITING, bodies=patches, action="patch", **more
    )


# --- Names of schemas -------------------------------------------------------------------------------------------------

META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1"
PREFIXES: Final = {API_VERSION: "dev.batuta.v1", "v1": "io.k8s.api.core.v1"}
PLACES: Final[dict[str, dict[str, Any]]] = {
    "namespace": _text(pattern=NAME_PATTERN, maxLength=63),
    "name": _text(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", maxLength=253),
    "digest": _text(pattern="^sha256:[0-9a-f]{64}$"),
    "id": _text(pattern="^[0-9a-f]{1,64}$"),
}
"""What may stand for each part of a path; anything else is text."""


def named(source: Source, name: str) -> str:
    return f"{PREFIXES[source.api_version]}.{name}"


def reference(name: str, source: Source) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{named(source, name)}"}


def meta(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{META}.{name}"}
