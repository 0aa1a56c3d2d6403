"""What the play measured, under the names that scripts read, and what of it was promised."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from batuta.demo.show import Line


@dataclass
class Measured:
    """Every figure of one run. Field names are the keys of `batuta demo --json`, exactly."""

    accuracy: float = 0.0
    frames_published: int = 0
    readings_received: int = 0
    readings_lost: int = 0
    readings_duplicated: int = 0
    apply_to_healthy_ms: int = 0
    failover_ms: int = 0
    cut_seconds: float = 0.0
    readings_during_cut_at_site: int = 0
    delivered_after_cut: int = 0
    swap_lost: int = 0
    agent_rss_mb: float = 0.0
    broker_rss_mb: float = 0.0
    hub_rss_mb: float = 0.0

    def document(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[Line]:
        """The closing table. A row without a promise is always kept."""
        during = self.readings_during_cut_at_site
        return [
            Line("accuracy on held-out images", f"{self.accuracy:.3f}", "at least 0.95", self.accuracy >= 0.95),
            Line("frames published", f"{self.frames_published:,}", "", self.frames_published > 0),
            Line("readings received at the hub", f"{self.readings_received:,}", "", self.readings_received > 0),
            Line("readings lost", str(self.readings_lost), "0", self.readings_lost == 0),
            Line("readings duplicated", str(self.readings_duplicated), "0", self.readings_duplicated == 0),
            Line("apply to healthy", f"{self.apply_to_healthy_ms:,} ms", "", self.apply_to_healthy_ms > 0),
            Line("failover", f"{self.failover_ms:,} ms", "at most 5,000 ms", 0 < self.failover_ms <= 5_000),
            Line("cable cut for", f"{self.cut_seconds:.1f} s", "20 s", self.cut_seconds >= 20),
            Line("readings at the cut-off site", f"{during:,}", "more than 0", during > 0),
            Line(
                "of them delivered afterwards",
                f"{self.delivered_after_cut:,}",
                f"{during:,}",
                self.delivered_after_cut == during,
            ),
            Line("readings lost in the swap", str(self.swap_lost), "0", self.swap_lost == 0),
            Line("node agent, resident", f"{self.agent_rss_mb:.1f} MB", "at most 35 MB", 0 < self.agent_rss_mb <= 35),
            Line("node broker, resident", f"{self.broker_rss_mb:.1f} MB", "", self.broker_rss_mb > 0),
            Line("hub, resident", f"{self.hub_rss_mb:.1f} MB", "at most 120 MB", 0 < self.hub_rss_mb <= 120),
        ]

    def kept(self) -> bool:
        return all(line.kept for line in self.lines())
