"""A stage for tests: real hub, real nodes, in a directory that vanishes with all its processes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batuta.demo.digits import Digits, prepare
from batuta.demo.stage import Stage, processes_in

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def stage() -> Iterator[Stage]:
    """An empty stage; closing it must leave no process behind and have to kill none."""
    with tempfile.TemporaryDirectory(prefix="batuta-test-") as directory:
        made = Stage(Path(directory))
        try:
            yield made
        finally:
            for name in ("hub", *made.nodes):  # shown only when the test failed
                print(f"--- {name}:\n{made.log_tail(name, 40)}")
            killed = made.close()
        assert killed == [], "these did not end when asked to"
        assert processes_in(Path(directory)) == []


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Two versions of a classifier and images that neither has seen."""
    return prepare(tmp_path_factory.mktemp("digits"))
