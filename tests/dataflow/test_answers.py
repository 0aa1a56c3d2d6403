"""Names, routes and subjects of answers; which filters a broker may be given."""

from __future__ import annotations

import pytest

from batuta.core.decided import Instance
from batuta.dataflow import answers
from batuta.dataflow.answers import Place
from batuta.dataflow.stores import covers, distinct
from batuta.kinds.application import Input, Output


def test_the_place_is_read_from_either_form_of_acknowledgement() -> None:
    old = "$JS.ACK.$MQTT_msgs.default_a_b-at-n1.2.17.30.1795226084247273461.9"
    new = "$JS.ACK.n-n1.ACCHASH.$MQTT_msgs.default_a_b-at-n1.2.17.30.1795226084247273461.9.x"
    assert answers.place_of(old) == answers.place_of(new) == Place(2, 17, 1795226084247273461)
    with pytest.raises(ValueError, match="acknowledges nothing"):
        answers.place_of("_INBOX.abc")


def test_the_name_of_an_answer_is_the_frames_alone() -> None:
    assert answers.answer_id("ns_app_read", "n1", Place(1, 17, 5)) == "ns_app_read:n1:17:5"
    assert answers.answer_id("ns_app_read", "n1", Place(9, 17, 5)) == "ns_app_read:n1:17:5"


def made(*outputs: Output) -> Instance:
    inputs = (Input(topic="a/+/frame"), Input(topic="b/#", decode="raw"))
    return Instance(
        namespace="d", application="p", component="c", revision=1, slot="0", epoch=1, inputs=inputs, outputs=outputs
    )


def test_routes_fill_in_what_the_wildcards_matched() -> None:
    routes = answers.routes_of(made(Output(topic="out/{1}/x"), Output(forward="hub")))
    found = answers.route_of(routes, "a/7/frame")
    assert found is not None
    assert (found[0].input.decode, found[0].forward, found[1]) == ("json", True, "out/7/x")
    found = answers.route_of(routes, "b/1/2")
    assert found is not None
    assert (found[0].input.decode, found[1]) == ("raw", "out/1/2/x")
    assert answers.route_of(routes, "c/7/frame") is None


def test_an_output_is_not_needed() -> None:
    found = answers.route_of(answers.routes_of(made()), "a/7/frame")
    assert found is not None
    assert found[1] is None


def test_headers_say_whether_it_goes_up() -> None:
    instance = made(Output(topic="out/x"), Output(forward="hub"))
    route = answers.routes_of(instance)[0]
    headers = answers.headers_of(instance, route, "out/x", "a/7/frame", "name")
    assert headers == {
        "Nats-Msg-Id": "name", "Batuta-Topic": "out/x", "Batuta-Source-Topic": "a/7/frame",
        "Batuta-Instance": "d/p/c-1-0", "Batuta-Forward": "hub", "Batuta-Class": "normal",
    }  # fmt: skip
    plain = answers.headers_of(instance, route._replace(forward=False), "out/x", "a/7/frame", "name")
    assert "Batuta-Forward" not in plain


@pytest.mark.parametrize(
    ("wide", "narrow", "does"),
    [
        ("a.*", "a.b", True), ("a.b", "a.*", False), ("a.>", "a.b.c", True), ("a.>", "a", False), ("a.>", "a.>", True),
        ("a.*.c", "a.b.*", False), (">", "a", True), ("a.*", "a.b.c", False), ("a.*", "a.>", False),
    ],
)  # fmt: skip
def test_covers(wide: str, narrow: str, does: bool) -> None:
    assert covers(wide, narrow) is does


def test_filters_that_others_cover_are_left_out() -> None:
    assert distinct(["cameras/+/frame", "cameras/c1/frame", "x/#", "x/1"]) == ["cameras.*.frame", "x", "x.>"]
