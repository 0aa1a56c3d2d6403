"""Everything Batuta raises on purpose, as one tree.

    BatutaError
    ├── Refused                a document or request is wrong; carries every Problem found
    │   └── AlreadyThere       hub.declare: a new resource would take the name of one that exists
    ├── NotFound               nothing is called that
    ├── Stale                  the revision you wrote against is no longer the newest
    ├── FabricUnavailable      the broker cannot be reached, or did not answer in time
    │   ├── BrokerFailed       fabric.broker: it did not start, or refused a configuration; carries a code
    │   ├── NoContext          context: nobody has said which hub is meant
    │   └── Silent             wire: a stream that had begun said nothing for too long
    ├── EnrolmentRefused       a node may not join; carries a Reason code and the next step
    ├── RuntimeFailure         an instance could not be prepared, started, inspected or stopped
    │   └── EngineRefused      runtimes.container_http: Podman or Docker answered, and said no
    ├── ArtifactRefused        bytes that are not what their digest says, or cannot be fetched or kept
    ├── FieldConflict          web.applying: others hold fields that an apply would change; carries each of them
    ├── LedgerCorrupt          what a node wrote down about itself cannot be read back
    ├── AlreadyRunning         agent.agent: another node agent has this state directory
    ├── TokenDenied            hub.api_tokens: a bearer token that opens nothing; carries the word to count it by
    ├── HungUp                 wire: this side has ended the conversation
    ├── Held                   agent.fetch: the hub has an artifact and does not send it now; carries why and how long
    ├── InferenceFailed        mesh: a call was not answered; carries a code and an HTTP status
    ├── WaitedTooLong          client: what was awaited did not come in time
    └── Wrong                  web.answers: the request itself cannot be served; carries an HTTP status

Refusals that the core foresees are values (`Problem`, `Reason`), not exceptions; contradictions are assertions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.kinds.base import Problem


class BatutaError(Exception):
    """Base of all errors below: the message says what happened, `next_step` what to do about it."""

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step


class Refused(BatutaError):
    """A document or request is wrong. `problems` holds all of them, never just the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class NotFound(BatutaError):
    """Nothing is called that."""


class Stale(BatutaError):
    """The revision written against is no longer the newest: read again, decide again."""


class FabricUnavailable(BatutaError):
    """The broker cannot be reached, or did not answer in time."""


class EnrolmentRefused(BatutaError):
    """A node may not join. `code` is one of the reason catalogue's enrolment codes."""

    def __init__(self, code: str, message: str, *, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.code = code


class RuntimeFailure(BatutaError):
    """An instance could not be prepared, started, inspected or stopped."""

    def __init__(self, code: str, message: str, *, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.code = code


class ArtifactRefused(BatutaError):
    """Bytes that are not what their digest says, or that cannot be fetched or kept."""

    def __init__(self, code: str, message: str, *, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.code = code


class LedgerCorrupt(BatutaError):
    """What a node wrote down about itself cannot be read back."""
