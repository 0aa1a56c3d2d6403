"""What people declare: values and their checks, nothing else.

Belongs here: one module per kind, the quantities they are written in, reading and writing manifests, JSON Schema.
Never here: what is to be done about a declaration (`core`), where it is kept, or anything that asks a clock, a file or
another resource.

`KINDS` is the one list that every surface walks: manifests, admission, storage, API, command line, docs. `SHOWN` are
those that nobody declares: the hub shows them, and they are read and watched like the others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from batuta.kinds.base import API_VERSION, DEFAULT_NAMESPACE, Metadata, Problem, Record, Ref, Resource

if TYPE_CHECKING:
    from typing import TypeAlias

    from batuta.kinds.application import Application, Component
    from batuta.kinds.flag import Flag
    from batuta.kinds.model import Model
    from batuta.kinds.node import Node
    from batuta.kinds.policy import Policy
    from batuta.kinds.rollout import Rollout
    from batuta.kinds.scenario import Scenario
    from batuta.kinds.site import Site

    KINDS: tuple[type[Resource], ...]
    SHOWN: tuple[type[Resource], ...]
    AnyResource: TypeAlias = Node | Site | Policy | Model | Application | Flag | Scenario

__all__ = [
    "API_VERSION",
    "DEFAULT_NAMESPACE",
    "KINDS",
    "SHOWN",
    "AnyResource",
    "Application",
    "Component",
    "Flag",
    "Metadata",
    "Model",
    "Node",
    "Policy",
    "Problem",
    "Record",
    "Ref",
    "Resource",
    "Rollout",
    "Scenario",
    "Site",
    "kind_called",
]


def kind_called(word: str) -> type[Resource] | None:
    """The kind that people mean by `word`: its name, plural or short name, in any case."""
    word = word.lower()
    return next((k for k in _kinds() if word in (k.__name__.lower(), k.plural, *k.short_names)), None)


def _kinds() -> tuple[type[Resource], ...]:
    declared: tuple[type[Resource], ...] = __getattr__("KINDS")
    shown: tuple[type[Resource], ...] = __getattr__("SHOWN")
    return (*declared, *shown)


# A node agent reads assignments and knows no policies: each kind is loaded when somebody asks for it, or for all.
_ORDER = ("Node", "Site", "Policy", "Model", "Application", "Flag", "Scenario")
_SHOWN = ("Rollout",)
_HOMES = {**{name: name.lower() for name in (*_ORDER, *_SHOWN)}, "Component": "application"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = getattr(importlib.import_module(f"batuta.kinds.{_HOMES[name]}"), name)
    elif name == "KINDS":
        found = tuple(__getattr__(kind) for kind in _ORDER)
    elif name == "SHOWN":
        found = tuple(__getattr__(kind) for kind in _SHOWN)
    elif name == "AnyResource":
        node, site, policy, model, application, flag, scenario = (__getattr__(kind) for kind in _ORDER)
        found = node | site | policy | model | application | flag | scenario
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found
