"""`fieldValidation`: what becomes of fields that a kind has not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.web.test_api import APPS, MERGE, SITES, api, is_status, site
from tests.web.test_writing import APPLY, app, owners

if TYPE_CHECKING:
    from pathlib import Path

    from tests.web.asgi import Answer

WRONG = {"residency": "eu", "colour": "red", "uplink": {"latency": "40ms", "warp": 9}}


def wrong(name: str = "berlin") -> dict[str, Any]:
    made: dict[str, Any] = site(name)
    return {**made, "spec": WRONG, "extra": 1}


def warnings(answer: Answer) -> str:
    return answer.headers.get("warning", "")


@pytest.mark.parametrize("query", ["", "?fieldValidation=Strict", "?fieldValidation="])
async def test_unknown_fields_are_refused_unless_asked_otherwise(tmp_path: Path, query: str) -> None:
    async with api(tmp_path) as (hub, call):
        said = is_status(await call("POST", f"{SITES}{query}", wrong()), 422, "Invalid")
        assert {c["field"] for c in said["details"]["causes"]} == {"extra", "spec.colour", "spec.uplink.warp"}
        is_status(await call("GET", f"{SITES}/berlin"), 404, "NotFound")
        is_status(await call("POST", f"{SITES}?fieldValidation=Sloppy", site("berlin")), 400, "BadRequest")
        assert (hub.counters["fields_ignored"], hub.counters["fields_warned"]) == (0, 0)


async def test_a_warning_names_each_field_that_is_left_out(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, call):
        made = await call("POST", f"{SITES}?fieldValidation=Warn", wrong())
        assert made.status == 201, made.body
        assert made.json["spec"] == {"residency": "eu", "uplink": {"latency": "40ms"}}
        assert hub.counters["fields_warned"] == 3
        changed = await call("PATCH", f"{SITES}/berlin?fieldValidation=Warn", {"spec": {"size": 3}}, **MERGE)
        assert (changed.status, warnings(changed)) == (200, '299 - "unknown field \\"spec.size\\" was left out"')
        odd = await call("PATCH", f"{SITES}/berlin?fieldValidation=Warn", {"spec": {'a"\r\nX: y\u00fc': 3}}, **MERGE)
        assert warnings(odd) == '299 - "unknown field \\"spec.a\\"??X: y?\\" was left out"'
        assert warnings(await call("PATCH", f"{SITES}/berlin", {"spec": {"residency": "de"}}, **MERGE)) == ""


async def test_what_is_ignored_is_counted_and_what_is_wrong_is_still_refused(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, call):
        made = await call("POST", f"{SITES}?fieldValidation=Ignore", wrong())
        assert (made.status, warnings(made), hub.counters["fields_ignored"]) == (201, "", 3)
        assert "batuta_fields_ignored_total 3" in (await call("GET", "/metrics")).body.decode()
        bad = {**wrong("munich"), "spec": {**WRONG, "uplink": {"latency": "soon", "warp": 9}}}
        said = is_status(await call("POST", f"{SITES}?fieldValidation=Ignore", bad), 422, "Invalid")
        assert {c["field"] for c in said["details"]["causes"]} == {"spec.uplink.latency"}
        assert hub.counters["fields_ignored"] == 3


async def test_nobody_owns_a_field_that_was_left_out(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        document = app()
        document["spec"]["components"][0]["colour"] = "red"
        where = f"{APPS}/one?fieldManager=ann"
        is_status(await call("PATCH", where, document, **APPLY), 422, "Invalid")
        made = await call("PATCH", f"{where}&fieldValidation=Warn", document, **APPLY)
        assert made.status == 201, made.body
        assert "spec.components[0].colour" in warnings(made)
        assert not [field for field in owners(made)["ann", "Apply"] if "colour" in field]


async def test_a_scale_says_nothing_that_is_not_heard(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        await call("POST", APPS, app(replicas={"count": 1}))
        change = {"spec": {"replicas": 2, "speed": 3}}
        said = is_status(await call("PATCH", f"{APPS}/one/scale", change, **MERGE), 422, "Invalid")
        assert [c["field"] for c in said["details"]["causes"]] == ["spec.speed"]


@pytest.mark.parametrize(
    "options", [{"preconditions": []}, {"dryRun": ["Some"]}, {"dryRun": "All"}, [], {"preconditions": {"uid": 1}}]
)
async def test_options_that_cannot_be_read_delete_nothing(tmp_path: Path, options: object) -> None:
    async with api(tmp_path) as (_, call):
        await call("POST", SITES, site("berlin"))
        is_status(await call("DELETE", f"{SITES}/berlin", options), 400, "BadRequest")
        assert (await call("GET", f"{SITES}/berlin")).status == 200


@pytest.mark.parametrize("query", ["", "?fieldValidation=Warn", "?fieldValidation=Ignore"])
async def test_a_key_that_is_there_twice_is_refused_whatever_is_asked_for(tmp_path: Path, query: str) -> None:
    async with api(tmp_path) as (_, call):
        spec = b'{"residency":"eu","residency":"de"}'
        text = b'{"apiVersion":"batuta.dev/v1","kind":"Site","metadata":{"name":"a"},"spec":' + spec + b"}"
        said = is_status(await call("POST", f"{SITES}{query}", text), 422, "Invalid")
        assert [c["field"] for c in said["details"]["causes"]] == ["residency"]
        large = text[:-1] + b',"extra":"' + b"x" * 70_000 + b'"}'
        is_status(await call("POST", f"{SITES}{query}", large), 422, "Invalid")
        assert (await call("GET", SITES)).json["items"] == []
