"""Channels: names that move from version to version of a model, such as `stable`, and who follows them.

A channel is an alias that somebody follows: a component that names it in place of a version gets a new release when it
is moved, and so a rollout with the application's own waves and gates. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.core.decided import Released
    from batuta.core.state import State
    from batuta.kinds.model import Model


def channels(state: State, model: Model) -> list[dict[str, Any]]:
    """Every channel of a model: the version it is at, and the components that follow it, as `application/component`."""
    followers: dict[str, list[str]] = {name: [] for name in model.spec.aliases}
    for channel, follower in _followers(state, model):
        if channel in followers:
            followers[channel].append(follower)
    return [
        {"name": name, "version": model.spec.aliases[name], "followers": sorted(followers[name])}
        for name in sorted(followers)
    ]


def followed_by(released: Released) -> dict[str, str] | None:
    """The channel that a released component follows, and the version that it was at; None when it names a version."""
    use, choice = released.component.model, released.version
    if use is None or choice is None or use.version == choice.version:
        return None
    return {"model": choice.name, "channel": use.version, "version": choice.version}


def _followers(state: State, model: Model) -> Iterator[tuple[str, str]]:
    ref = model.ref
    for app in state.users_of_model.get(f"{ref.namespace}/{ref.name}", ()):
        application = state.application(app)
        for component in application.spec.components if application is not None else ():
            if component.model is not None and component.model.name == ref.name:
                yield component.model.version, f"{app.rpartition('/')[2]}/{component.name}"
