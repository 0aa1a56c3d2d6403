"""The audit: every write is in it before it happens, and refusals too; read back over the API."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.errors import FabricUnavailable
from batuta.fabric.memory import MemoryBroker
from batuta.hub.audit import REFUSALS_A_MINUTE_MAX, spoken
from batuta.hub.audit_reading import PAGE, Wanted, find, newest_sequence
from batuta.kinds import manifest
from tests.hub.hubs import PROCESS_APP, join, request_for
from tests.web.test_api import MERGE
from tests.web.test_rights import APPS, LOCAL, SITE, V1, app, bearer, guarded

if TYPE_CHECKING:
    from pathlib import Path

    from tests.web.asgi import Caller

SITES = f"{V1}/sites"


async def entries(call: Caller, query: str = "") -> list[dict[str, Any]]:
    answer = await call("GET", f"/audit?{query}", **LOCAL)
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json["items"]
    return found


async def test_every_write_is_kept_with_who_what_before_and_after(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (hub, call):
        made = await call("POST", SITES, SITE, **LOCAL)
        assert made.status == 201
        await call("PATCH", f"{SITES}/berlin", {"spec": {"residency": "eu"}}, **LOCAL, **MERGE)
        replaced = (await call("GET", f"{SITES}/berlin", **LOCAL)).json
        replaced["spec"] = {"residency": "de"}
        await call("PUT", f"{SITES}/berlin", replaced, **LOCAL)
        await call("DELETE", f"{SITES}/berlin", **LOCAL)
        await call("POST", "/apply", app("one"), **LOCAL)
        await call("POST", "/apply", app("one"), **LOCAL)
        token = (await call("POST", "/tokens", {"site": "lab"}, **LOCAL)).json
        api_token = (await call("POST", "/tokens/api", {"role": "viewer"}, **LOCAL)).json
        data = b"weights"
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert (await call("PUT", f"/artifacts/{digest}", data, **LOCAL)).status == 201
        await call("POST", "/enrol", msgspec.to_builtins(request_for(hub, token["token"], "pi-1")), **LOCAL)
        for each in (token, api_token):
            assert (await call("DELETE", f"/tokens/{each['id']}", **LOCAL)).status == 200
        await call("DELETE", f"{V1}/nodes/pi-1", **LOCAL)
        found = await entries(call)
        assert [(e["verb"], e["what"], e["outcome"]) for e in found] == [
            ("create", "sites/berlin", "accepted"),
            ("patch", "sites/berlin", "accepted"),
            ("replace", "sites/berlin", "accepted"),
            ("delete", "sites/berlin", "accepted"),
            ("apply", "applications/default/one", "accepted"),
            ("apply", "applications/default/one", "unchanged"),
            ("create", f"tokens/{token['id']}", "accepted"),
            ("create", f"tokens/{api_token['id']}", "accepted"),
            ("upload", f"artifacts/{digest}", "accepted"),
            ("enrol", "nodes/pi-1", "accepted"),
            ("enrol", "sites/lab", "accepted"),
            ("enrol", "nodes/pi-1", "accepted"),
            ("revoke", f"tokens/{token['id']}", "accepted"),
            ("revoke", f"tokens/{api_token['id']}", "accepted"),
            ("delete", "nodes/pi-1", "accepted"),
        ]
        assert {(e["who"], e["role"], e["address"]) for e in found} == {("local", "admin", "127.0.0.1")}
        assert (found[1]["before"]["spec"], found[1]["after"]["spec"]) == ({}, {"residency": "eu"})
        assert (found[2]["before"]["spec"], found[2]["after"]["spec"]) == ({"residency": "eu"}, {"residency": "de"})
        assert "before" not in found[0]
        assert "after" not in found[3]
        assert found[0]["request"] == made.headers["audit-id"]
        assert len({e["request"] for e in found}) == len(found) - 2  # one enrolment declares a site and a node
        assert found[0]["at"] <= hub.clock.now()
        text = (await call("GET", "/audit", **LOCAL)).body.decode()
        for secret in (token["token"], api_token["token"].rpartition(".")[2], "local-secret", "digest"):
            assert secret not in text


async def test_refusals_and_failures_are_kept_too_and_dry_runs_are_not(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (hub, call):
        viewer = await bearer(hub, "viewer", name="guest")
        token_id = hub.api_tokens.all()[0].id
        await call("POST", APPS, {}, **viewer)
        await call("POST", SITES, {**SITE, "spec": {"nonsense": 1}}, **LOCAL)
        await call("DELETE", f"{SITES}/nowhere", **LOCAL)
        await call("PUT", f"/artifacts/sha256:{'0' * 64}", b"other bytes", **LOCAL)
        await call("POST", "/apply?dryRun=All", app("one"), **LOCAL)
        await call("POST", "/apply?dryRun=All", b"kind: Nothing", **LOCAL)
        await call("POST", "/tokens/api?dryRun=All", {"role": "root"}, **LOCAL)  # which knows no dry run
        await call("POST", SITES, SITE)  # without a token: counted, and no entry
        found = (await entries(call))[1:]
        said = [(e["who"], e["verb"], e["what"], e["outcome"], e.get("code")) for e in found]
        assert said == [
            (f"token/{token_id}", "create", "applications/default", "refused", 403),
            ("local", "create", "sites", "refused", 422),
            ("local", "delete", "sites/nowhere", "refused", 404),
            ("local", "upload", f"artifacts/sha256:{'0' * 64}", "accepted", None),
            ("local", "upload", f"artifacts/sha256:{'0' * 64}", "failed", 422),
            ("local", "create", "tokens/api", "refused", 422),
        ]
        assert "takes role operator" in found[0]["message"]
        assert found[3]["request"] == found[4]["request"]

        # Nobody can push what others did out of the log by being refused for ever.
        for _ in range(REFUSALS_A_MINUTE_MAX + 5):
            await call("POST", APPS, {}, **viewer)
        mine = await entries(call, "who=guest&limit=1000")
        assert len(mine) <= 2 * REFUSALS_A_MINUTE_MAX  # a minute may have ended meanwhile
        assert hub.counters["audit_entries_lost"] >= 1 or len(mine) > REFUSALS_A_MINUTE_MAX


async def test_what_cannot_be_audited_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with guarded(tmp_path) as (hub, call):
        await call("POST", SITES, SITE, **LOCAL)
        await join(hub, "pi-1", "lab")

        async def full(*_: object) -> None:
            raise FabricUnavailable("no space left")

        monkeypatch.setattr(hub.audit.log, "append", full)
        data = b"weights"
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        for method, path, body in (
            ("POST", "/apply", app("one")),
            ("PATCH", f"{SITES}/berlin", {"spec": {"residency": "eu"}}),
            ("DELETE", f"{SITES}/berlin", b""),
            ("DELETE", f"{V1}/nodes/pi-1", b""),
            ("POST", "/tokens", {}),
            ("POST", "/tokens/api", {}),
            ("PUT", f"/artifacts/{digest}", data),
        ):
            headers = MERGE if method == "PATCH" else {}
            refused = await call(method, path, body, **LOCAL, **headers)
            assert refused.status == 503, (method, path, refused.body)
            assert "audit" in refused.json["message"]
        assert "applications.default.one" not in hub.loop.state.desired
        assert (await call("GET", f"{SITES}/berlin", **LOCAL)).json["spec"] == {}
        assert "pi-1" in hub.enrolment.known
        assert (await call("GET", "/tokens", **LOCAL)).json["items"][1:] == []
        assert hub.artifacts.held() == []
        assert hub.counters["audit_entries_lost"] >= 7
        assert (await call("GET", SITES, **LOCAL)).status == 200  # reading goes on

        async def doctor() -> str:
            checks = (await call("GET", "/doctor", **LOCAL)).json["checks"]
            return str(next(check["result"] for check in checks if check["name"] == "audit"))

        assert await doctor() == "fail"
        monkeypatch.undo()
        assert (await call("POST", "/apply", app("one"), **LOCAL)).status == 200
        assert await doctor() == "pass"


async def test_entries_are_found_by_what_is_asked_for_also_by_the_next_hub(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with guarded(tmp_path, broker) as (hub, call):
        many = PAGE + 20
        for n in range(many):
            await hub.audit.accepted("create", f"sites/s{n}")
        await call("POST", "/apply", app("one"), **LOCAL)
        assert [e["what"] for e in await entries(call, "what=applications")] == ["applications/default/one"]
    async with guarded(tmp_path, broker) as (hub, call):
        assert await newest_sequence(hub.audit) == many + 1
        assert [e["what"] for e in await entries(call, "what=applications/default")] == ["applications/default/one"]
        assert await entries(call, "what=app") == []
        assert [e["what"] for e in await entries(call, "name=s3")] == ["sites/s3"]
        assert [e["what"] for e in await entries(call, "verb=apply")] == ["applications/default/one"]
        assert len(await entries(call, "who=hub&limit=1000")) == many
        assert [e["sequence"] for e in await entries(call, "limit=2")] == [many, many + 1]
        assert len(await entries(call, "since=1h&limit=5000")) == many + 1
        later = hub.clock.now() + 60_000
        assert await entries(call, f"since={later}") == []
        whole = await find(hub.audit, Wanted(limit=5_000))
        assert ([n for n, _ in whole.items], whole.is_whole) == (list(range(1, many + 2)), True)
        forward = await find(hub.audit, Wanted(after=many - 1, limit=1))
        assert ([n for n, _ in forward.items], forward.last) == ([many], many)
        for wrong in ("since=yesterday", "limit=x", "after=-1"):
            assert (await call("GET", f"/audit?{wrong}", **LOCAL)).status == 400


async def test_following_waits_for_what_comes(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (_, call):
        waiting = asyncio.create_task(call("GET", "/audit?wait=20000", **LOCAL))
        await asyncio.sleep(0)
        await call("POST", SITES, SITE, **LOCAL)
        async with asyncio.timeout(60):
            answer = (await waiting).json
        assert [e["what"] for e in answer["items"]] == ["sites/berlin"]
        waiting = asyncio.create_task(call("GET", f"/audit?wait=20000&after={answer['last']}", **LOCAL))
        await asyncio.sleep(0)
        await call("DELETE", f"{SITES}/berlin", **LOCAL)
        async with asyncio.timeout(60):
            assert [e["verb"] for e in (await waiting).json["items"]] == ["delete"]
        nothing = await call("GET", "/audit?wait=50&after=2", **LOCAL)
        assert (nothing.json["items"], nothing.json["last"]) == ([], 2)


def test_secrets_are_hidden_and_large_documents_are_kept_as_hashes() -> None:
    text = PROCESS_APP.replace("NAME", "one").replace(
        "process: {", "process: {env: {DB_PASSWORD: hunter2, API_KEY: k1, MODE: fast}, "
    )
    (resource,) = manifest.parse(text)
    said = spoken(resource)
    assert said is not None
    env = said["spec"]["components"][0]["process"]["env"]
    assert env == {"DB_PASSWORD": "(hidden)", "API_KEY": "(hidden)", "MODE": "fast"}
    assert spoken({"kind": "Secret", "data": {"a": "b"}}) == {"kind": "Secret", "data": "(hidden)"}
    large = spoken({"text": "x" * 300_000})
    assert large is not None
    assert sorted(large) == ["bytes", "sha256"]
