"""Near: by bytes as nodes count them, over links that take longer for larger messages."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from batuta.core.gravity import FRAME_BYTES, WEIGHT_MAX, Ways, closeness, link_us
from batuta.core.observed import Flow
from batuta.core.state import Change
from batuta.kinds.base import BitsPerSecond, Metadata, Millis
from batuta.kinds.site import Site, SiteSpec, Uplink
from tests.core.fleets import application, component, machines, places, report, settled, state_of

TOPIC = "cameras/+/frame"


def says(name: str, messages: int, each: int = 0, **more: object) -> Change:
    sizes = {TOPIC: messages * each} if each else {}
    told = msgspec.structs.replace(report(name), topics={TOPIC: messages}, topic_bytes=sizes, **more)
    return Change("observed", name, told)


@pytest.mark.parametrize(
    ("a", "x", "nearer"),
    [
        # A thousand small messages are less than ten large ones.
        ((1_000, 100), (10, 1_000_000), "x"),
        ((1_000, 100), (10, 1_000), "a"),
        # Whose size nobody tells counts as the others do; while nobody tells, all count alike.
        ((1_000, 0), (10, 1_000), "a"),
        ((1_000, 0), (10, 0), "a"),
        ((10, 0), (1_000, 0), "x"),
    ],
)
def test_bytes_pull_not_messages(a, x, nearer):
    rows = [*machines("a"), *machines("x", at="lyon"), says("a", *a), says("x", *x)]
    assert places(settled(state_of(rows, application(component(near=[TOPIC]))))) == [("read-1-0", nearer)]


def test_what_an_inbox_took_in_counts_as_large_as_the_others():
    flows = (Flow(consumer="default_app_read", produced=50),)
    rows = [*machines("a"), *machines("x", at="lyon"), says("a", 40, 1_000)]
    rows.append(Change("observed", "x", msgspec.structs.replace(report("x"), flows=flows)))
    assert places(settled(state_of(rows, application(component(near=[TOPIC]))))) == [("read-1-0", "x")]


def _site(name: str, bandwidth_bps: int) -> Site:
    uplink = Uplink(bandwidth_bps=BitsPerSecond(bandwidth_bps), latency_ms=Millis(5))
    return Site(metadata=Metadata(name=name), spec=SiteSpec(uplink=uplink))


def test_large_messages_take_longer_over_a_thin_link():
    thin, wide = _site("thin", 10**6), _site("wide", 10**9)
    assert link_us(thin, 125) == 5_000 + 1_000
    assert link_us(thin, 125_000) == 5_000 + 1_000_000
    sites = {"thin": thin, "wide": wide, "source": _site("source", 10**9)}
    for frame_bytes, far in ((100, 0), (100_000, 40)):
        found = closeness(sites, {"source": 10}, frame_bytes)
        assert found["wide"] - found["thin"] >= far


def test_however_much_is_published_no_sum_overflows():
    sites = {f"s{k}": _site(f"s{k}", 10 ** (3 + k % 6)) for k in range(50)}
    published = {name: k * 10**13 for k, name in enumerate(sites)}
    found = Ways(sites, list(sites)).closeness(np.array(list(published.values()), np.int64), FRAME_BYTES)
    over = sum(published.values()) // WEIGHT_MAX + 1
    scaled = {name: count // over for name, count in published.items()}
    assert dict(zip(sites, found.tolist(), strict=True)) == closeness(sites, scaled, FRAME_BYTES)
