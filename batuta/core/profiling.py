"""Profiling: which variant is how fast on which class of hardware, as nodes found out.

A row is kept for each variant and class, in the decided table: the fleet needs each once. Rows are inputs of placement
like what people declare; they outlive the node that measured. Who is asked to measure what is a pure function of the
tables: a node of the class that may run it, has nothing else to do and, if one has it, holds the file already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batuta.core.decided import ModelOrder
from batuta.core.known import KnownProfile, profile_key
from batuta.core.proving import BATTERY_PERCENT_MIN, SPARE_BYTES, MeasureWanted
from batuta.core.state import Change
from batuta.core.wish import Ask
from batuta.kinds.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.core.decided import VersionChoice
    from batuta.core.fleet import Fleet
    from batuta.core.observed import Report
    from batuta.core.state import State


class Asked(NamedTuple):
    """A question to one node."""

    node: str
    hardware: str
    wanted: MeasureWanted


def to_keep(state: State) -> list[Change]:
    """Rows of what nodes measured and nobody knew, or knew of another runtime; and those of files that no model has."""
    models = [m for m in state.desired.values() if isinstance(m, Model)]
    declared = {v.digest for m in models for version in m.spec.versions for v in version.variants}
    found: dict[str, KnownProfile] = {}
    for name, report in sorted(state.observed.items()):
        hardware = hardware_of(state, name, report)
        if not report.profiles or not hardware:
            continue
        for told in report.profiles:
            if told.digest not in declared:
                continue
            key = profile_key(told.digest, hardware)
            known = found.get(key) or state.profiles.get(told.digest, {}).get(hardware)
            if known is not None and (known.runtime == told.runtime or told.at <= known.at):
                continue
            found[key] = KnownProfile(
                digest=told.digest, hardware=hardware, node=name, at=told.at, p50_us=told.p50_us, p99_us=told.p99_us,
                memory_bytes=told.memory_bytes, samples=told.samples, runtime=told.runtime,
            )  # fmt: skip
    changes = [Change("decided", key, row) for key, row in sorted(found.items())]
    gone = (row for digest, rows in state.profiles.items() if digest not in declared for row in rows.values())
    return changes + [Change("decided", key, None) for key in sorted(row.key for row in gone)]


def is_all_known(state: State) -> bool:
    """Is every variant of every release known on every class of hardware there is? Then nobody need be asked, and that
    is found out without looking at who could run what."""
    classes = {hardware_of(state, name, report) for name, report in state.observed.items()} - {""}
    newest = (releases[-1] for releases in state.releases.values() if releases)
    versions = (r.version for release in newest for r in release.components if r.version is not None)
    digests = {v.digest for version in versions for v in version.variants}
    return all(classes <= state.profiles.get(digest, {}).keys() for digest in digests)


def to_ask(state: State, fleet: Fleet) -> list[Asked]:
    """Whom to ask what: each variant that a release may choose, on each class of hardware where it could run and has
    not been measured. One question a node, and one node a question."""
    found: list[Asked] = []
    asked: set[tuple[str, str]] = set()
    busy: set[str] = set()
    for version, ask in _asks(state, fleet):
        eligible = ask.eligible()
        for i, variant in enumerate(version.variants):
            # An accelerator that is to be measured would have to be given first.
            if variant.needs.accelerator is not None or ask.needs:
                continue
            known = state.profiles.get(variant.digest, {})
            held = fleet.has_artifact(variant.digest)
            rows = np.flatnonzero(eligible & ask.suits(i) & fleet.fresh & (fleet.held_until <= fleet.now))
            for row in sorted(rows.tolist(), key=lambda row: (not held[row], fleet.names[row])):
                name = fleet.names[row]
                report = state.observed.get(name)
                hardware = hardware_of(state, name, report) if report is not None else ""
                if not hardware or report is None or (variant.digest, hardware) in asked or hardware in known:
                    continue
                if name in busy or not _is_idle(report, int(variant.size_bytes)):
                    continue
                model = ModelOrder(
                    name=version.name, version=version.version, variant=variant, signature=version.signature,
                    signers=version.signers,
                )  # fmt: skip
                found.append(Asked(name, hardware, MeasureWanted(model=model)))
                asked.add((variant.digest, hardware))
                busy.add(name)
    return found


def hardware_of(state: State, node: str, report: Report) -> str:
    """The class of a node's hardware: as its owner says, or else as it reports itself."""
    resource = state.nodes.get(node)
    return (resource.spec.hardware if resource is not None else "") or report.inventory.hardware


def _asks(state: State, fleet: Fleet) -> Iterator[tuple[VersionChoice, Ask]]:
    for app, releases in sorted(state.releases.items()):
        if not releases or state.application(app) is None:
            continue
        for released in releases[-1].components:
            if released.version is not None:
                yield released.version, Ask(app, released, fleet)


def _is_idle(report: Report, size_bytes: int) -> bool:
    """As far as its last report tells; it decides itself in the end, also by how busy its processors are."""
    vitals = report.vitals
    if any(i.phase in ("fetching", "proving", "starting", "stopping", "waiting") for i in report.instances):
        return False
    if vitals.battery_percent is not None and vitals.battery_percent < BATTERY_PERCENT_MIN:
        return False
    free = vitals.memory_free_bytes
    return free is None or free >= SPARE_BYTES + 3 * size_bytes
