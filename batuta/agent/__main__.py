"""`python -m batuta.agent --state DIR`: run a machine that is already a node. What systemd starts."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Whoever ends us while we load our modules means it; the agent hears of it as soon as it can act on it.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

from batuta.agent.light import keep_little, leave_out  # noqa: E402

leave_out()
keep_little()

from batuta.agent.agent import main  # noqa: E402
from batuta.agent.config import AgentConfig  # noqa: E402


def config(words: Sequence[str] | None = None) -> AgentConfig:
    parser = argparse.ArgumentParser(prog="python -m batuta.agent", description="Run an enrolled Batuta node.")
    default = os.environ.get("BATUTA_HOME") or os.path.expanduser("~/.local/share/batuta")
    parser.add_argument("--state", default=default, help="state directory [default: $BATUTA_HOME]")
    parser.add_argument("--cpu", type=int, metavar="MILLICORES", help="offer only this much processor time")
    parser.add_argument("--memory", type=int, metavar="BYTES", help="offer only this much memory")
    parser.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="of the SITE and MQTT listeners")
    parser.add_argument("--advertise", default="", metavar="ADDRESS", help="what others are told, if not --listen")
    parser.add_argument("--via", default="", metavar="HOST:PORT", help="reach the hub's broker through this address")
    parser.add_argument("--mqtt-port", type=int, default=1883)
    parser.add_argument("--inference-port", type=int, help="where programs ask models")
    parser.add_argument("--engine", default="", metavar="SOCKET", help="of Podman or Docker; `none` for none")
    parser.add_argument("--allow-mount", action="append", default=[], metavar="PATH", help="containers may mount it")
    parser.add_argument("--no-pull", action="store_true", help="pull no images from registries")
    parser.add_argument("--measure-below", type=float, default=50.0, metavar="PERCENT", help="busier, measure nothing")
    parser.add_argument("--debug-modules", default="", metavar="FILE", help=argparse.SUPPRESS)
    said = parser.parse_args(words)
    return AgentConfig(
        state=said.state,
        cpu_millis=said.cpu,
        memory_bytes=said.memory,
        listen=said.listen,
        advertise=said.advertise,
        via=said.via,
        mqtt_port=said.mqtt_port,
        inference_port=said.inference_port,
        engine=said.engine,
        mountable=tuple(said.allow_mount),
        pulls_images=not said.no_pull,
        busy_percent_max=said.measure_below,
        debug_modules=said.debug_modules,
    )


if __name__ == "__main__":
    sys.exit(main(config()))
