"""What a plain word of YAML means. YAML 1.2's answer, and a refusal wherever YAML 1.1 would have said otherwise.

Other tools still read `no` as false, `012` as ten and `12:30` as 750. A manifest that two tools read differently is
refused with the two ways to say it clearly, so nobody has to know which version a reader follows.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Trap(NamedTuple):
    """A plain word that YAML readers disagree about, or a number that no manifest can hold."""

    message: str
    hint: str


Scalar = str | int | float | bool | None

_INT64_MAX = 2**63 - 1
# Only words that begin like this can be anything but text; nearly all real values stop here.
_SUSPECT = re.compile(r"[-+.~=0-9tTfFnNyYoO]|\Z")
_CONSTANTS: dict[str, Scalar] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_TRUTHS = {"y": "true", "yes": "true", "on": "true", "n": "false", "no": "false", "off": "false"}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_PREFIXED = re.compile(r"[-+]?(0o[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+)\Z")
_OLD_FLOAT = re.compile(r"[-+]?[0-9]*\.[0-9]*([eE][-+][0-9]+)?\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_OLD_OCTAL = re.compile(r"[-+]?0[0-9_]+\Z")
_OLD_DIGITS = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?\Z")
_OLD_CLOCK = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")


def resolve(word: str) -> Scalar | Trap:
    """The value of a plain, unquoted, untagged word."""
    if not _SUSPECT.match(word):
        return word
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if word.lower() in _TRUTHS and word in (word.lower(), word.upper(), word.capitalize()):
        return Trap(
            f"{word!r} without quotes means {_TRUTHS[word.lower()]} to some readers of YAML and text to others",
            f'write {_TRUTHS[word.lower()]}, or "{word}" for the text',
        )
    if not word[0].isdigit() and word[0] not in "-+.":
        return word
    if _INTEGER.match(word):
        value = int(word) if len(word) < 30 else _INT64_MAX + 1
        return value if abs(value) <= _INT64_MAX else Trap(f"{_short(word)} is too large a number", "")
    if _PREFIXED.match(word):
        plain = str(int(word, 0)) if len(word) < 30 else "it in tens"
        return Trap(f"{_short(word)} is a number to some readers of YAML", f'write {plain}, or "{word}" for the text')
    if _OLD_OCTAL.match(word):
        tens = word.lstrip("-+0_") or "0"
        return Trap(f"{_short(word)} looks octal to some readers of YAML", f'write {tens}, or "{word}" for the text')
    if _FLOAT.match(word):
        number = float(word)
        if abs(number) == float("inf"):
            return Trap(f"{_short(word)} is too large a number", "")
        if _OLD_FLOAT.match(word):
            return number
        return Trap(
            f"{_short(word)} is a number to some readers of YAML and text to others",
            f'write {number}, or "{word}" for the text',
        )
    if _OLD_CLOCK.match(word):
        return Trap(f"{_short(word)} is a number in base 60 to some readers of YAML", f'write "{word}" for the text')
    if _OLD_DIGITS.match(word):
        plain = word.replace("_", "")
        return Trap(f"{_short(word)} is a number to some readers of YAML", f'write {plain}, or "{word}" for the text')
    if _NOT_FINITE.match(word):
        return Trap(f"{word} is not a number that can be kept", f'write a number, or "{word}" for the text')
    return word


def _short(word: str) -> str:
    return word if len(word) <= 40 else word[:37] + "…"
