"""The reference page of the API, printed from the rows that OpenAPI is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from batuta.kinds import KINDS
from batuta.web.core_views import core_views
from batuta.web.operations import ALWAYS, STATUSES, Operation, Parameter, operations_of
from batuta.web.own_operations import OWN
from batuta.web.sources import KindSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from batuta.hub.hub import Hub

NOBODY = cast("Hub", None)
"""Sources are only described here; none is asked for anything."""


def api() -> Iterator[str]:
    kinds = [KindSource(NOBODY, kind) for kind in KINDS]
    declared = [operation for source in kinds for operation in operations_of(source)]
    views = [operation for view in core_views(NOBODY) for operation in operations_of(view)]
    yield "# The API"
    yield ""
    yield "The hub serves the conventions of the Kubernetes API, so that `kubectl`, k9s and client libraries work with"
    yield "no Kubernetes anywhere; `batuta`, the Python client and everything else use the same. Who may do what, and"
    yield "how to ask, is in [access.md](access.md); what documents look like, in [kinds.md](kinds.md). The same"
    yield "as here is served as OpenAPI v3, one document for each group and version: `/openapi/v3`."
    yield ""
    yield "Answers are JSON. What goes wrong is a Kubernetes `Status` with `reason`, `message`, a cause for each"
    yield "problem with its field in `details.causes`, and where something helps, `nextStep`. A list or an object is a"
    yield "Table for whoever asks with `Accept: application/json;as=Table;v=v1;g=meta.k8s.io`."
    yield ""
    yield "Every list can be watched: what changes comes as one JSON event a line. A version too old to go on from is"
    yield "answered 410, or ends the watch with an `ERROR` event of that status: list again."
    yield ""
    yield "## Statuses"
    yield ""
    always = " and ".join(map(str, ALWAYS))
    yield f"Beside those that a row names, {always} may be the answer to everything that takes a token."
    yield ""
    yield "| status | what it means |"
    yield "| --- | --- |"
    for code, sentence in STATUSES.items():
        yield f"| {code} | {sentence} |"
    yield ""
    yield "## Kinds"
    yield ""
    yield "The same for each kind, with its plural for `{plural}`:"
    yield ""
    yield "| kind | `{plural}` | namespaces | scale |"
    yield "| --- | --- | --- | --- |"
    for source in kinds:
        place, scale = "yes" if source.namespaced else "no", "yes" if source.is_scalable else "no"
        yield f"| {source.kind} | `{source.plural}` | {place} | {scale} |"
    yield ""
    yield "Kinds without namespaces have paths without `namespaces/{namespace}/`."
    yield ""
    namespaced = next(source for source in kinds if source.namespaced and source.is_scalable)
    plural = f"/{namespaced.plural}"
    yield from _table([o._replace(path=o.path.replace(plural, "/{plural}")) for o in operations_of(namespaced)])
    yield ""
    yield "## Core views"
    yield ""
    yield "What Kubernetes calls nodes, pods, events and namespaces: machines, instances, reasons, and where something"
    yield "is declared. Evictions from a cordoned node drain it; nobody gets into an instance by exec, attach or"
    yield "port-forward (405)."
    yield ""
    yield from _table(views)
    yield ""
    yield "## Beside the conventions"
    yield ""
    yield from _table(OWN)
    yield ""
    yield "## Words of queries"
    yield ""
    listing = next(operation for operation in declared if operation.action == "list")
    yield "Those of lists are"
    yield f"{', '.join(f'`{parameter.name}`' for parameter in listing.query)}."
    yield ""
    yield "| word | what |"
    yield "| --- | --- |"
    for name, sentences in sorted(_words([*declared, *views, *OWN]).items()):
        yield f"| `{name}` | {' '.join(sentences)} |"


def _table(operations: Iterable[Operation]) -> Iterator[str]:
    yield "| | path | what | words | body | statuses |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for operation in operations:
        words = ", ".join(f"`{parameter.name}`" for parameter in operation.query)
        words = "those of lists" if operation.action == "list" else words
        bodies = ", ".join(f"`{media.removeprefix('application/')}`" for media in operation.bodies)
        statuses = ", ".join(map(str, dict.fromkeys((operation.statuses[0], *sorted(operation.statuses[1:])))))
        path = f"`{operation.path}`" + (" (no token needed)" if operation.is_open else "")
        yield f"| {operation.method} | {path} | {operation.sentence} | {words} | {bodies} | {statuses} |"


def _words(operations: Sequence[Operation]) -> dict[str, list[str]]:
    """Each word once, with all that it means."""
    found: dict[str, list[str]] = {}
    for operation in operations:
        for parameter in operation.query:
            sentence = _sentence(parameter)
            if sentence not in found.setdefault(parameter.name, []):
                found[parameter.name].append(sentence)
    return {name: ["By what can be selected depends on the kind: see OpenAPI."] if name == "fieldSelector" else said
            for name, said in found.items()}  # fmt: skip


def _sentence(parameter: Parameter) -> str:
    choices = parameter.schema.get("enum")
    one_of = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
    return f"{parameter.sentence}{one_of}".replace("|", "\\|")
