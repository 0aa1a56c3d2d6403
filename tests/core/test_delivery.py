"""Delivery: whom a node asks for which chunk, as tables and as a site that plays itself."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batuta.core.delivery import (
    GATHER_MS,
    HUB,
    LOST_AFTER_MS,
    REGION,
    STALLED_AFTER_MS,
    Ask,
    Peer,
    View,
    plan,
    share,
    take,
)

NOW = 1_000_000
TOTAL = 64
ALL = (1 << TOTAL) - 1


def view(**known: Any) -> View:
    said = {"node": "a", "total": TOTAL, "has": 0, "asked": {}, "peers": (), "began": 0, "now": NOW}
    return View(**{**said, **known})


def peer(node: str = "b", *, has: int = 0, claims: int = 0, wants: bool = True, **known: Any) -> Peer:
    said = {"since": 0, "heard_at": NOW, "moved_at": NOW}
    return Peer(node=node, has=has, claims=claims, wants=wants, **{**said, **known})


def chunks_of(asks: tuple[Ask, ...], source: str) -> int:
    return sum(1 << n for ask in asks if ask.source == source for n in ask.chunks)


def test_alone_everything_is_asked_of_the_hub_a_little_at_a_time() -> None:
    found = plan(view(hub_asks=3))
    assert [ask.source for ask in found.asks] == [HUB] * 3
    assert [len(ask.chunks) for ask in found.asks] == [2] * 3
    under_way = chunks_of(found.asks, HUB)
    assert under_way.bit_count() == 6
    assert plan(view(hub_asks=3, asked={HUB: under_way})).asks == (), "nothing came, so nothing more is asked"
    assert plan(view(has=ALL)).asks == ()


def test_what_a_neighbour_has_is_asked_of_it_and_of_nobody_else() -> None:
    found = plan(view(peers=[peer(has=ALL, wants=False)]))
    assert [ask.source for ask in found.asks] == ["b"]
    assert plan(view(peers=[peer(has=ALL)], asked={"b": 3})).asks == (), "one question to each"
    two = plan(view(peers=[peer(has=ALL), peer("c", has=ALL)]))
    assert sorted(ask.source for ask in two.asks) == ["b", "c"]
    assert chunks_of(two.asks, "b") & chunks_of(two.asks, "c") == 0


def test_each_brings_in_its_share_and_awaits_the_others() -> None:
    found = plan(view(peers=[peer()], hub_asks=100))
    mine = share(TOTAL, ("a", "b"), "a")
    assert chunks_of(found.asks, HUB) == mine
    assert found.awaited == ALL & ~mine


def test_what_is_on_its_way_to_another_is_left_alone_whosever_share_it_is() -> None:
    assert plan(view(peers=[peer(claims=ALL)])).asks == ()


@pytest.mark.parametrize(
    "gone",
    [
        peer(heard_at=NOW - LOST_AFTER_MS - 1, claims=ALL),
        peer(moved_at=NOW - STALLED_AFTER_MS - 1, claims=ALL),
        peer(wants=False),
    ],
    ids=["not heard any more", "got nothing for too long", "holds nothing and wants nothing"],
)
def test_who_brings_nothing_in_is_not_waited_for(gone: Peer) -> None:
    found = plan(view(peers=[gone], hub_asks=100))
    assert chunks_of(found.asks, HUB) == ALL
    assert found.awaited == 0


def test_on_a_slow_uplink_a_neighbour_is_given_as_much_time_as_we_need_ourselves() -> None:
    slow = peer(moved_at=NOW - STALLED_AFTER_MS - 1, claims=ALL)
    assert plan(view(peers=[slow], patience_ms=4 * STALLED_AFTER_MS)).asks == ()


def test_a_cut_of_the_uplink_is_nobodys_fault() -> None:
    """All of the site got nothing for minutes. When the link is back, each goes on with what it had asked for."""
    waiting = peer(moved_at=NOW - 300_000, claims=ALL)
    assert plan(view(peers=[waiting], settled=NOW - 1_000)).asks == ()


def test_who_has_just_come_waits_until_the_others_know_and_they_wait_until_it_takes_part() -> None:
    assert plan(view(began=NOW - GATHER_MS + 1, has_neighbours=True)).asks == ()
    assert plan(view(began=NOW, has_neighbours=False)).asks, "nobody else is there"
    fresh = peer(since=NOW - GATHER_MS + 1)
    assert chunks_of(plan(view(peers=[fresh], hub_asks=100)).asks, HUB) == ALL
    ready = peer(since=NOW - GATHER_MS)
    assert chunks_of(plan(view(peers=[ready], hub_asks=100)).asks, HUB) == share(TOTAL, ("a", "b"), "a")


def test_while_the_uplink_is_closed_neighbours_still_give() -> None:
    found = plan(view(peers=[peer(has=0b11, wants=False)], hub_asks=0))
    assert found.asks == (Ask("b", (0, 1)),)
    assert found.held_back == ALL & ~0b11


@given(total=st.integers(0, 9_000), nodes=st.sets(st.sampled_from([f"n-{i}" for i in range(12)]), min_size=1))
@settings(max_examples=25, deadline=None)
def test_every_chunk_is_in_exactly_one_share(total: int, nodes: set[str]) -> None:
    names, seen = tuple(sorted(nodes)), 0
    for name in names:
        mine = share(total, names, name)
        assert not mine & seen
        seen |= mine
    assert seen == (1 << total) - 1
    if len(names) > 1:
        left = names[1:]
        kept = share(total, names, left[0])
        assert share(total, left, left[0]) & kept == kept, "who stays keeps what it had"


def test_shares_are_about_equal() -> None:
    names = tuple(f"shop-{n}" for n in range(10))
    sizes = [share(2_000, names, name).bit_count() for name in names]
    assert min(sizes) > 120
    assert max(sizes) < 300


def test_taking_begins_somewhere_and_goes_round() -> None:
    assert take(0b1011, 2, 2) == (3, 0)
    assert take(0b1011, 9) == (0, 1, 3)
    assert take(0, 3) == ()


# --- A site that plays itself ---


class Site:
    """Nodes that want one file, a hub that answers after a while, and cards that come late or get lost."""

    def __init__(self, nodes: int, total: int, seed: int, *, lost_percent: int = 0) -> None:
        self.chance = random.Random(seed)
        self.names = [f"n-{n}" for n in range(nodes)]
        self.total, self.everything, self.lost_percent = total, (1 << total) - 1, lost_percent
        self.began = {name: self.chance.randrange(3_000) for name in self.names}
        self.has = dict.fromkeys(self.names, 0)
        self.asked: dict[str, dict[str, int]] = {name: {} for name in self.names}
        self.cards: dict[str, dict[str, Peer]] = {name: {} for name in self.names}
        self.on_the_way: list[tuple[int, str, Ask]] = []
        self.dead: set[str] = set()
        self.wan_chunks = 0
        self.now = 0

    def play(self, until_ms: int = 600_000) -> None:
        while any(self.has[n] != self.everything for n in self.names if n not in self.dead):
            self.now += 50
            assert self.now < until_ms, {n: self.has[n].bit_count() for n in self.names}
            for name in self.names:
                if name not in self.dead and self.now >= self.began[name]:
                    self.turn(name)
            self.arrive()

    def turn(self, name: str) -> None:
        asked = {source: chunks for source, chunks in self.asked[name].items() if chunks}
        peers = [p for n, p in self.cards[name].items() if n not in self.dead or self.now - p.heard_at < 20_000]
        known = View(name, self.total, self.has[name], asked, peers, self.began[name], self.now, has_neighbours=True)
        for ask in plan(known).asks:
            self.asked[name][ask.source] = asked.get(ask.source, 0) | sum(1 << n for n in ask.chunks)
            asked = dict(self.asked[name])
            took_ms = self.chance.randrange(100, 900) if ask.source == HUB else self.chance.randrange(5, 100)
            self.on_the_way.append((self.now + took_ms, name, ask))
            self.wan_chunks += len(ask.chunks) if ask.source == HUB else 0
        if self.now % 500 == 0 or self.now - self.began[name] < 50:
            self.say(name)

    def say(self, name: str) -> None:
        for other in self.names:
            if other == name or self.now < self.began[other] or self.chance.randrange(100) < self.lost_percent:
                continue
            before = self.cards[other].get(name)
            moved_at = before.moved_at if before is not None and before.has == self.has[name] else self.now
            self.cards[other][name] = Peer(
                name, self.has[name], self.asked[name].get(HUB, 0), self.has[name] != self.everything,
                before.since if before else self.now, self.now, moved_at,
            )  # fmt: skip
            if before is None:
                self.say(other)  # who is new is told at once

    def arrive(self) -> None:
        due = [row for row in self.on_the_way if row[0] <= self.now]
        self.on_the_way = [row for row in self.on_the_way if row[0] > self.now]
        for _, name, ask in due:
            chunks = sum(1 << n for n in ask.chunks)
            self.asked[name][ask.source] &= ~chunks
            if ask.source == HUB or ask.source not in self.dead:
                self.has[name] |= chunks


@given(nodes=st.integers(1, 10), total=st.integers(0, 200), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_however_they_come_all_get_it_and_each_chunk_crosses_the_uplink_once(nodes: int, total: int, seed: int) -> None:
    site = Site(nodes, total, seed)
    site.play()
    # Only what was asked while somebody joined and its card was on its way may be asked twice.
    assert site.wan_chunks <= total + 2 * nodes


@given(seed=st.integers(0, 10**6), lost_percent=st.sampled_from([30, 60]), dies=st.booleans())
@settings(max_examples=15, deadline=None)
def test_lost_cards_and_dead_neighbours_never_block(seed: int, lost_percent: int, dies: bool) -> None:
    site = Site(5, 120, seed, lost_percent=lost_percent)
    if dies:
        while site.now < 5_000:
            site.now += 50
            for name in site.names:
                if site.now >= site.began[name]:
                    site.turn(name)
            site.arrive()
        site.dead.add("n-2")
    site.play()


def test_what_the_region_has_is_asked_there_first_and_the_rest_of_the_hub() -> None:
    half = ALL >> TOTAL // 2
    found = plan(view(region=[peer("r", has=half, wants=False)], hub_asks=100))
    assert chunks_of(found.asks, REGION) == half
    assert chunks_of(found.asks, HUB) == ALL & ~half
    whole = plan(view(region=[peer("r", has=ALL, wants=False)], hub_asks=3))
    assert [ask.source for ask in whole.asks] == [REGION] * 3, "over the same uplink, so no more at a time"
    assert plan(view(region=[peer("r", has=ALL, wants=False)], asked={REGION: 0b111111}, hub_asks=3)).asks == ()
    gone = peer("r", has=ALL, wants=False, heard_at=NOW - LOST_AFTER_MS - 1)
    assert {ask.source for ask in plan(view(region=[gone])).asks} == {HUB}
    near = plan(view(region=[peer("r", has=ALL, wants=False)], peers=[peer(has=ALL, wants=False)]))
    assert [ask.source for ask in near.asks] == ["b"], "a neighbour is nearer still"


def test_what_the_region_is_fetching_is_awaited_while_it_gets_on() -> None:
    found = plan(view(region=[peer("r", has=0b11)], hub_asks=100))
    assert chunks_of(found.asks, REGION) == 0b11
    assert chunks_of(found.asks, HUB) == 0
    assert found.awaited == ALL & ~0b11
    stuck = peer("r", has=0b11, since=0, moved_at=NOW - STALLED_AFTER_MS - 1)
    assert chunks_of(plan(view(region=[stuck], hub_asks=100)).asks, HUB) == ALL & ~0b11
    assert plan(view(is_region_open=True)).asks == (), "a moment, to learn who is there"


def test_a_site_divides_the_labour_also_of_what_comes_from_the_region() -> None:
    region = [peer("r", has=ALL, wants=False)]
    mine = plan(view(peers=[peer()], region=region, hub_asks=100))
    theirs = plan(view(node="b", peers=[peer("a")], region=region, hub_asks=100))
    assert chunks_of(mine.asks, REGION) ^ chunks_of(theirs.asks, REGION) == ALL
    assert chunks_of(mine.asks, HUB) == chunks_of(theirs.asks, HUB) == 0
