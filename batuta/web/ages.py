"""Ages and instants, as Kubernetes clients read and write them."""

from __future__ import annotations

from datetime import UTC, datetime

UNKNOWN = "<unknown>"
_SECOND, _MINUTE, _HOUR, _DAY = 1_000, 60_000, 3_600_000, 86_400_000


def instant_ms(text: str | None) -> int | None:
    """Milliseconds of an RFC 3339 text; None when there is none, or it is none."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000) if text else None
    except ValueError:
        return None


def timestamp(at: int | None) -> str | None:
    """An instant as metav1.Time is written: whole seconds, UTC."""
    if at is None:
        return None
    return datetime.fromtimestamp(at // 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def age(since: int | None, now: int) -> str:
    """How long ago, in two units at most: `42s`, `5m10s`, `3h`, `2d4h`."""
    if since is None:
        return UNKNOWN
    ms = max(now - since, 0)
    if ms < 2 * _MINUTE:
        return f"{ms // _SECOND}s"
    if ms < 10 * _MINUTE:
        return _two(ms, _MINUTE, "m", _SECOND, "s")
    if ms < 3 * _HOUR:
        return f"{ms // _MINUTE}m"
    if ms < 8 * _HOUR:
        return _two(ms, _HOUR, "h", _MINUTE, "m")
    if ms < 2 * _DAY:
        return f"{ms // _HOUR}h"
    if ms < 8 * _DAY:
        return _two(ms, _DAY, "d", _HOUR, "h")
    return f"{ms // _DAY}d"


def _two(ms: int, unit: int, word: str, below: int, below_word: str) -> str:
    rest = ms % unit // below
    return f"{ms // unit}{word}" + (f"{rest}{below_word}" if rest else "")
