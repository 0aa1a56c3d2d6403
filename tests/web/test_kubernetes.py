"""The conventions that Kubernetes clients count on: discovery, OpenAPI, Tables. By hand here; kubectl itself in e2e."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from batuta.kinds import KINDS, SHOWN
from batuta.web.ages import age
from tests.web.test_api import APPS, BASE, SITES, Watching, api, is_status, site

if TYPE_CHECKING:
    from pathlib import Path

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList"
KUBECTL = ",".join([AGGREGATED.format("v2"), AGGREGATED.format("v2beta1"), "application/json"])
TABLE = (
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
)


async def test_discovery_is_aggregated_for_those_who_ask(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        found = await call("GET", "/apis", accept=KUBECTL)
        assert found.headers["content-type"] == AGGREGATED.format("v2")
        assert found.json["apiVersion"] == "apidiscovery.k8s.io/v2"
        resources = {r["resource"]: r for r in found.json["items"][0]["versions"][0]["resources"]}
        assert set(resources) == {kind.plural for kind in (*KINDS, *SHOWN)}
        below = {s["subresource"]: s["responseKind"] for s in resources["applications"]["subresources"]}
        assert below["scale"] == {"group": "autoscaling", "version": "v1", "kind": "Scale"}
        assert "scale" not in {s["subresource"] for s in resources["sites"]["subresources"]}
        assert resources["sites"]["scope"] == "Cluster"

        older = await call("GET", "/apis", accept=f"{AGGREGATED.format('v2beta1')},application/json")
        assert older.headers["content-type"] == AGGREGATED.format("v2beta1")
        assert older.json["apiVersion"] == "apidiscovery.k8s.io/v2beta1"
        core = (await call("GET", "/api", accept=KUBECTL)).json["items"][0]["versions"][0]["resources"]
        assert {r["resource"] for r in core} == {"namespaces", "nodes", "pods", "events"}

        plain = await call("GET", "/apis")
        assert plain.json["kind"] == "APIGroupList"
        named = {r["name"] for r in (await call("GET", BASE)).json["resources"]}
        assert {"applications/scale", "applications/status", "nodes"} <= named
        version = (await call("GET", "/version")).json
        assert re.fullmatch(r"v1\.32\.\d+\+.*", version["gitVersion"])


def referred(value: Any) -> set[str]:
    """Every reference below."""
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*(referred(inner) for inner in value.values()))
    return set().union(*map(referred, value)) if isinstance(value, list) else set()


async def test_openapi_describes_every_field_of_every_kind(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        index = (await call("GET", "/openapi/v3")).json["paths"]
        where = index["apis/batuta.dev/v1"]["serverRelativeURL"]
        document = (await call("GET", where)).json
        schemas = document["components"]["schemas"]
        assert {r.removeprefix("#/components/schemas/") for r in referred(document)} <= schemas.keys()
        for kind in KINDS:
            schema = schemas[f"dev.batuta.v1.{kind.__name__}"]
            gvk = {"group": "batuta.dev", "version": "v1", "kind": kind.__name__}
            assert schema["x-kubernetes-group-version-kind"] == [gvk]
            assert {"apiVersion", "kind", "metadata", "spec", "status"} <= schema["properties"].keys()
            inside = "/namespaces/{namespace}" if kind.namespaced else ""
            patch = document["paths"][f"{BASE}{inside}/{kind.plural}/{{name}}"]["patch"]
            assert patch["x-kubernetes-group-version-kind"] == gvk
            assert ("fieldValidation", "query") in {(p["name"], p["in"]) for p in patch["parameters"]}
        assert "post" not in document["paths"][f"{BASE}/namespaces/{{namespace}}/rollouts"]
        assert schemas["dev.batuta.v1.Rollout"]["x-kubernetes-group-version-kind"][0]["kind"] == "Rollout"
        assert "release" in schemas["dev.batuta.v1.RolloutSpec"]["properties"]
        assert "waves" in schemas["dev.batuta.v1.ApplicationRollout"]["properties"]
        memory = schemas["dev.batuta.v1.Resources"]["properties"]["memory"]
        assert (memory["type"], memory["x-kubernetes-int-or-string"]) == ("string", True)
        assert schemas["dev.batuta.v1.Replicas"]["properties"]["count"]["nullable"] is True
        # Kubernetes' own reader of these documents knows no union of types and no constant.
        assert not [s for s in schemas.values() for p in s["properties"].values() if isinstance(p.get("type"), list)]
        is_status(await call("GET", "/openapi/v2"), 404, "NotFound")
        is_status(await call("GET", "/openapi/v3/apis/nothing/v1"), 404, "NotFound")


async def test_lists_are_tables_with_the_columns_of_the_kind(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        await call("POST", SITES, site("berlin", labels={"land": "de"}))
        table = (await call("GET", f"{SITES}?limit=500", accept=TABLE)).json
        assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
        assert int(table["metadata"]["resourceVersion"]) > 0
        narrow = [c["name"] for c in table["columnDefinitions"] if not c["priority"]]
        assert narrow == ["Name", "Parent", "State", "Online", "Nodes", "Age"]
        wide = [c["name"] for c in table["columnDefinitions"] if c["priority"]]
        assert wide == ["Residency", "Bandwidth", "Metered", "Zone", "Reason"]
        assert len(table["rows"][0]["cells"]) == len(narrow) + len(wide)
        (row,) = table["rows"]
        assert row["cells"][:5] == ["berlin", "<none>", "empty", "0", "0"]
        assert re.fullmatch(r"\ds", row["cells"][5])
        assert row["object"]["kind"] == "PartialObjectMetadata"
        assert row["object"]["metadata"]["labels"] == {"land": "de"}

        whole = (await call("GET", f"{SITES}?includeObject=Object", accept=TABLE)).json["rows"][0]["object"]
        assert whole == (await call("GET", f"{SITES}/berlin")).json
        assert (await call("GET", f"{SITES}?includeObject=None", accept=TABLE)).json["rows"][0]["object"] is None
        one = (await call("GET", f"{SITES}/berlin", accept=TABLE)).json
        assert (one["kind"], len(one["rows"])) == ("Table", 1)
        assert (await call("GET", SITES, accept="application/json")).json["kind"] == "SiteList"
        assert (await call("GET", SITES, accept="*/*")).json["kind"] == "SiteList"
        assert (await call("GET", APPS, accept=TABLE)).json["rows"] == []


class TableWatching(Watching):
    """A watch that asks for rows."""

    def __init__(self, call: Any, path: str) -> None:
        super().__init__(call, path)
        self.stream = call.stream("GET", path, accept=TABLE)


async def test_a_watch_shows_rows_and_their_head_once(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        await call("POST", SITES, site("a"))
        watching = TableWatching(call, f"{SITES}?watch=true")
        word, first = await watching.next()
        assert (word, first["kind"], len(first["columnDefinitions"])) == ("ADDED", "Table", 11)
        await call("POST", SITES, site("b"))
        word, second = await watching.next()
        assert (word, second["columnDefinitions"], second["rows"][0]["cells"][0]) == ("ADDED", [], "b")
        await watching.stream.aclose()


def test_ages_are_short() -> None:
    minute, hour, day = 60_000, 3_600_000, 86_400_000
    shown = [
        age(0, ms) for ms in (0, 119_999, 2 * minute, 5 * minute + 10_000, 3 * hour - 1, 3 * hour, 7 * hour + minute)
    ]
    assert shown == ["0s", "119s", "2m", "5m10s", "179m", "3h", "7h1m"]
    assert [age(0, ms) for ms in (47 * hour, 2 * day, 3 * day + 2 * hour, 700 * day)] == ["47h", "2d", "3d2h", "700d"]
    assert (age(5, 0), age(None, 0)) == ("0s", "<unknown>")
