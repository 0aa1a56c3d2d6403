"""What people declare: values and their checks, nothing else.

Belongs here: one module per kind, the quantities they are written in, reading and writing manifests, JSON Schema.
Never here: what is to be done about a declaration (`core`), where it is kept, or anything that asks a clock, a file or
another resource.

`KINDS` is the one list that every surface walks: manifests, admission, storage, API, command line, docs.
"""

from __future__ import annotations

from batuta.kinds.application import Application, Component
from batuta.kinds.base import API_VERSION, DEFAULT_NAMESPACE, Metadata, Problem, Record, Ref, Resource
from batuta.kinds.model import Model
from batuta.kinds.node import Node
from batuta.kinds.policy import Policy
from batuta.kinds.scenario import Scenario
from batuta.kinds.site import Site

KINDS: tuple[type[Resource], ...] = (Node, Site, Policy, Model, Application, Scenario)
AnyResource = Node | Site | Policy | Model | Application | Scenario

__all__ = [
    "API_VERSION",
    "DEFAULT_NAMESPACE",
    "KINDS",
    "AnyResource",
    "Application",
    "Component",
    "Metadata",
    "Model",
    "Node",
    "Policy",
    "Problem",
    "Record",
    "Ref",
    "Resource",
    "Scenario",
    "Site",
    "kind_called",
]


def kind_called(word: str) -> type[Resource] | None:
    """The kind that people mean by `word`: its name, plural or short name, in any case."""
    word = word.lower()
    return next((k for k in KINDS if word in (k.__name__.lower(), k.plural, *k.short_names)), None)
