"""`batuta join`: this machine becomes a node, and runs as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from batuta.cli.options import state_option

if TYPE_CHECKING:
    from batuta.agent.config import AgentConfig
    from batuta.agent.identity import Identity

ASK_FIRST_S = 1.0
ASK_SLOWEST_S = 15.0


@click.command()
@click.argument("token", required=False, default="")
@click.option("--site", default="", help="The site to join, when the token leaves it open.")
@click.option("--name", default="", help="The node's name [default: this machine's host name].")
@state_option
@click.option("--cpu", metavar="AMOUNT", help="Offer only this much processor time: `2` or `500m`.")
@click.option("--memory", metavar="AMOUNT", help="Offer only this much memory: `512Mi`.")
@click.option(
    "--listen", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where devices and neighbours connect."
)
@click.option(
    "--advertise", default="", metavar="ADDRESS", help="What neighbours and other sites are told, if not --listen."
)
@click.option("--via", default="", metavar="HOST:PORT", help="Reach the hub's broker through this relay or forward.")
@click.option(
    "--mqtt-port",
    default=1883,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="0 takes any; if taken, the next.",
)
@click.option(
    "--inference-port",
    metavar="PORT",
    type=click.IntRange(0, 65_535),
    help="Where programs here ask models [default: 8500]; 0 takes any; if taken, the next.",
)
@click.option("--engine", default="", metavar="SOCKET", help="Podman's or Docker's; found by itself, `none` for none.")
@click.option("--allow-mount", multiple=True, metavar="PATH", help="Let containers mount this path; several times.")
@click.option("--no-pull", is_flag=True, help="Pull no images from registries: only what the hub keeps runs here.")
@click.option(
    "--measure-below",
    default=50.0,
    show_default=True,
    metavar="PERCENT",
    help="While processors are less busy than this, measure models for the hub; 0: never.",
)
@click.option("--print-unit", is_flag=True, help="Print a systemd unit instead of running; nothing is installed.")
def join(token: str, *, state: str | None, print_unit: bool, **options: object) -> None:
    """Make this machine a node, with the TOKEN that `batuta token create` printed; `-` reads it from standard input.

    It runs in the foreground until Ctrl-C. A machine that is a node already goes on without a TOKEN.
    """
    import asyncio
    import sys
    from pathlib import Path

    from batuta.cli.main import hear_endings

    if token:
        # Until it is a node, Ctrl-C means that nothing happens. Without a token it is one, and what an earlier agent
        # left running is to end too: that is for the agent, which hears what we hold back.
        hear_endings()
    from batuta.config import default_state

    if token == "-":  # noqa: S105  the word for standard input
        token = sys.stdin.read().strip()
    home = (Path(state).expanduser() if state else default_state()).absolute()
    config = _config(home, token.removeprefix("batuta join ").strip(), options)
    if token or not print_unit:
        here = asyncio.run(_joined(config, config.name or _host_name()))
        click.echo(f"This machine is node {here.node} of site {here.site}.", err=True)
    if print_unit:
        from batuta.agent.unit import unit

        click.echo(unit(_words(config)), nl=False)
        return
    _become_the_agent(config)


async def _joined(config: AgentConfig, name: str) -> Identity:
    """Who this machine is, as soon as the hub says so: one that must be approved waits here, and asks again."""
    import asyncio

    from batuta.agent.enrolling import join as enrol
    from batuta.errors import EnrolmentRefused

    pause_s, told, is_waiting = ASK_FIRST_S, "", False
    while True:
        try:
            return await enrol(config, name)
        except EnrolmentRefused as error:
            # A hub that is away for a while has not said no.
            if error.code != "approval_pending" and not (is_waiting and error.code == "not_connected"):
                raise
            is_waiting = True
            if error.message != told:
                told = error.message
                next_step = f"; {error.next_step}" if error.next_step else ""
                click.echo(
                    f"{error.message}{next_step}. Ctrl-C ends the waiting; the same line goes on with it.", err=True
                )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, ASK_SLOWEST_S)


def _config(home: object, token: str, options: dict[str, object]) -> AgentConfig:
    from batuta.agent.config import AgentConfig
    from batuta.kinds.base import Bytes, Millicores

    amounts: dict[str, int | None] = {}
    for option, quantity in (("cpu", Millicores), ("memory", Bytes)):
        said = options.pop(option)
        try:
            amounts[option] = int(quantity.parse(said)) if said is not None else None
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=f"--{option}") from None
    return AgentConfig(
        state=str(home),
        token=token,
        name=str(options["name"]),
        site=str(options["site"]),
        cpu_millis=amounts["cpu"],
        memory_bytes=amounts["memory"],
        listen=str(options["listen"]),
        advertise=str(options["advertise"]),
        via=str(options["via"]),
        mqtt_port=int(str(options["mqtt_port"])),
        inference_port=cast("int | None", options["inference_port"]),
        engine=str(options["engine"]),
        mountable=tuple(str(path) for path in cast("tuple[str, ...]", options["allow_mount"])),
        pulls_images=not options["no_pull"],
        busy_percent_max=float(str(options["measure_below"])),
    )


def _host_name() -> str:
    from batuta.agent.agent import default_name

    return default_name()


def _become_the_agent(config: AgentConfig) -> None:
    """The same process goes on as the bare agent: without the command line's memory, and without the token in its
    arguments, where everybody on the machine could read it."""
    import os
    import signal
    import sys

    # Held back by us, it is still there for the agent, which holds it back until it can act on it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    words = _words(config)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "batuta.agent", *words])  # noqa: S606  no shell is meant


def _words(config: AgentConfig) -> list[str]:
    """The same choices, as arguments of the bare agent."""
    words = ["--state", config.state, "--listen", config.listen, "--mqtt-port", str(config.mqtt_port)]
    if config.inference_port is not None:
        words += ["--inference-port", str(config.inference_port)]
    if config.advertise:
        words += ["--advertise", config.advertise]
    if config.via:
        words += ["--via", config.via]
    if config.engine:
        words += ["--engine", config.engine]
    for path in config.mountable:
        words += ["--allow-mount", path]
    if not config.pulls_images:
        words += ["--no-pull"]
    words += ["--measure-below", str(config.busy_percent_max)]
    if config.cpu_millis is not None:
        words += ["--cpu", str(config.cpu_millis)]
    if config.memory_bytes is not None:
        words += ["--memory", str(config.memory_bytes)]
    return words
