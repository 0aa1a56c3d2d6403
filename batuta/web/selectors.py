"""Selectors: which of a list are meant, in the words of the Kubernetes API.

labelSelector   a=b, a==b, a!=b, a in (b,c), a notin (b,c), a, !a; all of them, split by commas
fieldSelector   metadata.name=x, metadata.namespace=y, also with == and !=
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from batuta.web.answers import Wrong

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.kinds.base import Ref

_KEY = r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,315}[A-Za-z0-9])?"
_VALUE = r"[A-Za-z0-9]?([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_SET = re.compile(rf"^(?P<key>{_KEY})\s+(?P<word>in|notin)\s*\((?P<values>[^()]*)\)$")
_EQUAL = re.compile(rf"^(?P<key>{_KEY})\s*(?P<word>==|=|!=)\s*(?P<value>{_VALUE})$")
_EXISTS = re.compile(rf"^(?P<no>!?)\s*(?P<key>{_KEY})$")
_FIELD = re.compile(r"^(?P<key>metadata\.(?:name|namespace))(?P<word>==|=|!=)(?P<value>[^=!,]*)$")


class Term(NamedTuple):
    """One demand: the key's value is, or is not, among these; no values at all asks whether it is there."""

    key: str
    values: tuple[str, ...]
    is_wanted: bool

    def holds(self, values: Mapping[str, str]) -> bool:
        if not self.values:
            return (self.key in values) == self.is_wanted
        return (values.get(self.key) in self.values) == self.is_wanted


class Selector(NamedTuple):
    """All demands of a request."""

    labels: tuple[Term, ...] = ()
    fields: tuple[Term, ...] = ()

    def selects(self, ref: Ref, labels: Mapping[str, str] | None) -> bool:
        """Is this one meant? Labels of None: it is not there."""
        if labels is None:
            return False
        fields = {"metadata.name": ref.name, "metadata.namespace": ref.namespace}
        return all(term.holds(labels) for term in self.labels) and all(term.holds(fields) for term in self.fields)


def selector(labels: str, fields: str) -> Selector:
    """Reads both selectors; refuses what it does not understand."""
    return Selector(
        tuple(_label_term(text) for text in _split(labels)),
        tuple(_field_term(text) for text in _split(fields)),
    )


def _split(text: str) -> list[str]:
    """At the commas that are not inside parentheses."""
    parts = re.split(r",(?![^(]*\))", text) if text.strip() else []
    return [part.strip() for part in parts]


def _label_term(text: str) -> Term:
    if match := _SET.match(text):
        values = tuple(value.strip() for value in match["values"].split(","))
        return Term(match["key"], values, match["word"] == "in")
    if match := _EQUAL.match(text):
        return Term(match["key"], (match["value"],), match["word"] != "!=")
    if match := _EXISTS.match(text):
        return Term(match["key"], (), not match["no"])
    raise Wrong(
        400, f"labelSelector: {text!r} cannot be read", next_step="write it like site=berlin,camera in (a,b),!old"
    )


def _field_term(text: str) -> Term:
    if match := _FIELD.match(text):
        return Term(match["key"], (match["value"],), match["word"] != "!=")
    message = f"fieldSelector: {text!r} cannot be selected by"
    raise Wrong(400, message, next_step="metadata.name and metadata.namespace can")
