"""Optimising a package without any hub: what is kept, what is refused, and what the package says of it afterwards."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from batuta.core.proving import Measured
from batuta.errors import BatutaError
from batuta.interop.provenance import read as read_statement
from batuta.kinds.base import Bytes
from batuta.model_layout import Layout
from batuta.model_package import pack
from batuta.tuning import golden, sketch
from batuta.tuning.candidates import Candidate, with_front
from batuta.tuning.data import digest_of
from batuta.tuning.homes import PackageHome
from batuta.tuning.optimize import Wishes, optimize
from batuta.tuning.session import Session
from tests.cli.running import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def layout(classifier: Path, tmp_path: Path) -> Layout:
    cases = golden.make(Session(classifier), {"image": np.random.default_rng(9).random((4, 64)).astype(np.float32)})
    golden.write(tmp_path / "golden.npz", cases)
    made = Layout(tmp_path / "package")
    pack({"fp32": classifier}, made, name="digits", version="1", beside={"golden": tmp_path / "golden.npz"})
    return made


def test_variants_join_their_version_with_all_that_is_known_of_them(layout: Layout, labelled: Path) -> None:
    wishes = Wishes(
        int8=("dynamic", "static"), fp16=True, calibrate=labelled, evaluate=labelled, floors={"accuracy": 0.8}
    )
    steps: list[tuple[str, str]] = []
    outcome = optimize(PackageHome(layout), wishes, hardware="test-box", told=lambda *step: steps.append(step))
    assert [(c.name, c.reason) for c in outcome.candidates] == [
        ("fp32", None), ("fp16", None), ("int8-dynamic", None), ("int8-static", None),
    ]  # fmt: skip
    assert outcome.candidates[0].quality == {"accuracy": 0.95, "agreement": 1.0}
    assert ("int8-static", "measuring") in steps
    assert any(c.on_front for c in outcome.candidates)

    version = PackageHome(layout).version
    by_name = {v.name: v for v in version.variants}
    assert [(v.name, v.precision) for v in version.variants] == [
        ("fp32", None), ("fp16", "fp16"), ("int8-dynamic", "int8"), ("int8-static", "int8"),
    ]  # fmt: skip
    for variant in version.variants:
        (profile,) = variant.profiles
        assert (profile.hardware, profile.by) == ("test-box", "batuta model optimize")
        assert profile.p50_us is not None
        assert profile.p99_us is not None
        assert 0 < profile.p50_us <= profile.p99_us <= int(profile.p99_ms) * 1000
        assert profile.memory_bytes is not None
        assert profile.memory_bytes > 20 << 20
        assert 0.8 <= variant.quality["accuracy"] <= 1.0
        # Every file is there and whole, and loads.
        Session(layout.whole(variant.digest, int(variant.size_bytes)))
    static = by_name["int8-static"]
    assert static.calibration == digest_of(labelled)
    assert static.provenance is not None
    lineage = read_statement(layout.document(static.provenance))
    assert (lineage.parent, lineage.parent_digest) == ("digits:1/fp32", by_name["fp32"].digest)
    assert lineage.data == ((labelled.name, digest_of(labelled)),)
    assert "quantize_static" in lineage.how
    # Its own golden outputs are those that it gives, and the version's stay those of fp32.
    assert version.golden is not None
    assert by_name["fp32"].golden is None
    assert static.golden is not None
    cases = golden.read(layout.blob(static.golden.digest))
    assert golden.replay(Session(layout.blob(static.digest)), cases, 0.0).wrong == ""
    assert golden.read(layout.blob(version.golden.digest)).inputs["image"].tolist() == cases.inputs["image"].tolist()


def test_below_a_floor_nothing_is_kept(layout: Layout, labelled: Path) -> None:
    before = PackageHome(layout).version
    outcome = optimize(PackageHome(layout), Wishes(fp16=True, evaluate=labelled, floors={"accuracy": 0.99}))
    assert [(c.name, c.reason.code if c.reason else "") for c in outcome.candidates] == [
        ("fp32", "quality_short"), ("fp16", "quality_short"),
    ]  # fmt: skip
    assert "at least 0.99 asked" in str(outcome.candidates[1].reason)
    after = PackageHome(layout).version
    assert [v.name for v in after.variants] == ["fp32"]
    assert after.variants[0].digest == before.variants[0].digest


def test_a_dry_run_keeps_nothing_and_the_same_twice_is_the_same(layout: Layout, labelled: Path) -> None:
    wishes = Wishes(int8=("static",), calibrate=labelled)
    before = layout.manifest()
    first = optimize(PackageHome(layout), wishes, keep=False)
    assert layout.manifest() == before
    second = optimize(PackageHome(layout), wishes)
    assert [c.digest for c in first.candidates] == [c.digest for c in second.candidates]
    optimize(PackageHome(layout), wishes)
    assert [v.name for v in PackageHome(layout).version.variants] == ["fp32", "int8-static"]


def test_fixed_shapes_are_for_all(layout: Layout) -> None:
    wishes = Wishes(int8=("dynamic",), shapes={"image": (1, 64)})
    outcome = optimize(PackageHome(layout), wishes)
    assert [(c.name, c.reason) for c in outcome.candidates] == [
        ("fp32", None), ("fp32-fixed", None), ("int8-dynamic-fixed", None),
    ]  # fmt: skip
    (_, fixed, eight) = PackageHome(layout).version.variants
    assert [Session(layout.blob(v.digest)).batch for v in (fixed, eight)] == [1, 1]


def test_what_cannot_be_made_says_so_and_the_rest_goes_on(barren: Path, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "package")
    pack({"fp32": barren}, layout, name="barren", version="1")
    outcome = optimize(PackageHome(layout), Wishes(int8=("dynamic",), simplify=True))
    assert [(c.name, c.reason.code if c.reason else "") for c in outcome.candidates] == [
        ("fp32", ""), ("fp32-simple", ""), ("int8-dynamic", "variant_unmade"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        (Wishes(), "nothing is asked for"), (Wishes(int8=("static",)), "data to calibrate"),
        (Wishes(fp16=True, floors={"accuracy": 1}), "nobody says what is right"),
        (Wishes(fp16=True, base="other"), "no ONNX variant 'other'"),
    ],
)  # fmt: skip
def test_what_cannot_be_begun_is_said_before_anything_is_done(layout: Layout, wishes: Wishes, says: str) -> None:
    with pytest.raises(BatutaError, match=says):
        optimize(PackageHome(layout), wishes)


def test_where_nothing_can_be_measured_nothing_is_kept(
    layout: Layout, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever ends the measuring process (the kernel, for its memory) ends it for all alike.
    monkeypatch.setattr("batuta.tuning.measure.PROVING", "batuta.no_such_module")
    before = PackageHome(layout).version.variants
    outcome = optimize(PackageHome(layout), Wishes(fp16=True, evaluate=labelled))
    assert [(c.name, c.reason.code if c.reason else "") for c in outcome.candidates] == [
        ("fp32", "proving_failed"), ("fp16", "proving_failed"),
    ]  # fmt: skip
    assert PackageHome(layout).version.variants == before


def test_the_front_is_what_nothing_beats() -> None:
    def candidate(name: str, accuracy: float, us: int, size: int) -> Candidate:
        measured = Measured(p50_us=us, p99_us=us * 2, memory_bytes=Bytes(1))
        return Candidate(name, quality={"accuracy": accuracy}, measured=measured, size_bytes=size)

    found = with_front(
        [
            candidate("best", 0.9, 100, 100), candidate("fast", 0.8, 50, 60), candidate("bad", 0.8, 60, 60),
            candidate("small", 0.8, 70, 20),
        ]
    )  # fmt: skip
    assert [c.name for c in found if c.on_front] == ["best", "fast", "small"]


def test_the_command_prints_one_line_for_each(layout: Layout, labelled: Path) -> None:
    words = ["model", "optimize", str(layout.directory), "--fp16", "--evaluate", str(labelled)]
    shown = run(*words, "--floor", "accuracy=0.9", "--hardware", "a-box")
    assert shown.code == 0, shown.err
    head, base, half = shown.out.splitlines()
    assert head.split() == [
        "VARIANT",
        "SIZE",
        "ACCURACY",
        "AGREEMENT",
        "P50",
        "P99",
        "PEAK",
        "MEMORY",
        "FRONT",
        "RESULT",
    ]
    assert (base.split()[0], base.split()[-1], half.split()[0], half.split()[-1]) == ("fp32", "base", "fp16", "kept")
    assert "fp16: measuring" in shown.err

    refused = run(*words, "--floor", "accuracy=0.99", "-o", "json")
    assert refused.code == 1
    said = json.loads(refused.out)
    assert [v["reason"]["code"] for v in said["variants"]] == ["quality_short"] * 2
    odd = run("model", "optimize", str(layout.directory), "--floor", "accuracy")
    assert (odd.code, "NAME=VALUE" in odd.err) == (2, True)


def test_documents_of_a_package_survive_a_second_reading(layout: Layout, labelled: Path) -> None:
    optimize(PackageHome(layout), Wishes(int8=("static",), calibrate=labelled), hardware="box")
    version = PackageHome(layout).version
    again = msgspec.json.decode(
        msgspec.json.encode(version, enc_hook=lambda v: v.text()), type=type(version),
        dec_hook=lambda kind, value: kind.parse(value),
    )  # fmt: skip
    assert again == version
    assert version.drift is not None
    PackageHome(layout).fetch(version.drift, layout.directory / "drift.json")
    assert sketch.read(layout.directory / "drift.json").inputs.keys() == {"image"}
