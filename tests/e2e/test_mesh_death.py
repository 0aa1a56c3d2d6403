"""The machine of an instance dies under a steady stream of calls: every call is answered, with a hub and without."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from batuta.core import mesh_budget
from batuta.demo.stage import processes_in
from benchmarks.mesh import Bench

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RATE, SECONDS = 100.0, 6.0


def test_no_call_fails_when_a_node_dies_with_the_hub_and_without() -> None:
    with tempfile.TemporaryDirectory(prefix="batuta-test-") as directory:
        # Patient callers: a busy machine is slow, and that is not what is tried here.
        bench = Bench(Path(directory), deadline_ms=30_000)
        try:
            bench.open()
            found = [asyncio.run(bench.with_a_death("leaf-dies", "m2", RATE, SECONDS))]
            bench.restart("m2")
            bench.stage.kill_hub()
            found.append(asyncio.run(bench.with_a_death("leaf-dies", "m2", RATE, SECONDS)))
            # The hard case: the node dies to which the others are linked, and nobody but they can mend that.
            bench.stage.restart_node("m2")
            found.append(asyncio.run(bench.with_a_death("root-dies", "m1", RATE, SECONDS)))
        finally:
            bench.stage.close()
        assert processes_in(Path(directory)) == []
    earned = mesh_budget.EARNED_BY_A_REQUEST * RATE * SECONDS + mesh_budget.TRICKLE_A_SECOND * (SECONDS + 30)
    most = (mesh_budget.MOST + earned) / mesh_budget.TOKEN
    for each in found:
        assert (each["failed"], each["codes"]) == (0, []), each
        assert each["calls"] == int(RATE * SECONDS)
        assert each["asked_again"] <= most
    # Each of the two was asked while it lived, and the other went on.
    assert found[0]["answered_by"]["m3"] > 0
    assert found[2]["answered_by"]["m2"] > 0
