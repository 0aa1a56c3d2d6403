"""What somebody chose on the command line is what the agent gets, and what the unit says."""

from __future__ import annotations

import click
import msgspec
import pytest

from batuta.agent.__main__ import config as of_agent
from batuta.cli.join import _config, _words, join

CHOICES = {
    "--site": "", "--name": "", "--cpu": "2", "--memory": "512Mi", "--listen": "0.0.0.0", "--advertise": "10.0.0.5",
    "--via": "10.0.0.9:7422", "--mqtt-port": "1884", "--inference-port": "9000", "--engine": "none",
    "--allow-mount": "/srv/a b", "--measure-below": "20",
}  # fmt: skip


def options(*words: str) -> dict[str, object]:
    found = dict(join.make_context("join", list(words)).params)
    for name in ("token", "state", "print_unit"):
        del found[name]
    return found


@pytest.mark.parametrize(
    "words", [[], ["--no-pull"], [word for pair in CHOICES.items() for word in pair], ["--inference-port", "0"]]
)
def test_all_choices_reach_the_agent(words: list[str]) -> None:
    chosen = _config("/srv/state", "", options(*words))
    given = of_agent(_words(chosen))
    assert given == msgspec.structs.replace(chosen, name="", site="")


def test_a_port_beyond_all_ports_is_refused() -> None:
    with pytest.raises(click.BadParameter):
        options("--inference-port", "65536")
