"""Who may do what: one table of rules, read from the top; the first that fits a request decides.

Pure: a method, a path, a role and namespaces go in, and what is missing comes out. What no rule names is an admin's,
so a new path is closed until somebody opens it here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from batuta.core.rollout_asks import WHILE
from batuta.hub.api_tokens import EVERY_NAMESPACE, ROLES
from batuta.kinds import API_VERSION, KINDS, SHOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.kinds.base import Ref

Reach = Literal["any", "namespace", "all"]
"""The namespaces that a token must have: none in particular, the one in the path, or every one."""
V1: Final = f"/apis/{API_VERSION}"
READ: Final = ("GET", "HEAD")
WRITE: Final = ("POST", "PUT", "PATCH", "DELETE")
EVERY: Final = (*READ, *WRITE)


class Rule(NamedTuple):
    """One row. In a path `*` is one part, `**` at the end is any number, and `{namespace}` is the one that counts."""

    methods: tuple[str, ...]
    path: str
    role: str
    reach: Reach
    sentence: str


RULES: Final[tuple[Rule, ...]] = (
    Rule(("POST",), "/apis/authorization.k8s.io/**", "viewer", "any", "Anybody may ask what they may do."),
    Rule(("POST",), "/apis/authentication.k8s.io/**", "viewer", "any", "Anybody may ask who they are."),
    Rule(("POST", "DELETE"), f"{V1}/nodes", "admin", "all", "Machines come by enrolment; only admins declare them."),
    Rule(("DELETE",), f"{V1}/nodes/*", "admin", "all", "Only admins take machines out for good."),
    Rule(("POST",), f"{V1}/nodes/*/approve", "admin", "all", "Only admins say which machines may join."),
    Rule(WRITE, f"{V1}/nodes/**", "operator", "all", "Operators of every namespace hold, cordon and label machines."),
    Rule(("PUT", "PATCH"), "/api/v1/nodes/**", "operator", "all", "The same, by the name Kubernetes gives machines."),
    Rule(("POST",), "/api/v1/namespaces/*/pods/*/eviction", "operator", "all", "To evict is to drain a machine."),
    Rule(WRITE, f"{V1}/namespaces/{{namespace}}/**", "operator", "namespace", "Operators write in their namespaces."),
    Rule(WRITE, f"{V1}/**", "admin", "all", "What lies in no namespace is written by admins."),
    Rule(("POST",), "/apply", "operator", "any", "Each document is judged as if it were written alone."),
    Rule(("POST",), "/diff", "viewer", "any", "A diff tells of what the asker may see, and counts the rest."),
    Rule(("POST",), "/optimize", "viewer", "all", "What had better move is told of all namespaces."),
    Rule(READ, "/moves", "viewer", "all", "What moves is told of all namespaces."),
    Rule(("POST",), "/moves", "operator", "all", "Machines are everybody's: who moves things sees all namespaces."),
    Rule(("POST",), "/rehearsal", "viewer", "all", "Whoever rehearses a change sees all namespaces."),
    Rule(READ, "/recording", "operator", "all", "What was declared and decided of late is of all namespaces."),
    Rule(("PUT",), "/artifacts/*", "operator", "any", "Operators bring artifacts; a digest harms nobody."),
    Rule(READ, "/artifacts/*", "viewer", "any", "Who knows a digest may have its bytes."),
    Rule(EVERY, "/tokens/**", "admin", "all", "Only admins see and make tokens."),
    Rule(("POST",), "/enrol", "admin", "all", "Machines enrol over HTTPS with a join token; here it takes an admin."),
    Rule(READ, "/audit", "admin", "all", "Only admins read who did what."),
    Rule(READ, f"{V1}/namespaces/{{namespace}}/**", "viewer", "namespace", "Viewers read in their namespaces."),
    *(
        Rule(READ, f"{V1}/{kind.plural}/**", "viewer", "all", f"Listing {kind.plural} of all namespaces takes all.")
        for kind in (*KINDS, *SHOWN)
        if kind.namespaced
    ),
    Rule(READ, f"{V1}/**", "viewer", "any", "What lies in no namespace is shown to everybody."),
    Rule(READ, "/api/v1/namespaces", "viewer", "any", "The names of namespaces are no secret."),
    Rule(READ, "/api/v1/namespaces/{namespace}/**", "viewer", "namespace", "Viewers read in their namespaces."),
    Rule(READ, "/api/v1/nodes/**", "viewer", "any", "Machines are shown to everybody."),
    Rule(READ, "/api/v1/*/**", "viewer", "all", "Listing across all namespaces takes all."),
    Rule(READ, "/api/**", "viewer", "any", "What is served here is no secret."),
    Rule(READ, "/apis/*/*/namespaces/{namespace}/**", "viewer", "namespace", "Viewers read in their namespaces."),
    Rule(READ, "/apis/*/*/nodes/**", "viewer", "any", "Machines are shown to everybody."),
    Rule(READ, "/apis/*/*/*/**", "viewer", "all", "Listing across all namespaces takes all."),
    Rule(READ, "/apis/**", "viewer", "any", "What is served here is no secret."),
    Rule(READ, "/openapi/**", "viewer", "any", "What is served here is no secret."),
    *(
        Rule(READ, path, "viewer", "any", "How the hub itself is doing is shown to everybody.")
        for path in ("/healthz", "/readyz", "/livez", "/version", "/metrics", "/ca.pem", "/hub", "/doctor", "/sd/**")
    ),
    Rule(READ, "/data/up/*", "viewer", "all", "Forwarded data is of all namespaces."),
    Rule(READ, "/events", "viewer", "all", "The dashboard's stream is of all namespaces."),
)
OTHERWISE: Final = Rule(EVERY, "/**", "admin", "all", "What no rule names is an admin's.")


class Needed(NamedTuple):
    """What a request takes."""

    rule: Rule
    namespace: str = ""


def needed(method: str, path: str) -> Needed:
    """The rule that decides a request, and the namespace that it is about."""
    parts = [part for part in path.split("/") if part]
    for rule in RULES:
        if method in rule.methods and (found := _fits(rule.path, parts)) is not None:
            return Needed(rule, found)
    return Needed(OTHERWISE)


def missing(role: str, namespaces: Sequence[str], method: str, path: str) -> str:
    """What a token with this role and these namespaces lacks for a request; empty when it may."""
    rule, namespace = needed(method, path)
    if role not in ROLES or ROLES.index(role) < ROLES.index(rule.role):
        return f"it takes role {rule.role}, and this token has {role}. {rule.sentence}"
    if rule.reach == "any" or EVERY_NAMESPACE in namespaces:
        return ""
    mine = ", ".join(namespaces) or "none"
    if rule.reach == "all":
        return f"it takes a token for every namespace, and this one is for {mine}. {rule.sentence}"
    if namespace not in namespaces:
        return f"it takes a token for namespace {namespace}, and this one is for {mine}. {rule.sentence}"
    return ""


def is_write(method: str, path: str) -> bool:
    """Does it change anything? Questions that are POSTed do not."""
    return method in WRITE and not path.startswith(_QUESTIONS)


def can_be_tried(path: str) -> bool:
    """Does a write here know `dryRun`?"""
    return path in ("/apply", "/moves") or path.startswith(("/apis/", "/api/"))


def place_of(ref: Ref, *, named: bool = True) -> str:
    """The path of a resource, or with `named=False` of its kind there."""
    inside = f"namespaces/{ref.namespace}/" if ref.namespace else ""
    return f"{V1}/{inside}{ref.plural}" + (f"/{ref.name}" if named else "")


def thing_at(path: str) -> str:
    """What a path is about, as refs are written: `applications/default/reader`, `tokens/4f…`, `apply`."""
    parts = [part for part in path.removeprefix(V1).removeprefix("/api/v1").split("/") if part]
    if len(parts) > 2 and parts[0] == "namespaces":
        parts = [parts[2], parts[1], *parts[3:]]
    if parts[:1] == ["rollouts"]:
        parts = parts[:3]  # what is asked of it is the verb
    return "/".join(parts)[:256]


_QUESTIONS: Final = ("/apis/authorization.k8s.io/", "/apis/authentication.k8s.io/", "/diff", "/rehearsal", "/optimize")

VERBS: Final = {"POST": "create", "PUT": "replace", "PATCH": "patch", "DELETE": "delete"}


def verb_of(method: str, path: str, content_type: str = "") -> str:
    """The audit's word for a write."""
    root = path.strip("/").partition("/")[0]
    if method == "POST" and path.startswith(f"{V1}/nodes/") and path.endswith("/approve"):
        return "approve"
    if method == "POST" and (asked := _fits(f"{V1}/namespaces/*/rollouts/*/{{namespace}}", path.strip("/").split("/"))):
        return asked if asked in WHILE else VERBS["POST"]
    if (root, method) in _VERBS:
        return _VERBS[root, method]
    return "apply" if method == "PATCH" and "apply-patch" in content_type else VERBS.get(method, "read")


_VERBS: Final = {
    ("apply", "POST"): "apply",
    ("diff", "POST"): "diff",
    ("moves", "POST"): "move",
    ("tokens", "DELETE"): "revoke",
    ("enrol", "POST"): "enrol",
    ("artifacts", "PUT"): "upload",
}


def _fits(pattern: str, parts: list[str]) -> str | None:
    """The namespace in a path that fits, empty when it names none; None when it does not fit."""
    wanted, namespace = [part for part in pattern.split("/") if part], ""
    for i, word in enumerate(wanted):
        if word == "**":
            return namespace
        if i >= len(parts) or (word not in ("*", "{namespace}") and word != parts[i]):
            return None
        if word == "{namespace}":
            namespace = parts[i]
    return namespace if len(parts) == len(wanted) else None
