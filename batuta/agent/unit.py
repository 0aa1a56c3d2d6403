"""The systemd unit of a node: printed by `batuta join --print-unit`, never installed behind anyone's back."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

UNIT = """\
# Save as /etc/systemd/system/batuta-node.service, then: systemctl enable --now batuta-node
[Unit]
Description=Batuta node agent
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
Restart=always
RestartSec=2
# An agent that dies leaves its broker and instances running, but for those that must never run twice, and the next one
# adopts them. Asked to stop, it stops them itself; `systemctl kill -s HUP batuta-node` replaces only the agent, for an
# update.
KillMode=process
TimeoutStopSec=60
OOMScoreAdjust=-500
UMask=0077
NoNewPrivileges=yes
ProtectSystem=full
ProtectControlGroups=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectClock=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""


def unit(arguments: Sequence[str], python: str = sys.executable) -> str:
    """The unit for an enrolled node, whose agent gets these arguments."""
    command = (python, "-m", "batuta.agent", *arguments)
    # systemd splits like a shell, and expands % and $ by itself.
    words = " ".join(shlex.quote(word).replace("%", "%%").replace("$", "$$") for word in command)
    return UNIT.format(command=words)
