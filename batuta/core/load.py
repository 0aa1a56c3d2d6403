"""Load: what an instance takes of its node, and what is free again when it goes.

Whatever instances share on a node is here, and what they do not share: a fleet lays loads on its columns, and whoever
places many instances lays them tentatively, to see what would come next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batuta.kinds.container import ContainerUse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batuta.core.decided import Grant, Instance
    from batuta.kinds.application import ProcessUse, Serve

Claim = tuple[str, int | str] | tuple[str, int, int]
"""What one instance has for itself: `("port", 8080)`, `("device", "/dev/video0")`, and of accelerators
`("card", 0, WHOLE)` or a share, `("card", 0, bytes)`."""

WHOLE = -1


class Load(NamedTuple):
    """Of processor time, memory and disk; and what nobody else on the node may have."""

    cpu_millis: int
    memory_bytes: int
    disk_bytes: int = 0
    claims: tuple[Claim, ...] = ()


def load_of(instance: Instance) -> Load:
    claims: tuple[Claim, ...] = ()
    ports = (*instance.ports, *served_ports(instance.serve), *probed_ports(instance.program))
    if ports or instance.devices or instance.accelerators:
        claims = claims_of(ports, instance.devices, instance.accelerators)
    load = Load(int(instance.cpu_millis), int(instance.memory_bytes), int(instance.disk_bytes or 0), claims)
    if instance.newcomer is None:
        return load
    more = load_of(instance.newcomer)
    return Load(
        load.cpu_millis + more.cpu_millis, load.memory_bytes + more.memory_bytes, load.disk_bytes + more.disk_bytes,
        load.claims + more.claims,
    )  # fmt: skip


def claims_of(ports: Iterable[int], devices: Iterable[str], grants: Iterable[Grant] = ()) -> tuple[Claim, ...]:
    found: list[Claim] = [("port", port) for port in sorted(set(ports))]
    found += [("device", device) for device in sorted(set(devices))]
    found += [("card", g.card, WHOLE if g.memory_bytes is None else int(g.memory_bytes)) for g in grants]
    return tuple(found)


def served_ports(serve: Serve | None) -> tuple[int, ...]:
    return () if serve is None else (serve.port,)


def probed_ports(program: ProcessUse | ContainerUse | None) -> tuple[int, ...]:
    """A program that is asked at a port owns it; and so does a container to which a port of the node leads."""
    if program is None:
        return ()
    probes = [probe for probe in (program.ready, program.live) if probe is not None]
    asked = tuple(p for probe in probes for p in (probe.tcp, probe.http.port if probe.http else None) if p is not None)
    return (*asked, *(one.to for one in program.publish)) if isinstance(program, ContainerUse) else asked
