"""Reads: which facts a condition reads. Where they are the same it answers the same, so it need not be asked again."""

from __future__ import annotations

from batuta.kinds.condition import _COMPARISONS, FIELDS, _at, _bound, _paths, _tokens, _unquoted


def reads(text: str) -> tuple[tuple[str, ...], ...]:
    """Every path that a condition reads, as `("node", "memory")`. What is read in a way that cannot be followed, such
    as `node["memory"]`, is read from where that begins: here, all of the node."""
    tokens = _tokens(text)
    bound, found = _bound(tokens), set()
    followed = {first: tuple(path) for first, _, path in _paths(tokens)}
    for i, token in enumerate(tokens):
        if token.kind == "word" and token.text in FIELDS and token.text not in bound and _at(tokens, i - 1).text != ".":
            found.add(followed.get(i, (token.text,)))
    # A name that a macro brings in may hide a variable of the same name: then all of that is taken as read.
    return tuple(sorted(found | {(name,) for name in bound if name in FIELDS}))


def compared(text: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
    """The texts with which a path is compared; None when it is read in any other way."""
    tokens = _tokens(text)
    found = []
    for first, last, names in _paths(tokens):
        if tuple(names) != path:
            continue
        for sign, literal in ((last + 1, last + 2), (first - 1, first - 2)):
            value = _unquoted(_at(tokens, literal))
            if _at(tokens, sign).text in _COMPARISONS and value is not None:
                found.append(value)
                break
        else:
            return None
    return tuple(found)
