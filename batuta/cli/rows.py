"""One resource as one row: its kind's columns, with instants as ages and reasons as words."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from batuta.cli.text import ABSENT, age, at, cell

if TYPE_CHECKING:
    from batuta.client import Found
    from batuta.kinds.base import Resource

EMPTY = {
    "Node": "Make a token with `batuta token create`, and paste the line it prints on a machine.",
    "Site": "A site appears with its first node: `batuta token create --site NAME`.",
    "Policy": "Declare one, such as those of examples/policies.yaml: `batuta apply -f FILE`.",
    "Model": "Push one: `batuta model push FILE --name NAME --version 1`.",
    "Application": "Declare one: `batuta apply -f FILE`.",
    "Rollout": "One appears when a release of an application changes what runs: `batuta rollout history APP`.",
    "Flag": "Declare one, such as those of examples/flags.yaml: `batuta apply -f FILE`.",
    "Scenario": "Play one straight from its file: `batuta twin run FILE`.",
}
"""What to do when there is none of a kind."""

_MILLISECONDS_MIN = 10**11


def headings(kind: type[Resource], *, is_wide: bool = False, is_everywhere: bool = False) -> list[str]:
    before = ["NAMESPACE"] if is_everywhere and kind.namespaced else []
    named = [heading for heading, _ in columns(kind, is_wide=is_wide)]
    return [*before, "NAME", *named, *(["LABELS"] if is_wide else []), "AGE"]


def columns(kind: type[Resource], *, is_wide: bool = False) -> tuple[tuple[str, str], ...]:
    return (*kind.columns, *(kind.wide_columns if is_wide else ()))


def row(
    kind: type[Resource], found: Found[Any], now_ms: float, *, is_wide: bool = False, is_everywhere: bool = False
) -> list[str]:
    metadata = found.resource.metadata
    before = [metadata.namespace or ABSENT] if is_everywhere and kind.namespaced else []
    paths = [path for _, path in columns(kind, is_wide=is_wide)]
    cells = [shown(path, at(found.document, path), now_ms, is_wide=is_wide) for path in paths]
    labels = [cell(metadata.labels, wide=True)] if is_wide else []
    return [*before, metadata.name, *cells, *labels, age(instant_ms(metadata.creation_timestamp), now_ms)]


def shown(path: str, value: Any, now_ms: float, *, is_wide: bool = False) -> str:
    """A value as a cell; what its path says it is decides how."""
    if is_instant(path.rpartition(".")[2]):
        since_ms = instant_ms(value)
        return ABSENT if since_ms is None else age(since_ms, now_ms)
    if isinstance(value, dict) and "code" in value:
        return cell(reason_text(value), wide=is_wide)
    return cell(value, wide=is_wide)


def reason_text(reason: dict[str, Any]) -> str:
    """A Reason as a sentence; one of a newer hub still says its code."""
    from batuta.core.reasons import CATALOGUE

    if reason.get("sentence"):
        return str(reason["sentence"])
    code, subject, detail = str(reason.get("code")), reason.get("subject", ""), reason.get("detail", "")
    sentence = CATALOGUE[code].sentence if code in CATALOGUE else code
    return (f"{subject}: " if subject else "") + sentence + (f" ({detail})" if detail else "")


def is_instant(word: str) -> bool:
    """Is this a key whose value is an instant?"""
    return word in ("since", "at", "lastSeen", "creationTimestamp") or word.endswith("At")


def instant_ms(value: Any) -> float | None:
    """An instant in milliseconds: the wire has them as numbers, Kubernetes metadata as RFC 3339 text."""
    if isinstance(value, int | float) and value >= _MILLISECONDS_MIN:
        return value
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp() * 1000
        except ValueError:
            return None
    return None
