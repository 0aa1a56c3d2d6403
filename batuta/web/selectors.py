"""Selectors: which of a list are meant, in the words of the Kubernetes API.

labelSelector   a=b, a==b, a!=b, a in (b,c), a notin (b,c), a, !a; all of them, split by commas
fieldSelector   metadata.name=x, metadata.namespace=y, and what a view adds (spec.nodeName=z), with =, == and !=
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from batuta.web.answers import Wrong

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.kinds.base import Ref

_KEY = r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,315}[A-Za-z0-9])?"
_VALUE = r"[A-Za-z0-9]?([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_SET = re.compile(rf"^(?P<key>{_KEY})\s+(?P<word>in|notin)\s*\((?P<values>[^()]*)\)$")
_EQUAL = re.compile(rf"^(?P<key>{_KEY})\s*(?P<word>==|=|!=)\s*(?P<value>{_VALUE})$")
_EXISTS = re.compile(rf"^(?P<no>!?)\s*(?P<key>{_KEY})$")
_FIELD = re.compile(r"^(?P<key>[A-Za-z]+(?:\.[A-Za-z]+){1,5})(?P<word>==|=|!=)(?P<value>[^=!,]*)$")


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

    @property
    def asks_body(self) -> bool:
        """Does it ask for more than names and labels?"""
        return any(term.key not in NAMED for term in self.fields)

    def selects(self, ref: Ref, labels: Mapping[str, str] | None, body: bytes = b"{}") -> bool:
        """Is this one meant? Labels of None: it is not there. The body is read only for fields that a Ref lacks."""
        if labels is None or not all(term.holds(labels) for term in self.labels):
            return False
        if not self.fields:
            return True
        fields = {"metadata.name": ref.name, "metadata.namespace": ref.namespace}
        if any(term.key not in fields for term in self.fields):
            document = msgspec.json.decode(body)
            fields = {term.key: _field(document, term.key) for term in self.fields} | fields
        return all(term.holds(fields) for term in self.fields)


def _field(document: Any, path: str) -> str:
    """The text at a dotted path; empty when nothing is there, as Kubernetes has it."""
    for step in path.split("."):
        document = document.get(step) if isinstance(document, dict) else None
    if isinstance(document, bool):
        return str(document).lower()
    return str(document) if isinstance(document, str | int) else ""


NAMED: Final = ("metadata.name", "metadata.namespace")
"""The fields that everything can be selected by."""


def selector(labels: str, fields: str, selectable: tuple[str, ...] = ()) -> Selector:
    """Reads both selectors; refuses what it does not understand. `selectable` fields come on top of NAMED."""
    return Selector(
        tuple(_label_term(text) for text in _split(labels)),
        tuple(_field_term(text, (*NAMED, *selectable)) for text in _split(fields)),
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


def _field_term(text: str, known: tuple[str, ...]) -> Term:
    if (match := _FIELD.match(text)) and match["key"] in known:
        return Term(match["key"], (match["value"],), match["word"] != "!=")
    message = f"fieldSelector: {text!r} cannot be selected by"
    raise Wrong(400, message, next_step=f"{', '.join(known)} can")
