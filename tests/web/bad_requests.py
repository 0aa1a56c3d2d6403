"""Requests that must be refused: each with the answer that it gets from a hub that is really served."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

V1 = "/apis/batuta.dev/v1"
APPS, SITES = f"{V1}/namespaces/default/applications", f"{V1}/sites"
MERGE, JSON_PATCH, APPLY = "application/merge-patch+json", "application/json-patch+json", "application/apply-patch+yaml"


class Bad(NamedTuple):
    """One request, and what its answer says."""

    name: str
    method: str
    path: str
    body: bytes
    status: int
    words: str
    """Part of the message, or of the causes."""
    media: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def site(name: object = "bad", **spec: Any) -> bytes:
    return json.dumps(_site(name, spec)).encode()


def _site(name: object, spec: object) -> dict[str, Any]:
    return {"apiVersion": "batuta.dev/v1", "kind": "Site", "metadata": {"name": name}, "spec": spec}


def application(**component: Any) -> bytes:
    whole = {"name": "c", "process": {"command": ["x"]}, **component}
    document = {"apiVersion": "batuta.dev/v1", "kind": "Application", "metadata": {"name": "bad"}}
    return json.dumps({**document, "spec": {"components": [whole]}}).encode()


def manifest(*documents: str) -> bytes:
    return "---\n".join(documents).encode()


def site_text(name: str, rest: str = "") -> str:
    return f"apiVersion: batuta.dev/v1\nkind: Site\nmetadata: {{name: {name}}}\nspec: {{{rest}}}\n"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)

BAD: tuple[Bad, ...] = (
    # What is no document at all.
    Bad("no body", "POST", SITES, b"", 400, "not JSON"),
    Bad("half of a document", "POST", SITES, site()[:-9], 400, "not JSON"),
    Bad("two documents", "POST", SITES, site() * 2, 400, "not JSON"),
    Bad("a list", "POST", SITES, b"[]", 422, "a document is a mapping"),
    Bad("a number that is none", "POST", SITES, b'{"kind": NaN}', 400, "not JSON"),
    Bad("no UTF-8", "POST", SITES, b'{"kind": "\xff\xfe"}', 400, "not UTF-8: byte 10 is 0xff"),
    Bad("half of a character", "POST", SITES, b'{"kind": "\\ud800"}', 400, "not JSON"),
    Bad("a hundred thousand brackets", "POST", SITES, b"[" * 100_000, 400, "not JSON"),
    Bad("sixty-five levels", "POST", SITES, site(x=json.loads("[" * 65 + "]" * 65)), 422, "deep"),
    Bad("a number of four hundred digits", "POST", SITES, site(x=10**400), 422, "too large"),
    Bad("a NUL in a name", "POST", SITES, site("a\0b"), 422, "metadata.name"),
    # What is a document, and wrong.
    Bad("a name of ten thousand letters", "POST", SITES, site("x" * 10_000), 422, "63 at most"),
    Bad("a name that is a number", "POST", SITES, site(7), 422, "metadata.name"),
    Bad("a name that is a path", "POST", SITES, site("../../etc/passwd"), 422, "metadata.name"),
    Bad("an unknown key", "POST", SITES, site(parnt="eu"), 422, "did you mean 'parent'?"),
    Bad("wrong types", "POST", SITES, site(uplink=[], residency=5), 422, "spec.uplink"),
    Bad("another kind", "POST", APPS, site(), 422, "this is the place of applications"),
    Bad("another version", "POST", SITES, site().replace(b"dev/v1", b"dev/v9"), 422, "apiVersion"),
    Bad("another name than the path", "PUT", f"{SITES}/there", site("other"), 422, "'there' in the path"),
    Bad("an unknown field in a condition", "POST", APPS, application(placement={"where": "node.memry > 5"}), 422,
        "did you mean 'memory'?"),
    Bad("half of a condition", "POST", APPS, application(placement={"where": "node.memory >"}), 422, "ends too early"),
    Bad("a condition that is no condition", "POST", APPS, application(placement={"where": "1 + 1"}), 422, "where"),
    Bad("two types in one component", "POST", APPS, application(model={"name": "m", "version": "1"}), 422, "one of"),
    Bad("a negative number of replicas", "POST", APPS, application(replicas={"count": -1}), 422, "replicas.count"),
    Bad("more replicas than anybody has", "POST", APPS, application(replicas={"count": 10**9}), 422, "replicas.count"),
    Bad("half a terabyte of nothing", "POST", APPS, application(resources={"memory": "12Xi"}), 422, "12Xi"),
    Bad("a name that is taken", "POST", SITES, site("there"), 409, "already exists"),
    Bad("a site that is its own parent", "POST", SITES, site(parent="bad"), 422, "spec.parent"),
    # Many documents at once: all or nothing.
    Bad("a ring of sites", "POST", "/apply", manifest(site_text("bad", "parent: worse"), site_text("worse",
        "parent: bad")), 422, "closes a ring", "application/yaml"),
    Bad("a ring through what is there", "POST", "/apply", manifest(site_text("bad", "parent: there"),
        site_text("there", "parent: bad")), 422, "closes a ring", "application/yaml"),
    Bad("one good and one bad", "POST", "/apply", manifest(site_text("bad"), site_text("worse", "parnt: eu")), 422,
        "did you mean 'parent'?", "application/yaml"),
    Bad("the same twice", "POST", "/apply", manifest(site_text("bad"), site_text("bad")), 422, "declared twice",
        "application/yaml"),
    Bad("an alias bomb", "POST", "/apply", BOMB.encode(), 422, "values", "application/yaml"),
    Bad("an alias of itself", "POST", "/apply", b"kind: &a [*a]\n", 422, "inside the very value", "application/yaml"),
    Bad("a tag that makes objects", "POST", "/apply", b"kind: !!python/object/apply:os.system [id]\n", 422, "tag",
        "application/yaml"),
    Bad("a million values", "POST", "/apply", b"kind: [" + b"1," * 1_000_000 + b"]", 422, "500000 values",
        "application/yaml"),
    Bad("five megabytes of remarks", "POST", "/apply", b"#" * (5 * 2**20), 422, "at most 4 MiB", "application/yaml"),
    Bad("a manifest that is no UTF-8", "POST", "/apply", b"kind: \xff\n", 400, "not UTF-8: byte 6 is 0xff",
        "application/yaml"),
    Bad("a YAML bomb to the API", "POST", SITES, BOMB.encode(), 422, "values", "application/yaml"),
    Bad("a bomb as an apply patch", "PATCH", f"{SITES}/there?fieldManager=t", BOMB.encode(), 422, "values", APPLY),
    # Media.
    Bad("XML", "POST", SITES, b"<site/>", 415, "application/xml is not read here", "application/xml"),
    Bad("a form", "POST", "/apply", b"kind=Site", 415, "urlencoded is not read", "application/x-www-form-urlencoded"),
    Bad("protobuf", "POST", SITES, b"k8s\0", 415, "protobuf is not read", "application/vnd.kubernetes.protobuf"),
    Bad("a packed body", "POST", "/apply", b"\x1f\x8b", 415, "packed as gzip", "application/yaml",
        (("Content-Encoding", "gzip"),)),
    Bad("an unknown sort of patch", "PATCH", f"{SITES}/there", b"{}", 415, "cannot be applied",
        "application/strategic-merge-patch+json"),
    # Patches.
    Bad("a patch that spoils it", "PATCH", f"{SITES}/there", b'{"spec": {"parnt": "eu"}}', 422, "'parent'?", MERGE),
    Bad("a patch of what is not there", "PATCH", f"{SITES}/none", b"{}", 404, "not found", MERGE),
    Bad("a JSON patch that is no list", "PATCH", f"{SITES}/there", b"{}", 422, "patch", JSON_PATCH),
    Bad("a JSON patch to nowhere", "PATCH", f"{SITES}/there", b'[{"op": "remove", "path": "/spec/x/y"}]', 422,
        "cannot be applied", JSON_PATCH),
    Bad("a JSON patch with its own verb", "PATCH", f"{SITES}/there", b'[{"op": "steal", "path": "/spec"}]', 422,
        "steal", JSON_PATCH),
    Bad("an apply of nobody", "PATCH", f"{SITES}/there", site("there"), 400, "fieldManager is needed", APPLY),
    # Paths and questions.
    Bad("a kind that is none", "GET", f"{V1}/nonsense", b"", 404, "there is nothing at"),
    Bad("status is nobody's", "PUT", f"{SITES}/there/status", site("there"), 405, "computed"),
    Bad("a verb that is none", "PATCH", "/apply", b"{}", 405, "not possible"),
    Bad("a limit that is no number", "GET", f"{SITES}?limit=many", b"", 400, "limit"),
    Bad("a selector that is none", "GET", f"{SITES}?labelSelector=%28%28", b"", 400, "elector"),
    Bad("a field that is none", "GET", f"{SITES}?fieldSelector=spec.parnt%3Deu", b"", 400, "spec.parnt"),
    Bad("a made-up continue", "GET", f"{SITES}?continue=%7B%7D", b"", 400, "continue"),
    Bad("a trial that is none", "POST", f"{SITES}?dryRun=Maybe", site(), 400, "dryRun"),
    # Tokens, artifacts, enrolment.
    Bad("a token for ever", "POST", "/tokens", b'{"ttlMs": 999999999999}', 400, "ttlMs"),
    Bad("a token for nobody", "POST", "/tokens", b'{"uses": 0}', 400, "uses"),
    Bad("a token of another sort", "POST", "/tokens", b'{"usse": 3}', 400, "usse"),
    Bad("a token for no site", "POST", "/tokens", b'{"site": "No Site"}', 422, "No Site"),
    Bad("a role that is none", "POST", "/tokens/api", b'{"role": "god", "namespaces": ["*"]}', 422, "is no role"),
    Bad("bytes under another digest", "PUT", f"/artifacts/sha256:{'0' * 64}", b"no", 422, "nothing was kept",
        "application/octet-stream"),
    Bad("a digest that is a path", "PUT", "/artifacts/sha256:..%2f..%2fetc", b"no", 404, "there is nothing at",
        "application/octet-stream"),
    Bad("an enrolment of nothing", "POST", "/enrol", b'{"tokenId": []}', 400, "tokenId"),
    Bad("an enrolment that is too long", "POST", "/enrol", b" " * 70_000, 413, "65536 bytes at most"),
)  # fmt: skip
