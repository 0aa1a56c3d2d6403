"""Constraints: what a node must be for a wish. Ordered rows, each a mask over nodes and the figures of its refusal.

The first row that says no gives the Reason, so the order of `FILTERS` is that of the catalogue of reasons. A row says
what it means in one sentence there, and here how far its answer reaches when an instance of the same component is
placed: whoever places many of them asks again only what can have changed.

Two replicas of a counted component may share a node when they must, and are kept apart when they can; those of a site
may not (`already_here`), nor may two programs that are asked at the same port.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from batuta.core import traits
from batuta.core.fleet import FALSE, FAULT
from batuta.core.load import WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.fleet import Bools, Fleet, Ints
    from batuta.core.preferences import Scorer
    from batuta.core.wish import Ask, Wish

MIB = 2**20

Reach = Literal["fixed", "row", "site", "fleet"]
"""Whose answer can change when an instance of the same component is placed: nobody's, the row's that took it, those of
all rows at its site, or any row's."""


class Filter(NamedTuple):
    """One way of saying no."""

    code: str
    mask: Callable[[Wish, Fleet, Ints], Bools]
    """For the given rows: does it let them pass?"""
    detail: Callable[[Wish, Fleet, int], str]
    """The figures of one row that it does not let pass."""
    reach: Reach | Callable[[Ask], Reach] = "fixed"
    by_slot: bool = False
    """Does the answer depend on the slot, or on who fills it now, and not on the component alone? Then it differs from
    that for a slot which may be anywhere and which nobody fills only at its own rows (as far as it reaches), or says no
    to rows that are not in question for the slot anyhow."""
    if_any: Callable[[Ask], bool] | None = None
    """For which components it says anything at all; for all of them when left out."""


def reach_of(row: Filter | Scorer, ask: Ask) -> Reach:
    return row.reach(ask) if callable(row.reach) else row.reach


def says(row: Filter | Scorer, ask: Ask) -> bool:
    """Can a row of the tables turn a component's instances away, or prefer one place to another?"""
    return row.if_any is None or row.if_any(ask)


def _at_site(wish: Wish, fleet: Fleet, rows: Ints) -> Bools:
    if wish.slot.site is None:
        return np.ones(len(rows), np.bool_)
    found: Bools = fleet.site[rows] == fleet.site_code.get(wish.slot.site, -1)
    return found


def _is_node(wish: Wish, fleet: Fleet, rows: Ints) -> Bools:
    if wish.slot.node is None:
        return np.ones(len(rows), np.bool_)
    found: Bools = rows == fleet.row_of.get(wish.slot.node, -1)
    return found


def _tolerates(wish: Wish, fleet: Fleet, rows: Ints) -> Bools:
    tolerations = wish.ask.component.placement.tolerations
    answer: Bools = traits.tolerated(fleet, tolerations, ("NoSchedule", "NoExecute"))[rows]
    return answer


def _taints(wish: Wish, fleet: Fleet, row: int) -> str:
    minded = traits.minded(fleet, wish.ask.component.placement.tolerations, row)
    return ", ".join(f"{t.key}={t.value}:{t.effect}" if t.value else f"{t.key}:{t.effect}" for t in minded)


def _runs_it(wish: Wish, fleet: Fleet, rows: Ints) -> Bools:
    found = np.zeros(len(rows), np.bool_)
    for runtime in sorted(set(wish.ask.formats)):
        found |= traits.has_runtime(fleet, runtime)[rows]
    return found


def _architectures(ask: Ask) -> tuple[str, ...]:
    """Those that can run it at all; none when nothing is said."""
    if ask.version is not None:
        each = [v.architectures for v in ask.version.variants]
        return tuple(sorted({a for some in each for a in some})) if all(each) else ()
    return ask.component.program.architectures if ask.component.program is not None else ()


def _wrong_architecture(wish: Wish, fleet: Fleet, row: int) -> str:
    _, report, _ = fleet.at(row)
    return f"{report.inventory.architecture if report else ''}, not {' or '.join(_architectures(wish.ask))}"


def _fault(wish: Wish, fleet: Fleet, row: int) -> str:
    return traits.where_fault(fleet, wish.ask.where or "true", row)


def _far_from_home(wish: Wish, fleet: Fleet, row: int) -> str:
    site = fleet.site_names[fleet.site[row]]
    where = traits.residency_at(fleet, site) or "nowhere in particular"
    return f"data at {site} lives in {where}, not in {' or '.join(wish.ask.residency)}"


def _permitted(wish: Wish, _: Fleet, rows: Ints) -> Bools:
    found = np.ones(len(rows), np.bool_)
    for rule in wish.ask.ruling.hard:
        found &= wish.ask.may(rule)[rows]
    return found


def _forbidding(wish: Wish, _: Fleet, row: int) -> str:
    rules = [rule for rule in wish.ask.ruling.hard if not wish.ask.may(rule)[row]]
    return "; ".join(f"{rule.policy}: {rule.message or f'{rule.kind} {rule.text}'}" for rule in rules)


def _unpuzzled(wish: Wish, _: Fleet, rows: Ints) -> Bools:
    found = np.ones(len(rows), np.bool_)
    for rule in wish.ask.ruling.hard:
        found &= ~wish.ask.is_puzzled(rule)[rows]
    return found


def _puzzling(wish: Wish, fleet: Fleet, row: int) -> str:
    said = ((r.policy, r.fault or traits.fault(fleet, r, row)) for r in wish.ask.ruling.hard)
    return "; ".join(f"{policy}: {fault}" for policy, fault in said if fault)


def _disk_bytes(wish: Wish, fleet: Fleet) -> Ints:
    """By row: what must be free on the disk right now: what it asks for, and its model where that has yet to come."""
    ask = wish.ask
    known: Ints | None = ask.known.get("disk")
    if known is None:
        known = np.full(fleet.capacity, ask.disk_bytes, np.int64)
        if ask.version is not None:
            there = np.zeros(fleet.capacity, np.bool_)
            for variant in ask.version.variants:
                there |= fleet.has_artifact(variant.digest)
            known += np.where(there, 0, min(int(v.size_bytes) for v in ask.version.variants))
        archive = ask.component.container.archive if ask.component.container is not None else None
        if archive is not None:
            # Once as it travels, and once as the engine unpacks it.
            known += np.where(fleet.has_artifact(archive.digest), 1, 2) * int(archive.size_bytes)
        ask.known["disk"] = known
    return known


def _disk_suffices(wish: Wish, fleet: Fleet, rows: Ints) -> Bools:
    """Neither promised to others, nor full of what nobody was promised."""
    now = traits.disk_now(fleet)[rows]
    found: Bools = (now == traits.UNKNOWN) | (now >= _disk_bytes(wish, fleet)[rows])
    if wish.ask.disk_bytes:
        found &= fleet.disk_free[rows] >= wish.ask.disk_bytes
    return found


def disk_lacks(wish: Wish, fleet: Fleet, row: int) -> tuple[int, int]:
    """What is free of the disk and what is needed, of whichever of the two is the shorter."""
    needed, now = int(_disk_bytes(wish, fleet)[row]), int(traits.disk_now(fleet)[row])
    promised = (int(fleet.disk_free[row]), wish.ask.disk_bytes)
    real = (now, needed) if now != traits.UNKNOWN else promised
    return min(promised if wish.ask.disk_bytes else real, real, key=lambda pair: pair[0] - pair[1])


def _disk(wish: Wish, fleet: Fleet, row: int) -> str:
    free, needed = disk_lacks(wish, fleet, row)
    return f"{_mib(max(0, free))} free, {_mib(needed)} needed"


def _cards(wish: Wish, fleet: Fleet, row: int) -> str:
    """What is asked for, and what is there, with what is taken of it."""
    asked = []
    for need in wish.ask.needs:
        memory = f" with {_mib(int(need.memory_bytes))}" if need.memory_bytes is not None else ""
        asked.append(f"{_mib(int(need.memory_bytes or 0))} of a {need.kind}" if need.is_share
                     else f"{need.count or 1} {need.kind}{memory}")  # fmt: skip
    there = []
    claims = fleet.claims.get(row, {})
    for i, card in enumerate(traits.cards(fleet, row)):
        mine = [(claim[2], count) for claim, count in claims.items() if claim[:2] == ("card", i) and len(claim) == 3]
        whole = any(share == WHOLE for share, _ in mine)
        free = card.memory_bytes - sum(share * count for share, count in mine if share != WHOLE)
        memory = "memory unknown" if not card.memory_bytes else f"{_mib(free)} free"
        there.append(f"{card.kind} ({'taken' if whole else 'shared, ' + memory if mine else memory})")
    return f"needs {', '.join(asked)}; has {', '.join(there) or 'none'}"


def fitting(wish: Wish, fleet: Fleet, rows: Ints, *, fast: bool = True) -> Ints:
    """By row: the best variant that can be loaded there, whose memory is free and (with `fast`) which has not proved to
    be slower there than is asked for; -1 for none."""
    ask = wish.ask
    fast = fast and ask.slo_us is not None and ask.version is not None
    # Several rows of the tables ask for the same nodes, one after the other.
    known, asked = ask.fitted, (fleet.lays, fast)
    if known is not None and known[0] is rows and known[1] == asked:
        return known[2]
    choice = np.full(len(rows), -1, np.int64)
    free = fleet.memory_free[rows]
    # The best last: it has the last word.
    for i in reversed(ask.order):
        fits = ask.suits(i)[rows]
        fits &= free >= ask.requests[i]
        if fast and ask.slo_us is not None:
            fits &= ask.p99_us(i)[rows] <= ask.slo_us
        choice[fits] = i
    choice.flags.writeable = False
    ask.fitted = (rows, asked, choice)
    return choice


def _misfits(wish: Wish, fleet: Fleet, row: int) -> str:
    """What keeps each variant from running there."""
    if wish.ask.version is None:
        return f"{_mib(max(0, int(fleet.memory_free[row])))} free, {_mib(min(wish.ask.requests))} needed"
    return "; ".join(
        f"{v.name}: {_misfit(wish.ask, fleet, row, i)}" for i, v in enumerate(wish.ask.version.variants)
    )  # fmt: skip


def _misfit(ask: Ask, fleet: Fleet, row: int, i: int) -> str:
    assert ask.version is not None, "only models have variants"
    v = ask.version.variants[i]
    if not traits.has_runtime(fleet, v.format)[row]:
        return f"no runtime for {v.format}"
    if v.architectures and not traits.runs_on(fleet, v.architectures)[row]:
        return f"only for {' or '.join(v.architectures)}"
    if v.opset is not None and not traits.loads_opset(fleet, v.format, v.opset)[row]:
        return f"operator set {v.opset} is too new for the runtime"
    if v.precision is not None and not traits.computes(fleet, v.precision)[row]:
        return f"the hardware does not compute in {v.precision}"
    if v.needs.accelerator is not None and not traits.has_card(fleet, v.needs.accelerator)[row]:
        return f"no {v.needs.accelerator} there"
    return f"{_mib(max(0, int(fleet.memory_free[row])))} free, {_mib(ask.requests[i])} needed"


def _too_slow(wish: Wish, fleet: Fleet, row: int) -> str:
    ask = wish.ask
    assert ask.slo_us is not None, "no goal was missed"
    assert ask.version is not None, "only models have goals"
    rows = np.array([row], np.int64)
    fits = [i for i in ask.order if ask.suits(i)[row] and fleet.memory_free[row] >= ask.requests[i]]
    best = min(fits, key=lambda i: int(ask.p99_us(i)[rows][0]))
    took = int(ask.p99_us(best)[row])
    codes, names = traits.hardware(fleet)
    on = next((name for name, code in names.items() if code == codes[row]), "") or "this node"
    asked = f"{ask.slo_us / 1000:g} ms asked"
    return f"{ask.version.variants[best].name} takes {took / 1000:g} ms on {on}, {asked}"


def _unclaimed(what: str) -> Callable[[Wish, Fleet, Ints], Bools]:
    def mask(wish: Wish, fleet: Fleet, rows: Ints) -> Bools:
        found = np.ones(len(rows), np.bool_)
        for claim in wish.ask.claims:
            if claim[0] == what:
                found &= traits.is_free(fleet, claim)[rows]
        return found

    return mask


def _claimed(what: str) -> Callable[[Wish, Fleet, int], str]:
    def detail(wish: Wish, fleet: Fleet, row: int) -> str:
        taken = fleet.claims.get(row, {})
        return ", ".join(str(claim[1]) for claim in wish.ask.claims if claim[0] == what and claim in taken)

    return detail


def _has_devices(wish: Wish, fleet: Fleet, rows: Ints) -> Bools:
    found = np.ones(len(rows), np.bool_)
    for device in wish.ask.component.resources.devices:
        found &= traits.has_device(fleet, device)[rows]
    return found


def _missing_devices(wish: Wish, fleet: Fleet, row: int) -> str:
    return ", ".join(d for d in wish.ask.component.resources.devices if not traits.has_device(fleet, d)[row])


def _not_beside(wish: Wish, _: Fleet, rows: Ints) -> Bools:
    passes = wish.beside(rows) <= 0 if wish.ask.alone else np.ones(len(rows), np.bool_)
    return passes if wish.shun is None else passes & (rows != wish.shun)


def _mib(amount: int) -> str:
    return f"{amount // MIB}Mi"


def _silence(_: Wish, fleet: Fleet, row: int) -> str:
    if not fleet.sighted[row]:
        return "not heard since the hub started"
    ago_s = max(0, fleet.now - int(fleet.heard[row])) // 1000
    return "its link has closed" if fleet.closed[row] else f"last heard {ago_s} s ago"


def _draining(_: Wish, fleet: Fleet, row: int) -> str:
    return "it is drained" if fleet.drained[row] else ""


def _nothing(_: Wish, __: Fleet, ___: int) -> str:
    return ""


FILTERS: tuple[Filter, ...] = (
    Filter("node_offline", lambda _, f, r: f.fresh[r], _silence),
    Filter("node_unschedulable", lambda _, f, r: f.schedulable[r], _draining),
    Filter("node_held", lambda _, f, r: f.held_until[r] <= f.now, _nothing),
    Filter("node_unreported", lambda _, f, r: f.reported[r], _nothing),
    Filter(
        "other_release",
        lambda w, _, r: w.ask.turn[r] if w.ask.turn is not None else np.ones(len(r), np.bool_),
        lambda w, _, __: f"not {w.ask.component.name} of release {w.ask.revision}",
        if_any=lambda ask: ask.turn is not None,
    ),
    Filter("taint_not_tolerated", _tolerates, _taints),
    Filter("wrong_site", _at_site, lambda w, f, r: f"{f.site_names[f.site[r]]}, not {w.slot.site}", by_slot=True),
    Filter("wrong_node", _is_node, lambda w, _, __: f"for {w.slot.node}", by_slot=True),
    Filter(
        "residency_wrong",
        lambda w, f, r: traits.resides(f, w.ask.residency)[r],
        _far_from_home,
        if_any=lambda ask: bool(ask.residency),
    ),
    Filter("runtime_missing", _runs_it, lambda w, _, __: ", ".join(sorted(set(w.ask.formats)))),
    Filter(
        "architecture_wrong",
        lambda w, f, r: traits.runs_on(f, _architectures(w.ask))[r],
        _wrong_architecture,
        if_any=lambda ask: bool(_architectures(ask)),
    ),
    Filter(
        "device_missing",
        _has_devices,
        _missing_devices,
        if_any=lambda ask: bool(ask.component.resources.devices),
    ),
    Filter(
        "condition_false",
        lambda w, f, r: f.where(w.ask.where)[r] != FALSE,
        lambda w, _, __: w.ask.where or "",
    ),
    Filter("condition_fault", lambda w, f, r: f.where(w.ask.where)[r] != FAULT, _fault),
    Filter("policy_forbids", _permitted, _forbidding, if_any=lambda ask: bool(ask.ruling.hard)),
    Filter("policy_fault", _unpuzzled, _puzzling, if_any=lambda ask: bool(ask.ruling.hard)),
    Filter(
        "cpu_short",
        lambda w, f, r: f.cpu_free[r] >= w.ask.cpu_millis,
        lambda w, f, r: f"{max(0, int(f.cpu_free[r]))}m free, {w.ask.cpu_millis}m needed",
        reach="row",
    ),
    Filter(
        "memory_short",
        lambda w, f, r: f.memory_free[r] >= w.ask.memory_bytes,
        lambda w, f, r: f"{_mib(max(0, int(f.memory_free[r])))} free, {_mib(w.ask.memory_bytes)} needed",
        reach="row",
    ),
    Filter(
        "disk_short",
        _disk_suffices,
        _disk,
        # What is really free is told by reports; only what is promised changes when something is placed.
        reach=lambda ask: "row" if ask.disk_bytes else "fixed",
        if_any=lambda ask: ask.disk_bytes > 0 or ask.version is not None or bool(ask.archive),
    ),
    Filter(
        "accelerator_short",
        lambda w, f, r: traits.allots(f, w.ask.needs)[r],
        _cards,
        reach="row",
        if_any=lambda ask: bool(ask.needs),
    ),
    Filter("variant_unfit", lambda w, f, r: fitting(w, f, r, fast=False) >= 0, _misfits, reach="row"),
    Filter(
        "too_slow",
        lambda w, f, r: fitting(w, f, r) >= 0,
        _too_slow,
        reach="row",
        if_any=lambda ask: ask.slo_us is not None and ask.version is not None,
    ),
    Filter("already_here", _not_beside, _nothing, reach=lambda ask: "row" if ask.alone else "fixed", by_slot=True),
    Filter("port_claimed", _unclaimed("port"), _claimed("port"), reach="row", if_any=lambda ask: bool(ask.claims)),
    Filter(
        "device_claimed", _unclaimed("device"), _claimed("device"), reach="row", if_any=lambda ask: bool(ask.claims)
    ),
)
