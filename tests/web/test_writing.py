"""Writing after the conventions of Kubernetes: patches, server-side apply, scale, finalizers, generated names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.kinds import Application
from batuta.web.fieldsets import from_fields, paths_of, to_fields, written
from batuta.web.patches import PatchFails, patched
from tests.web.test_api import APPS, MERGE, SITES, Watching, api, is_status, site

if TYPE_CHECKING:
    from pathlib import Path

    from tests.web.asgi import Answer, Caller

JSON = {"content_type": "application/json-patch+json"}
APPLY = {"content_type": "application/apply-patch+yaml"}


def app(name: str = "one", **component: Any) -> dict[str, Any]:
    part = {"name": "run", "process": {"command": ["sleep", "1000"]}, **component}
    spec = {"components": [part]}
    return {"apiVersion": "batuta.dev/v1", "kind": "Application", "metadata": {"name": name}, "spec": spec}


async def apply(call: Caller, document: dict[str, Any], manager: str, query: str = "") -> Answer:
    where = f"{APPS}/{document['metadata']['name']}?fieldManager={manager}{query}"
    return await call("PATCH", where, document, **APPLY)


def owners(answer: Answer) -> dict[tuple[str, str], set[str]]:
    entries = answer.json["metadata"]["managedFields"]
    return {(e["manager"], e["operation"]): {written(p) for p in from_fields(e["fieldsV1"])} for e in entries}


COUNT = '.spec.components[name="run"].replicas.count'
COMMAND = '.spec.components[name="run"].process.command'


async def test_an_apply_creates_then_owns_what_it_says(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        made = await apply(call, app(replicas={"count": 1}), "ann")
        assert made.status == 201, made.body
        part = '.spec.components[name="run"]'
        assert owners(made) == {("ann", "Apply"): {part, f"{part}.name", COMMAND, COUNT}}
        again = await apply(call, app(replicas={"count": 1}), "ann")
        assert again.status == 200
        for field in ("uid", "generation", "managedFields"):
            assert again.json["metadata"][field] == made.json["metadata"][field]
        # Count 1 is a default, and still hers: what she said counts, not how it is stored.
        said = is_status(await apply(call, app(replicas={"count": 3}), "ben"), 409, "Conflict")
        assert said["details"]["causes"] == [
            {"reason": "FieldManagerConflict", "message": 'conflict with "ann" using batuta.dev/v1', "field": COUNT}
        ]
        assert (await call("GET", f"{APPS}/one")).json["spec"] == again.json["spec"]
        forced = await apply(call, app(replicas={"count": 3}), "ben", "&force=true")
        assert forced.json["spec"]["components"][0]["replicas"] == {"count": 3}
        assert forced.json["metadata"]["generation"] == 2
        assert COUNT in owners(forced)["ben", "Apply"]
        assert COUNT not in owners(forced)["ann", "Apply"]
        # The same value is shared, and nobody minds.
        assert (await apply(call, app(replicas={"count": 3}), "ann")).status == 200
        is_status(await call("PATCH", f"{APPS}/one", app(), **APPLY), 400, "BadRequest")


async def test_what_an_apply_no_longer_says_goes_unless_another_holds_it(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        second = {"name": "two", "process": {"command": ["sleep", "2"], "env": {"A": "1", "B": "2"}}}
        both = app()
        both["spec"]["components"].append(second)
        both["metadata"]["labels"] = {"a": "1", "b": "2"}
        assert (await apply(call, both, "ann")).status == 201
        only_b = app()
        only_b["spec"]["components"] = [{"name": "two", "process": {"command": ["sleep", "2"], "env": {"B": "2"}}}]
        assert (await apply(call, only_b, "ben")).status == 200
        left = await apply(call, app(), "ann")
        components = {c["name"]: c for c in left.json["spec"]["components"]}
        assert components["two"]["process"]["env"] == {"B": "2"}
        assert "labels" not in left.json["metadata"]
        gone = await apply(call, {**app(), "spec": {}}, "ben")
        assert [c["name"] for c in gone.json["spec"]["components"]] == ["run"]
        # From one kind of replicas to another: the old number goes with its last owner.
        assert (await apply(call, app(replicas={"count": 2}), "ann")).status == 200
        wide = await apply(call, app(replicas={"perSite": 1}), "ann")
        assert wide.json["spec"]["components"][0]["replicas"] == {"perSite": 1}


async def test_updates_own_what_they_change(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        assert (await apply(call, app(replicas={"count": 1}), "ann")).status == 201
        patch = {"spec": {"components": [app(replicas={"count": 2})["spec"]["components"][0]]}}
        after = await call("PATCH", f"{APPS}/one", patch, **MERGE, user_agent="kubectl-edit/v1 (x)")
        assert owners(after)["kubectl-edit", "Update"] == {COUNT}
        assert COUNT not in owners(after)["ann", "Apply"]
        is_status(await apply(call, app(replicas={"count": 1}), "ann"), 409, "Conflict")
        # kubectl hands fields over from client-side to server-side apply with a JSON patch.
        entries = after.json["metadata"]["managedFields"]
        handed = [e for e in entries if e["operation"] == "Apply"]
        version = after.json["metadata"]["resourceVersion"]
        change = [
            {"op": "replace", "path": "/metadata/managedFields", "value": handed},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
        ]
        moved = await call("PATCH", f"{APPS}/one", change, **JSON)
        assert list(owners(moved)) == [("ann", "Apply")]
        assert (await apply(call, app(replicas={"count": 1}), "ann")).status == 200
        is_status(await call("PATCH", f"{APPS}/one", change, **JSON), 409, "Conflict")
        garbage = [{"op": "add", "path": "/metadata/managedFields", "value": [{"manager": "x"}]}]
        is_status(await call("PATCH", f"{APPS}/one", garbage, **JSON), 422, "Invalid")


async def test_an_apply_that_is_no_document_is_refused(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        where = f"{APPS}/one?fieldManager=ann"
        is_status(await call("PATCH", where, b"a: [", **APPLY), 422, "Invalid")
        is_status(await call("PATCH", where, b"[]", **APPLY), 400, "BadRequest")
        managed = {**app(), "metadata": {"name": "one", "managedFields": [{"manager": "x"}]}}
        is_status(await call("PATCH", where, managed, **APPLY), 400, "BadRequest")
        said = is_status(await apply(call, app(nonsense=1), "ann"), 422, "Invalid")
        assert said["details"]["causes"][0]["field"] == "spec.components[0].nonsense"
        assert (said["details"]["kind"], said["details"]["name"]) == ("Application", "one")
        assert (await apply(call, app(), "ann", "&dryRun=All")).status == 201
        is_status(await call("GET", f"{APPS}/one"), 404, "NotFound")
        yaml = b"apiVersion: batuta.dev/v1\nkind: Site\nmetadata: {name: berlin}\nstatus: {state: a lie}\n"
        made = await call("PATCH", f"{SITES}/berlin?fieldManager=ann", yaml, **APPLY)
        assert (made.status, made.json["status"]["state"]) == (201, "empty")


def test_fields_are_written_and_read_back() -> None:
    paths = paths_of(Application, app(replicas={"count": 1}, inputs=[{"topic": "a"}]))
    assert {written(p) for p in paths} >= {COUNT, COMMAND, '.spec.components[name="run"].inputs'}
    assert from_fields(to_fields(paths)) == paths
    for garbage in ([], {"x:a": {}}, {"f:a": 1}, {"k:[]": {}}):
        with pytest.raises(ValueError, match=r"fieldsV1|key"):
            from_fields(garbage)


@pytest.mark.parametrize(
    ("document", "operations", "expected"),
    [
        ({"a": 1}, [{"op": "add", "path": "/b", "value": 2}], {"a": 1, "b": 2}),
        ({"a": [1, 3]}, [{"op": "add", "path": "/a/1", "value": 2}], {"a": [1, 2, 3]}),
        ({"a": [1]}, [{"op": "add", "path": "/a/-", "value": 2}], {"a": [1, 2]}),
        ({"a": [1, 2]}, [{"op": "remove", "path": "/a/0"}], {"a": [2]}),
        ({"a/b": 1, "c~": 2}, [{"op": "remove", "path": "/a~1b"}, {"op": "remove", "path": "/c~0"}], {}),
        ({"a": 1}, [{"op": "replace", "path": "/a", "value": None}], {"a": None}),
        ({"a": {"b": 1}}, [{"op": "move", "from": "/a/b", "path": "/c"}], {"a": {}, "c": 1}),
        ({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}, {"op": "add", "path": "/b/-", "value": 2}],
         {"a": [1], "b": [1, 2]}),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": 1}], {"a": 1}),
        ({"a": 1}, [{"op": "replace", "path": "", "value": []}], []),
    ],
)  # fmt: skip
def test_json_patches(document: Any, operations: Any, expected: Any) -> None:
    assert patched(document, operations) == expected


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a", "value": True},
        {"op": "remove", "path": "/x"},
        {"op": "remove", "path": ""},
        {"op": "replace", "path": "/x", "value": 1},
        {"op": "add", "path": "/l/2", "value": 1},
        {"op": "add", "path": "/l/01", "value": 1},
        {"op": "add", "path": "/a/b", "value": 1},
        {"op": "add", "path": "a", "value": 1},
        {"op": "add", "path": "/b"},
        {"op": "move", "from": "/l", "path": "/l/0"},
        {"op": "jump", "path": "/a"},
        "no operation",
    ],
)
def test_json_patches_that_fail(operation: Any) -> None:
    document = {"a": 1, "l": [0]}
    with pytest.raises(PatchFails):
        patched(document, [{"op": "add", "path": "/new", "value": 1}, operation])
    assert document == {"a": 1, "l": [0]}


async def test_a_json_patch_changes_what_it_names(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        await call("POST", SITES, site("berlin", labels={"a": "1"}))
        change = [
            {"op": "test", "path": "/metadata/labels/a", "value": "1"},
            {"op": "add", "path": "/spec/residency", "value": "eu"},
        ]
        after = await call("PATCH", f"{SITES}/berlin", change, **JSON)
        assert (after.status, after.json["spec"]) == (200, {"residency": "eu"})
        change[0]["value"] = "2"
        is_status(await call("PATCH", f"{SITES}/berlin", change, **JSON), 422, "Invalid")
        is_status(await call("PATCH", f"{SITES}/berlin", {}, **JSON), 422, "Invalid")
        is_status(await call("PATCH", f"{SITES}/berlin?fieldValidation=Maybe", [], **JSON), 400, "BadRequest")
        strict = {**site("x"), "spec": {"unknown": 1}}
        is_status(await call("POST", f"{SITES}?fieldValidation=Strict", strict), 422, "Invalid")


async def test_names_are_generated(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        nameless = {"apiVersion": "batuta.dev/v1", "kind": "Site", "metadata": {"generateName": "shop-"}, "spec": {}}
        names = {(await call("POST", SITES, nameless)).json["metadata"]["name"] for _ in range(3)}
        assert len(names) == 3
        assert all(name.startswith("shop-") and len(name) == 10 for name in names)


async def test_finalizers_hold_a_deletion_until_the_last_is_gone(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, call):
        await call("POST", SITES, site("berlin", finalizers=["example.com/a"]))
        version = (await call("GET", SITES)).json["metadata"]["resourceVersion"]
        watching = Watching(call, f"{SITES}?watch=true&resourceVersion={version}")
        marked = await call("DELETE", f"{SITES}/berlin")
        assert (marked.status, marked.json["kind"]) == (200, "Site")
        assert marked.json["metadata"]["deletionTimestamp"].endswith("Z")
        assert (await watching.next())[0] == "MODIFIED"
        again = await call("DELETE", f"{SITES}/berlin")
        assert again.json["metadata"]["deletionTimestamp"] == marked.json["metadata"]["deletionTimestamp"]
        more = {"metadata": {"finalizers": ["example.com/a", "example.com/b"]}}
        is_status(await call("PATCH", f"{SITES}/berlin", more, **MERGE), 422, "Invalid")
        # Nobody takes it back by leaving it out.
        kept = await call("PATCH", f"{SITES}/berlin", {"metadata": {"deletionTimestamp": None}}, **MERGE)
        assert kept.json["metadata"]["deletionTimestamp"] == marked.json["metadata"]["deletionTimestamp"]
        freed = await call("PATCH", f"{SITES}/berlin", {"metadata": {"finalizers": None}}, **MERGE)
        assert freed.status == 200, freed.body
        assert (await watching.next())[0] == "DELETED"
        await watching.stream.aclose()
        is_status(await call("GET", f"{SITES}/berlin"), 404, "NotFound")
        assert not hub.loop.state.desired


async def test_a_deletion_with_preconditions_deletes_that_one_alone(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        made = (await call("POST", SITES, site("berlin"))).json
        wrong = {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}
        is_status(await call("DELETE", f"{SITES}/berlin", wrong), 409, "Conflict")
        is_status(await call("DELETE", f"{SITES}/berlin", {"preconditions": {"resourceVersion": "1"}}), 409, "Conflict")
        assert (await call("DELETE", f"{SITES}/berlin?dryRun=All")).status == 200
        right = {"preconditions": {"uid": made["metadata"]["uid"]}}
        assert (await call("DELETE", f"{SITES}/berlin", right)).json["status"] == "Success"


async def test_scale_is_the_one_number_of_an_application(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        await call("POST", APPS, app())
        scale = (await call("GET", f"{APPS}/one/scale")).json
        assert (scale["kind"], scale["apiVersion"], scale["spec"]) == ("Scale", "autoscaling/v1", {"replicas": 1})
        after = await call("PATCH", f"{APPS}/one/scale", {"spec": {"replicas": 3}}, **MERGE)
        assert after.json["spec"] == {"replicas": 3}
        shown = (await call("GET", f"{APPS}/one")).json
        assert shown["spec"]["components"][0]["replicas"] == {"count": 3}
        assert shown["metadata"]["generation"] == 2
        whole = after.json
        whole["spec"]["replicas"] = 0
        assert (await call("PUT", f"{APPS}/one/scale", whole)).json["spec"] == {"replicas": 0}
        is_status(await call("PUT", f"{APPS}/one/scale", whole), 409, "Conflict")
        for wrong in (-1, "2", True):
            change = {"spec": {"replicas": wrong}}
            is_status(await call("PATCH", f"{APPS}/one/scale", change, **MERGE), 422, "Invalid")
        is_status(await call("GET", f"{APPS}/two/scale"), 404, "NotFound")
        is_status(await call("GET", f"{SITES}/berlin/scale"), 404, "NotFound")


async def test_an_application_without_one_number_says_so(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        await call("POST", APPS, app("wide", replicas={"perSite": 2}))
        said = is_status(await call("GET", f"{APPS}/wide/scale"), 422, "Invalid")
        assert "follows the fleet" in said["message"]
        two = app("two")
        two["spec"]["components"].append({**two["spec"]["components"][0], "name": "other"})
        await call("POST", APPS, two)
        change = {"spec": {"replicas": 2}}
        said = is_status(await call("PATCH", f"{APPS}/two/scale", change, **MERGE), 422, "Invalid")
        assert "2 components" in said["message"]


async def test_who_applies_whole_manifests_owns_what_they_changed(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        assert (await apply(call, app(replicas={"count": 1}), "ann")).status == 201
        text = msgspec.json.encode(app(replicas={"count": 2}))
        assert (await call("POST", "/apply", text, user_agent="batuta")).json["items"][0]["action"] == "configured"
        assert (await call("POST", "/apply", text, user_agent="batuta")).json["items"][0]["action"] == "unchanged"
        shown = await call("GET", f"{APPS}/one")
        assert owners(shown)["batuta", "Update"] == {COUNT}
        is_status(await apply(call, app(replicas={"count": 1}), "ann"), 409, "Conflict")


async def test_what_has_no_sense_is_refused_and_breaks_nothing(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        before = (await apply(call, app(), "ann")).json["metadata"]["managedFields"]
        where = f"{APPS}/one?fieldManager=ann"
        one = {"manager": "x", "operation": "Apply"}
        garbage: list[tuple[str, str, Any, dict[str, str]]] = [
            ("PATCH", where, {**app(), "metadata": []}, APPLY),
            ("PATCH", where, {**app(), "spec": []}, APPLY),
            ("PATCH", where, {**app(), "spec": {"components": [1, [], {"name": []}]}}, APPLY),
            ("PATCH", where, {**app(), "spec": {"components": {"name": "run"}}}, APPLY),
            ("PATCH", where, [1], MERGE),
            ("PATCH", where, {"metadata": []}, MERGE),
            ("PATCH", where, [{"op": "replace", "path": "", "value": 1}], JSON),
            ("PATCH", where, {"metadata": {"managedFields": [{**one, "time": 1, "fieldsV1": {"f:a": {}}}]}}, MERGE),
            ("PATCH", where, {"metadata": {"managedFields": [{**one, "fieldsV1": {"k:1": {}}}]}}, MERGE),
            ("PATCH", where, {"metadata": {"managedFields": [{**one, "fieldsV1": {"k:": {}}}]}}, MERGE),
            ("PATCH", f"{APPS}/one/scale", {"metadata": [], "spec": []}, MERGE),
            ("PUT", f"{APPS}/one/scale", [], {}),
            ("PUT", f"{APPS}/one/scale", {"spec": {"replicas": None}}, {}),
            ("POST", APPS, {"metadata": {"generateName": 1}}, {}),
        ]
        for method, path, body, headers in garbage:
            answer = await call(method, path, body, **headers)
            assert answer.status in (400, 422), (method, path, body, answer.body)
        assert (await call("GET", f"{APPS}/one")).json["metadata"]["managedFields"] == before
