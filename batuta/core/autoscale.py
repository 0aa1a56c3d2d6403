"""Autoscale: how many replicas a component has, by the hour and by what its nodes report. A step at a time, remembered.

`step` is pure: the row that was (`core.standing.Scaled`), the wish, an instant and a Reading give the row that is. Time
alone changes it only at `look_at`: the edge of a window, the end of a heading, the next count of messages. A load is
followed when it has asked for the same for long enough, and only as far as it asked all that time; what lies within the
tolerance asks for nothing. Whatever is not measured, of any replica, never scales down.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.core.standing import Scaled
from batuta.kinds.application import Replicas
from batuta.kinds.calendar import opening
from batuta.kinds.condition import ConditionFault, compile_condition, number

if TYPE_CHECKING:
    from batuta.core.care import Notes
    from batuta.core.decided import Released
    from batuta.core.draft import Draft
    from batuta.core.observed import InstanceReport, Report
    from batuta.kinds.autoscale import Autoscale

SETTLED_MS = 1_000
"""For so long after there are fewer the load asks for nothing, and what is measured until then asks for no fewer ever:
it is of as many as there were before."""
SAMPLE_MS = 30_000
"""How far apart messages are counted, for a rate."""


class Bounds(NamedTuple):
    """Between what the count may be now, why, and until when."""

    min: int
    max: int
    because: str
    edge: int | None


class Reading(NamedTuple):
    """What is measured of a component."""

    values: dict[str, dict[str, float]]
    """What a load may ask; what nobody measured is left out."""
    is_whole: bool
    """Every replica was heard, is ready and was measured since there are as many of them."""
    ready: int
    """How many are; while a measure is of fewer, how many bore the load when it was measured."""
    taken_in: int | None
    """Messages that its inboxes took in so far."""


def scale(notes: Notes, app: str, released: Released) -> Released:
    """The component with the number of replicas that it has now, which is remembered."""
    autoscale = released.component.replicas.autoscale
    if autoscale is None:
        return released
    draft = notes.draft
    before = row_of(draft, app, released.component.name)
    reading = read(draft, app, released)
    held = {h.instance.slot for h in draft.held(app) if h.instance.component == released.component.name}
    namespace, name = app.split("/")
    row = before or Scaled(
        namespace=namespace, application=name, component=released.component.name, count=len(held), since=draft.now
    )
    after = step(row, autoscale, draft.now, reading, is_new=before is None)
    if after != before:
        draft.write_standing(after)
    if after.look_at is not None:
        draft.wake(after.look_at)
    return with_count(released, after.count)


def scale_again(notes: Notes, app: str, released: Released) -> None:
    """What was just given is not measured yet, so it may be that nothing asks for fewer any more. It is noted now: to
    decide again must find nothing."""
    autoscale, draft = released.component.replicas.autoscale, notes.draft
    before = row_of(draft, app, released.component.name)
    if autoscale is None or before is None:
        return
    reading = read(draft, app, released)
    if not reading.is_whole:
        notes.pending = True  # Whoever is heard again touches nothing by that alone.
    if not draft.is_drafted(app):
        return
    after = step(before, autoscale, draft.now, reading)
    if after != before and after.count == before.count:
        draft.write_standing(after)
        if after.look_at is not None:
            draft.wake(after.look_at)


def as_scaled(draft: Draft, app: str, released: Released) -> Released:
    """The same for readers: what is remembered, and what it would begin with."""
    autoscale = released.component.replicas.autoscale
    if autoscale is None:
        return released
    row = row_of(draft, app, released.component.name)
    return with_count(released, row.count if row is not None else bounds(autoscale, draft.now).min)


def with_count(released: Released, count: int) -> Released:
    component = msgspec.structs.replace(released.component, replicas=Replicas(count=count))
    return msgspec.structs.replace(released, component=component)


def row_of(draft: Draft, app: str, component: str) -> Scaled | None:
    if app not in draft.state.standing and not draft.has_standing(app):
        return None
    return next((row for row in draft.standing(app, Scaled) if row.component == component), None)


def settle_scaled(draft: Draft, app: str, autoscaled: set[str]) -> None:
    """What is autoscaled no more has nothing to remember."""
    for row in draft.standing(app, Scaled):
        if row.component not in autoscaled:
            draft.drop_standing(row)


# --- One step ---------------------------------------------------------------------------------------------------------


def step(row: Scaled, autoscale: Autoscale, now: int, reading: Reading, *, is_new: bool = False) -> Scaled:
    """What the count is now, and where it is heading."""
    limits = bounds(autoscale, now)
    row = _sampled(row, autoscale, now, reading)
    # Without a load there is nothing to ask for more than the least.
    start = row.count if autoscale.load is not None else limits.min
    count = min(max(start, limits.min), limits.max)
    because = row.because if count == row.count and not is_new else limits.because
    wanted, load = _wanted(row, autoscale, reading, count, limits)
    settles_at = row.settles_at if now < row.settles_at <= now + SETTLED_MS else None
    if count < row.count and autoscale.load is not None:
        settles_at = now + SETTLED_MS
    if settles_at is not None:
        wanted = count
    since, to, ends = now, wanted, now
    heading = "up" if wanted > count else "down" if wanted < count else None
    if heading is not None:
        if heading == row.heading:
            since = row.heading_since
            to = (min if heading == "up" else max)(row.heading_to, wanted)
            # Bounds may have come nearer meanwhile.
            to = min(max(to, limits.min), limits.max)
        ends = since + int(autoscale.up_after_ms if heading == "up" else autoscale.down_after_ms)
        if to == count:
            heading = None
        elif ends <= now:
            because = f"load {load:.2f}"
            settles_at = now + SETTLED_MS if to < count else None
            count, since, to = to, now, wanted
            heading = None if to == count or settles_at is not None else heading
            ends = since + int(autoscale.up_after_ms if heading == "up" else autoscale.down_after_ms)
    looks = [limits.edge, ends if heading is not None else None, settles_at]
    if row.sampled_at is not None:
        looks.append(row.sampled_at + SAMPLE_MS)
    return msgspec.structs.replace(
        row,
        count=count,
        since=now if is_new or count != row.count else row.since,
        settles_at=settles_at or 0,
        because=because,
        heading=heading,
        heading_since=since if heading is not None else 0,
        heading_to=to if heading is not None else 0,
        look_at=min((at for at in looks if at is not None and at > now), default=None),
    )


def bounds(autoscale: Autoscale, now: int) -> Bounds:
    """Of the windows that are open, the highest of each; where they say nothing, what holds always."""
    low: int | None = None
    high: int | None = None
    because, edge = "no window is open", None
    for window in autoscale.windows:
        found = opening(window.opens, window.closes, window.zone, now)
        edge = min(at for at in (edge, found.edge) if at is not None) if edge or found.edge else None
        if found.is_open:
            if window.min is not None and (low is None or window.min > low):
                low, because = window.min, f"window {window.opens} {window.zone}"
            if window.max is not None and (high is None or window.max > high):
                high = window.max
    least = autoscale.min if low is None else low
    most = autoscale.max if high is None else high
    return Bounds(least, max(least, most), because if autoscale.windows else "as declared", edge)


def _wanted(
    row: Scaled, autoscale: Autoscale, reading: Reading, count: int, limits: Bounds
) -> tuple[int, float | None]:
    load = load_of(row, autoscale, reading, count)
    if load is None or abs(load - 1) * 100 <= autoscale.tolerance_percent + 1e-9:
        return count, load
    # By those that bear it: what is still starting was asked for already.
    wanted = min(max(math.ceil(max(1, reading.ready) * load - 1e-9), limits.min), limits.max)
    return (wanted if wanted > count or reading.is_whole else count), load


def load_of(row: Scaled, autoscale: Autoscale, reading: Reading, count: int) -> float | None:
    """The load as measured; None where something that it asks was not."""
    if autoscale.load is None:
        return None
    values = reading.values | {"replicas": {"wanted": float(count), "ready": float(reading.ready)}}
    if row.rate is not None:
        values["rate"] = {"received": row.rate}
    answer = number(compile_condition(autoscale.load), values)
    return None if isinstance(answer, ConditionFault) else max(0.0, answer)


def _sampled(row: Scaled, autoscale: Autoscale, now: int, reading: Reading) -> Scaled:
    """Counts messages again when it is time, if anybody asks for their rate."""
    if autoscale.load is None or "rate" not in autoscale.load:
        return msgspec.structs.replace(row, sampled_at=None, sampled=0, rate=None)
    if row.sampled_at is not None and now < row.sampled_at + SAMPLE_MS and now >= row.sampled_at:
        return row
    rate = None
    if reading.taken_in is not None and row.sampled_at is not None and 0 <= row.sampled <= reading.taken_in:
        rate = (reading.taken_in - row.sampled) * 1000 / max(1, now - row.sampled_at)
    taken_in = -1 if reading.taken_in is None else reading.taken_in
    return msgspec.structs.replace(row, sampled_at=now, sampled=taken_in, rate=rate)


# --- Reading what nodes report ----------------------------------------------------------------------------------------


def read(draft: Draft, app: str, released: Released) -> Reading:
    """What is measured of a component, on every node that was heard of late."""
    component = released.component.name
    said: list[tuple[InstanceReport, Report]] = []
    is_whole, heard_all = True, True
    heard_at: list[int] = []
    ready_at: list[int] = []
    scaled = row_of(draft, app, component)
    sites: set[str] = set()
    for held in draft.held(app):
        if held.instance.component != component:
            continue
        node = draft.state.nodes.get(held.node)
        report, found = draft.state.observed.get(held.node), draft.reported(held.node, held.instance)
        sites |= {node.spec.site} if node is not None else set()
        late = node is None or draft.unheard_ms(held.node) >= draft.missed_ms
        if late or report is None or found is None or found.phase != "ready":
            is_whole = heard_all = False
            continue
        heard_all = heard_all and found.measures is not None
        said.append((found, report))
        arrived_at = _arrived_at(draft, held.node)
        if arrived_at is None:
            is_whole = False  # Nobody knows of how many its measure is.
            continue
        heard_at.append(arrived_at)
        ready_at.append(arrived_at - max(0, report.at - found.since))
    # What was measured before the last change is of another number: it asks for no fewer, and for more only as those
    # do that bore the load then.
    oldest = min(heard_at, default=0)
    bore = len(said) - sum(at > oldest for at in ready_at)
    is_recent = scaled is not None and (oldest >= scaled.since + SETTLED_MS or scaled.since > draft.now)
    is_whole = is_whole and heard_all and bore == len(said) and (is_recent or not said)
    values: dict[str, dict[str, float]] = {name: {} for name in ("latency", "memory", "cpu", "errors", "queue", "rate")}
    measures = [i.measures for i, _ in said if i.measures is not None]
    for word, field in (("p50", "latency_p50_ms"), ("p99", "latency_p99_ms")):
        known = [float(value) for m in measures if (value := getattr(m, field)) is not None]
        if known:
            values["latency"][word] = max(known)
    used = [float(m.rss_bytes) for m in measures if m.rss_bytes is not None]
    if used:
        values["memory"] = {"used": sum(used) / len(used)}
        asked = float(released.component.resources.memory_bytes)
        if asked:
            values["memory"]["share"] = values["memory"]["used"] / asked
    busy = [r.vitals.cpu_percent for _, r in said if r.vitals.cpu_percent is not None]
    if busy:
        values["cpu"]["percent"] = sum(busy) / len(busy)
    if received := sum(m.received for m in measures):
        values["errors"]["share"] = sum(m.errors for m in measures) / received
    taken_in = _flows(draft, f"{app.replace('/', '_')}_{component}", sites, values)
    return Reading(values, is_whole, bore, taken_in if heard_all else None)


def _arrived_at(draft: Draft, node: str) -> int | None:
    """When the newest report of a node arrived, on the hub's clock, which counts the changes too."""
    sighting = draft.state.sightings.get(node)
    at = sighting.reported_at if sighting is not None else None
    return min(at, draft.now) if at is not None else None


def _flows(draft: Draft, consumer: str, sites: set[str], values: dict[str, dict[str, float]]) -> int | None:
    """What its inboxes hold and took in, over all nodes of the sites where it runs."""
    stored, taken_in, known = 0, 0, False
    for site in sorted(sites):
        for node in draft.state.nodes_of_site.get(site, ()):
            report = draft.state.observed.get(node)
            for flow in report.flows if report is not None else ():
                if flow.consumer == consumer:
                    known = True
                    stored += flow.stored
                    taken_in += flow.produced
    if known:
        values["queue"]["stored"] = float(stored)
    return taken_in if known else None


def autoscale_status(draft: Draft, app: str, released: Released) -> dict[str, object]:
    """For people: how many and between what, why, the load as it is now and where it leads."""
    autoscale, row = released.component.replicas.autoscale, row_of(draft, app, released.component.name)
    assert autoscale is not None, "asked of a component that is not autoscaled"
    limits, reading = bounds(autoscale, draft.now), read(draft, app, released)
    found: dict[str, object] = {"min": limits.min, "max": limits.max}
    if row is None:
        return found | {"count": limits.min, "says": "not yet decided"}
    load = load_of(row, autoscale, reading, row.count)
    found |= {"count": row.count, "since": row.since, "because": row.because, "measured": reading.is_whole}
    if load is not None:
        found["load"] = round(load, 3)
    if row.rate is not None:
        found["rate"] = round(row.rate, 3)
    if row.look_at is not None:
        found["looksAt"] = row.look_at
    if row.heading is not None:
        ends = row.heading_since + int(autoscale.up_after_ms if row.heading == "up" else autoscale.down_after_ms)
        found |= {"heading": row.heading, "headingTo": row.heading_to, "at": ends}
    return found | {"says": _says(row, autoscale, limits, load, reading)}


def _says(row: Scaled, autoscale: Autoscale, limits: Bounds, load: float | None, reading: Reading) -> str:
    """`3 of 1 to 8 (load 1.63); load 0.40 asks for 2`."""
    text = f"{row.count} of {limits.min} to {limits.max} ({row.because})"
    if autoscale.load is None:
        return text
    if load is None:
        return f"{text}; the load is not measured, so it stays"
    text += f"; load {load:.2f}"
    if row.heading is not None:
        return f"{text} asks for {row.heading_to}"
    return text if reading.is_whole or load >= 1 else f"{text}, not measured everywhere, so it stays"
