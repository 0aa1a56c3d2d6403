"""What a rehearsal reads: faults from a file, and the tables that a hub told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from batuta.errors import BatutaError, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batuta.core.state import Change, State
    from batuta.kinds.base import Problem
    from batuta.kinds.scenario import Fault


class Snapshot(NamedTuple):
    """All tables of a hub as of one instant, and what a manifest would change."""

    state: State
    now: int
    changes: tuple[Change, ...]


def snapshot_of(answer: Mapping[str, Any]) -> Snapshot:
    """What `Client.rehearsal` answered, read. Raises BatutaError for what this version cannot read."""
    from batuta.twin.replay_rows import change_of, state_of

    try:
        rows = [_row(row) for row in answer["rows"]]
        changes = tuple(change_of(_row(row)) for row in answer.get("changes", ()))
        state = state_of(rows, int(answer["hubSince"])).deaf_for(int(answer.get("deafMs", 0)))
        return Snapshot(state, int(answer["at"]), changes)
    except (KeyError, TypeError, ValueError, Refused) as error:
        raise BatutaError(
            f"the hub's tables cannot be read: {error}"[:300], next_step="use the same version of batuta as the hub's"
        ) from error


def _row(plain: Mapping[str, Any]) -> Any:
    import msgspec

    from batuta.twin.replay_rows import Row

    return Row(table=plain["table"], key=plain["key"], value=msgspec.Raw(msgspec.json.encode(plain["value"])))


def removal_of(word: str, namespace: str, state: State) -> Change:
    """What `batuta delete KIND/NAME` would take away. Refused as it would be."""
    from batuta.cli.options import split_reference, the_kind
    from batuta.core.admission import admit_removal
    from batuta.core.state import Change
    from batuta.errors import NotFound
    from batuta.kinds.base import Ref

    kind_word, name = split_reference(word, None)
    kind = the_kind(kind_word)
    ref = Ref(kind.plural, namespace if kind.namespaced else "", name or "")
    resource = state.get(ref)
    if resource is None:
        raise NotFound(f"there is no {ref}", next_step=f"batuta get {kind.plural}")
    if problems := admit_removal(resource, state):
        raise Refused(problems)
    return Change("desired", ref.key, None)


def faults_in(file: str, state: State) -> tuple[Fault, ...]:
    """The faults of a file: a list, `faults:` with a list, or those of a Scenario. Raises Refused."""
    import yaml

    from batuta.kinds.base import Problem

    try:
        with open(file, "rb") as opened:
            document = yaml.safe_load(opened)
    except OSError as error:
        raise BatutaError(f"{file} cannot be read", next_step="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused([Problem(path="", code="syntax", message=str(error)[:300], file=file)]) from None
    where, listed = _listed(document)
    if not isinstance(listed, list):
        message = "say `faults:` and a list, as a Scenario does"
        raise Refused([Problem(path=where, code="wrong_type", message=message, file=file)])
    faults: list[Fault] = []
    problems: list[Problem] = []
    for i, each in enumerate(listed):
        _take(f"{where}[{i}]", each, state, faults, problems)
    if problems:
        import msgspec

        raise Refused([msgspec.structs.replace(problem, file=file) for problem in problems])
    return tuple(faults)


def _listed(document: Any) -> tuple[str, Any]:
    if isinstance(document, dict) and isinstance(document.get("spec"), dict):
        return "spec.faults", document["spec"].get("faults", [])
    if isinstance(document, dict):
        return "faults", document.get("faults")
    return "", document


def _take(path: str, each: Any, state: State, faults: list[Fault], problems: list[Problem]) -> None:
    import msgspec

    from batuta.kinds.base import Problem, decode_hook
    from batuta.kinds.scenario import Fault

    try:
        fault = msgspec.convert(each, Fault, dec_hook=decode_hook)
    except (msgspec.ValidationError, ValueError) as error:
        problems.append(Problem(path=path, code="wrong_type", message=str(error)))
        return
    found = list(_misfits(path, fault, state))
    problems += found
    if not found:
        faults.append(fault)


def _misfits(path: str, fault: Fault, state: State) -> Iterator[Problem]:
    """What the record alone cannot know: its strength, and who is there."""
    from batuta.kinds.base import Problem
    from batuta.kinds.nearest import did_you_mean
    from batuta.kinds.scenario import FAULTS

    fields = {"period": "period_ms", "percent": "percent", "by": "by_ms", "times": "times"}
    asked = FAULTS[fault.fault].amount
    if asked and getattr(fault, fields[asked]) is None:
        yield Problem(path=path, code="missing_field", message=f"{fault.fault} needs {asked!r}")
    for field, known, named in (
        ("node", state.nodes.keys(), fault.node),
        ("site", state.nodes_of_site.keys(), fault.site),
    ):
        for j, name in enumerate(named):
            if name not in known:
                message = f"the fleet has no {field} {name!r}"
                yield Problem(
                    path=f"{path}.{field}[{j}]", code="value", message=message, hint=did_you_mean(name, known)
                )
