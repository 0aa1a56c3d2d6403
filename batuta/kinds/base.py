"""What every kind is made of: Record, Resource, Metadata, and the quantities they are measured in.

A Record is an immutable value whose attribute names carry units (`memory_bytes`) and whose keys on the wire are
camelCase without them (`memory: 512Mi`). A Resource is what people declare. `Problem` is what is wrong with one,
found without asking anything but the document itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, dataclass_transform

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Iterator

API_VERSION = "batuta.dev/v1"
DEFAULT_NAMESPACE = "default"


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class _RecordMeta(msgspec.StructMeta):
    """Hands `kw_only` down: msgspec inherits every other option, and type checkers inherit none."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        return super().__new__(mcls, name, bases, namespace, **{"kw_only": True, **options})


class Record(
    msgspec.Struct,
    metaclass=_RecordMeta,
    frozen=True,
    rename="camel",
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """An immutable value: compared whole, decoded strictly, never half-built."""


class Problem(Record):
    """One thing that is wrong with a document: where, what, and what to do about it."""

    path: str
    """Where in the document: `spec.components[0].replicas`; empty for the document itself."""
    code: str
    """A stable word from the reference: `unknown_field`, `wrong_type`, `not_yet`, …"""
    message: str
    hint: str = ""
    """The next step, when one is known: a near miss, an allowed value, a command."""
    about: str = ""
    """Which resource, where several were judged beside each other and no line is known."""
    file: str = ""
    line: int = 0
    column: int = 0
    inside: int = 0
    """Which character of the value, from 1, when the value has an inside (a condition) and no line is known."""

    def __str__(self) -> str:
        place = (
            f"{self.file or '<input>'}:{self.line}:{self.column}: " if self.line else self.about and f"{self.about}: "
        )
        spot = f", character {self.inside}" if self.inside and not self.line else ""
        where = f"{self.path}{spot}: " if self.path else ""
        return f"{place}{where}{self.message}" + (f", {self.hint}" if self.hint else "")


# --- Quantities: numbers with a unit in the attribute name, Kubernetes text on the wire -----------------------------


class Quantity(int):
    """A whole number in a base unit, written with a suffix. Subclasses say which."""

    pattern: ClassVar[str]
    example: ClassVar[str]

    @classmethod
    def parse(cls, text: object) -> Quantity:
        """Read the wire form. Raises ValueError with the accepted forms."""
        raise NotImplementedError

    def text(self) -> str:
        """The shortest wire form that reads back as the same number."""
        raise NotImplementedError


_BYTE_UNITS = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_BIT_UNITS = {"bit": 1, "kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9}
_TIME_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_INT64_MAX = 2**63 - 1


def _scaled(text: object, units: dict[str, int], what: str, example: str) -> int:
    """A decimal number times its unit, refused rather than rounded or overflowed."""
    if isinstance(text, bool) or not isinstance(text, (int, float, str)):
        raise ValueError(f"expected {what} like {example}")
    match = re.fullmatch(r"([0-9]{1,19})(?:\.([0-9]{1,9}))?([A-Za-z]*)", str(text).strip())
    if match is None or match[3] not in units:
        raise ValueError(f"{str(text)[:40]!r} is not {what}; write it like {example}")
    fraction = match[2] or ""
    numerator: int = int(match[1] + fraction) * units[match[3]]
    if numerator % 10 ** len(fraction):
        raise ValueError(f"{str(text)[:40]!r} is not a whole number of the smallest unit; write it like {example}")
    value: int = numerator // 10 ** len(fraction)
    if value > _INT64_MAX:
        raise ValueError(f"{str(text)[:40]!r} is absurdly large; write {what} like {example}")
    return value


def _shortest(value: int, units: dict[str, int], prefer: str) -> str:
    for suffix in sorted(units, key=lambda s: (-units[s], s)):
        if value and value % units[suffix] == 0 and units[suffix] > 1:
            return f"{value // units[suffix]}{suffix}"
    return f"{value}{prefer}"


class Bytes(Quantity):
    """An amount of memory or disk, in bytes."""

    pattern = r"^\d+(\.\d+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$"
    example = "512Mi"

    @classmethod
    def parse(cls, text: object) -> Bytes:
        return cls(_scaled(text, _BYTE_UNITS, "an amount of bytes", cls.example))

    def text(self) -> str:
        return _shortest(int(self), _BYTE_UNITS, "")


class Millicores(Quantity):
    """Processor time, in thousandths of a core."""

    pattern = r"^\d+(\.\d+)?m?$"
    example = "250m"

    @classmethod
    def parse(cls, text: object) -> Millicores:
        return cls(_scaled(text, {"": 1000, "m": 1}, "an amount of processor cores", cls.example))

    def text(self) -> str:
        return str(int(self) // 1000) if int(self) % 1000 == 0 else f"{int(self)}m"


class Millis(Quantity):
    """A length of time, in milliseconds."""

    pattern = r"^(\d+(\.\d+)?(ms|s|m|h|d))+$"
    example = "300ms, 5s, 2m or 1h"

    @classmethod
    def parse(cls, text: object) -> Millis:
        if isinstance(text, bool) or not isinstance(text, str):
            raise ValueError(f"expected a duration with a unit, like {cls.example}")
        parts = re.findall(r"[0-9]{1,19}(?:\.[0-9]{1,9})?[a-z]+", text)
        if not parts or "".join(parts) != text.strip():
            raise ValueError(f"{text[:40]!r} is not a duration; write it like {cls.example}")
        total = sum(_scaled(part, _TIME_UNITS_MS, "a duration", cls.example) for part in parts)
        if total > _INT64_MAX:
            raise ValueError(f"{text[:40]!r} is absurdly long; write a duration like {cls.example}")
        return cls(total)

    def text(self) -> str:
        return _shortest(int(self), _TIME_UNITS_MS, "ms")


class BitsPerSecond(Quantity):
    """The rate of a link, in bits a second."""

    pattern = r"^\d+(\.\d+)?(bit|kbit|Mbit|Gbit)$"
    example = "20Mbit"

    @classmethod
    def parse(cls, text: object) -> BitsPerSecond:
        return cls(_scaled(text, _BIT_UNITS, "a rate of bits a second", cls.example))

    def text(self) -> str:
        return _shortest(int(self), _BIT_UNITS, "bit")


def decode_hook(kind: type[Any], value: object) -> Any:
    """What msgspec calls for types it does not know: our quantities."""
    if isinstance(kind, type) and issubclass(kind, Quantity):
        return kind.parse(value)
    raise NotImplementedError(kind)


def encode_hook(value: object) -> str:
    """The other way: quantities leave in their shortest wire form."""
    if isinstance(value, Quantity):
        return value.text()
    raise NotImplementedError(type(value))


def schema_hook(kind: type[Any]) -> dict[str, Any]:
    """How quantities look in JSON Schema."""
    if issubclass(kind, Quantity):
        text = {"type": "string", "pattern": kind.pattern, "examples": [kind.example.split(",")[0]]}
        numbers_too = kind in (Bytes, Millicores)
        return {"anyOf": [text, {"type": "number", "minimum": 0}]} if numbers_too else text
    raise NotImplementedError(kind)


# --- Names ----------------------------------------------------------------------------------------------------------

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
Name = Annotated[
    str,
    Meta(
        pattern=NAME_PATTERN,
        min_length=1,
        max_length=63,
        description="Lower-case letters, digits and dashes; 63 at most (an RFC 1123 label).",
    ),
]
Digest = Annotated[
    str,
    Meta(pattern=r"^sha256:[0-9a-f]{64}$", description="The SHA-256 of the exact bytes: `sha256:` and 64 hex digits."),
]
Condition = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=4096,
        description="A condition in CEL, the Common Expression Language.",
        extra={"condition": "placement"},
    ),
]
Topic = Annotated[
    str,
    Meta(
        pattern=r"^(\+|[^\s#+/]+)(/(\+|[^\s#+/]+))*(/#)?$",
        min_length=1,
        max_length=256,
        description="An MQTT topic or filter: levels split by `/`, `+` for one level, `#` for the rest.",
    ),
]


class Ref(NamedTuple):
    """Which resource: its plural, namespace ('' for kinds that have none) and name. Sorts and prints plainly."""

    plural: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.plural}/{self.namespace}/{self.name}" if self.namespace else f"{self.plural}/{self.name}"

    @property
    def key(self) -> str:
        """Its key in the desired table: dots split the parts, and no name can hold one."""
        return f"{self.plural}.{self.namespace}.{self.name}" if self.namespace else f"{self.plural}.{self.name}"


# --- Resources ------------------------------------------------------------------------------------------------------


class Metadata(Record):
    """Who a resource is. People write name, namespace, labels and annotations; the hub writes the rest."""

    name: Name
    namespace: Name | None = None
    """The tenant, for kinds that have one; `default` when left out."""
    labels: dict[str, str] = {}
    """Free words to select by."""
    annotations: dict[str, str] = {}
    """Free text for people and tools; Batuta reads none of it."""
    uid: str | None = None
    generation: int | None = None
    """Counts changes of the spec."""
    resource_version: str | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[dict[str, Any], ...] = ()
    managed_fields: tuple[dict[str, Any], ...] = ()
    self_link: str | None = None
    generate_name: str | None = None


class Scale(NamedTuple):
    """Where a kind says how many: the list of its parts, and inside of one part the number that people scale."""

    parts: tuple[str, ...]
    """Path of the list: a resource with more than one part has no one number."""
    wanted: tuple[str, ...]
    """Path of the number inside a part."""
    ready: str
    """Name of the number in the part's status."""


class Resource(Record, tag_field="kind"):
    """Something declared. Each kind is one subclass; every surface reads from it and nothing is said twice."""

    plural: ClassVar[str]
    namespaced: ClassVar[bool]
    columns: ClassVar[tuple[tuple[str, str], ...]]
    """Table columns: heading and a dotted path into the resource or its computed status."""
    wide_columns: ClassVar[tuple[tuple[str, str], ...]] = ()
    """More of them, for `-o wide`. A path may lead through lists: then it means every member's."""
    short_names: ClassVar[tuple[str, ...]] = ()
    scale: ClassVar[Scale | None] = None
    """Where its one number of replicas is, for kinds that may have one."""

    metadata: Metadata
    api_version: Literal["batuta.dev/v1"] = "batuta.dev/v1"

    @property
    def ref(self) -> Ref:
        namespace = (self.metadata.namespace or DEFAULT_NAMESPACE) if self.namespaced else ""
        return Ref(self.plural, namespace, self.metadata.name)

    def problems(self) -> Iterator[Problem]:
        """What is wrong with this document by itself. Whether it fits the others is `core.admission`'s question."""
        yield from ()
