"""The main job, played on this machine: a hub, six nodes, real digits, a dead node, a cut cable, a new model.

Belongs here: staging (processes, cameras, a cable that can be cut) and measuring what an audience would see. Never
here: anything that production needs, or a figure that was not measured in this run.
"""

from __future__ import annotations

from batuta.demo.play import run

__all__ = ["run"]
