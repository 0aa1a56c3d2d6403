"""Facts: what conditions see of a node and its site, and which of it a condition can see at all.

Most conditions ask for two or three fields, and most nodes of a fleet have the same few values there. So a condition is
asked once for each set of values that occurs, not once for each node.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from batuta.core.observed import Inventory
from batuta.kinds.tokens import tokens_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batuta.core.observed import Accelerator, Report
    from batuta.kinds.node import Card, Node
    from batuta.kinds.site import Site

Path = tuple[str, ...]
"""`("node", "memory")`, `("node", "labels", "camera")`; `("node",)` for all that is known of it."""

_NAMED = re.compile(r"\b(node|site)\b")
_FIELD = re.compile(r"\s*\.\s*([A-Za-z_]\w*)(?!\w)(?!\s*\()")
_KEY = re.compile(r"""\s*\[\s*(["'])([^"'\\]*)\1\s*\]""")
_GOES_ON = re.compile(r"\s*[.\[]")
_ASKED_IN = re.compile(r"""(?:^|[(?:,]|&&|\|\|)\s*(["'])([^"'\\]*)\1\s+in\s+$""")


@lru_cache(maxsize=4096)
def paths_of(text: str) -> tuple[Path, ...]:
    """What a condition can depend on. Rather too much than too little: what is not plainly a field is everything."""
    found: set[Path] = set()
    for match in _NAMED.finditer(text):
        root = match[1]
        field = _FIELD.match(text, match.end())
        if field is None:
            found.add((root,))
        elif field[1] != "labels":
            found.add((root, field[1]))
        else:
            found.add((root, "labels", *_label(text, match.start(), field.end())))
    return tuple(sorted(path for path in found if not any(path[:n] in found for n in range(1, len(path)))))


@lru_cache(maxsize=4096)
def parts_of(text: str) -> tuple[str, ...]:
    """The conditions that must all hold for this one to hold; itself when it is not plainly made of several."""
    depth, cuts = 0, list[int]()
    for token in tokens_of(text):
        if token.kind != "sign":
            continue
        depth += (token.text in "([{") - (token.text in ")]}")
        if depth == 0 and token.text in ("||", "?", ":"):
            return (text,)
        if depth == 0 and token.text == "&&":
            cuts.append(token.at)
    begins, ends = (0, *(at + 2 for at in cuts)), (*cuts, len(text))
    return tuple(text[begin:end].strip() for begin, end in zip(begins, ends, strict=True))


def _label(text: str, start: int, end: int) -> tuple[str, ...]:
    """The one label that is asked for; nothing when it may be any."""
    key, field = _KEY.match(text, end), _FIELD.match(text, end)
    if key is not None:
        return (key[2],)
    if field is not None:
        return (field[1],)
    asked = None if _GOES_ON.match(text, end) else _ASKED_IN.search(text, 0, start)
    return () if asked is None else (asked[2],)


def seen_by(paths: tuple[Path, ...], facts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of the facts of a node and its site those that a condition with these paths can depend on."""
    found: dict[str, dict[str, Any]] = {}
    for root, *field in paths:
        all_of_it = facts[root]
        if not field:
            found[root] = all_of_it
        elif field[0] in all_of_it:
            found.setdefault(root, {})[field[0]] = all_of_it[field[0]]
        else:
            found.setdefault(root, {})
    return found


def look_up(facts: dict[str, Any], path: Path) -> Any:
    """A value that is the same for two nodes only if no condition that asks for the path can tell them apart."""
    found: Any = facts
    for name in path:
        if not isinstance(found, dict) or name not in found:
            return None, "absent"
        found = found[name]
    return type(found).__name__, found if isinstance(found, (str, int, float, bool)) else repr(found)


_PLAIN: dict[str, Callable[[Inventory], str | int]] = {
    "architecture": lambda i: i.architecture,
    "cpu": lambda i: int(i.cpu_millis),
    "memory": lambda i: int(i.memory_bytes),
    "disk": lambda i: int(i.disk_bytes),
    "os": lambda i: i.os,
    "kernel": lambda i: i.kernel,
}
_UNREPORTED = Inventory()


def fact(node: Node, report: Report | None, sites: Mapping[str, Site | None], path: Path) -> Any:
    """What `look_up` finds in the facts of a node and its site, without working out those that are not asked for."""
    return fact_at(path, sites)(node, report)


def fact_at(path: Path, sites: Mapping[str, Site | None]) -> Callable[[Node, Report | None], Any]:
    """The same for who asks many nodes."""
    if path[0] == "site":
        return lambda node, _: look_up({"site": site_facts(node, sites)}, path)
    if path[1:2] == ("labels",) and len(path) == 3:
        name = path[2]
        return lambda node, _: (None, "absent") if (label := node.metadata.labels.get(name)) is None else ("str", label)
    plain = _PLAIN.get(path[1]) if len(path) == 2 else None
    if plain is not None:
        kind = type(plain(_UNREPORTED)).__name__
        return lambda _, report: (kind, plain(report.inventory if report is not None else _UNREPORTED))
    return lambda node, report: look_up({"node": node_facts(node, report)}, path)


def node_facts(node: Node, report: Report | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": node.metadata.name, "site": node.spec.site, "labels": dict(node.metadata.labels), "architecture": "",
        "cpu": 0, "memory": 0, "disk": 0, "accelerators": [], "runtimes": [], "os": "", "kernel": "",
        "hardware": node.spec.hardware or (report.inventory.hardware if report is not None else ""), "devices": [],
    }  # fmt: skip
    if node.spec.accelerators:
        facts["accelerators"] = [_card(a) for a in node.spec.accelerators]
    if report is not None:
        inventory, vitals = report.inventory, report.vitals
        facts |= {
            "architecture": inventory.architecture, "cpu": int(inventory.cpu_millis),
            "memory": int(inventory.memory_bytes), "disk": int(inventory.disk_bytes),
            "accelerators": facts["accelerators"] or [_card(a) for a in inventory.accelerators],
            "runtimes": list(inventory.runtimes), "os": inventory.os, "kernel": inventory.kernel,
            "devices": list(inventory.devices),
        }  # fmt: skip
        if vitals.temperature_c is not None:
            facts["temperature"] = vitals.temperature_c
        if vitals.battery_percent is not None:
            facts["battery"] = vitals.battery_percent
    return facts


def produced(report: Report) -> dict[str, int]:
    """What each consumer's inbox took in there."""
    found: dict[str, int] = {}
    for flow in report.flows:
        found[flow.consumer] = found.get(flow.consumer, 0) + flow.produced
    return found


def _card(card: Accelerator | Card) -> dict[str, Any]:
    return {"kind": card.kind, "name": card.name, "memory": int(card.memory_bytes)}


def chain(site: str, sites: Mapping[str, Site | None]) -> list[str]:
    """A site and those above it, nearest first. A ring, which admission refuses, ends the walk."""
    found: list[str] = []
    here: str | None = site
    while here is not None and here not in found:
        found.append(here)
        above = sites.get(here)
        here = above.spec.parent if above is not None else None
    return found


def residency(site: str, sites: Mapping[str, Site | None]) -> str:
    """Where data at a site may live: as the nearest says that says anything."""
    said = (found.spec.residency for name in chain(site, sites) if (found := sites.get(name)) is not None)
    return next((place for place in said if place), "")


def site_facts(node: Node, sites: Mapping[str, Site | None]) -> dict[str, Any]:
    site = sites.get(node.spec.site)
    if site is None:
        return {
            "name": node.spec.site, "parent": "", "residency": "", "labels": {}, "metered": False, "timeZone": "UTC",
            "path": [node.spec.site],
        }  # fmt: skip
    uplink = site.spec.uplink
    facts: dict[str, Any] = {
        "name": site.metadata.name, "parent": site.spec.parent or "",
        "residency": residency(site.metadata.name, sites), "labels": dict(site.metadata.labels),
        "metered": uplink.metered, "timeZone": site.spec.time_zone or "UTC", "path": chain(node.spec.site, sites),
    }  # fmt: skip
    if site.spec.carbon_intensity is not None:
        facts["carbon"] = site.spec.carbon_intensity
    if uplink.bandwidth_bps is not None:
        facts["bandwidth"] = int(uplink.bandwidth_bps)
    if uplink.latency_ms is not None:
        facts["latency"] = int(uplink.latency_ms)
    return facts
