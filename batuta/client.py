"""The typed client of a hub: `connect().get(Application, "meter-reader")`. The command line, tests and users share it.

It is synchronous and needs nothing but the standard library and msgspec. One Client keeps one connection alive and
serves one thread; a watch or a log that is followed has a connection of its own. Errors are those of `batuta.errors`:
Refused with every Problem, NotFound, Stale, and FabricUnavailable when the hub does not answer.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec

from batuta.answers import Applied, Changed, Check, Event, Foreseen, Found, Token
from batuta.client_rollouts import Rollouts
from batuta.context import context
from batuta.errors import ArtifactRefused, BatutaError, FabricUnavailable, NotFound, Stale
from batuta.kinds.base import API_VERSION, DEFAULT_NAMESPACE, Resource, decode_hook
from batuta.wire import Silent, Upload, Wire, failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = [
    "Applied",
    "Changed",
    "Check",
    "Client",
    "Event",
    "Foreseen",
    "Found",
    "Token",
    "WaitedTooLong",
    "connect",
]

R = TypeVar("R", bound=Resource)

PAUSE_S, PAUSE_MAX_S = 0.05, 2.0
"""Before a broken stream is opened again; doubled each time until something is heard."""
SILENCE_MAX_S = 75.0
"""A stream that says nothing for so long is opened again; hubs send a bookmark more often than that."""


class WaitedTooLong(BatutaError):
    """What was awaited did not come in time."""


def connect(
    state: str | os.PathLike[str] | None = None, *, server: str | None = None, token_file: str | None = None
) -> Client:
    """A client of the hub that this user knows. Nothing is sent yet."""
    return Client(*context(state, server=server, token_file=token_file))


class Client:
    """One hub, over HTTP."""

    def __init__(self, server: str, token: str = "", ca: str = "", *, timeout_s: float = 30.0) -> None:
        self.server = server.rstrip("/")
        self._wire = Wire(server, token, ca, timeout_s)
        self.rollouts = Rollouts(self, self._wire)
        """How releases arrive: where they stand, and what is asked of them."""

    def close(self) -> None:
        self._wire.close()

    def hang_up(self) -> None:
        """End every watch and every followed log at once, from whichever thread; this client asks nothing any more."""
        self._wire.hang_up()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- Resources ---

    def get(self, kind: type[R], name: str, *, namespace: str = DEFAULT_NAMESPACE) -> Found[R]:
        return _found(kind, self._wire.ask("GET", _path(kind, namespace, name)))

    def list(
        self, kind: type[R], *, namespace: str | None = DEFAULT_NAMESPACE, selector: str = ""
    ) -> tuple[Found[R], ...]:
        """All of a kind, sorted by the hub; `namespace=None` looks into every one."""
        return self._list(kind, _path(kind, namespace), {"labelSelector": selector})[0]

    def apply(
        self, what: str | Iterable[Resource], *, file: str = "", namespace: str = "", dry_run: bool = False
    ) -> tuple[Applied, ...]:
        """Declare all of these at once, or nothing. Text is YAML or JSON, with one or many documents."""
        query = {"dryRun": "All" if dry_run else "", "file": file, "namespace": namespace}
        answer = self._wire.ask("POST", "/apply", query, _yaml(what).encode(), content_type="application/yaml")
        return tuple(Applied(*_about(item)) for item in answer.get("items", ()))

    def diff(self, what: str | Iterable[Resource], *, file: str = "", namespace: str = "") -> Foreseen:
        """What `apply` would change, and what would move for it. Nothing is stored."""
        query = {"file": file, "namespace": namespace}
        answer = self._wire.ask("POST", "/diff", query, _yaml(what).encode(), content_type="application/yaml")
        items = tuple(Changed(*_about(item), tuple(item.get("fields", ()))) for item in answer.get("items", ()))
        reasons = {app: tuple(said) for app, said in answer.get("reasons", {}).items()}
        steps, hidden = tuple(answer.get("steps", ())), int(answer.get("hidden", 0))
        return Foreseen(items, steps, reasons, bool(answer.get("isWhole", True)), hidden)

    def update(
        self,
        kind: type[R],
        name: str,
        change: Callable[[R], R],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        tries: int = 5,
    ) -> Found[R]:
        """Read it, change it, write it back; again when somebody else wrote in between. Raises Stale in the end."""
        path = _path(kind, namespace, name)
        for left in reversed(range(tries)):
            found = self.get(kind, name, namespace=namespace)
            changed = change(found.resource)
            if changed == found.resource:
                return found
            try:
                return _found(kind, self._wire.ask("PUT", path, body=_json(changed), may_repeat=False))
            except Stale:
                if not left:
                    raise
        raise ValueError("an update needs one try at least")

    def delete(self, kind: type[Resource], name: str, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        self._wire.ask("DELETE", _path(kind, namespace, name))

    def watch(
        self,
        kind: type[R],
        *,
        name: str = "",
        namespace: str | None = DEFAULT_NAMESPACE,
        selector: str = "",
        timeout_s: float | None = None,
        patience_s: float = 30.0,
    ) -> Iterator[Event[R]]:
        """What is there, as ADDED, and then every change; ends after `timeout_s`.

        A broken stream is taken up where it broke. When the hub no longer knows that place, everything is read again
        and only the difference is told. FabricUnavailable is raised when the hub is away for longer than `patience_s`.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        path = _path(kind, namespace)
        query = {"labelSelector": selector, "fieldSelector": f"metadata.name={name}" if name else ""}
        known: dict[tuple[str, str], Found[R]] = {}
        version: str | None = None
        # A hub that was never there is an error at once; patience is for one that goes away.
        heard_at, pause_s = float("-inf"), PAUSE_S
        while until is None or time.monotonic() < until:
            try:
                if version is None:
                    everything, version = self._list(kind, path, query)
                    heard_at = time.monotonic()
                    yield from _difference(known, everything)
                for type_, document in self._changes(path, {**query, "resourceVersion": version}, until):
                    heard_at, pause_s = time.monotonic(), PAUSE_S
                    version = str(document.get("metadata", {}).get("resourceVersion") or version)
                    if type_ != "BOOKMARK":
                        yield from _told(known, type_, _found(kind, document))
                heard_at = time.monotonic()
            except Stale:  # The hub has forgotten that version: read everything again.
                version = None
            except FabricUnavailable:
                if time.monotonic() - heard_at > patience_s:
                    raise
            # The stream ended or broke. Opening it again at once, again and again, would help nobody.
            time.sleep(pause_s if until is None else max(0.0, min(pause_s, until - time.monotonic())))
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    def wait(
        self,
        kind: type[R],
        name: str,
        until: Callable[[Found[R]], bool],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        timeout_s: float = 60.0,
    ) -> Found[R]:
        """The resource as soon as `until` is true of it. Raises WaitedTooLong."""
        for event in self.watch(kind, name=name, namespace=namespace, timeout_s=timeout_s):
            if event.type != "DELETED" and until(event.found):
                return event.found
        raise WaitedTooLong(
            f"{kind.__name__} {name} is not as awaited after {timeout_s:g} s",
            next_step=f"see `batuta describe {kind.__name__.lower()} {name}`",
        )

    # --- Questions ---

    def why(
        self, application: str, *, component: str = "", node: str = "", namespace: str = DEFAULT_NAMESPACE
    ) -> tuple[dict[str, Any], ...]:
        """One answer a slot: where it is and by which rule, or what turned it away and how near it was."""
        from batuta.kinds.application import Application

        path = f"{_path(Application, namespace, application)}/why"
        return tuple(self._wire.ask("GET", path, {"component": component, "node": node}).get("items", ()))

    def flag_evaluation(
        self, flag: str, *, node: str = "", key: str | None = None, namespace: str = DEFAULT_NAMESPACE
    ) -> dict[str, Any]:
        """What a key gets of a flag on one node, or on each (`items`), and which rule says so."""
        from batuta.kinds.flag import Flag

        query = {"node": node} | ({"key": key} if key is not None else {})
        return self._wire.ask("GET", f"{_path(Flag, namespace, flag)}/evaluation", query)

    def moves(self) -> tuple[dict[str, Any], ...]:
        """What is being moved and by whose wish, and what policies have moved."""
        return tuple(self._wire.ask("GET", "/moves").get("items", ()))

    def logs(
        self,
        application: str,
        *,
        component: str = "",
        instance: str = "",
        tail: int = 100,
        follow: bool = False,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Iterator[str]:
        """Lines that its instances printed, without their line ends; `follow` goes on until closed."""
        from batuta.kinds.application import Application

        path = f"{_path(Application, namespace, application)}/log"
        query = {"component": component, "instance": instance, "tail": str(tail), "follow": "true" if follow else ""}
        # Followed, it may be silent for as long as the instances are.
        for line in self._wire.stream(path, query, timeout_s=None if follow else 30.0):
            yield line.decode(errors="replace")

    def rehearsal(self, what: str = "", *, namespace: str = "") -> dict[str, Any]:
        """All tables as of one instant, as rows, and what `apply` would declare: what a rehearsal begins from."""
        query = {"namespace": namespace}
        return self._wire.ask("POST", "/rehearsal", query, what.encode(), content_type="application/yaml")

    def recording(self) -> Iterator[bytes]:
        """What the hub decided of late and what it knew: the bytes of a gzip file of JSON lines."""
        return self._wire.pieces("/recording")

    def doctor(self) -> tuple[Check, ...]:
        answer = self._wire.ask("GET", "/doctor")
        return tuple(
            Check(c["name"], c["result"], c.get("message", ""), c.get("nextStep", "")) for c in answer.get("checks", ())
        )

    def hub(self) -> dict[str, Any]:
        """Where the hub is and since when, for tools that run beside it."""
        return self._wire.ask("GET", "/hub")

    def up(self, priority: str = "normal", *, after: int = 0, limit: int = 100) -> tuple[dict[str, Any], ...]:
        """What nodes forwarded, in order: entries of one priority class with a sequence above `after`."""
        answer = self._wire.ask("GET", f"/data/up/{priority}", {"after": str(after), "limit": str(limit)})
        return tuple(answer.get("items", ()))

    def audit(self, wanted: Mapping[str, str | int] = {}, *, timeout_s: float = 0) -> dict[str, Any]:
        """Who did what: `items`, oldest first, and `last`, to ask `after` it.

        `wanted` chooses by since, who, what, name, verb, limit; with after, the answer waits so long for what comes.
        """
        query = {key: str(value) for key, value in wanted.items() if value}
        return self._wire.ask("GET", "/audit", {**query, "wait": str(int(timeout_s * 1000)) if timeout_s else ""})

    def authority(self) -> str:
        """The certificate of the hub's authority, PEM: what HTTPS clients trust it by."""
        return self._wire.text("/ca.pem")

    # --- Tokens and artifacts ---

    def create_token(
        self, site: str = "default", *, name: str = "", ttl_ms: int = 3_600_000, uses: int = 1, approve: bool = False
    ) -> Token:
        """A token by which `uses` nodes may join `site`; with `approve` they wait for `approve_node`."""
        body = msgspec.json.encode({"site": site, "name": name, "ttlMs": ttl_ms, "uses": uses, "approve": approve})
        return _token(self._wire.ask("POST", "/tokens", body=body, may_repeat=False))

    def approve_node(self, name: str) -> str:
        """Let a machine join that waits for it. Returns the fingerprint of its key; twice does no harm."""
        answer = self._wire.ask("POST", f"/apis/{API_VERSION}/nodes/{quote(name, safe='')}/approve")
        return str(answer.get("details", {}).get("key", ""))

    def create_api_token(self, role: str, namespaces: Iterable[str], *, ttl_ms: int, name: str = "") -> Token:
        """A token by which a person or a program may ask the hub."""
        wanted = {"role": role, "namespaces": list(namespaces), "ttlMs": ttl_ms, "name": name}
        return _token(self._wire.ask("POST", "/tokens/api", body=msgspec.json.encode(wanted), may_repeat=False))

    def tokens(self) -> tuple[Token, ...]:
        """Every token that was made and not forgotten; never its secret."""
        return tuple(_token(item) for item in self._wire.ask("GET", "/tokens").get("items", ()))

    def revoke_token(self, id: str) -> None:  # noqa: A002 - the word that the API uses
        self._wire.ask("DELETE", f"/tokens/{quote(id, safe='')}")

    def push_artifact(
        self, path: str | os.PathLike[str], on_progress: Callable[[int, int], None] | None = None
    ) -> tuple[str, int]:
        """Bring a file to the hub, unless it has it. Returns digest and size; both are checked by the hub."""
        with Path(path).open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            size_bytes = file.tell()
            where = f"/artifacts/{digest}"
            try:
                self._wire.ask("HEAD", where)
            except NotFound:
                file.seek(0)
                body = Upload(file, size_bytes, on_progress)
                self._wire.ask("PUT", where, body=body, content_type="application/octet-stream", may_repeat=False)
        return digest, size_bytes

    def push_bytes(self, data: bytes) -> str:
        """The same of a small document; returns its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._wire.ask(
            "PUT", f"/artifacts/{digest}", body=data, content_type="application/octet-stream", may_repeat=False
        )
        return digest

    def pull_artifact(self, digest: str, path: str | os.PathLike[str]) -> int:
        """Write an artifact to a file, and return its size. What is not what its digest says leaves no file."""
        target = Path(path)
        fresh = target.with_name(f".{target.name}.part")
        sha = hashlib.sha256()
        try:
            with fresh.open("wb") as file:
                for piece in self._wire.pieces(f"/artifacts/{quote(digest, safe=':')}"):
                    sha.update(piece)
                    file.write(piece)
            if f"sha256:{sha.hexdigest()}" != digest:
                raise ArtifactRefused("digest_mismatch", f"what the hub sent is not {digest[:19]}…")
            fresh.replace(target)
        finally:
            fresh.unlink(missing_ok=True)
        return target.stat().st_size

    # --- Listing and watching ---

    def _list(self, kind: type[R], path: str, query: Mapping[str, str]) -> tuple[tuple[Found[R], ...], str]:
        answer = self._wire.ask("GET", path, query)
        items = tuple(_found(kind, item) for item in answer.get("items", ()))
        return items, str(answer.get("metadata", {}).get("resourceVersion", ""))

    def _changes(
        self, path: str, query: Mapping[str, str], until: float | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """One stream of changes, until it ends, falls silent, or `until`. Stale when the version is forgotten."""
        left_s = SILENCE_MAX_S if until is None else min(SILENCE_MAX_S, max(0.05, until - time.monotonic()))
        query = {**query, "watch": "true", "allowWatchBookmarks": "true"}
        try:
            for line in self._wire.stream(path, query, timeout_s=left_s):
                event = msgspec.json.decode(line, type=dict[str, Any])
                if event["type"] == "ERROR":
                    raise failure(event["object"].get("code", 500), event["object"], self.server)
                yield event["type"], event["object"]
        except Silent:
            return
        except msgspec.DecodeError as error:
            raise FabricUnavailable(f"the hub at {self.server} broke off in the middle of a line") from error


def _path(kind: type[Resource], namespace: str | None, name: str = "") -> str:
    inside = f"namespaces/{quote(namespace, safe='')}/" if kind.namespaced and namespace else ""
    return f"/apis/{API_VERSION}/{inside}{kind.plural}" + (f"/{quote(name, safe='')}" if name else "")


def _found(kind: type[R], document: dict[str, Any]) -> Found[R]:
    declared = {k: v for k, v in document.items() if k != "status"}
    try:
        resource = msgspec.convert({"kind": kind.__name__, **declared}, kind, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        raise BatutaError(
            f"the hub sent a {kind.__name__} that this version cannot read: {error}",
            next_step="install the same version of batuta as the hub's",
        ) from error
    return Found(resource, document.get("status") or {}, document)


def _yaml(what: str | Iterable[Resource]) -> str:
    from batuta.kinds.manifest import dump

    return what if isinstance(what, str) else "---\n".join(dump(resource) for resource in what)


def _json(resource: Resource) -> bytes:
    from batuta.kinds.manifest import to_json

    return to_json(resource)


def _about(item: Mapping[str, Any]) -> tuple[str, str, str, Any]:
    """Kind, namespace, name and action of one answered resource."""
    metadata = item.get("metadata", item)
    action = item.get("action", "configured")
    return item.get("kind", ""), metadata.get("namespace") or "", metadata.get("name", ""), action


def _identity(found: Found[Any]) -> tuple[str, str]:
    return found.resource.ref.namespace, found.resource.ref.name


def _told(known: dict[tuple[str, str], Found[R]], type_: str, found: Found[R]) -> Iterator[Event[R]]:
    """An event, unless it says what is known already."""
    identity = _identity(found)
    before = known.get(identity)
    if type_ == "DELETED":
        if known.pop(identity, None) is not None:
            yield Event("DELETED", found)
    elif before is None or before.document != found.document:
        known[identity] = found
        yield Event("ADDED" if before is None else "MODIFIED", found)


def _difference(known: dict[tuple[str, str], Found[R]], everything: tuple[Found[R], ...]) -> Iterator[Event[R]]:
    """What a new list says that was not known."""
    there = {_identity(found) for found in everything}
    for gone in sorted(known.keys() - there):
        yield Event("DELETED", known.pop(gone))
    for found in everything:
        yield from _told(known, "ADDED", found)


def _token(item: Mapping[str, Any]) -> Token:
    said = {name: str(item.get(key) or "") for name, key in _TOKEN_KEYS.items()}
    return Token(**said)


_TOKEN_KEYS = {
    **{word: word for word in Token._fields},
    "used_by": "usedBy",
    "created_by": "createdBy",
    "last_used": "lastUsed",
    "last_used_from": "lastUsedFrom",
}
