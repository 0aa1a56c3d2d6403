"""Nature: what makes a machine and its place good ones, whatever is to run there. Figures from 0 to 100, by row.

Each is on a scale of its own and never compares nodes: what one is worth does not change when another comes or goes.
What nobody knows of a node is worth nothing, except where it is the usual case (mains power, a cool machine).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batuta.core.gravity import link_us
from batuta.core.traits import UNKNOWN, trait

if TYPE_CHECKING:
    from batuta.core.fleet import Fleet, Ints
    from batuta.core.observed import Report
    from batuta.kinds.node import Node

COOL_C, HOT_C = 50, 85
"""Up to the first nothing is lost; from the second on, processors slow themselves down."""
GOOD_WAY_US = 50_000
"""An uplink so long is worth half as much as none."""
STEADY_MS = 3_600_000
DROP_COST, RESTART_COST = 15, 5


def idle_mw(fleet: Fleet) -> Ints:
    """Milliwatts at rest."""
    return trait(
        fleet, "idle", lambda node, _: round(node.spec.power.idle_watts * 1000) if node.spec.power else UNKNOWN
    )


def full_mw(fleet: Fleet) -> Ints:
    """Milliwatts when all of its processors work."""
    return trait(
        fleet, "full", lambda node, _: round(node.spec.power.full_watts * 1000) if node.spec.power else UNKNOWN
    )


def cleanness(fleet: Fleet) -> Ints:
    """100 for power without carbon dioxide, nothing from a kilogram for a kilowatt-hour on."""
    grams = _carbon(fleet)
    return np.where(grams == UNKNOWN, 0, 100 - np.minimum(grams, 1000) // 10)


def _carbon(fleet: Fleet) -> Ints:
    """As the nearest site above says."""

    def ask(node: Node, _: Report | None) -> int:
        said = (site.spec.carbon_intensity for site in fleet.chain(node.spec.site))
        return next((grams for grams in said if grams is not None), UNKNOWN)

    return trait(fleet, "carbon", ask)


def uplink(fleet: Fleet) -> Ints:
    """The way up the tree to the hub: half as much when it is as long as `GOOD_WAY_US`, nothing when it is paid for."""

    def ask(node: Node, _: Report | None) -> int:
        way = fleet.chain(node.spec.site)
        if any(site.spec.uplink.metered for site in way):
            return 0
        return 100 * GOOD_WAY_US // (GOOD_WAY_US + sum(link_us(site) for site in way))

    return trait(fleet, "uplink", ask)


def headroom(fleet: Fleet) -> Ints:
    """What is left of its battery, or of the way to too hot, whichever is less."""

    def ask(_: Node, report: Report | None) -> int:
        if report is None:
            return 100
        battery, temperature = report.vitals.battery_percent, report.vitals.temperature_c
        left = 100 if battery is None else int(battery)
        cool = 100 if temperature is None else int(100 * (HOT_C - temperature) / (HOT_C - COOL_C))
        return max(0, min(100, left, cool))

    return trait(fleet, "headroom", ask, vital=True)


def steadiness(fleet: Fleet) -> Ints:
    """Less for every break of its link of late and for every start that had to be repeated; forty for being there, and
    the rest by the minute, up to an hour."""
    there = np.clip(fleet.now - fleet.since, 0, STEADY_MS) * 60 // STEADY_MS
    drops = fleet.drops >> np.clip((fleet.now - fleet.since) // STEADY_MS, 0, 62)
    found: Ints = np.clip(40 + there - np.minimum(RESTART_COST * fleet.restarts + DROP_COST * drops, 100), 0, 100)
    return found


# --- Is anything known at all? Where not, nobody has to ask -----------------------------------------------------------


def knows_power(fleet: Fleet) -> bool:
    return bool((fleet.present & (full_mw(fleet) != UNKNOWN)).any())


def knows_carbon(fleet: Fleet) -> bool:
    return bool((fleet.present & (_carbon(fleet) != UNKNOWN)).any())


def knows_uplinks(fleet: Fleet) -> bool:
    """Does any site say how long its way is, or that it is paid for?"""

    def ask(node: Node, _: Report | None) -> int:
        ways = [site.spec.uplink for site in fleet.chain(node.spec.site)]
        return int(any(way.metered or way.latency_ms is not None or way.bandwidth_bps is not None for way in ways))

    return bool((fleet.present & (trait(fleet, "uplinks", ask) > 0)).any())


def knows_vitals(fleet: Fleet) -> bool:
    return bool((fleet.present & (headroom(fleet) < 100)).any())
