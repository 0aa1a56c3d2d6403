"""Parts of the mesh that need no process: traces, cards, books and their lines in /metrics."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core import mesh_breaker
from batuta.core.observed import MESH_BOUNDS_MS, Mesh, Report
from batuta.core.serving import CARD_VOID_MS, Card
from batuta.dataflow.mesh.cards import FAR_VOID_MS, FORGET_MS, Cards, Wanted
from batuta.dataflow.mesh.talk import Ask, Reply, carried, refusal
from batuta.dataflow.mesh.tally import Tally
from batuta.fabric import subjects
from batuta.kinds.base import encode_hook
from batuta.web import mesh_metrics

CARD = Card(
    namespace="default", application="app", component="read", instance="default/app/read-1-0", node="n1",
    model="digits", version="1", ready=True, socket="/n/instances/default/app/read-1-0/oip.sock",
)  # fmt: skip
ASK = Ask("default", "digits", "", "", "infer", "normal", 30_000)


def heard(cards: Cards, card: Card = CARD, at: int = 0) -> None:
    cards.hear(subjects.serving(card.node, card.instance), msgspec.json.encode(card, enc_hook=encode_hook), at)


@pytest.mark.parametrize(
    "bad",
    [
        "", "00", "nonsense", f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e473-1-01",
    ],
)  # fmt: skip
def test_a_trace_that_is_none_is_begun_anew(bad: str) -> None:
    version, trace, span, flags = carried(bad).split("-")
    assert (version, len(trace), len(span), flags) == ("00", 32, 16, "00")
    assert trace not in bad or not bad


def test_a_trace_is_carried_on_with_its_flags_and_a_span_of_its_own() -> None:
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    one, other = carried(given), carried(given)
    assert one != other != given
    assert one.split("-")[1] == given.split("-")[1]
    assert one.endswith("-01")
    # A later version may say more behind; what is known of it is carried on.
    assert carried("01" + given[2:] + "-more").split("-")[1] == given.split("-")[1]


def test_cards_hold_for_three_seconds_and_are_forgotten_later() -> None:
    cards = Cards("n1", "/n/instances")
    heard(cards, at=1_000)
    wanted = Wanted("default", "digits")
    [known] = cards.of(wanted, 1_000 + CARD_VOID_MS)
    assert (known.nearness, known.key) == ("local", "n1/default/app/read-1-0")
    assert cards.of(wanted, 1_001 + CARD_VOID_MS) == []
    assert cards.sweep(1_000 + CARD_VOID_MS + FORGET_MS) == []
    assert cards.sweep(1_001 + CARD_VOID_MS + FORGET_MS) == [known]
    heard(cards, msgspec.structs.replace(CARD, node="n2", socket=""), at=2_000)
    assert [each.nearness for each in cards.of(wanted, 2_000)] == ["site"]
    far = msgspec.structs.replace(CARD, node="n9", socket="")
    cards.put(far, "hub", 2_000)
    assert [each.card.node for each in cards.of(wanted, 2_000 + FAR_VOID_MS)] == ["n9"]


def test_cards_that_speak_for_others_are_not_believed() -> None:
    cards = Cards("n1", "/n/instances")
    for subject, card in (
        (subjects.serving("n2", CARD.instance), CARD),
        (subjects.serving("n1", CARD.instance), msgspec.structs.replace(CARD, socket="/tmp/x.sock")),
        (subjects.serving("n1", CARD.instance), msgspec.structs.replace(CARD, instance="a b")),
    ):
        cards.hear(subject, msgspec.json.encode(card, enc_hook=encode_hook), 0)
    cards.hear(subjects.serving("n1", CARD.instance), b"x" * 20_000, 0)
    cards.hear(subjects.serving("n1", CARD.instance), b"{}", 0)
    assert cards.unbelieved == 5
    assert not list(cards.all(0))


def test_a_sign_of_life_gives_a_way_that_was_closed_another_chance() -> None:
    cards, stirred = Cards("n1", "/n/instances"), []
    cards.stir = lambda: stirred.append(1)
    heard(cards)
    [known] = cards.all(0)
    known.breaker = mesh_breaker.failed(known.breaker, 100, is_gone=True)
    assert not mesh_breaker.may_ask(known.breaker, 200)
    heard(cards, at=200)
    assert mesh_breaker.may_ask(known.breaker, 200)
    assert len(stirred) == 2


def test_the_books_add_up_and_come_out_as_prometheus_reads_them() -> None:
    cards, tally = Cards("n1", "/n/instances"), Tally()
    heard(cards)
    [known] = cards.all(0)
    for took_ms in (0.5, 3, 3, 7_000):
        tally.answered(ASK, known, took_ms, 0)
        tally.ended(ASK, Reply(200))
    tally.attempt_failed(ASK, known)
    tally.again(is_hedge=False)
    tally.again(is_hedge=True)
    tally.ended(ASK._replace(urgency="bulk"), refusal("overloaded", "full"))
    told = tally.told(cards.all(0), 0)
    assert told.calls == {"answered": 4, "overloaded": 1}
    assert (told.shed, told.retries, told.hedges, told.breakers) == ({"bulk": 1}, 1, 1, {"closed": 1})
    [row] = told.rows
    assert (row.answered, row.failed_attempts, sum(row.buckets), row.buckets[-1]) == (4, 1, 4, 1)
    # It goes up as it is, and is summed over nodes.
    assert msgspec.json.decode(msgspec.json.encode(told, enc_hook=encode_hook), type=Mesh) == told
    reports = [Report(node=name, boot="b", sequence=1, at=0, mesh=told) for name in ("n1", "n2")]
    lines = list(mesh_metrics.lines([*reports, Report(node="n3", boot="b", sequence=1, at=0)], str))
    labels = 'namespace="default",model="digits",nearness="local"'
    assert f'batuta_mesh_latency_milliseconds_bucket{{{labels},le="5"}} 6' in lines
    assert f'batuta_mesh_latency_milliseconds_bucket{{{labels},le="{MESH_BOUNDS_MS[-1]}"}} 6' in lines
    assert f'batuta_mesh_latency_milliseconds_bucket{{{labels},le="+Inf"}} 8' in lines
    assert f"batuta_mesh_latency_milliseconds_count{{{labels}}} 8" in lines
    assert 'batuta_mesh_shed_total{class="bulk"} 2' in lines
    assert 'batuta_mesh_again_total{why="hedge"} 2' in lines


def test_quantiles_need_answers_enough() -> None:
    cards, tally = Cards("n1", "/n/instances"), Tally()
    heard(cards)
    [known] = cards.all(0)
    for _ in range(19):
        tally.answered(ASK, known, 10, 0)
    assert tally.past("default", "digits", 0).p95_ms is None
    tally.answered(ASK, known, 10, 0)
    assert tally.past("default", "digits", 0).p95_ms == pytest.approx(10, rel=0.1)
    assert tally.past("default", "other", 0).p95_ms is None
