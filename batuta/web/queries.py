"""Words of a query, read as the Kubernetes API reads them; but what it would guess at is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.web.answers import Wrong

if TYPE_CHECKING:
    from collections.abc import Mapping


def yes(query: Mapping[str, str], name: str) -> bool:
    """`?watch`, `?watch=true` and `?watch=1` mean it; `false`, `0` and silence do not. Raises Wrong for anything else:
    Kubernetes takes `force=flase` for true."""
    said = query.get(name)
    if said is None or said.lower() in ("false", "0"):
        return False
    if said.lower() in ("", "true", "1"):
        return True
    raise Wrong(400, f"{name}={said[:20]} is neither true nor false")
