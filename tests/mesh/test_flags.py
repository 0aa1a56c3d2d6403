"""The node's flags over HTTP, asked by the providers that people use: real packages, a real door, real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode

from batuta.core.flags import FlagOrder, Sheet, written
from batuta.core.gateway import MEASURES_FILE
from batuta.core.observed import Mesh
from batuta.dataflow.mesh.call import Calls
from batuta.dataflow.mesh.cards import Cards
from batuta.dataflow.mesh.flags import FlagDoor
from batuta.dataflow.mesh.http import Door
from batuta.dataflow.mesh.routes import Routes
from batuta.dataflow.mesh.tally import Tally

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openfeature.client import OpenFeatureClient

NOW = 1_790_000_012_345
SPLIT = FlagOrder(
    namespace="default", name="overlay", why="SPLIT", rule=2, split={"new": 50, "old": 50},
    variants={"new": True, "old": False},
)  # fmt: skip


def fixed(name: str, value: Any, why: Any = "STATIC", namespace: str = "default") -> FlagOrder:
    return FlagOrder(namespace=namespace, name=name, why=why, variants={"only": value})


FLAGS = (
    fixed("colour", "red", "TARGETING_MATCH"), fixed("count", 3), fixed("look", {"a": [1, {"b": None}]}), SPLIT,
    fixed("rate", 1.0, "DISABLED"), fixed("colour", "blue", namespace="team"),
)  # fmt: skip


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]
    tag: str


class Place:
    """A door with flags behind it."""

    def __init__(self, directory: Path, port: int, flags: FlagDoor) -> None:
        self.file = directory / "flags.json"
        self.port = port
        self.flags = flags

    def put(self, *orders: FlagOrder) -> None:
        new = self.file.with_suffix(".new")
        new.write_bytes(written(Sheet(flags=orders)))
        new.replace(self.file)

    def url(self, namespace: str = "default") -> str:
        return f"http://127.0.0.1:{self.port}/flags/{namespace}"

    async def ask(self, path: str, body: bytes = b"{}", method: str = "POST", **headers: str) -> Answer:
        return await asyncio.to_thread(self._ask, path, body, method, headers)

    def _ask(self, path: str, body: bytes, method: str, headers: dict[str, str]) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, named, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=60) as said:
                return Answer(said.status, json.loads(said.read()), said.headers["ETag"])
        except urllib.error.HTTPError as error:
            return Answer(error.code, json.loads(error.read() or b"{}"), error.headers["ETag"])

    async def key(self, body: bytes, path: str = "/ofrep/v1/evaluate/flags/overlay") -> tuple[int, str]:
        said = await self.ask(path, body)
        return said.status, str(said.body.get("errorCode", ""))


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    cards, flags = Cards("pi", tmp_path / "instances"), FlagDoor(tmp_path / "flags.json", lambda: NOW)

    async def nobody(*_: Any) -> Any:
        raise AssertionError("no model is asked here")

    made = Door(Routes(Calls(cards, nobody, Tally(), None), cards, lambda: True, flags))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.setblocking(False)
    await made.open(listener)
    found = Place(tmp_path, listener.getsockname()[1], flags)
    found.put(*FLAGS)
    try:
        yield found
    finally:
        await made.close(grace_s=0.1)


def connected(url: str) -> OpenFeatureClient:
    """A client of the SDK over the provider, as a program makes it from BATUTA_FLAGS_URL."""
    api.set_provider_and_wait(OFREPProvider(url))
    return api.get_client()


async def test_the_openfeature_sdk_reads_every_type(place: Place) -> None:
    def asked() -> list[Any]:
        client = connected(place.url())
        someone = EvaluationContext("camera-1", {"lens": "wide"})
        try:
            return [
                client.get_string_details("colour", "none", someone),
                client.get_integer_details("count", 0, someone),
                client.get_object_details("look", {}, someone),
                client.get_boolean_details("overlay", True, someone),
                client.get_float_details("rate", 0.5, someone),
                client.get_string_details("missing", "mine", someone),
                client.get_boolean_details("overlay", True),
                client.get_boolean_details("colour", True, someone),
                connected(place.url("team")).get_string_details("colour", "none"),
            ]
        finally:
            api.clear_providers()

    colour, count, look, overlay, rate, missing, keyless, other_type, team = await asyncio.to_thread(asked)
    assert (colour.value, colour.variant, str(colour.reason)) == ("red", "only", "TARGETING_MATCH")
    assert (count.value, look.value, rate.value) == (3, {"a": [1, {"b": None}]}, 1.0)
    assert (str(count.reason), str(overlay.reason), str(rate.reason)) == ("STATIC", "SPLIT", "DISABLED")
    assert overlay.value == (overlay.variant == "new")
    assert overlay.flag_metadata == {"namespace": "default", "rule": 2}
    assert (missing.value, missing.error_code) == ("mine", ErrorCode.FLAG_NOT_FOUND)
    assert (keyless.value, keyless.error_code) == (True, ErrorCode.TARGETING_KEY_MISSING)
    assert (other_type.value, other_type.error_code) == (True, ErrorCode.TYPE_MISMATCH)
    assert team.value == "blue"


async def test_what_is_asked_badly_is_said_as_the_protocol_says_it(place: Place) -> None:
    assert await place.key(b'{"context":{"targetingKey":"k"}}') == (200, "")
    for body in (b"{}", b"", b'{"context":null}', b'{"context":{}}', b'{"context":{"targetingKey":""}}'):
        assert await place.key(body) == (400, "TARGETING_KEY_MISSING"), body
    for body in (b"{", b"[]", b"7", b"\xff\xfe", b"[" * 5000):
        assert await place.key(body) == (400, "PARSE_ERROR"), body[:9]
    long = json.dumps({"context": {"targetingKey": "k" * 2000}}).encode()
    for body in (b'{"context":7}', b'{"context":{"targetingKey":7}}', long):
        assert await place.key(body) == (400, "INVALID_CONTEXT"), body[:40]
    said = await place.ask("/ofrep/v1/evaluate/flags/nope")
    assert (said.status, said.body["key"], said.body["errorCode"]) == (404, "nope", "FLAG_NOT_FOUND")
    assert (await place.ask("/ofrep/v1/evaluate/flags/colour", b"", "GET")).status == 405
    assert (await place.ask("/flags/nobody/ofrep/v1/evaluate/flags/colour")).status == 404
    said = await place.ask("/ofrep/v1/evaluate/flags/colour", batuta_namespace="team")
    assert said.body["value"] == "blue"
    # What is no path of flags is still the mesh's to answer.
    assert (await place.ask("/ofrep/v1/configuration")).status == 404
    assert (await place.ask("/v2/health/live", b"", "GET")).body == {"live": True}


async def test_all_flags_at_once_are_read_again_only_when_something_changed(place: Place) -> None:
    path, someone = "/ofrep/v1/evaluate/flags", b'{"context":{"targetingKey":"camera-1"}}'
    first = await place.ask(path, someone)
    assert [each["key"] for each in first.body["flags"]] == ["colour", "count", "look", "overlay", "rate"]
    for known in (first.tag, f'"other", W/{first.tag}', "*"):
        again = await place.ask(path, someone, if_none_match=known)
        assert (again.status, again.body, again.tag) == (304, {}, first.tag), known
    keyless = await place.ask(path, if_none_match=first.tag)
    assert keyless.status == 200
    assert [each.get("errorCode") for each in keyless.body["flags"]] == [
        None,
        None,
        None,
        "TARGETING_KEY_MISSING",
        None,
    ]
    place.put(fixed("colour", "green"))
    changed = await place.ask(path, someone, if_none_match=first.tag)
    assert (changed.status, [each["value"] for each in changed.body["flags"]]) == (200, ["green"])
    assert changed.tag != first.tag


async def test_a_change_counts_from_the_next_request_on_and_what_cannot_be_read_is_no_answer(place: Place) -> None:
    path = "/ofrep/v1/evaluate/flags/colour"
    assert (await place.ask(path)).body["value"] == "red"
    place.put(fixed("colour", "green"))
    assert (await place.ask(path)).body["value"] == "green"
    place.file.write_bytes(b"{")
    said = await place.ask(path)
    assert (said.status, list(said.body)) == (500, ["errorDetails"])
    place.put(fixed("colour", "blue"))
    assert (await place.ask(path)).body["value"] == "blue"
    os.unlink(place.file)
    assert (await place.ask(path)).status == 404


async def test_it_remembers_who_was_asked_for_and_so_does_the_next_gateway(place: Place, tmp_path: Path) -> None:
    await place.ask("/ofrep/v1/evaluate/flags/colour")
    await place.ask("/ofrep/v1/evaluate/flags/nope")
    assert place.flags.asked_at == {"default/colour": NOW // 60_000 * 60_000}
    (tmp_path / MEASURES_FILE).write_bytes(
        json.dumps({"flags": place.flags.asked_at, "calls": {"answered": 1}}).encode()
    )
    assert json.loads((tmp_path / MEASURES_FILE).read_bytes())["flags"] == Mesh(flags=place.flags.asked_at).flags
    after = FlagDoor(place.file, lambda: NOW + 60_000)
    after.remember(tmp_path / MEASURES_FILE)
    assert after.asked_at == place.flags.asked_at
    for damaged in (b"{", b"[]", b""):
        (tmp_path / MEASURES_FILE).write_bytes(damaged)
        FlagDoor(place.file, lambda: NOW).remember(tmp_path / MEASURES_FILE)
