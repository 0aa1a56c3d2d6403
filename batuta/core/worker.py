"""What a node agent and a model worker say to each other: the order it starts with, and its pulse.

Values only, here because the agent's runtime and the worker must agree and know nothing else of each other. The order
goes in on standard input; the pulse is a file that the worker replaces every second, so it can be read by an agent that
came later; neighbours are a file too, for the same reason.
"""

from __future__ import annotations

from typing import Literal

from batuta.core.decided import Instance
from batuta.core.observed import Measures
from batuta.kinds.base import Record

PULSE_FILE = "measures.json"
PULSE_BYTES_MAX = 64 * 1024
PULSE_EVERY_MS = 1_000
PULSE_STALE_MS = 10_000
"""A worker whose pulse stands still for so long is not live."""
NEIGHBOURS_FILE = "neighbours.json"
"""A JSON list of node names, in the instance's directory."""
LAST_ERRORS = 10
ERROR_CHARACTERS_MAX = 300


class WorkerOrder(Record):
    """All that a worker must know to begin."""

    instance: Instance
    artifact: str
    """Path of the verified model file."""
    directory: str
    """The instance's own directory."""
    broker: dict[str, str]
    """As in `runtimes.base.Order`."""
    start: int
    """Which start of the instance this is; its pulse says so too."""
    bundles: tuple[str, ...] = ()
    """Paths of the signatures of that file, when signers are asked for."""
    transform: str = ""
    """Path of the version's own Python, when it has some."""
    drift: str = ""
    """Path of what its inputs looked like where it was made, when that is known."""


class Pulse(Record, forbid_unknown_fields=False):
    """What a worker says about itself. Unknown fields may pass: it may be of another release than the agent."""

    start: int
    sequence: int
    """Counts this worker's pulses."""
    at: int
    state: Literal["loading", "ready", "failed", "stopping"]
    code: str = ""
    """Reason code of `failed`."""
    detail: str = ""
    final: bool = False
    """The same order would fail in the same way."""
    measures: Measures = Measures()
    batches: int = 0
    duplicates: int = 0
    """Answers that were there already: somebody had crashed between answering and acknowledging."""
    redelivered: int = 0
    passed_on: int = 0
    """Frames of topics that this revision does not read, given back for another to take."""
    unsent: int = 0
    """Answers that nobody took in; their frames come again."""
    refused: dict[str, int] = {}
    """Requests that were refused, by the code that who asked was told."""
    reached: tuple[str, ...] = ()
    """Neighbours whose inboxes answer at present."""
    last_errors: tuple[str, ...] = ()
