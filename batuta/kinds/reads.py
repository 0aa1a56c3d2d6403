"""Reads: which facts a condition reads. Where they are the same it answers the same, so it need not be asked again."""

from __future__ import annotations

from batuta.kinds.condition import FIELDS
from batuta.kinds.tokens import COMPARISONS, bound_names, paths_in, token_at, tokens_of, unquoted


def reads(text: str) -> tuple[tuple[str, ...], ...]:
    """Every path that a condition reads, as `("node", "memory")`. What is read in a way that cannot be followed, such
    as `node["memory"]`, is read from where that begins: here, all of the node."""
    tokens = tokens_of(text)
    bound, found = bound_names(tokens), set()
    followed = {first: tuple(path) for first, _, path in paths_in(tokens)}
    for i, token in enumerate(tokens):
        if (
            token.kind == "word"
            and token.text in FIELDS
            and token.text not in bound
            and token_at(tokens, i - 1).text != "."
        ):
            found.add(followed.get(i, (token.text,)))
    # A name that a macro brings in may hide a variable of the same name: then all of that is taken as read.
    return tuple(sorted(found | {(name,) for name in bound if name in FIELDS}))


def compared(text: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
    """The texts with which a path is compared; None when it is read in any other way."""
    tokens = tokens_of(text)
    found = []
    for first, last, names in paths_in(tokens):
        if tuple(names) != path:
            continue
        for sign, literal in ((last + 1, last + 2), (first - 1, first - 2)):
            value = unquoted(token_at(tokens, literal))
            if token_at(tokens, sign).text in COMPARISONS and value is not None:
                found.append(value)
                break
        else:
            return None
    return tuple(found)
