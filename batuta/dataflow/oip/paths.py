"""Paths of the protocol that are answered without running anything; `infer` is the listener's own.

Rows: a method, a path whose words in capitals stand for names, and who answers. What is not there is told apart: a path
that nobody knows, a method that this path has not, a model or version that is not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

import batuta
from batuta.dataflow.oip.endpoint import EXTENSIONS
from batuta.dataflow.oip.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batuta.dataflow.oip.endpoint import Endpoint
    from batuta.dataflow.oip.regions import Regions


class Asked(NamedTuple):
    """A request for something other than an inference."""

    endpoint: Endpoint
    shared: Callable[[], Regions] | None
    """As in `endpoint.Asking`."""
    names: Mapping[str, str]
    """By the words in capitals."""
    body: memoryview

    @property
    def said(self) -> dict[str, Any]:
        """The body, which may be empty."""
        if not len(self.body):
            return {}
        try:
            found = msgspec.json.decode(self.body)
        except (ValueError, RecursionError) as error:
            raise Fault("malformed", f"not JSON: {error}") from None
        if not isinstance(found, dict):
            raise Fault("malformed", "the body is a JSON object")
        return found

    @property
    def regions(self) -> Regions:
        if self.shared is None:
            raise Fault("forbidden", "shared memory cannot be reached this way")
        return self.shared()


def _server(_asked: Asked) -> Any:
    return {"name": "batuta", "version": batuta.__version__, "extensions": list(EXTENSIONS)}


def _live(_asked: Asked) -> Any:
    return {"live": True}


def _ready(asked: Asked) -> Any:
    if not asked.endpoint.is_ready:
        raise Fault("unready", "not ready")
    return {"ready": True}


def _model_ready(asked: Asked) -> Any:
    return {"name": asked.endpoint.name, **_ready(asked)}


def _model(asked: Asked) -> Any:
    return asked.endpoint.metadata


def _index(asked: Asked) -> Any:
    endpoint = asked.endpoint
    if asked.said.get("ready") is True and not endpoint.is_ready:
        return []
    state = "READY" if endpoint.is_ready else "UNAVAILABLE"
    reason = "" if endpoint.is_ready else "stopping"
    return [{"name": endpoint.name, "version": endpoint.version, "state": state, "reason": reason}]


def _load(_asked: Asked) -> Any:
    """This worker is one model, which is loaded or it would not answer."""
    return None


def _unload(asked: Asked) -> Any:
    raise Fault(
        "elsewhere", f"{asked.endpoint.name} runs because an application says so; change that, or ask a gateway"
    )


def _regions(asked: Asked) -> Any:
    return asked.regions.status(asked.names.get("REGION"))


def _register(asked: Asked) -> Any:
    asked.regions.register(asked.names["REGION"], asked.said)


def _unregister(asked: Asked) -> Any:
    asked.regions.unregister(asked.names.get("REGION"))


def _cuda(_asked: Asked) -> Any:
    raise Fault("elsewhere", "CUDA shared memory is not known here")


ROWS: Final[tuple[tuple[str, str, Callable[[Asked], Any]], ...]] = (
    ("GET", "v2", _server),
    ("GET", "v2/health/live", _live),
    ("GET", "v2/health/ready", _ready),
    ("GET", "v2/models/MODEL", _model),
    ("GET", "v2/models/MODEL/ready", _model_ready),
    ("GET", "v2/models/MODEL/versions/VERSION", _model),
    ("GET", "v2/models/MODEL/versions/VERSION/ready", _model_ready),
    ("POST", "v2/repository/index", _index),
    ("POST", "v2/repository/models/MODEL/load", _load),
    ("POST", "v2/repository/models/MODEL/unload", _unload),
    ("GET", "v2/systemsharedmemory/status", _regions),
    ("GET", "v2/systemsharedmemory/region/REGION/status", _regions),
    ("POST", "v2/systemsharedmemory/region/REGION/register", _register),
    ("POST", "v2/systemsharedmemory/region/REGION/unregister", _unregister),
    ("POST", "v2/systemsharedmemory/unregister", _unregister),
    ("GET", "v2/cudasharedmemory/status", _cuda),
    ("POST", "v2/cudasharedmemory/region/REGION/register", _cuda),
    ("POST", "v2/cudasharedmemory/unregister", _cuda),
)
INFER: Final = ("v2/models/MODEL/infer", "v2/models/MODEL/versions/VERSION/infer")
_PATTERNS: Final = tuple((method, tuple(path.split("/")), answer) for method, path, answer in ROWS)
_INFER: Final = tuple(tuple(path.split("/")) for path in INFER)


def is_infer(method: str, path: tuple[str, ...], endpoint: Endpoint) -> bool:
    """Whether this asks for an inference here. Raises Fault when it asks for one that is not to be had."""
    for pattern in _INFER:
        if (names := _matched(pattern, path)) is not None:
            _meant(names, endpoint)
            if method != "POST":
                raise Fault("method_wrong", f"/{'/'.join(path)} takes POST, not {method}")
            return True
    return False


def answered(method: str, path: tuple[str, ...], asked: Asked) -> bytes:
    """The body of the answer. Raises Fault."""
    others: list[str] = []
    for wanted, pattern, answer in _PATTERNS:
        names = _matched(pattern, path)
        if names is None:
            continue
        if wanted != method:
            others.append(wanted)
            continue
        _meant(names, asked.endpoint)
        said = answer(asked._replace(names=names))
        return b"" if said is None else msgspec.json.encode(said)
    where = "/" + "/".join(path)[:200]
    if others:
        raise Fault("method_wrong", f"{where} takes {' or '.join(others)}, not {method}")
    raise Fault("unknown", f"there is nothing at {where}")


def _matched(pattern: tuple[str, ...], path: tuple[str, ...]) -> dict[str, str] | None:
    if len(pattern) != len(path):
        return None
    if any(p != g and not p.isupper() for p, g in zip(pattern, path, strict=True)):
        return None
    return {p: g for p, g in zip(pattern, path, strict=True) if p.isupper()}


def _meant(names: Mapping[str, str], endpoint: Endpoint) -> None:
    model, version = names.get("MODEL", endpoint.name), names.get("VERSION", endpoint.version)
    if model != endpoint.name:
        raise Fault("unknown", f"there is no model {model[:100]!r} here; there is {endpoint.name!r}")
    if version != endpoint.version:
        raise Fault("unknown", f"there is no version {version[:100]!r} of {model} here; there is {endpoint.version!r}")
