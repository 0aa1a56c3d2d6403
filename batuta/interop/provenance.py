"""Where a model comes from: an in-toto statement with SLSA provenance, which any tool for supply chains reads.

Its subject are the files of a version; its dependencies are the model that it grew from, the data by their digests, and
the code by its revision. It states what whoever pushed says; signed, it is known who that was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batuta.errors import ArtifactRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://batuta.dev/model/v1"
BYTES_MAX = 1 << 20


class Lineage(NamedTuple):
    """What a version was made from."""

    parent: str = ""
    """`digits:1`, or whatever else it grew from."""
    data: tuple[tuple[str, str], ...] = ()
    """Name and digest of each set of data."""
    code: str = ""
    """Where the code is: `https://git.example/train`."""
    revision: str = ""
    """Which of it: a commit."""
    parent_digest: str = ""
    """Which file of the parent, where it was made from one."""
    how: str = ""
    """What was done to it: `quantize_static, 256 samples`."""

    def __bool__(self) -> bool:
        return any(self)


def write(lineage: Lineage, files: Mapping[str, str], builder: str = "https://batuta.dev/model/push") -> bytes:
    """The statement about `files`, digest by name. The same lineage gives the same bytes."""
    code, revision, parent = lineage.code, lineage.revision, lineage.parent
    dependencies: list[dict[str, Any]] = [
        {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}, "annotations": {"role": "data"}}
        for name, digest in lineage.data
    ]
    if code or revision:
        digest = {"digest": {"gitCommit": revision}} if revision else {}
        dependencies.append({"uri": f"git+{code}" if code else "git", **digest, "annotations": {"role": "code"}})
    if lineage.parent:
        bytes_of = (
            {"digest": {"sha256": lineage.parent_digest.removeprefix("sha256:")}} if lineage.parent_digest else {}
        )
        dependencies.append({"name": lineage.parent, **bytes_of, "annotations": {"role": "parent"}})
    document = {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}} for name, digest in files.items()
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    k: v
                    for k, v in (("code", code), ("revision", revision), ("parent", parent), ("how", lineage.how))
                    if v
                },
                "resolvedDependencies": dependencies,
            },
            "runDetails": {"builder": {"id": builder}},
        },
    }  # fmt: skip
    return msgspec.json.encode(document)


def read(document: bytes) -> Lineage:
    """What a statement says; of foreign ones, dependencies with a SHA-256 are data and those with a commit are code."""
    if len(document) > BYTES_MAX:
        raise _refused(f"it has more than {BYTES_MAX} bytes")
    try:
        said = msgspec.json.decode(document, type=_Statement)
    except msgspec.DecodeError as error:
        raise _refused(str(error)) from None
    if said.type != STATEMENT or said.predicate_type != PREDICATE:
        raise _refused(f"it is a {said.predicate_type[:80]}, not SLSA provenance")
    how = said.predicate.build_definition.external_parameters.get("how", "")
    found = Lineage(how=how[:300] if isinstance(how, str) else "")
    for each in said.predicate.build_definition.resolved_dependencies:
        role = each.annotations.get("role") if isinstance(each.annotations.get("role"), str) else ""
        if role == "parent":
            digest = f"sha256:{each.digest['sha256']}" if "sha256" in each.digest else ""
            found = found._replace(parent=each.name or each.uri, parent_digest=digest)
        elif role == "code" or "gitCommit" in each.digest:
            code = "" if each.uri == "git" else each.uri.removeprefix("git+")
            found = found._replace(code=code, revision=each.digest.get("gitCommit", ""))
        elif "sha256" in each.digest:
            found = found._replace(data=(*found.data, (each.name or each.uri, f"sha256:{each.digest['sha256']}")))
    return found


class _Dependency(msgspec.Struct):
    name: str = ""
    uri: str = ""
    digest: dict[str, str] = {}
    annotations: dict[str, Any] = {}


class _Definition(msgspec.Struct, rename="camel"):
    build_type: str
    external_parameters: dict[str, Any] = {}
    resolved_dependencies: list[_Dependency] = []


class _Predicate(msgspec.Struct, rename="camel"):
    build_definition: _Definition


class _Statement(msgspec.Struct, rename="camel"):
    predicate_type: str
    predicate: _Predicate
    type: str = msgspec.field(name="_type")


def _refused(why: str) -> ArtifactRefused:
    return ArtifactRefused("artifact_unreadable", f"this provenance cannot be read: {why}")
