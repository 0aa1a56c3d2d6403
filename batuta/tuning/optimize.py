"""Optimise: from one file of a version, variants; each evaluated, measured here, and kept when it is good enough.

The files are made and evaluated in this process, and measured each in a process of its own, as a worker would run it.
What is kept says how it was made: precision, quality, profile of this hardware, the digest of the data that it was
calibrated with, and a statement of provenance.
"""

from __future__ import annotations

import hashlib
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from batuta.core.reasons import Reason
from batuta.errors import ArtifactRefused, BatutaError, NotFound
from batuta.interop.provenance import Lineage
from batuta.interop.provenance import write as write_statement
from batuta.kinds.base import Bytes, Millis
from batuta.kinds.model import Golden, Profile
from batuta.model_push import version_of
from batuta.tuning import data as data_of
from batuta.tuning import golden as golden_of
from batuta.tuning import quality, sketch, variants
from batuta.tuning.candidates import Candidate, with_front
from batuta.tuning.homes import only
from batuta.tuning.measure import proved
from batuta.tuning.session import Session, anything, feedable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batuta.core.proving import Measured, Proof
    from batuta.interop.modelpack import Role
    from batuta.kinds.hardware import Precision
    from batuta.kinds.model import Variant
    from batuta.tuning.data import Data
    from batuta.tuning.homes import Home

BUILDER = "https://batuta.dev/model/optimize"
TOLERANCE: dict[str, float] = {"int8": 0.02, "fp16": 0.01}
"""How far what is computed in so few bits may differ from machine to machine."""

Int8 = Literal["dynamic", "static"]


class Wishes(NamedTuple):
    """What to make."""

    int8: tuple[Int8, ...] = ()
    fp16: bool = False
    simplify: bool = False
    shapes: Mapping[str, tuple[int, ...]] = {}
    """By input: then every variant takes these shapes and no others."""
    calibrate: Path | None = None
    evaluate: Path | None = None
    floors: Mapping[str, float] = {}
    base: str = ""
    """The variant to begin from; `fp32`, or the first, when left out."""
    column: str = ""
    """Of a CSV file, the column that says what is right."""
    white: float = 1.0
    """Of images, what the brightest pixel is to a model of numbers."""


class Outcome(NamedTuple):
    """What became of it."""

    name: str
    version: str
    hardware: str
    candidates: tuple[Candidate, ...]
    kept: bool
    """False: only looked at."""


class _Recipe(NamedTuple):
    name: str
    precision: Precision | None
    make: Callable[[Path, Path], str]


def optimize(
    home: Home,
    wishes: Wishes,
    *,
    hardware: str = "",
    keep: bool = True,
    told: Callable[[str, str], None] = lambda _variant, _step: None,
) -> Outcome:
    """Make, evaluate and measure variants of a version, and keep those that no floor refuses.

    `hardware` is this machine's class, under which profiles are kept; nodes name theirs by `batuta.agent.probe`.
    `told` hears of each step. Raises BatutaError when nothing can be begun; what is wrong with one variant is its
    Reason.
    """
    _check(home, wishes)
    base = _base_of(home, wishes.base)
    with tempfile.TemporaryDirectory(prefix="batuta-optimize-") as directory:
        work = _Work(home, wishes, base, Path(directory), hardware, told)
        candidates = with_front([work.try_base(), *(work.attempt(recipe) for recipe in work.recipes())])
        if keep:
            told("", f"keeping {sum(c.reason is None for c in candidates)} of {len(candidates)} variants")
            good = [c.name for c in candidates if (c.reason is None or c.is_base) and c.name in work.made]
            addition = only(home.version, [work.made[name] for name in good])
            documents = [d for n in good for d in work.beside[n]]
            if usual := work.usual():
                addition = msgspec.structs.replace(addition, drift=_digest(usual))
                documents.append(("drift", usual))
            home.keep(addition, {work.made[n].digest: work.paths[n] for n in good}, documents)
    return Outcome(home.name, home.version.version, hardware, tuple(candidates), keep)


class _Work:
    """One run: the files in a directory that vanishes with it, and what is known of them."""

    def __init__(  # noqa: PLR0917
        self,
        home: Home,
        wishes: Wishes,
        base: Variant,
        directory: Path,
        hardware: str,
        told: Callable[[str, str], None],
    ) -> None:
        self.home, self.wishes, self.base, self.directory, self.hardware, self.told = (
            home, wishes, base, directory, hardware, told,
        )  # fmt: skip
        self.made: dict[str, Variant] = {}
        self.paths: dict[str, Path] = {}
        self.beside: dict[str, list[tuple[Role, bytes]]] = {}
        self.paths[base.name] = source = directory / "base.onnx"
        told(base.name, "fetching")
        home.fetch(base.digest, source)
        self.signature = version_of(source, version="0").signature
        session = Session(source)
        self.labelled = self._read(wishes.evaluate, session)
        if wishes.evaluate is not None and self.labelled is not None and self.labelled.truth is None:
            raise ArtifactRefused("data_unreadable", f"{wishes.evaluate} says of no item what is right")
        self.calibration = self._read(wishes.calibrate, session)
        self.golden = self._golden()
        self.inputs = self._inputs(session)
        self.base_says = quality.meaning(session.run_all(self.inputs), len(next(iter(self.inputs.values()))))

    def usual(self) -> bytes:
        """What the version's inputs look like, where there is data that tells and nobody has said it before."""
        known = next((data for data in (self.calibration, self.labelled) if data is not None), None)
        found = sketch.made(known.inputs) if known is not None and self.home.version.drift is None else None
        return sketch.written(found) if found is not None else b""

    def recipes(self) -> list[_Recipe]:
        """What is wished for, in order. With fixed shapes everything begins from the fixed file."""
        wishes, calibration = self.wishes, self.calibration
        found: list[_Recipe] = []
        suffix = "-fixed" if wishes.shapes else ""

        def start(make: Callable[[Path, Path], str]) -> Callable[[Path, Path], str]:
            if not wishes.shapes:
                return make

            def with_shapes(source: Path, target: Path) -> str:
                between = self.directory / "between.onnx"
                how = variants.fixed(source, between, wishes.shapes)
                return f"{how}; {make(between, target)}"

            return with_shapes

        if wishes.shapes:
            fix: Callable[[Path, Path], str] = lambda source, target: variants.fixed(source, target, wishes.shapes)  # noqa: E731
            found.append(_Recipe(f"{self.base.name}-fixed", self.base.precision or "fp32", fix))
        if wishes.simplify:
            found.append(_Recipe(f"{self.base.name}-simple{suffix}", self.base.precision, start(variants.simplified)))
        if wishes.fp16:
            found.append(_Recipe(f"fp16{suffix}", "fp16", start(variants.halved)))
        if "dynamic" in wishes.int8:
            found.append(_Recipe(f"int8-dynamic{suffix}", "int8", start(variants.quantised_dynamic)))
        if "static" in wishes.int8:
            assert calibration is not None, "looked at before anything began"

            def static(source: Path, target: Path) -> str:
                return variants.quantised_static(source, target, calibration.inputs)

            found.append(_Recipe(f"int8-static{suffix}", "int8", start(static)))
        return found

    def try_base(self) -> Candidate:
        """What the others are compared with; no floor takes out what is there already, but it says so."""
        return self._judged(self.base, self.paths[self.base.name], "", is_base=True)

    def attempt(self, recipe: _Recipe) -> Candidate:
        """One variant, made and judged."""
        path = self.directory / f"{recipe.name}.onnx"
        self.told(recipe.name, "making")
        try:
            how = recipe.make(self.paths[self.base.name], path)
            assert self.signature is not None, "an ONNX file has one"
            variants.is_interchangeable(self.signature, path, is_fixed=bool(self.wishes.shapes))
            made = self._variant(recipe, path, how)
        except ArtifactRefused as error:
            return Candidate(recipe.name, reason=_reason(recipe.name, error.code, error.message))
        return self._judged(made, path, how)

    def _judged(self, variant: Variant, path: Path, how: str, *, is_base: bool = False) -> Candidate:
        candidate = Candidate(variant.name, is_base, variant.digest, int(variant.size_bytes), how)
        try:
            self.told(variant.name, f"evaluating {len(next(iter(self.inputs.values())))} items")
            session = Session(path)
            said = quality.meaning(session.run_all(self.inputs), len(next(iter(self.inputs.values()))))
            truth = self.labelled.truth if self.labelled is not None else None
            found = quality.measure(said, self.base_says, truth, self.home.task)
            candidate = candidate._replace(quality=found)
            self.told(variant.name, "measuring")
            proof = self._proof(session, path)
        except ArtifactRefused as error:
            return candidate._replace(reason=_reason(variant.name, error.code, error.message))
        candidate = candidate._replace(measured=proof.measured)
        if proof.reasons:
            return candidate._replace(reason=_reason(variant.name, proof.reasons[0].code, proof.reasons[0].detail))
        self._note(variant, path, candidate)
        if short := quality.short_of(found, self.wishes.floors):
            return candidate._replace(reason=_reason(variant.name, "quality_short", short))
        return candidate

    def _note(self, variant: Variant, path: Path, candidate: Candidate) -> None:
        """What is known of it now, as the model will say it."""
        measured, profiles = candidate.measured, variant.profiles
        if measured is not None and self.hardware:
            mine = Profile(
                hardware=self.hardware, p99_ms=Millis(-(-measured.p99_us // 1000)), p50_us=measured.p50_us,
                p99_us=measured.p99_us, memory_bytes=measured.memory_bytes,
                at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), by="batuta model optimize",
            )  # fmt: skip
            profiles = (*(p for p in profiles if p.hardware != self.hardware), mine)
        # Labels prove more than agreement, which alone says nothing of how good the base is.
        known = quality.kept(candidate.quality)
        self.made[variant.name] = msgspec.structs.replace(variant, quality=known, profiles=profiles)
        self.paths[variant.name] = path
        self.beside.setdefault(variant.name, [])
        if not candidate.is_base:
            self._state_needs(variant.name, measured)

    def _state_needs(self, name: str, measured: Measured | None) -> None:
        """What it needs less than the base, as measured, it may ask for less."""
        asked, base = self.base.needs.memory_bytes, self.base_measured
        if asked is None or measured is None or base is None:
            return
        less = int(base.memory_bytes) - int(measured.memory_bytes)
        memory = Bytes(max(int(self.made[name].size_bytes), int(asked) - less))
        needs = msgspec.structs.replace(self.base.needs, memory_bytes=memory)
        self.made[name] = msgspec.structs.replace(self.made[name], needs=needs)

    base_measured: Measured | None = None

    def _proof(self, session: Session, path: Path) -> Proof:
        """Measured in a process of its own, on the items that it was evaluated with."""
        cases = golden_of.make(session, self.inputs)
        golden = self.directory / "cases.npz"
        golden_of.write(golden, cases)
        proof = proved(path, golden=golden, tolerance=0.05)
        if path == self.paths[self.base.name]:
            self.base_measured = proof.measured
        return proof

    def _variant(self, recipe: _Recipe, path: Path, how: str) -> Variant:
        (made,) = version_of(path, version=self.home.version.version, variant=recipe.name).variants
        data: tuple[tuple[str, str], ...] = ()
        if self.calibration is not None and self.wishes.calibrate is not None and recipe.name.startswith("int8-static"):
            data = ((self.wishes.calibrate.name, self.calibration.digest),)
        parent = f"{self.home.name}:{self.home.version.version}/{self.base.name}"
        lineage = Lineage(parent=parent, data=data, parent_digest=self.base.digest, how=how)
        statement = write_statement(lineage, {path.name: made.digest}, BUILDER)
        self.beside[recipe.name] = [("provenance", statement)]
        golden = None
        if self.golden is not None:
            golden = self._golden_for(recipe, path)
        return msgspec.structs.replace(
            made, precision=recipe.precision, needs=self.base.needs, architectures=self.base.architectures,
            calibration=data[0][1] if data else None, provenance=_digest(statement), golden=golden,
        )  # fmt: skip

    def _golden_for(self, recipe: _Recipe, path: Path) -> Golden:
        """The same inputs as the version's, with what this variant rightly says of them."""
        assert self.golden is not None
        version_golden, cases = self.golden
        document = self.directory / f"{recipe.name}.npz"
        golden_of.write(document, golden_of.make(Session(path), cases.inputs, cases.cases))
        data = document.read_bytes()
        self.beside[recipe.name].append(("golden", data))
        tolerance = max(version_golden.tolerance, TOLERANCE.get(recipe.precision or "", 0.0))
        return msgspec.structs.replace(version_golden, digest=_digest(data), tolerance=tolerance)

    def _golden(self) -> tuple[Golden, golden_of.GoldenSet] | None:
        golden = self.base.golden or self.home.version.golden
        if golden is None:
            return None
        path = self.directory / "golden.npz"
        self.home.fetch(golden.digest, path)
        cases = golden_of.read(path)
        # What is asked of the version around the file alone goes for every variant as it is.
        return (golden, cases) if cases.inputs else None

    def _read(self, path: Path | None, session: Session) -> Data | None:
        if path is None:
            return None
        self.told("", f"reading {path}")
        found = data_of.read(
            path, session.inputs, labels=self.home.version.labels, column=self.wishes.column, white=self.wishes.white
        )
        return found._replace(inputs=feedable(session, found.inputs))

    def _inputs(self, session: Session) -> dict[str, Any]:
        """What variants are compared on: labelled data, else what there is."""
        for known in (self.labelled, self.calibration):
            if known is not None:
                return dict(known.inputs)
        if self.golden is not None:
            return feedable(session, self.golden[1].inputs)
        return anything(session, self.home.version.signature, 64)


def _check(home: Home, wishes: Wishes) -> None:
    if not (wishes.int8 or wishes.fp16 or wishes.simplify or wishes.shapes):
        raise BatutaError("nothing is asked for", next_step="say --int8, --fp16, --shapes or --simplify")
    if "static" in wishes.int8 and wishes.calibrate is None:
        step = "give inputs that are like those in the field: --calibrate DATA"
        raise BatutaError("static quantisation needs data to calibrate with", next_step=step)
    labelled = set(wishes.floors) - {"agreement"}
    if labelled and wishes.evaluate is None:
        raise BatutaError(
            f"nobody says what is right, so {', '.join(sorted(labelled))} cannot be measured",
            next_step="give labelled data: --evaluate DATA",
        )
    if home.version.variants and not any(v.format == "onnx" for v in home.version.variants):
        raise BatutaError("only ONNX files can be optimised", next_step="push an .onnx file as a variant")


def _base_of(home: Home, named: str) -> Variant:
    onnx = [v for v in home.version.variants if v.format == "onnx"]
    wanted = [v for v in onnx if v.name == named] if named else [v for v in onnx if v.name == "fp32"] or onnx
    if not wanted:
        there = ", ".join(v.name for v in onnx) or "none"
        raise NotFound(f"{home.name} {home.version.version} has no ONNX variant {named!r}; there is: {there}")
    return wanted[0]


def _reason(variant: str, code: str, detail: str) -> Reason:
    return Reason(code=code, subject=f"variant/{variant}", detail=detail[:300])


def _digest(document: bytes) -> str:
    return f"sha256:{hashlib.sha256(document).hexdigest()}"
