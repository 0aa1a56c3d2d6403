"""Manifests: text into resources and back. What is wrong is said at once, all of it, with file, line and column.

    parse           YAML, many documents; what people write
    dump            YAML for people
    from_document   one JSON body of the API, already decoded
    to_json         what the hub stores and sends
    from_json       what the hub stored, read back

Three layers each find their own mistakes: `documents` what is wrong as YAML, `shape` what no class allows, and the
kinds' own `problems()` what no single field can know.
"""

from __future__ import annotations

import copy
import math
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import yaml

from batuta.errors import Refused
from batuta.kinds import KINDS, SHOWN, AnyResource, kind_called
from batuta.kinds.base import API_VERSION, Problem, Resource, decode_hook, encode_hook
from batuta.kinds.documents import DEPTH_MAX, VALUES_MAX, Document, read
from batuta.kinds.marks import Mark, Place, inside_mark
from batuta.kinds.nearest import did_you_mean
from batuta.kinds.scalars import resolve
from batuta.kinds.shape import Misfit, Path, misfits, written

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SIZE_MAX = 4 * 2**20
PROBLEMS_MAX = 200

NOT_YET_KINDS = {
    "Training": "",
}
# What people bring from elsewhere, and what it is called here.
_OTHER_WORDS = {
    "deployment": "Application", "daemonset": "Application", "statefulset": "Application", "pod": "Application",
    "job": "Application", "service": "Application", "workload": "Application", "component": "Application",
    "pipeline": "Application", "device": "Node", "region": "Site",
}  # fmt: skip

# What the hub writes into metadata; people who keep manifests under version control want none of it.
SERVER_FIELDS = (
    "uid", "generation", "resourceVersion", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
    "ownerReferences", "managedFields", "selfLink",
)  # fmt: skip


# --- Reading ----------------------------------------------------------------------------------------------------------


class Manifest(NamedTuple):
    """What a text declares, and where: what is found wrong later can still be shown in its place."""

    resources: list[AnyResource]
    documents: list[Document]
    """One for each resource."""
    text: str | bytes
    file: str

    def placed(self, problems: Iterable[Problem], about: Sequence[str]) -> Refused:
        """These problems as a refusal, those `about` the i-th resource with the position that they have in the text."""
        lines = _as_text(self.text).splitlines()
        found = dict(zip(about, self.documents, strict=True))
        return _refused([_marked(found[p.about], p, lines) if p.about in found else p for p in problems], self.file)


def parse(text: str | bytes, file: str = "") -> list[AnyResource]:
    """Every resource that a manifest declares, in order. Raises Refused with all that is wrong with all of them."""
    return parse_manifest(text, file).resources


def parse_manifest(text: str | bytes, file: str = "") -> Manifest:
    """As `parse`, and remembers where everything stood."""
    problems: list[Problem] = []
    resources: list[AnyResource] = []
    documents: list[Document] = []
    declared: dict[object, Mark] = {}
    try:
        text = _as_text(text)
    except Refused as refused:
        raise _refused(refused.problems, file) from None
    lines: list[str] = []
    for document in read(text):
        if isinstance(document, Problem):
            problems.append(document)
            continue
        resource, found = _judge(document.value)
        if (found or document.problems) and not lines:
            lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        problems += _settled(document, found, lines)
        if resource is None:
            continue
        place, _ = document.place.find("metadata.name")
        first = declared.setdefault(resource.ref, Mark(place.line, place.column))
        if first != (place.line, place.column):
            message = f"{type(resource).__name__} {resource.metadata.name!r} is declared twice"
            message += f", first at line {first.line}, column {first.column}"
            problems.append(
                Problem(
                    path="metadata.name",
                    code="duplicate",
                    message=message,
                    hint="keep one, or rename one",
                    line=place.line,
                    column=place.column,
                )
            )
        resources.append(resource)
        documents.append(document)
        if len(problems) > PROBLEMS_MAX:
            break
    if not resources and not problems:
        problems.append(
            Problem(
                path="",
                code="empty",
                message="there is no document here",
                hint=f"a document starts with apiVersion: {API_VERSION} and kind: Application",
                line=1,
                column=1,
            )
        )
    if problems:
        raise _refused(problems, file)
    return Manifest(resources, documents, text, file)


def from_document(document: object) -> AnyResource:
    """One resource from plain values, such as a JSON body. Raises Refused with all problems, by path."""
    unfit = list(islice(_not_plain(document), PROBLEMS_MAX))
    if unfit:
        raise _refused([_as_problem(misfit) for misfit in unfit], "")
    resource, problems = _judge(document)
    if resource is None or problems:
        raise _refused(problems, "")
    return resource


def to_json(resource: Resource) -> bytes:
    """The JSON form of a resource: what is stored and sent."""
    # The api version is every class's default, so msgspec leaves it out; readers elsewhere must see it. It knows the
    # default by identity: one that was read is an equal text, and would be there twice.
    encoded = msgspec.json.encode(msgspec.structs.replace(resource, api_version=API_VERSION), enc_hook=encode_hook)
    return b'{"apiVersion":"' + API_VERSION.encode() + b'",' + encoded[1:]


def from_json(data: bytes) -> AnyResource:
    """Read back what `to_json` wrote. Raises Refused when its shape does not fit.

    `problems()` is not asked: what was once admitted must stay readable after an upgrade that admits less.
    """
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        failure = error
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused([Problem(path="", code="json", message=f"this is not JSON: {failure}"[:200])]) from None
    _, problems = _judge(document, api_version_needed=False)
    raise _refused(problems or [Problem(path="", code="shape", message=str(failure))], "")


_DECODER: msgspec.json.Decoder[AnyResource] = msgspec.json.Decoder(AnyResource, dec_hook=decode_hook)


# --- Writing ----------------------------------------------------------------------------------------------------------


def dump(resource: Resource, *, server_fields: bool = True) -> str:
    """YAML that `parse` reads back as the same resource. `server_fields=False` leaves out what the hub wrote."""
    return yaml.dump(
        to_document(resource, server_fields=server_fields),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=10_000,
    )


def to_document(resource: Resource, *, server_fields: bool = True) -> dict[str, Any]:
    """The plain values of a resource, in the order that people read: apiVersion, kind, metadata, spec."""
    # By way of JSON, so that lists are lists: no reader has to know which sequences were tuples.
    document: dict[str, Any] = msgspec.json.decode(to_json(resource))
    if not server_fields:
        document["metadata"] = {k: v for k, v in document["metadata"].items() if k not in SERVER_FIELDS}
    return document


class _Dumper(yaml.SafeDumper):
    """Writes for readers of either YAML version: what one of them would take for more than text gets quotes."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 -- repeated values are written out
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    lines = text.split("\n")
    # What does not print, and what only looks like a line break, is written as an escape.
    plain = resolve(text) == text and all(line.isprintable() for line in lines)
    style = None if plain else '"'
    if plain and len(lines) > 1:
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


# --- Judging one document ---------------------------------------------------------------------------------------------


def _judge(document: object, *, api_version_needed: bool = True) -> tuple[AnyResource | None, list[Problem]]:
    """The resource that plain values are, or what keeps them from being one. Problems carry paths, no positions."""
    if not isinstance(document, dict):
        message = "a document is a mapping with apiVersion, kind, metadata and spec"
        return None, [Problem(path="", code="wrong_type", message=message)]
    kind, problems = _kind_of(document)
    if api_version_needed or "apiVersion" in document:
        problems += _version_problems(document)
    if kind is None:
        return None, problems
    resource: Any
    try:
        resource = msgspec.convert({**document, "apiVersion": API_VERSION}, kind, dec_hook=decode_hook)
    except (msgspec.ValidationError, RecursionError) as error:
        body = {key: value for key, value in document.items() if key not in ("apiVersion", "kind")}
        unfit = list(islice(misfits(kind, body), PROBLEMS_MAX + 1))
        problems += [_as_problem(misfit) for misfit in unfit]
        unshaped = [misfit for misfit in unfit if not misfit.inside]
        problems += _beside(kind, body, unfit) if unshaped else [_first_word(error)]
        return None, problems
    problems += islice(resource.problems(), PROBLEMS_MAX + 1)
    return resource, problems


def _kind_of(document: dict[str, Any]) -> tuple[type[Resource] | None, list[Problem]]:
    names = [kind.__name__ for kind in KINDS]
    word = document.get("kind")
    exact = next((kind for kind in KINDS if kind.__name__ == word), None)
    if exact is not None:
        return exact, []
    if word is None:
        return None, [
            Problem(path="", code="missing_field", message="'kind' is missing", hint=f"one of {', '.join(names)}")
        ]
    if not isinstance(word, str):
        return None, [Problem(path="kind", code="wrong_type", message=f"this is not one of {', '.join(names)}")]
    if any(kind.__name__ == word for kind in SHOWN):
        hint = "say how a change arrives in spec.rollout of its Application"
        message = f"a {word} is shown by the hub, and not declared"
        return None, [Problem(path="kind", code="not_yours", message=message, hint=hint)]
    if word in NOT_YET_KINDS:
        return None, [
            Problem(path="kind", code="not_yet", message=f"{word} is not yet available", hint=NOT_YET_KINDS[word])
        ]
    meant = kind_called(word)
    near = meant.__name__ if meant else _OTHER_WORDS.get(word.lower())
    hint = (
        f"did you mean {near!r}?"
        if near
        else did_you_mean(word, (*names, *NOT_YET_KINDS), f"one of {', '.join(names)}")
    )
    return None, [Problem(path="kind", code="unknown_kind", message=f"there is no kind {word[:60]!r}", hint=hint)]


def _version_problems(document: dict[str, Any]) -> Iterator[Problem]:
    version = document.get("apiVersion")
    if version is None:
        yield Problem(path="", code="missing_field", message="'apiVersion' is missing", hint=f"write {API_VERSION}")
    elif version != API_VERSION:
        said = repr(version)[:60]
        yield Problem(
            path="apiVersion", code="api_version", message=f"{said} is not served here", hint=f"write {API_VERSION}"
        )


def _beside(kind: type[Resource], body: dict[str, Any], unfit: list[Misfit]) -> list[Problem]:
    """What `problems()` says of the parts that do fit, so that one typo does not hide a mistake elsewhere.

    The parts that do not fit are taken out, when that leaves something whole; what is then said near a hole may be
    about the hole, so only what is said elsewhere counts.
    """
    whole = copy.deepcopy(body)
    for misfit in unfit:
        if not misfit.inside and not _cut(whole, misfit.path):
            return []
    try:
        resource: Resource = msgspec.convert({**whole, "kind": kind.__name__}, kind, dec_hook=decode_hook)
    except (msgspec.ValidationError, RecursionError):
        return []
    holes = [(written(misfit.path), written(misfit.path[:-1])) for misfit in unfit]
    return [
        problem
        for problem in resource.problems()
        if not any(_near(problem.path, hole, around) for hole, around in holes)
    ]


def _cut(value: Any, path: Path) -> bool:
    """Take out what is at `path`; False where that would renumber a list, or there is nothing to take."""
    for step in path[:-1]:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return True
    if not path or not isinstance(value, dict):
        return False
    value.pop(path[-1], None)
    return True


def _near(path: str, hole: str, around: str) -> bool:
    parent = path[: max(path.rfind("."), path.rfind("["), 0)]
    return hole.startswith(path) or path.startswith(hole) or parent == around


def _first_word(error: Exception) -> Problem:
    """msgspec's own words, for what no rule of ours explains."""
    message, _, path = str(error).partition(" - at `$")
    return Problem(path=path.strip("`").lstrip("."), code="shape", message=message)


def _as_problem(misfit: Misfit) -> Problem:
    return Problem(
        path=written(misfit.path), code=misfit.code, message=misfit.message, hint=misfit.hint, inside=misfit.inside
    )


def _not_plain(document: object) -> Iterator[Misfit]:
    """What JSON cannot carry, or what nobody should send: found before anything else looks at the values."""
    pending: list[tuple[Path, object]] = [((), document)]
    seen = 0
    while pending:
        path, value = pending.pop()
        seen += 1
        if len(path) > DEPTH_MAX:
            yield Misfit(path[:4], "too_deep", f"values nest more than {DEPTH_MAX} deep")
            return
        if seen > VALUES_MAX:
            yield Misfit((), "too_many", f"there are more than {VALUES_MAX} values")
            return
        if isinstance(value, dict):
            for key, inner in value.items():
                if isinstance(key, str):
                    pending.append(((*path, key), inner))
                else:
                    yield Misfit(path, "key", f"the key {str(key)[:40]!r} is not text")
        elif isinstance(value, list | tuple):
            pending += [((*path, i), inner) for i, inner in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            yield Misfit(path, "value", f"{value} is not a number that can be kept")
        elif isinstance(value, int) and abs(value) > 2**63 - 1:
            yield Misfit(path, "value", "this number is too large")
        elif isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            yield Misfit(path, "value", "this text is half a character short", "send whole Unicode characters")
        elif not isinstance(value, str | int | float | bool | None):
            yield Misfit(path, "wrong_type", f"a {type(value).__name__} is not a plain value")


# --- Positions --------------------------------------------------------------------------------------------------------


def _as_text(source: str | bytes) -> str:
    if isinstance(source, str):
        size = len(source)
        if size <= SIZE_MAX and not source.isascii():
            size = len(source.encode(errors="replace"))
    else:
        size = len(source)
    if size > SIZE_MAX:
        message = f"a manifest has at most {SIZE_MAX // 2**20} MiB; this has {size / 2**20:.1f}"
        raise Refused([Problem(path="", code="too_large", message=message, hint="split it", line=1, column=1)])
    if isinstance(source, str):
        return source.removeprefix("\ufeff")
    try:
        return source.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = source[: error.start]
        line, column = before.count(b"\n") + 1, len(before[before.rfind(b"\n") + 1 :].decode()) + 1
        message = f"byte {error.start} (0x{source[error.start]:02x}) is not UTF-8"
        problem = Problem(path="", code="encoding", message=message, hint="save it as UTF-8", line=line, column=column)
        raise Refused([problem]) from None


def _settled(document: Document, found: Iterable[Problem], lines: list[str]) -> list[Problem]:
    """Give every problem its position, and drop those that only repeat what YAML already said of the same spot."""
    said = {problem.path for problem in document.problems if problem.path}
    return [*document.problems, *(_marked(document, problem, lines) for problem in found if problem.path not in said)]


def _marked(document: Document, problem: Problem, lines: list[str]) -> Problem:
    place, key = document.place.find(problem.path)
    mark = key if problem.code in ("unknown_field", "key") and not problem.inside else Mark(place.line, place.column)
    if problem.inside:
        mark = _inside(document.value, place, problem, lines)
    message, hint = problem.message, problem.hint
    if problem.code == "wrong_type" and place.word:
        # Quote numbers the way they were written: whoever wrote 1.10 must not be told to write "1.1".
        read_as = f"{_value_at(document.value, problem.path)}"
        message = message.replace(f"the number {read_as}", f"the number {place.word}")
        hint = hint.replace(f'write "{read_as}"', f'write "{place.word}"')
    return msgspec.structs.replace(problem, message=message, hint=hint, line=mark.line, column=mark.column, inside=0)


def _inside(document: Any, place: Place, problem: Problem, lines: list[str]) -> Mark:
    value = _value_at(document, problem.path)
    return (
        inside_mark(lines, place, value, problem.inside) if isinstance(value, str) else Mark(place.line, place.column)
    )


def _value_at(document: Any, path: str) -> Any:
    """The value at a path of plain names and numbers; only conditions ask, and their paths have no others."""
    for step in path.replace("[", ".").replace("]", "").split("."):
        if isinstance(document, list) and step.isdigit() and int(step) < len(document):
            document = document[int(step)]
        else:
            document = document.get(step) if isinstance(document, dict) else None
    return document


def _refused(problems: Iterable[Problem], file: str) -> Refused:
    every = sorted(problems, key=lambda p: (p.line, p.column))
    kept = [msgspec.structs.replace(problem, file=file) for problem in every[:PROBLEMS_MAX]]
    if len(every) > len(kept):
        last = every[PROBLEMS_MAX]
        message = f"more than {PROBLEMS_MAX} problems; the rest is not shown"
        kept.append(Problem(path="", code="too_many", message=message, file=file, line=last.line, column=last.column))
    return Refused(kept)
