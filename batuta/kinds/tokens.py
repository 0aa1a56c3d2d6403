"""Tokens: the words of a condition and where they stand. Enough of CEL's grammar to place a problem, no more."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MACROS = ("all", "exists", "exists_one", "filter", "map")


class Token(NamedTuple):
    kind: str
    text: str
    at: int
    """Characters before it."""


_GRAMMAR = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
      | (?P<string>(?:[rR][bB]?|[bB][rR]?)?
            (?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'))
      | (?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:\d+\.\d+|\.\d+|\d+)(?:[eE][-+]?\d+)?[uU]?)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<sign>[<>=!]=|&&|\|\||.)""",
    re.VERBOSE | re.DOTALL,
)  # fmt: skip
LITERALS = ("true", "false", "null")
TYPES = ("int", "uint", "double", "string", "bool")
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
BOUNDARIES = ("", "&&", "||", "(", ")", "?", ":", ",", "!")
NOWHERE = Token("end", "", 0)


def tokens_of(text: str) -> list[Token]:
    return [Token(str(m.lastgroup), m.group(), m.start()) for m in _GRAMMAR.finditer(text) if m.lastgroup != "space"]


def token_at(tokens: list[Token], i: int) -> Token:
    return tokens[i] if 0 <= i < len(tokens) else NOWHERE


def unquoted(token: Token) -> str | None:
    """The text of a plain string literal; None for anything with prefixes or escapes, which we do not judge."""
    plain = re.fullmatch(r"""(["'])([^"'\\]*)\1""", token.text)
    return plain[2] if token.kind == "string" and plain else None


def bound_names(tokens: list[Token]) -> set[str]:
    """Names that `all`, `exists` and their kin bring in: `x` in `list.all(x, …)`."""
    return {
        token_at(tokens, i + 2).text
        for i, token in enumerate(tokens)
        if token.text in MACROS and token_at(tokens, i + 1).text == "(" and token_at(tokens, i + 3).text == ","
    }


def paths_in(tokens: list[Token]) -> Iterator[tuple[int, int, list[str]]]:
    """Every dotted path such as `node.labels.camera`: its first token, its last, its names."""
    for i, token in enumerate(tokens):
        if token.kind == "word" and token_at(tokens, i - 1).text != "." and token_at(tokens, i + 1).text == ".":
            names, end = [token.text], i
            while token_at(tokens, end + 1).text == "." and token_at(tokens, end + 3).text != "(":
                end += 2
                names.append(token_at(tokens, end).text)
            yield i, end, names
