"""Model: a named ML artifact; versions, and per version the variants by digest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from batuta.kinds.base import Bytes, Digest, Millis, Name, Problem, Record, Resource
from batuta.kinds.hardware import AcceleratorKind, Architecture, Hardware, Precision, architecture_problems
from batuta.kinds.shaping import After, Before, shaping_problems

if TYPE_CHECKING:
    from collections.abc import Iterator


Format = Literal["onnx", "tflite", "pte"]
"""What a file is; the runtime of that name loads it. Nodes report those they have: `onnx` with `batuta[model]`,
`tflite` with `batuta[litert]`, `pte` with `batuta[executorch]`."""
SIGNATURES_MAX = 8


class Needs(Record):
    """What a variant needs of the machine that runs it."""

    memory_bytes: Bytes | None = msgspec.field(default=None, name="memory")
    accelerator: AcceleratorKind | None = None
    """It runs only beside one of this kind: `gpu`, `npu`, or a family such as `nvidia` or `hailo`."""


class Profile(Record):
    """How fast a variant is on one class of hardware."""

    hardware: Hardware
    """As nodes report it, or as `spec.hardware` of a node says: `raspberry-pi-4-model-b`."""
    p99_ms: Millis = msgspec.field(name="p99")
    """Of a hundred answers, ninety-nine came within this time."""
    memory_bytes: Bytes | None = msgspec.field(default=None, name="memory")
    """The most that its worker took while this was measured."""
    p50_us: Annotated[int, Meta(ge=0)] | None = None
    """Half of the answers came within so many microseconds."""
    p99_us: Annotated[int, Meta(ge=0)] | None = None
    """The same as `p99` in microseconds, where milliseconds are too coarse; it counts before `p99`."""
    at: str | None = None
    """When it was measured, as RFC 3339 writes it."""
    by: str | None = None
    """Who measured: `node/pi-4`, or a command."""


class Tensor(Record):
    """One input or output of a model, as read from its file."""

    name: str
    dtype: str
    """NumPy's word: `float32`, `uint8`, `int64`, …"""
    shape: tuple[int, ...]
    """Dimensions; -1 for one that varies, such as the batch."""


class Signature(Record):
    """What goes in and what comes out. All variants of a version share it."""

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


class Golden(Record):
    """Inputs and the outputs they must give, replayed on a device before a file is switched in there."""

    digest: Digest
    """An artifact: arrays `input.NAME` and `output.NAME` in one .npz file, as `batuta model push --golden` takes it."""
    tolerance: Annotated[float, Meta(ge=0)] = 0.001
    """How far numbers may be from what is expected, absolutely or in proportion, whichever allows more."""
    p99_ms: Millis | None = msgspec.field(default=None, name="p99")
    """Slower than this on the device, and it is not switched in."""
    memory_bytes: Bytes | None = msgspec.field(default=None, name="memory")
    """Nor where it takes more memory, interpreter and runtime included."""


class Variant(Record):
    """One file of a version: same signature, other size, precision or runtime."""

    name: Name
    format: Format
    digest: Digest
    size_bytes: Bytes = msgspec.field(name="size")
    needs: Needs = Needs()
    quality: dict[str, float] = {}
    """Measured quality, by metric, where more is better: `{accuracy: 0.971}`."""
    opset: Annotated[int, Meta(ge=1, le=1_000)] | None = None
    """The operator set it was written for: a runtime that knows only older ones cannot load it."""
    precision: Precision | None = None
    """What it computes in; a node that says what it can compute in must name it."""
    architectures: tuple[Architecture, ...] = ()
    """Processors that can run it, such as `arm64`; all of them when left out."""
    profiles: tuple[Profile, ...] = ()
    """How fast it has proved to be, by class of hardware. What nodes measure themselves counts before it."""
    calibration: Digest | None = None
    """The data that its quantisation was calibrated with."""
    signatures: Annotated[tuple[Digest, ...], Meta(max_length=SIGNATURES_MAX)] = ()
    """Artifacts that are Sigstore bundles, as `batuta model sign` makes them: who vouches for these bytes."""
    golden: Golden | None = None
    """Its own golden inputs, where it rightly answers otherwise than the version's golden outputs say."""
    provenance: Digest | None = None
    """An artifact that is an in-toto statement: what this variant was made from, where it is not the version's."""


class Version(Record):
    """One version; its variants are choices, not history."""

    version: str
    variants: tuple[Variant, ...]
    signature: Signature | None = None
    golden: Golden | None = None
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the model's output."""
    before: Before | None = None
    """What is done to an image before the model sees it. Tensors of the model's own signature are left as they are."""
    after: After | None = None
    """What is done to its scores before they are told; whoever sends tensors of its own signature is told the scores
    themselves."""
    transform: Digest | None = None
    """An artifact: a Python file with `before(inputs)` and `after(outputs)`, both from and to NumPy arrays by name. It
    runs in a process that can do nothing but compute. In place of `before` and `after` above."""
    transform_signatures: Annotated[tuple[Digest, ...], Meta(max_length=SIGNATURES_MAX)] = ()
    """Artifacts that are Sigstore bundles of that file, as `batuta model sign` makes them: who vouches for it."""
    drift: Digest | None = None
    """An artifact: what inputs and outputs looked like in training, for what nodes see to be compared with."""
    provenance: Digest | None = None
    """An artifact that is an in-toto statement: what it was made from, with which code."""


class ModelSpec(Record):
    task: str | None = None
    """What it is for: `classification`, `regression`, `detection`, …"""
    versions: tuple[Version, ...] = ()
    aliases: dict[Name, str] = {}
    """Names that move from version to version: `{champion: "3", challenger: "4", previous: "2"}`. A component may name
    one in place of a version; moving it makes a new release."""

    def version(self, named: str) -> Version | None:
        """The version of that number, or that an alias of that name stands for."""
        number = self.aliases.get(named, named)
        return next((v for v in self.versions if v.version == number), None)


class Model(Resource, tag="Model", kw_only=True):
    """A named ML artifact. A version is immutable; components ask for one by name and version."""

    plural: ClassVar[str] = "models"
    namespaced: ClassVar[bool] = True
    columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("TASK", "spec.task"),
        ("VERSIONS", "status.versions"),
        ("STATE", "status.state"),
        ("RUNNING", "status.running"),
    )
    wide_columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("FORMATS", "spec.versions.variants.format"),
        ("APPLICATIONS", "status.applications"),
        ("REASON", "status.reason"),
    )

    spec: ModelSpec

    def problems(self) -> Iterator[Problem]:
        yield from self._alias_problems()
        seen: set[str] = set()
        for i, version in enumerate(self.spec.versions):
            here = f"spec.versions[{i}]"
            if version.version in seen:
                yield Problem(
                    path=f"{here}.version", code="duplicate", message=f"version {version.version!r} is there twice"
                )
            seen.add(version.version)
            yield from shaping_problems(here, version.before, version.after)
            if version.transform is not None and (version.before is not None or version.after is not None):
                message = "a version has before and after, or a transform that does both"
                yield Problem(path=f"{here}.transform", code="one_of", message=message)
            if version.transform_signatures and version.transform is None:
                message = "there is no transform that these could be of"
                yield Problem(path=f"{here}.transformSignatures", code="one_of", message=message)
            if not version.variants:
                yield Problem(path=f"{here}.variants", code="empty", message="a version needs at least one variant")
            names: set[str] = set()
            for j, variant in enumerate(version.variants):
                if variant.name in names:
                    yield Problem(
                        path=f"{here}.variants[{j}].name",
                        code="duplicate",
                        message=f"variant {variant.name!r} is there twice",
                    )
                names.add(variant.name)
                there = f"{here}.variants[{j}]"
                yield from architecture_problems(f"{there}.architectures", variant.architectures)
                known = [profile.hardware for profile in variant.profiles]
                for k, hardware in enumerate(known):
                    if hardware in known[:k]:
                        message = f"{hardware!r} is profiled twice"
                        yield Problem(path=f"{there}.profiles[{k}].hardware", code="duplicate", message=message)

    def _alias_problems(self) -> Iterator[Problem]:
        known = {v.version for v in self.spec.versions}
        for alias, number in sorted(self.spec.aliases.items()):
            here = f"spec.aliases.{alias}"
            if alias in known:
                message = f"{alias!r} is a version, so it cannot be an alias too"
                yield Problem(path=here, code="duplicate", message=message)
            elif number not in known:
                there = ", ".join(sorted(known)) or "none"
                yield Problem(path=here, code="no_such", message=f"there is no version {number!r}; there is: {there}")
