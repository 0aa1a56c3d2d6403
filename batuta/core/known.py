"""What the hub knows of variants because nodes measured them: one row for each variant and class of hardware."""

from __future__ import annotations

import msgspec

from batuta.kinds.base import Bytes, Record


class KnownProfile(Record):
    """How fast a variant is on a class of hardware. Keys of the decided table: `profile.<digest>.<class>`."""

    digest: str
    hardware: str
    node: str
    """Who measured."""
    at: int
    p50_us: int
    p99_us: int
    memory_bytes: Bytes = msgspec.field(name="memory")
    samples: int = 0
    runtime: str = ""

    @property
    def key(self) -> str:
        return profile_key(self.digest, self.hardware)


def profile_key(digest: str, hardware: str) -> str:
    """Classes may hold dots, which separate the words of a key."""
    return f"profile.{digest.removeprefix('sha256:')}.{hardware.replace('.', '_')}"
