"""The API as its clients see it, over a real hub and the memory fabric."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.fabric.memory import MemoryBroker
from batuta.kinds import KINDS
from batuta.web.app import application, doors
from tests.hub.hubs import PROCESS_APP, Voice, join, request_for, running
from tests.web.asgi import Answer, Caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batuta.hub.hub import Hub

BASE = "/apis/batuta.dev/v1"
SITES = f"{BASE}/sites"
APPS = f"{BASE}/namespaces/default/applications"
MERGE = {"content_type": "application/merge-patch+json"}


def site(name: str, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "batuta.dev/v1", "kind": "Site", "metadata": {"name": name, **metadata}, "spec": {}}


@asynccontextmanager
async def api(directory: Path, broker: MemoryBroker | None = None) -> AsyncIterator[tuple[Hub, Caller]]:
    async with running(directory, broker) as hub:
        yield hub, Caller(application(hub))


def is_status(answer: Answer, code: int, reason: str) -> dict[str, Any]:
    assert answer.status == code, answer.body
    said: dict[str, Any] = answer.json
    assert (said["kind"], said["apiVersion"], said["status"]) == ("Status", "v1", "Failure")
    assert (said["code"], said["reason"]) == (code, reason)
    assert said["message"]
    return said


async def test_a_resource_is_created_read_listed_and_deleted(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        made = await call("POST", SITES, site("berlin", labels={"land": "de"}))
        assert made.status == 201
        metadata = made.json["metadata"]
        assert metadata["generation"] == 1
        assert metadata["uid"]
        assert metadata["creationTimestamp"].endswith("Z")
        assert int(metadata["resourceVersion"]) > 10**9
        assert made.json["status"]
        got = await call("GET", f"{SITES}/berlin")
        assert got.json == made.json
        assert (await call("GET", f"{SITES}/berlin/status")).json == got.json
        listed = (await call("GET", SITES)).json
        assert (listed["kind"], listed["items"]) == ("SiteList", [made.json])
        assert int(listed["metadata"]["resourceVersion"]) >= int(metadata["resourceVersion"])
        is_status(await call("POST", SITES, site("berlin")), 409, "AlreadyExists")
        gone = await call("DELETE", f"{SITES}/berlin", {"propagationPolicy": "Background"})
        assert gone.json["status"] == "Success"
        is_status(await call("GET", f"{SITES}/berlin"), 404, "NotFound")
        is_status(await call("DELETE", f"{SITES}/berlin"), 404, "NotFound")


async def test_every_kind_is_served_without_a_word_about_it(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        named = {r["name"] for r in (await call("GET", BASE)).json["resources"]}
        for kind in KINDS:
            assert {kind.plural, f"{kind.plural}/status"} <= named
            assert (await call("GET", f"{BASE}/{kind.plural}")).json["items"] == []
        for path in ("/api", "/apis", "/apis/batuta.dev", "/version"):
            assert (await call("GET", path)).status == 200


async def test_replacing_needs_the_newest_declaration_not_the_newest_status(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        await join(hub, "pi-1")
        before = (await call("GET", f"{BASE}/nodes/pi-1")).json
        voice = Voice(broker, "pi-1")
        await voice.beat()
        await voice.report()
        await asyncio.sleep(0.3)
        seen = (await call("GET", f"{BASE}/nodes/pi-1")).json
        assert seen["metadata"]["resourceVersion"] > before["metadata"]["resourceVersion"]
        assert seen["status"] != before["status"]

        # Only status moved since `before` was read, so writing over it overwrites nobody.
        before["spec"]["unschedulable"] = True
        written = await call("PUT", f"{BASE}/nodes/pi-1", before)
        assert written.status == 200, written.body
        assert written.json["metadata"]["generation"] == 2
        is_status(await call("PUT", f"{BASE}/nodes/pi-1", before), 409, "Conflict")
        del before["metadata"]["resourceVersion"]
        assert (await call("PUT", f"{BASE}/nodes/pi-1", before)).json["metadata"]["generation"] == 2
        is_status(await call("PUT", f"{BASE}/nodes/pi-2", before), 404, "NotFound")
        before["metadata"]["resourceVersion"] = "12"
        is_status(await call("PUT", f"{BASE}/nodes/pi-1", before), 409, "Conflict")


async def test_a_merge_patch_changes_what_it_names(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        await call("POST", SITES, site("berlin", labels={"a": "1", "b": "2"}))
        patch = {"metadata": {"labels": {"a": None, "c": "3"}}, "spec": {"residency": "eu"}}
        patched = await call("PATCH", f"{SITES}/berlin", patch, **MERGE)
        assert patched.json["metadata"]["labels"] == {"b": "2", "c": "3"}
        assert (patched.json["spec"], patched.json["metadata"]["generation"]) == ({"residency": "eu"}, 2)
        only_labels = await call("PATCH", f"{SITES}/berlin", {"metadata": {"labels": {"d": "4"}}}, **MERGE)
        assert only_labels.json["metadata"]["generation"] == 2
        said = is_status(await call("PATCH", f"{SITES}/berlin", {"spec": {"nonsense": 1}}, **MERGE), 422, "Invalid")
        assert said["details"]["causes"][0]["field"] == "spec.nonsense"
        is_status(
            await call("PATCH", f"{SITES}/berlin", {}, content_type="application/strategic-merge-patch+json"),
            415,
            "UnsupportedMediaType",
        )
        is_status(await call("PATCH", f"{SITES}/berlin", {"metadata": {"name": "x"}}, **MERGE), 422, "Invalid")


async def test_status_is_nobodys_to_write(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        made = (await call("POST", SITES, site("berlin"))).json
        is_status(await call("PUT", f"{SITES}/berlin/status", made), 405, "MethodNotAllowed")
        made["status"] = {"state": "a lie"}
        assert (await call("PUT", f"{SITES}/berlin", made)).json["status"].get("state") != "a lie"


async def test_apply_takes_all_or_nothing_and_says_every_problem(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, call):
        good = PROCESS_APP.replace("NAME", "one")
        bad = good.replace("count: 1", "cuont: 1").replace("NAME", "two")
        worse = "---\napiVersion: batuta.dev/v1\nkind: Sight\nmetadata: {name: x}\n"
        refused = await call("POST", "/apply?file=app.yaml", f"{good}---{bad}{worse}".encode())
        said = is_status(refused, 422, "Invalid")
        assert len(said["problems"]) >= 2
        assert len(said["problems"]) == len(said["details"]["causes"])
        assert {p["file"] for p in said["problems"]} == {"app.yaml"}
        assert all(p["line"] for p in said["problems"])
        assert not hub.loop.state.desired

        two = f"{good}---{PROCESS_APP.replace('NAME', 'two')}".encode()
        dry = await call("POST", "/apply?dryRun=All", two)
        assert [i["action"] for i in dry.json["items"]] == ["created", "created"]
        assert not hub.loop.state.desired
        applied = await call("POST", "/apply", two)
        assert [i["action"] for i in applied.json["items"]] == ["created", "created"]
        again = await call("POST", "/apply", two)
        assert [i["action"] for i in again.json["items"]] == ["unchanged", "unchanged"]
        changed = await call("POST", "/apply", two.replace(b"count: 1", b"count: 2"))
        assert [i["action"] for i in changed.json["items"]] == ["configured", "configured"]
        other = await call("POST", "/apply?namespace=other", two)
        assert {i["metadata"]["namespace"] for i in other.json["items"]} == {"other"}


CYCLE = """\
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: a}
spec: {parent: b}
---
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: b}
spec:
  parent: a
"""


async def test_what_only_the_other_documents_show_has_its_place_too(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, call):
        said = is_status(await call("POST", "/apply?file=sites.yaml", CYCLE.encode()), 422, "Invalid")
        found = [(p["file"], p["line"], p["column"], p["path"], p["about"]) for p in said["problems"]]
        assert found == [
            ("sites.yaml", 4, 16, "spec.parent", "sites/a"),
            ("sites.yaml", 10, 11, "spec.parent", "sites/b"),
        ]
        assert not hub.loop.state.desired


async def test_a_dry_run_shows_and_keeps_nothing(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        assert (await call("POST", f"{SITES}?dryRun=All", site("berlin"))).status == 201
        is_status(await call("GET", f"{SITES}/berlin"), 404, "NotFound")
        is_status(await call("POST", f"{SITES}?dryRun=Some", site("berlin")), 400, "BadRequest")


async def test_bodies_are_bounded_and_decoded_with_care(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        is_status(await call("POST", SITES, b'{"kind": "\xff"}'), 400, "BadRequest")
        is_status(await call("POST", SITES, b"{"), 400, "BadRequest")
        is_status(await call("POST", SITES, b"[" * 100_000), 400, "BadRequest")
        is_status(await call("POST", SITES, b"[]"), 422, "Invalid")
        is_status(await call("POST", "/apply", b"\xff\xfe"), 400, "BadRequest")
        is_status(await call("POST", SITES, b" " * (9 << 20)), 413, "RequestEntityTooLarge")
        # Without a length, and in parts: counted as they come.
        parts = [b" " * (1 << 20)] * 9
        is_status(await call("POST", SITES, parts=parts), 413, "RequestEntityTooLarge")
        is_status(await call("POST", APPS, site("berlin")), 422, "Invalid")
        is_status(await call("GET", "/nonsense"), 404, "NotFound")
        is_status(await call("POST", f"{SITES}/berlin", b"{}"), 405, "MethodNotAllowed")


async def test_lists_are_selected_and_paged(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        for n in range(5):
            await call("POST", SITES, site(f"s{n}", labels={"odd": str(n % 2)}))

        async def names(query: str) -> list[str]:
            return [i["metadata"]["name"] for i in (await call("GET", f"{SITES}?{query}")).json["items"]]

        assert await names("labelSelector=odd%3D1") == ["s1", "s3"]
        assert await names("labelSelector=odd%20in%20(0,2)") == ["s0", "s2", "s4"]
        assert await names("fieldSelector=metadata.name%3Ds2") == ["s2"]
        page = (await call("GET", f"{SITES}?limit=2")).json
        assert [i["metadata"]["name"] for i in page["items"]] == ["s0", "s1"]
        assert page["metadata"]["remainingItemCount"] == 3
        assert await names(f"limit=3&continue={page['metadata']['continue']}") == ["s2", "s3", "s4"]
        is_status(await call("GET", f"{SITES}?limit=x"), 400, "BadRequest")
        is_status(await call("GET", f"{SITES}?continue=%21"), 400, "BadRequest")
        is_status(await call("GET", f"{SITES}?labelSelector=a%3E1"), 400, "BadRequest")


class Watching:
    """A watch as a client reads it."""

    def __init__(self, call: Caller, path: str) -> None:
        self.stream = call.stream("GET", path)
        self.rest = b""

    async def next(self) -> tuple[str, dict[str, Any]]:
        async with asyncio.timeout(60):
            while b"\n" not in self.rest:
                message = await anext(self.stream)
                if message["type"] == "http.response.start":
                    assert message["status"] == 200
                self.rest += message.get("body", b"")
        line, _, self.rest = self.rest.partition(b"\n")
        event = msgspec.json.decode(line)
        return event["type"], event["object"]


async def test_a_watch_goes_on_where_a_list_ended(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        await call("POST", SITES, site("a"))
        version = (await call("GET", SITES)).json["metadata"]["resourceVersion"]
        watching = Watching(call, f"{SITES}?watch=true&resourceVersion={version}")
        made = (await call("POST", SITES, site("b", labels={"x": "1"}))).json
        assert await watching.next() == ("ADDED", made)
        patched = await call("PATCH", f"{SITES}/b", {"spec": {"residency": "eu"}}, **MERGE)
        assert await watching.next() == ("MODIFIED", patched.json)
        await call("DELETE", f"{SITES}/b")
        word, last = await watching.next()
        assert (word, last["metadata"]["name"]) == ("DELETED", "b")
        assert int(last["metadata"]["resourceVersion"]) > int(patched.json["metadata"]["resourceVersion"])
        await watching.stream.aclose()

        # From the same version, later: the same three.
        again = Watching(call, f"{SITES}?watch=1&resourceVersion={version}")
        assert [(await again.next())[0] for _ in range(3)] == ["ADDED", "MODIFIED", "DELETED"]
        await again.stream.aclose()
        # From nowhere: what is there.
        fresh = Watching(call, f"{SITES}?watch=true")
        assert (await fresh.next())[0] == "ADDED"
        await fresh.stream.aclose()


async def test_a_watch_sees_status_and_selection_change(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        await join(hub, "pi-1")
        version = (await call("GET", f"{BASE}/nodes")).json["metadata"]["resourceVersion"]
        watching = Watching(call, f"{BASE}/nodes?watch=true&resourceVersion={version}")
        chosen = Watching(call, f"{BASE}/nodes?watch=true&resourceVersion={version}&labelSelector=rack%3D1")
        await Voice(broker, "pi-1").beat()
        word, node = await watching.next()
        assert (word, node["status"]["link"]["word"]) == ("MODIFIED", "online")
        await call("PATCH", f"{BASE}/nodes/pi-1", {"metadata": {"labels": {"rack": "1"}}}, **MERGE)
        assert (await chosen.next())[0] == "ADDED"
        await call("PATCH", f"{BASE}/nodes/pi-1", {"metadata": {"labels": {"rack": "2"}}}, **MERGE)
        assert (await chosen.next())[0] == "DELETED"
        for each in (watching, chosen):
            await each.stream.aclose()


async def test_a_version_that_is_forgotten_or_of_another_life_is_gone(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (_, call):
        await call("POST", SITES, site("a"))
        old = (await call("GET", SITES)).json["metadata"]["resourceVersion"]
    async with api(tmp_path, broker) as (hub, call):
        is_status(await call("GET", f"{SITES}?watch=true&resourceVersion={old}"), 410, "Expired")
        is_status(await call("GET", f"{SITES}?watch=true&resourceVersion=99{old}"), 410, "Expired")
        is_status(await call("GET", f"{SITES}?watch=true&resourceVersion=abc"), 400, "BadRequest")
        version = (await call("GET", SITES)).json["metadata"]["resourceVersion"]
        watching = Watching(call, f"{SITES}?watch=true&resourceVersion={version}&timeoutSeconds=9")
        assert (await anext(watching.stream))["status"] == 200
        hub.feed._kinds["sites"].history.forgotten = hub.feed.version + 1
        word, said = await watching.next()
        assert (word, said["code"]) == ("ERROR", 410)
        with pytest.raises(StopAsyncIteration):
            await watching.next()


async def test_a_watch_ends_when_it_was_asked_to(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        async with asyncio.timeout(60):
            answer = await call("GET", f"{SITES}?watch=true&timeoutSeconds=1")
        assert (answer.status, answer.body) == (200, b"")


async def test_artifacts_are_what_their_digest_says_or_not_there(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, call):
        data = b"weights" * 1000
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        where = f"/artifacts/{digest}"
        is_status(await call("GET", where), 404, "NotFound")
        wrong = await call("PUT", where, parts=[data, b"!"])
        assert is_status(wrong, 422, "Invalid")["error"] == "digest_mismatch"
        assert (await call("HEAD", where)).status == 404
        assert (await call("PUT", where, parts=[data[:10], data[10:]])).status == 201
        assert (await call("GET", where)).body == data
        assert (await call("HEAD", where)).headers["content-length"] == str(len(data))
        is_status(await call("PUT", "/artifacts/latest", data), 422, "Invalid")
        hub.artifacts._bytes_max = 10
        is_status(await call("PUT", where.replace("0", "1"), data), 413, "RequestEntityTooLarge")
        assert [p.name for p in (tmp_path / "hub" / "artifacts" / "incoming").iterdir()] == []
        assert hub.artifacts.held() == [digest]


async def test_an_artifact_that_went_bad_on_the_hubs_disk_is_not_there_and_can_be_pushed_again(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, call):
        data = b"weights" * 1000
        where = f"/artifacts/sha256:{hashlib.sha256(data).hexdigest()}"
        assert (await call("PUT", where, data)).status == 201
        file = hub.artifacts.path(where.rpartition("/")[2])
        file.write_bytes(b"W" + data[1:])
        assert (await call("HEAD", where)).status == 404
        assert [p.name for p in (tmp_path / "hub" / "artifacts" / "damaged").iterdir()] == [file.name]
        assert (await call("PUT", where, data)).status == 201
        assert (await call("HEAD", where)).status == 200
        # Whoever read it meanwhile, to cut it into chunks, may have found the same: a file is set aside once.
        assert hub.counters["artifacts_refused"] == 1


async def test_tokens_and_enrolment_over_http(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, call):
        made = (await call("POST", "/tokens", {"site": "berlin", "ttlMs": 60_000})).json
        assert (made["site"], made["usesLeft"], made["state"]) == ("berlin", 1, "open")
        listed = (await call("GET", "/tokens")).json["items"]
        assert [t["id"] for t in listed] == [made["id"]]
        assert "token" not in listed[0]
        asked = msgspec.to_builtins(request_for(hub, made["token"], "pi-1"))
        answer = await call("POST", "/enrol", asked)
        assert answer.json["node"] == "pi-1"
        refused = await call("POST", "/enrol", {**asked, "node": "pi-2"})
        said = is_status(refused, 403, "Forbidden")
        assert (said["error"], said["nextStep"] != "") == ("token_used", True)
        is_status(await call("POST", "/enrol", {"token": 1}), 400, "BadRequest")
        is_status(await call("POST", "/enrol", b" " * 70_000), 413, "RequestEntityTooLarge")
        assert (await call("GET", "/ca.pem")).body.startswith(b"-----BEGIN CERTIFICATE")
        assert (await call("GET", "/hub")).json["leaf"] == "h:7422"
        assert (await call("DELETE", f"/tokens/{made['id']}")).status == 200
        is_status(await call("DELETE", f"/tokens/{made['id']}"), 404, "NotFound")


async def test_forwarded_data_is_read_in_order(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        await join(hub, "pi-1")
        log = broker.connect_node("pi-1").log("up-normal")
        for n in range(3):
            await log.append("pi-1", b'{"n": %d}' % n, f"id-{n}")
        await log.append("pi-1", b"again", "id-2")
        await log.append("pi-1", b"\xff", "id-3")
        items = (await call("GET", "/data/up/normal?after=1&limit=10")).json["items"]
        assert [i["payload"] for i in items[:2]] == ['{"n": 1}', '{"n": 2}']
        assert items[2]["encoding"] == "base64"
        assert {i["node"] for i in items} == {"pi-1"}
        is_status(await call("GET", "/data/up/urgent"), 404, "NotFound")


async def test_why_logs_metrics_and_doctor_answer(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        await join(hub, "pi-1")
        voice = Voice(broker, "pi-1")

        async def tell(message: Any) -> None:
            wanted = msgspec.json.decode(message.data)
            await message.respond(msgspec.json.encode({"text": f"tail {wanted['tail']}\n", "offset": 7}))

        await voice.fabric.subscribe("batuta.tell.pi-1.log", tell)
        await voice.beat()
        await voice.report()
        await call("POST", "/apply", PROCESS_APP.replace("NAME", "one").encode())
        async with asyncio.timeout(60):
            while "default/one" not in hub.loop.state.held:
                await hub.loop.turned.wait(hub.loop.turned.rings, hub.clock, hub.clock.now() + 50)
        assert (await call("GET", f"{APPS}/one/why")).status == 200
        is_status(await call("GET", f"{APPS}/two/why"), 404, "NotFound")
        log = await call("GET", f"{APPS}/one/log?tail=5")
        assert (log.status, log.body) == (200, b"tail 5\n")
        is_status(await call("GET", f"{APPS}/one/log?component=other"), 404, "NotFound")
        is_status(await call("GET", f"{APPS}/one/log?tail=x"), 400, "BadRequest")

        text = (await call("GET", "/metrics")).body.decode()
        assert 'batuta_nodes{link="online"} 1' in text
        assert "batuta_assigned_instances 1" in text
        assert 'batuta_decisions_total{what="assignment"}' in text
        assert "batuta_incremental_differences_total 0" in text
        checks = {c["name"]: c["result"] for c in (await call("GET", "/doctor")).json["checks"]}
        assert checks["broker"] == checks["nodes"] == checks["reports"] == checks["decisions"] == "pass"
        assert (await call("GET", "/readyz")).body == b"ok"


async def test_doors_ask_for_the_token_and_the_right_name(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        plain, tls = doors(hub, "secret")
        bearer = {"authorization": "Bearer secret"}
        call, far = Caller(plain), Caller(tls, host="hub.example:8443")
        for path in ("/healthz", "/readyz", "/version", "/metrics"):
            assert (await call("GET", path)).status == 200
        refused = await call("GET", SITES)
        is_status(refused, 401, "Unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        is_status(await call("GET", SITES, authorization="Bearer guess"), 401, "Unauthorized")
        is_status(await call("GET", SITES, authorization="Basic secret"), 401, "Unauthorized")
        is_status(await call("POST", "/enrol", b"{}"), 401, "Unauthorized")
        assert (await call("GET", SITES, **bearer)).status == 200
        # A page whose name was made to point here says its own name.
        for host in ("evil.example:8400", "127.0.0.1.evil.example", ""):
            is_status(await Caller(plain, host=host)("GET", SITES, **bearer), 403, "Forbidden")
            is_status(await Caller(plain, host=host)("GET", "/metrics"), 403, "Forbidden")
        assert (await Caller(plain, host="[::1]:8400")("GET", SITES, **bearer)).status == 200

        assert (await far("GET", "/ca.pem")).status == 200
        is_status(await far("POST", "/enrol", b"{}"), 400, "BadRequest")
        is_status(await far("GET", "/metrics"), 401, "Unauthorized")
        is_status(await far("GET", SITES), 401, "Unauthorized")
        assert (await far("GET", SITES, **bearer)).status == 200
        assert hub.counters["requests_refused"] == 12
