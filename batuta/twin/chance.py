"""Chance: a small generator whose every draw follows from its seed and its name, on any machine and any Python.

SplitMix64 (Steele, Lea and Flood 2014). Each actor draws from a stream of its own, so one more draw in one place does
not reshuffle the fates of all others.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")
_MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15


class Chance:
    """A stream of draws, named so that it can be told apart from others of the same seed."""

    __slots__ = ("_state",)

    def __init__(self, seed: int, *names: str) -> None:
        text = "/".join((str(seed), *names)).encode()
        self._state = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")

    def bits(self) -> int:
        """64 random bits."""
        self._state = (self._state + _STEP) & _MASK
        return _mixed(self._state)

    def at(self, index: int) -> int:
        """The 64 bits of one index: a draw that needs none before it, and moves nothing."""
        return _mixed((self._state + index * _STEP) & _MASK)

    def between(self, least: int, most: int) -> int:
        """A whole number from `least` to `most`, both included; the bias of the modulo is below 2^-40 here."""
        return least + self.bits() % (most - least + 1)

    def happens(self, permille: int) -> bool:
        """True `permille` times in a thousand."""
        return permille > 0 and self.bits() % 1000 < permille

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.bits() % len(choices)]

    def sample(self, choices: Sequence[T], count: int) -> list[T]:
        """So many different ones, in the order drawn (the first steps of a Fisher-Yates shuffle)."""
        left = list(choices)
        for i in range(min(count, len(left))):
            j = self.between(i, len(left) - 1)
            left[i], left[j] = left[j], left[i]
        return left[:count]


def _mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
