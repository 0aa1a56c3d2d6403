"""Vouch: which models may run only when somebody has signed them, and whose signatures count.

Policies say it; here it becomes part of a release, so that another signer is another release, and whoever is to start
it verifies it. While no release can be made, the previous one runs on where it runs; placed elsewhere, its order names
the signers all the same, and the node that gets it does not load it. What is decided here is only what can be known
without bytes: that a variant which nobody has signed need not be tried. Whether signatures hold, and are of the right
keys, is found on the node, before anything is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.core.reasons import Reason
from batuta.core.rules import ruling_of

if TYPE_CHECKING:
    from batuta.core.decided import VersionChoice
    from batuta.core.state import State
    from batuta.kinds.application import Application, Component


def vouched(
    state: State, app: str, application: Application, component: Component, version: VersionChoice
) -> VersionChoice | Reason:
    """The version with the signers that policies ask for, and only with variants that anybody has signed. Its own
    Python is signed like a variant."""
    if not any(policy.spec.require_signer for policy in state.policies):
        return version
    groups = ruling_of(state.policies, component, application, app).signers
    if not groups:
        return version
    signed = tuple(v for v in version.variants if v.signatures)
    is_code_missed = version.transform is not None and not version.transform_signatures
    if not signed or is_code_missed:
        what = "the transform of " if signed else ""
        detail = f"{what}{version.name} {version.version}"
        return Reason(code="signature_missing", subject=f"component/{component.name}", detail=detail)
    return msgspec.structs.replace(version, variants=signed, signers=groups)


def signers_of(
    state: State, app: str, application: Application, component: Component
) -> tuple[tuple[str, ...], ...] | Reason:
    """Who must have signed a component's image. One that is pulled from a registry brings no signature along."""
    use = component.container
    if use is None or not any(policy.spec.require_signer for policy in state.policies):
        return ()
    groups = ruling_of(state.policies, component, application, app).signers
    if groups and (use.archive is None or not use.archive.signatures):
        detail = use.name if use.archive is not None else f"{use.name} is pulled, and only archives carry signatures"
        return Reason(code="signature_missing", subject=f"component/{component.name}", detail=detail)
    return groups
