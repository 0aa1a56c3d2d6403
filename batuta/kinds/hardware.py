"""Words for machines: architectures, classes of hardware, kinds of accelerators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from batuta.kinds.base import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

Architecture = Annotated[
    str,
    Meta(pattern=r"^[a-z0-9][a-z0-9_]{0,31}$", description="A processor's family: amd64, arm64, armv7l, riscv64, …"),
]
Hardware = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([-a-z0-9.]{0,126}[a-z0-9])?$",
        description="A class of hardware in lower case, digits and dashes: `raspberry-pi-4-model-b`.",
    ),
]
AcceleratorKind = Annotated[
    str, Meta(pattern=r"^[a-z0-9][-a-z0-9]{0,62}$", description="gpu, npu, nvidia, jetson, coral, hailo, …")
]

Precision = Literal["fp64", "fp32", "fp16", "bf16", "fp8", "int16", "int8", "int4", "mixed"]

OTHER_WORDS = {"x86_64": "amd64", "x64": "amd64", "x86": "amd64", "aarch64": "arm64", "armv8": "arm64"}
"""What kernels and people say for the words that nodes report."""
FAMILIES = {"gpu": frozenset({"gpu", "nvidia", "jetson"}), "npu": frozenset({"npu", "coral", "hailo"})}
"""Which kinds a general word means."""


def is_kind(found: str, asked: str) -> bool:
    """Is an accelerator of the kind `found` one that was asked for as `asked`?"""
    return found == asked or found in FAMILIES.get(asked, ())


def architecture_problems(path: str, architectures: tuple[str, ...]) -> Iterator[Problem]:
    for i, word in enumerate(architectures):
        if word in OTHER_WORDS:
            said = OTHER_WORDS[word]
            message = f"nodes call {word!r} {said!r}"
            yield Problem(path=f"{path}[{i}]", code="value", message=message, hint=f"write {said}")
        elif word in architectures[:i]:
            yield Problem(path=f"{path}[{i}]", code="duplicate", message=f"{word!r} is there twice")
