"""Golden inputs: what goes into a model and what must come out, replayed wherever it is to run.

One `.npz` file, as `numpy.savez` makes it: arrays `input.NAME` and `output.NAME` for every input and output of the
model, without pickled objects. Where a version shapes what it is sent and what it says (`before` and `after`, or Python
of its own), the same file or another has arrays `request.NAME` and `answer.NAME`: what callers send, and what they are
told. Those are replayed through all of it, as it will be served. The first dimension of each counts the cases, and is
the same for all. An output that is left out is not compared. Numbers may differ by the tolerance, absolutely or in
proportion to what is expected, whichever allows more; whole numbers and words must be equal. What is no number equals
only what is no number either. Cases are run one by one: a model that quantises as it goes answers a batch otherwise
than each of its items.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from batuta.core.proving import GOLDEN_BYTES_MAX
from batuta.errors import ArtifactRefused
from batuta.tuning.session import count_of, feedable, first_line

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.tuning.session import Loaded

INPUT, OUTPUT = "input.", "output."
REQUEST, ANSWER = "request.", "answer."
Served = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Asks a version as callers do, one case at a time. Raises ArtifactRefused."""
ARRAYS_MAX = 256
CASES = 32
"""So many are kept of data that golden inputs are made from."""


class GoldenSet(NamedTuple):
    """The cases of a file."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    requests: Mapping[str, Any] = {}
    answers: Mapping[str, Any] = {}

    @property
    def cases(self) -> int:
        return sum(count_of(each) for each in (self.inputs, self.requests) if each)


class Replayed(NamedTuple):
    """What became of replaying."""

    cases: int
    furthest: float
    """The largest difference, as a share of what is tolerated; 1 and less is right."""
    wrong: str
    """Where it was most wrong, in words; empty when all is right."""


def read(path: Path) -> GoldenSet:
    """Raises ArtifactRefused with `golden_unreadable`: it is anybody's file."""
    arrays = arrays_of(path, "golden_unreadable")
    found = {
        prefix: {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        for prefix in (INPUT, OUTPUT, REQUEST, ANSWER)
    }
    levels = [(found[INPUT], found[OUTPUT]), (found[REQUEST], found[ANSWER])]
    if sum(map(len, found.values())) != len(arrays) or any(bool(g) != bool(w) for g, w in levels) or not arrays:
        said = f"it has {', '.join(sorted(arrays)) or 'nothing'}"
        arrays_are = "arrays input.NAME and output.NAME, or request.NAME and answer.NAME"
        raise ArtifactRefused("golden_unreadable", f"golden inputs are {arrays_are}; {said}"[:500])
    for given, wanted in levels:
        counts = {len(value) if value.ndim else -1 for value in (*given.values(), *wanted.values())}
        if len(counts) > 1:
            raise ArtifactRefused("golden_unreadable", "its arrays differ in how many cases they have")
        if counts and counts.pop() < 1:
            raise ArtifactRefused("golden_unreadable", "it has no cases")
    return GoldenSet(found[INPUT], found[OUTPUT], found[REQUEST], found[ANSWER])


def requests_in(path: Path) -> dict[str, Any]:
    """What callers send, in a file of nothing else; empty when it is some other data."""
    if path.suffix != ".npz":
        return {}
    arrays = arrays_of(path, "data_unreadable")
    found = {name.removeprefix(REQUEST): value for name, value in arrays.items() if name.startswith(REQUEST)}
    return found if len(found) == len(arrays) else {}


def arrays_of(path: Path, code: str, bytes_max: int = GOLDEN_BYTES_MAX) -> dict[str, Any]:
    """The arrays of an .npz file of bounded size, unpacked. Objects in it are refused: loading them would run code."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
        if len(members) > ARRAYS_MAX or unpacked > bytes_max:
            raise ArtifactRefused(code, f"{len(members)} arrays of {unpacked} bytes; {bytes_max} bytes are read")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        raise ArtifactRefused(code, f"{path.name} cannot be read as .npz: {first_line(error)}") from None


def write(path: Path, golden: GoldenSet) -> None:
    """The same cases give the same bytes: what is in an archive carries no time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        levels = (INPUT, golden.inputs), (OUTPUT, golden.outputs), (REQUEST, golden.requests), (ANSWER, golden.answers)
        for prefix, arrays in levels:
            for name, value in sorted(arrays.items()):
                member = zipfile.ZipInfo(f"{prefix}{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                member.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(member, "w") as file:
                    np.lib.format.write_array(file, np.ascontiguousarray(value), allow_pickle=False)


def make(session: Loaded, inputs: Mapping[str, Any], cases: int = CASES) -> GoldenSet:
    """What the model says now of the first of these inputs is what it must say for ever."""
    chosen = feedable(session, {name: value[:cases] for name, value in inputs.items()})
    outputs = {name: _plain(value) for name, value in session.run_all(chosen, batch=1).items()}
    kept = {name: value for name, value in outputs.items() if value is not None}
    if not kept:
        raise ArtifactRefused("golden_unreadable", "the model has no output that can be compared: none is a tensor")
    return GoldenSet({name: _wordy(value) for name, value in chosen.items()}, kept)


def replay(session: Loaded, golden: GoldenSet, tolerance: float, served: Served | None = None) -> Replayed:
    """Run all cases and compare. Raises ArtifactRefused when they cannot even be run."""
    found = Replayed(golden.cases, 0.0, "")
    if golden.inputs:
        unknown = sorted(golden.outputs.keys() - {port.name for port in session.outputs})
        if unknown:
            there = ", ".join(port.name for port in session.outputs)
            said = f"the model has no output {', '.join(unknown)}; it has {there}"
            raise ArtifactRefused("golden_mismatch", said[:500])
        got = session.run_all(feedable(session, golden.inputs), batch=1)
        found = _compared({name: _plain(value) for name, value in got.items()}, golden.outputs, tolerance, "output")
    if golden.requests and not found.wrong:
        if served is None:
            raise ArtifactRefused("golden_unreadable", "its requests are for a version, and this is a file alone")
        other = _compared(_answers(served, golden), golden.answers, tolerance, "answer")
        found = max(found, other, key=lambda each: each.furthest)
    return found._replace(cases=golden.cases)


def answers(served: Served, requests: Mapping[str, Any], cases: int = CASES) -> GoldenSet:
    """What callers are told now of the first of these requests is what they must be told for ever."""
    chosen = {name: value[:cases] for name, value in requests.items()}
    return GoldenSet({}, {}, chosen, _answers(served, GoldenSet({}, {}, chosen)))


def _answers(served: Served, golden: GoldenSet) -> dict[str, Any]:
    rows = [
        served({name: value[case : case + 1] for name, value in golden.requests.items()})
        for case in range(count_of(golden.requests))
    ]
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ArtifactRefused("golden_mismatch", "the version does not give the same outputs for every request")
    try:
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    except ValueError as error:
        raise ArtifactRefused("golden_mismatch", f"answers differ in their shapes: {first_line(error)}") from None


def _compared(got: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float, word: str) -> Replayed:
    furthest, wrong = 0.0, ""
    for name, wanted in sorted(expected.items()):
        found = got.get(name)
        if found is None or found.shape != wanted.shape:
            said = "no tensor" if found is None else f"of shape {list(found.shape)}"
            return Replayed(0, float("inf"), f"{word} {name} is {said}, {list(wanted.shape)} expected")
        share, at = _share(found, wanted, tolerance)
        if share > furthest:
            furthest = share
            if share > 1.0:
                case = int(at[0]) if at else 0
                wrong = f"{word} {name} of case {case} is {found[at]!s:.40}, {wanted[at]!s:.40} expected"
    return Replayed(0, furthest, wrong)


def _share(found: Any, wanted: Any, tolerance: float) -> tuple[float, tuple[int, ...]]:
    """The largest difference as a share of what is tolerated, and where."""
    if not wanted.size:
        return 0.0, ()
    if wanted.dtype.kind != "f" or found.dtype.kind != "f":
        differs = (
            _words(found) != _words(wanted) if {found.dtype.kind, wanted.dtype.kind} & set("US") else found != wanted
        )
        share = np.where(differs, np.inf, 0.0)
    else:
        one, other = found.astype(np.float64), wanted.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            allowed = np.maximum(tolerance, tolerance * np.abs(other))
            share = np.where(one == other, 0.0, np.abs(one - other) / np.where(allowed > 0, allowed, 1e-300))
        share = np.where(np.isnan(one) & np.isnan(other), 0.0, share)
        share = np.where(np.isnan(share), np.inf, share)
    at = np.unravel_index(int(np.argmax(share)), share.shape)
    return float(share[at]), tuple(int(i) for i in at)


def _plain(output: Any) -> Any:
    """An output as an array without objects; None where it is none."""
    return _wordy(output) if isinstance(output, np.ndarray) else None


def _wordy(value: Any) -> Any:
    return value.astype(str) if value.dtype.kind == "O" else value


def _words(value: Any) -> Any:
    return np.char.decode(value, "utf-8", "replace") if value.dtype.kind == "S" else value.astype(str)
