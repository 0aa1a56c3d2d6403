"""Who may do what: every route by every role, through the real door of a real hub."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from starlette.routing import Route

from batuta.fabric.memory import MemoryBroker
from batuta.hub.api_tokens import ROLES, ApiTokenWanted
from batuta.kinds import manifest
from batuta.web import rights
from batuta.web.app import application, doors
from tests.hub.hubs import PROCESS_APP, Voice, join, running
from tests.web.asgi import Answer, Caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batuta.hub.hub import Hub

V1 = rights.V1
APPS = f"{V1}/namespaces/default/applications"
SITE = {"apiVersion": "batuta.dev/v1", "kind": "Site", "metadata": {"name": "berlin"}, "spec": {}}


def app(name: str, namespace: str = "default") -> bytes:
    return PROCESS_APP.replace("NAME", f"{name}, namespace: {namespace}").encode()


@asynccontextmanager
async def guarded(directory: Path, broker: MemoryBroker | None = None) -> AsyncIterator[tuple[Hub, Caller]]:
    """A hub behind its loopback door; callers bring their own tokens."""
    async with running(directory, broker) as hub:
        yield hub, Caller(doors(hub, "local-secret")[0])


async def bearer(hub: Hub, role: str, *namespaces: str, ttl_ms: int = 60_000, name: str = "") -> dict[str, str]:
    wanted = ApiTokenWanted(role=role, namespaces=namespaces or ("*",), ttl_ms=ttl_ms, name=name or role)
    text, _ = await hub.api_tokens.create(wanted, "test")
    return {"authorization": f"Bearer {text}"}


LOCAL = {"authorization": "Bearer local-secret"}


def routes(hub: Hub) -> list[tuple[str, str]]:
    """Every method and path of the application, with something in each blank."""
    blanks = {
        "{namespace}": "default",
        "{name}": "one",
        "{id}": "f00",
        "{priority}": "normal",
        "{digest}": "sha256:0",
        "{path:path}": "api",
    }
    found = []
    for route in application(hub).routes:
        assert isinstance(route, Route)
        path = route.path
        for blank, word in blanks.items():
            path = path.replace(blank, word)
        assert "{" not in path, f"say in this test what {route.path} is filled with"
        found += [(method, path) for method in sorted(route.methods or ())]
    return found


async def test_every_route_is_judged_by_a_rule_that_names_it_and_answered_so_for_every_role(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (hub, call):
        tokens = {role: await bearer(hub, role) for role in ROLES}
        for method, path in routes(hub):
            rule = rights.needed(method, path).rule
            # The catch-all is for what cannot be foreseen; a route of ours may be an admin's, but not by oversight.
            unruled = rule is rights.OTHERWISE and not (rights.is_write(method, path) and path.startswith("/api"))
            assert not unruled, f"{method} {path}: no rule names it"
            for role in ROLES:
                may = ROLES.index(role) >= ROLES.index(rule.role)
                assert (rights.missing(role, ("*",), method, path) == "") is may
                if may or path in ("/healthz", "/readyz", "/livez", "/version", "/metrics"):
                    continue  # That it works is other tests' matter; that it is refused is this one's.
                answer = await call(method, path, **tokens[role])
                assert answer.status == 403, f"{role}: {method} {path}: {answer.status}"
                if method != "HEAD":
                    assert rule.sentence in answer.json["message"]


async def test_nobody_without_a_token_gets_beyond_the_open_paths(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (hub, call):
        openly = set()
        for method, path in routes(hub):
            answer = await call(method, path)
            if answer.status != 401:
                openly.add(path)
            else:
                assert answer.headers["www-authenticate"] == "Bearer"
        assert openly <= {"/healthz", "/readyz", "/livez", "/version", "/metrics"}


@pytest.mark.parametrize(
    ("role", "namespaces", "method", "path", "lacks"),
    [
        ("viewer", ("default",), "GET", APPS, ""),
        ("viewer", ("default",), "GET", f"{APPS}/one/log", ""),
        ("viewer", ("default",), "GET", f"{V1}/namespaces/lab/applications", "a token for namespace lab"),
        ("viewer", ("default",), "GET", f"{V1}/applications", "every namespace"),
        ("viewer", ("default",), "GET", f"{V1}/nodes", ""),
        ("viewer", ("default",), "GET", "/api/v1/nodes", ""),
        ("viewer", ("*",), "GET", f"{V1}/applications", ""),
        ("viewer", ("*",), "POST", APPS, "role operator"),
        ("operator", ("default",), "POST", APPS, ""),
        ("operator", ("default",), "PATCH", f"{V1}/namespaces/default/models/m", ""),
        ("operator", ("default",), "DELETE", f"{V1}/namespaces/lab/models/m", "namespace lab"),
        ("operator", ("default",), "PATCH", f"{V1}/nodes/pi", "every namespace"),
        ("operator", ("*",), "PATCH", f"{V1}/nodes/pi", ""),
        ("operator", ("*",), "DELETE", f"{V1}/nodes/pi", "role admin"),
        ("operator", ("*",), "POST", f"{V1}/sites", "role admin"),
        ("operator", ("*",), "GET", "/tokens", "role admin"),
        ("operator", ("*",), "GET", "/audit", "role admin"),
        ("operator", ("default",), "PUT", "/artifacts/sha256:0", ""),
        ("operator", ("*",), "GET", "/something/new", "role admin"),
        ("admin", ("*",), "DELETE", f"{V1}/nodes/pi", ""),
        ("admin", ("*",), "GET", "/something/new", ""),
        ("root", ("*",), "GET", "/hub", "role viewer"),
        # Parts that are empty or pose as namespaces open nothing.
        ("operator", ("default",), "POST", f"{V1}/namespaces//applications", "namespace applications"),
        ("operator", ("default",), "POST", f"{V1}/applications", "role admin"),
    ],
)
def test_rules(role: str, namespaces: tuple[str, ...], method: str, path: str, lacks: str) -> None:
    why = rights.missing(role, namespaces, method, path)
    assert (lacks in why) if lacks else not why, why


@pytest.mark.parametrize(
    ("method", "path", "verb", "thing"),
    [
        ("PATCH", f"{APPS}/one", "patch", "applications/default/one"),
        ("PATCH", f"{APPS}/one/scale", "patch", "applications/default/one/scale"),
        ("DELETE", f"{V1}/nodes/pi", "delete", "nodes/pi"),
        ("PATCH", "/api/v1/nodes/pi", "patch", "nodes/pi"),
        ("DELETE", "/tokens/f00", "revoke", "tokens/f00"),
        ("PUT", "/artifacts/sha256:0", "upload", "artifacts/sha256:0"),
        ("POST", "/apply", "apply", "apply"),
    ],
)
def test_the_audit_has_plain_words_for_writes(method: str, path: str, verb: str, thing: str) -> None:
    assert (rights.verb_of(method, path), rights.thing_at(path)) == (verb, thing)


async def test_a_manifest_is_judged_document_by_document(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (hub, call):
        operator = await bearer(hub, "operator", "default")
        assert (await call("POST", "/apply", app("one"), **operator)).status == 200
        both = app("two") + b"---" + app("three", "lab")
        refused = await call("POST", "/apply", both, **operator)
        assert refused.status == 403
        assert "applications/lab/three: it takes a token for namespace lab" in refused.json["message"]
        assert "two" not in refused.json["message"]
        assert "applications.default.two" not in hub.loop.state.desired
        with_site = app("two") + b"---\napiVersion: batuta.dev/v1\nkind: Site\nmetadata: {name: x}\n"
        assert (await call("POST", "/apply", with_site, **operator)).status == 403
        assert (await call("POST", "/apply", both, **LOCAL)).status == 200


async def test_tokens_expire_are_revoked_and_survive_the_hub_as_hashes(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with guarded(tmp_path, broker) as (hub, call):
        body = {"role": "viewer", "namespaces": ["default"], "ttlMs": 1_000, "name": "short"}
        made = (await call("POST", "/tokens/api", body, **LOCAL)).json
        assert (made["sort"], made["role"], made["namespaces"], made["createdBy"]) == (
            "api",
            "viewer",
            "default",
            "local",
        )
        short = {"authorization": f"Bearer {made['token']}"}
        lasting = await bearer(hub, "viewer")
        assert (await call("GET", APPS, **short)).status == 200
        listed = {t["name"]: t for t in (await call("GET", "/tokens", **LOCAL)).json["items"]}
        assert listed["short"]["lastUsedFrom"] == "127.0.0.1"
        assert "lastUsed" in listed["short"]
        assert not listed["viewer"]["lastUsed"]
        secret = made["token"].rpartition(".")[2]
        kept = await hub.fabric.table("api-tokens").get(made["id"])
        assert kept is not None
        assert kept.value is not None
        assert secret.encode() not in kept.value
        assert b'"usedAt":0' in kept.value or b"usedAt" not in kept.value  # written now and then, not for each request
        await hub.clock.sleep_until(hub.clock.now() + 1_100)
        expired = await call("GET", APPS, **short)
        assert (expired.status, "expired" in expired.json["message"]) == (401, True)
        other = {"authorization": f"Bearer {made['token'][:-1]}{'A' if made['token'][-1] != 'A' else 'B'}"}
        assert "not one of this hub's" in (await call("GET", APPS, **other)).json["message"]
    async with guarded(tmp_path, broker) as (hub, call):
        assert (await call("GET", APPS, **lasting)).status == 200
        by_name = {t["name"]: t for t in (await call("GET", "/tokens", **LOCAL)).json["items"]}
        assert by_name["short"]["lastUsed"]  # the hub that ended wrote it down
        assert (await call("DELETE", f"/tokens/{by_name['viewer']['id']}", **LOCAL)).status == 200
        assert (await call("GET", APPS, **lasting)).status == 401
        assert (await call("DELETE", f"/tokens/{by_name['viewer']['id']}", **LOCAL)).status == 404


async def test_a_watch_says_nothing_more_once_its_token_is_revoked(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (hub, call):
        viewer = await bearer(hub, "viewer")
        stream = call.stream("GET", f"{V1}/sites?watch=true", **viewer)
        assert (await anext(stream))["status"] == 200
        await call("POST", f"{V1}/sites", SITE, **LOCAL)
        first = await anext(stream)
        assert b"berlin" in first["body"]
        await hub.api_tokens.revoke(hub.api_tokens.all()[0].id)
        await call("DELETE", f"{V1}/sites/berlin", **LOCAL)
        rest = [message async for message in stream]
        assert b"".join(m.get("body", b"") for m in rest) == b""
        assert not rest[-1]["more_body"]
        assert {(n, w): c for n, w, c in hub.counters.items()}["requests_refused", "revoked_meanwhile"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"role": "root"}, "role"),
        ({"namespaces": []}, "namespaces"),
        ({"namespaces": ["Not A Name"]}, "namespaces[0]"),
        ({"name": "a b"}, "name"),
        ({"role": "admin", "namespaces": ["default"]}, "namespaces"),
    ],
)
async def test_a_token_that_makes_no_sense_is_refused(tmp_path: Path, body: dict[str, Any], field: str) -> None:
    async with guarded(tmp_path) as (hub, call):
        refused: Answer = await call("POST", "/tokens/api", body, **LOCAL)
        assert refused.status == 422
        assert field in [p["path"] for p in refused.json["problems"]]
        assert hub.api_tokens.all() == []


async def test_reviews_say_what_the_door_would(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (hub, call):
        operator = await bearer(hub, "operator", "default", name="ci")
        where = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

        async def can(body: object, **headers: str) -> Any:
            answer = await call("POST", where, body, **operator, **headers)
            assert answer.status == 201, answer.body
            return answer.json["status"]["allowed"]

        def about(verb: str, resource: str, namespace: str = "default", group: str = "batuta.dev") -> Any:
            named = {"verb": verb, "resource": resource, "namespace": namespace, "group": group}
            return {"spec": {"resourceAttributes": named}}

        assert await can(about("create", "applications")) is True
        assert await can(about("create", "applications", "lab")) is False
        assert await can(about("list", "nodes")) is True
        assert await can(about("get", "nodes", group="")) is True
        assert await can(about("delete", "nodes")) is False
        assert await can(about("*", "applications")) is True
        assert await can(about("create", "pods", group="apps")) is False
        assert await can({"spec": {"nonResourceAttributes": {"path": "/audit", "verb": "get"}}}) is False
        # As kubectl 1.32 sends it: `k8s\0`, runtime.Unknown, and the review within.
        named = _sized(1, b"lab") + _sized(2, b"create") + _sized(3, b"batuta.dev") + _sized(5, b"applications")
        raw = _sized(1, b"") + _sized(2, _sized(1, named))
        unknown = b"k8s\x00" + _sized(1, _sized(1, b"authorization.k8s.io/v1")) + _sized(2, raw)
        protobuf = {"content_type": "application/vnd.kubernetes.protobuf"}
        assert await can(unknown, **protobuf) is False
        assert await can(unknown.replace(b"\x03lab", b"\x03lab"), **protobuf) is False
        mine = _sized(1, b"default") + named[5:]
        assert await can(b"k8s\x00" + _sized(2, _sized(2, _sized(1, mine))), **protobuf) is True
        for broken in (b"", b"k8s\x00\xff", b"k8s\x00\x12\x7f", b"{}"):
            assert (await call("POST", where, broken, **operator, **protobuf)).status in (400, 415)
        who = await call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", b"", **operator)
        assert who.json["status"]["userInfo"]["username"] == "ci"
        assert not (await call("GET", "/audit", **LOCAL)).json["items"][1:]  # questions are no writes


def _sized(number: int, data: bytes) -> bytes:
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


async def test_a_diff_tells_of_what_the_asker_may_see(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (hub, call):
        viewer = await bearer(hub, "viewer", "default")
        mine = await call("POST", "/diff", app("one"), **viewer)
        assert (mine.status, mine.json["items"][0]["action"], mine.json["hidden"]) == (200, "created", 0)
        theirs = await call("POST", "/diff", app("one", "other"), **viewer)
        assert theirs.status == 403
        assert "it takes a token for namespace other" in theirs.json["message"]
        both = await call("POST", "/diff", app("one") + b"---\n" + app("two", "other"), **viewer)
        assert both.status == 403
        assert hub.loop.state.applications() == []
        assert not [e for e in (await call("GET", "/audit", **LOCAL)).json["items"] if "diff" in e["verb"]]


async def test_a_diff_counts_what_it_does_not_show(tmp_path: Path) -> None:
    """What is more important takes the place of what another namespace runs: the asker learns that, and no more."""
    broker = MemoryBroker()
    async with guarded(tmp_path, broker) as (hub, call):
        await join(hub, "pi-1")
        pi = Voice(broker, "pi-1")
        await pi.report()
        await pi.beat()
        theirs, mine = (app(*said).replace(b"replicas:", b"resources: {cpu: 1500m}\n    replicas:") for said in (
            ("theirs", "other"), ("mine",),
        ))  # fmt: skip
        await hub.declarations.apply(manifest.parse(theirs))
        async with asyncio.timeout(60):
            while not hub.loop.state.held:
                await hub.loop.turn()
        urgent = mine.replace(b"spec:\n", b"spec:\n  priority: 100\n")
        viewer = await bearer(hub, "viewer", "default")
        seen = (await call("POST", "/diff", urgent, **viewer)).json
        assert (seen["hidden"], {s["app"] for s in seen["steps"]}) == (1, {"default/mine"}), seen
        everything = (await call("POST", "/diff", urgent, **LOCAL)).json
        assert (everything["hidden"], {s["app"] for s in everything["steps"]}) == (0, {"default/mine", "other/theirs"})
