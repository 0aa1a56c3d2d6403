"""What programs share, whether they are processes or containers: probes and an environment."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from batuta.kinds.base import Millis, Problem, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

Port = Annotated[int, Meta(ge=1, le=65_535)]


class HttpProbe(Record):
    """Healthy when a GET to this port of loopback answers 2xx or 3xx."""

    port: Port
    path: str = "/"


class Probe(Record):
    """How to ask an instance whether it is well: exactly one of http, tcp, exec."""

    http: HttpProbe | None = None
    tcp: Port | None = None
    exec: tuple[str, ...] | None = None
    every_ms: Millis = msgspec.field(default_factory=lambda: Millis(2_000), name="every")
    timeout_ms: Millis = msgspec.field(default_factory=lambda: Millis(1_000), name="timeout")
    failures: Annotated[int, Meta(ge=1, le=100)] = 3
    """So many in a row count as a failure."""


def probe_problems(path: str, probe: Probe | None) -> Iterator[Problem]:
    if probe is None:
        return
    named = [f for f in ("http", "tcp", "exec") if getattr(probe, f) is not None]
    if len(named) != 1:
        yield Problem(path=path, code="one_of", message="say exactly one of http, tcp, exec")
    if probe.http is not None and not probe.http.path.startswith("/"):
        yield Problem(path=f"{path}.http.path", code="value", message="a path starts with '/'")


def env_problems(path: str, env: dict[str, str]) -> Iterator[Problem]:
    for name in env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield Problem(
                path=f"{path}.{name}",
                code="key",
                message=f"{name!r} is not a name for an environment variable",
                hint="use letters, digits and underscores",
            )
