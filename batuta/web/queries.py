"""Words of a query, read as the Kubernetes API reads them; but what it would guess at is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batuta.web.answers import Wrong

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

DIGITS_MAX: Final = 15


def yes(query: Mapping[str, str], name: str) -> bool:
    """`?watch`, `?watch=true` and `?watch=1` mean it; `false`, `0` and silence do not. Raises Wrong for anything else:
    Kubernetes takes `force=flase` for true."""
    said = query.get(name)
    if said is None or said.lower() in ("false", "0"):
        return False
    if said.lower() in ("", "true", "1"):
        return True
    raise Wrong(400, f"{name}={said[:20]} is neither true nor false")


def number(query: Mapping[str, str], name: str, default: int = 0) -> int:
    """A whole number from 0, or the default. Raises Wrong for anything else."""
    said = query.get(name) or ""
    if not said:
        return default
    if not is_number(said):
        raise Wrong(400, f"{name}={said[:20]} is not a number that means something here")
    return int(said)


def is_number(text: str) -> bool:
    """Digits, and no more of them than anybody needs: Python itself refuses to read thousands."""
    return text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX


def dry_run_of(request: Request) -> bool:
    """Is nothing to be stored? Raises Wrong for what is neither: no write is done that somebody meant to try."""
    said = request.query_params.getlist("dryRun")
    if any(word not in ("", "All") for word in said) or len(set(said)) > 1:
        raise Wrong(400, f"dryRun={','.join(said)[:20]} is not known; it can be All")
    return "All" in said
