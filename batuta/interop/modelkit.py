"""A ModelKit of KitOps: which of its layers holds the model, and what its Kitfile calls it.

Layers are tar archives, so a model is known by the path in one; whoever has the bytes unpacks it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from batuta.errors import ArtifactRefused
from batuta.interop.oci import Manifest

CONFIG = "application/vnd.kitops.modelkit.config.v1+json"
LAYER = "application/vnd.kitops.modelkit.model"


class Kit(NamedTuple):
    """What a ModelKit says."""

    name: str
    version: str
    path: str
    """Of the model, within the archive."""
    layers: tuple[tuple[str, int, bool], ...]
    """Digest, size and whether it is packed with gzip, of the archives that may hold it."""


def is_kit(manifest: Manifest) -> bool:
    return manifest.config.media_type == CONFIG


def read(manifest: Manifest, config: bytes) -> Kit:
    """Raises ArtifactRefused when it holds no model."""
    try:
        kitfile = msgspec.json.decode(config, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ArtifactRefused("artifact_unreadable", f"its Kitfile cannot be read: {error}") from None
    package, model = kitfile.get("package"), kitfile.get("model")
    package, model = package if isinstance(package, dict) else {}, model if isinstance(model, dict) else {}
    layers = tuple(
        (layer.digest, layer.size, layer.media_type.endswith("+gzip"))
        for layer in manifest.layers
        if layer.media_type.startswith(LAYER)
    )
    if not layers:
        raise ArtifactRefused("artifact_unreadable", "this ModelKit holds no model")
    version = str(model.get("version") or package.get("version") or "")
    return Kit(str(package.get("name") or model.get("name") or ""), version, str(model.get("path") or ""), layers)
