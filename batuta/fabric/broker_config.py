"""What a broker is told: frozen records in, the text of a configuration out.

Pure, so a test can read what a broker will be told, and a change is seen by comparing two texts. One program plays
every part: the hub's broker, with leaf links behind mutual TLS and a responder that decides who may connect; and a
node's, with an account for the link to the hub (CONTROL), one for the site (SITE), and MQTT for devices.

What acknowledged means. A process may be killed at any time and nothing acknowledged is lost: every write has reached
the operating system by then. Against a loss of power the hub's broker also waits for the disk on every write; a node's
does so every `sync_interval`, because a sync per camera frame costs milliseconds and wears out flash.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batuta.fabric import subjects

if TYPE_CHECKING:
    from collections.abc import Iterable

MIB: Final = 1 << 20

# The listener of SITE lets in whoever has a certificate of the site; these two words only say which account is meant.
SITE_LINK_USER: Final = "neighbour"


# Of a node's broker: it is the agent under another name, with the agent's password.
HEALTH_USER: Final = "health"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of a certificate chain, its key, and the authority whose certificates are accepted."""

    chain: Path
    key: Path
    trusts: Path


@dataclass(frozen=True, slots=True)
class Device:
    """One MQTT user of a node. Patterns are topics as people write them."""

    user: str
    password: str
    publish: tuple[str, ...] = ("#",)
    subscribe: tuple[str, ...] = ("#",)


@dataclass(frozen=True, slots=True)
class HubBroker:
    """The hub's broker. Passwords are generated and only ever on this machine."""

    store: Path
    client_port: int
    leaf_port: int
    tls: TlsFiles
    hub_password: str
    callout_password: str
    system_password: str
    callout_issuer: str
    """Public account key that signs the answers of the responder in `callout`."""
    leaf_host: str = "127.0.0.1"
    store_bytes_max: int = 10 << 30
    memory_bytes_max: int = 256 * MIB


@dataclass(frozen=True, slots=True)
class NodeBroker:
    """A node's broker."""

    node: str
    store: Path
    client_port: int
    mqtt_port: int
    agent_password: str
    site_password: str
    tls: TlsFiles | None = None
    """None for a node that has not joined a hub: no links then."""
    hub_urls: tuple[str, ...] = ()
    """`tls://10.0.0.5:7422`, in order of preference."""
    site_port: int = 0
    """Where later nodes of the site link to; 0 for no listener."""
    site_host: str = "127.0.0.1"
    site_trusts: Path | None = None
    """The authority of the site: its nodes may link, and only they."""
    earlier: tuple[str, ...] = ()
    """`host:port` of the earlier nodes of the site, in the order of joining."""
    mqtt_host: str = "127.0.0.1"
    devices: tuple[Device, ...] = ()
    """MQTT users. Without any, devices on this machine need no password, and others are not let in."""
    gateway_password: str = ""
    """Of the inference gateway, for calls to other sites; "" for no such user."""
    site_bytes_max: int = 1 << 30
    control_bytes_max: int = 256 * MIB
    sync_interval: str = "1s"


def hub_config(hub: HubBroker) -> str:
    """The whole configuration of the hub's broker."""
    return _text(
        f'server_name: "{subjects.HUB_DOMAIN}"',
        f'listen: "127.0.0.1:{hub.client_port}"',
        *_JOURNAL,
        *_PATIENCE,
        "jetstream {",
        f'  domain: "{subjects.HUB_DOMAIN}"',
        f"  store_dir: {_quoted(hub.store)}",
        f"  max_memory_store: {hub.memory_bytes_max}",
        f"  max_file_store: {hub.store_bytes_max}",
        "  sync_interval: always",
        "}",
        "accounts {",
        "  CONTROL {",
        f"    jetstream: {{max_memory: {hub.memory_bytes_max}, max_file: {hub.store_bytes_max}}}",
        f"    users: [{{user: hub, password: {_quoted(hub.hub_password)}}}]",
        "  }",
        # Requests for authorisation are answered in an account of their own: no node can ever see or answer one.
        "  AUTH {",
        f"    users: [{{user: callout, password: {_quoted(hub.callout_password)}}}]",
        "  }",
        "  SYS {",
        f"    users: [{{user: system, password: {_quoted(hub.system_password)}}}]",
        "  }",
        "}",
        "system_account: SYS",
        "authorization {",
        "  auth_callout {",
        f'    issuer: "{hub.callout_issuer}"',
        "    account: AUTH",
        "    auth_users: [hub, callout, system]",
        "  }",
        "}",
        "leafnodes {",
        f'  listen: "{hub.leaf_host}:{hub.leaf_port}"',
        _NO_GOSSIP,
        *_tls(hub.tls, verify=True),
        "}",
    )


def node_config(node: NodeBroker) -> str:
    """The whole configuration of a node's broker."""
    everything = node.site_bytes_max + node.control_bytes_max
    return _text(
        f'server_name: "{node.node}"',
        f'listen: "127.0.0.1:{node.client_port}"',
        *_JOURNAL,
        *_PATIENCE,
        "jetstream {",
        f'  domain: "{subjects.node_domain(node.node)}"',
        f"  store_dir: {_quoted(node.store)}",
        f"  max_memory_store: {16 * MIB}",
        f"  max_file_store: {everything}",
        f'  sync_interval: "{node.sync_interval}"',
        "}",
        "accounts {",
        "  CONTROL {",
        f"    jetstream: {{max_memory: {4 * MIB}, max_file: {node.control_bytes_max}}}",
        "    users: [",
        f"      {{user: agent, password: {_quoted(node.agent_password)}}}",
        *_gateway(node),
        "    ]",
        # The agent hears of its link from the broker that keeps it, within a millisecond and without asking.
        "    imports: [",
        *(f"      {{stream: {{account: SYS, subject: {_quoted(event)}}}, to: {to}}}" for event, to in _LINK_EVENTS),
        "    ]",
        "  }",
        "  SITE {",
        f"    jetstream: {{max_memory: {12 * MIB}, max_file: {node.site_bytes_max}}}",
        "    users: [",
        f"      {{user: site, password: {_quoted(node.site_password)}}}",
        *(f"      {_device(each)}" for each in node.devices or (_ANYONE_HERE,)),
        "    ]",
        "  }",
        "  SYS {",
        "    exports: [",
        *(f"      {{stream: {_quoted(event)}, accounts: [CONTROL]}}" for event, _ in _LINK_EVENTS),
        "    ]",
        # Whoever keeps the broker may ask how it is, and nothing else.
        f"    users: [{{user: {HEALTH_USER}, password: {_quoted(node.agent_password)}, permissions: {{"
        'publish: "$SYS.REQ.SERVER.PING.HEALTHZ", subscribe: "_INBOX.>"}}]',
        "  }",
        "}",
        "system_account: SYS",
        *_leafnodes(node),
        "mqtt {",
        f'  listen: "{node.mqtt_host}:{node.mqtt_port}"',
        *([] if node.devices or not _is_loopback(node.mqtt_host) else ["  no_auth_user: device"]),
        "}",
    )


# The password is never asked for: it only keeps the configuration's shape. Off loopback nobody is this user.
_ANYONE_HERE: Final = Device("device", "device")
# The journal is plain lines in one file, and the file is bounded: it is cut over at this size and one old one is kept.
_JOURNAL: Final = ("logfile_size_limit: 4MB", "logfile_max_num: 2")
# A peer that is silent this long is gone: what a cut cable costs before the other route is tried.
_PATIENCE: Final = ("max_payload: 8MB", 'ping_interval: "5s"', "ping_max: 2")


_LINK_EVENTS: Final = (
    ("$SYS.ACCOUNT.CONTROL.CONNECT", subjects.LINK_UP),
    ("$SYS.ACCOUNT.CONTROL.DISCONNECT", subjects.LINK_DOWN),
)


GATEWAY_USER: Final = "gateway"


def _gateway(node: NodeBroker) -> list[str]:
    """It talks with other sites' gateways and asks the hub who they are; all else on CONTROL is not its business."""
    if not node.gateway_password:
        return []
    rights = subjects.rights_of_gateway(node.node)
    return [
        f"      {{user: {GATEWAY_USER}, password: {_quoted(node.gateway_password)}, permissions: {{"
        f"publish: {_list(rights.publish)}, subscribe: {_list(rights.subscribe)}}}}}"
    ]


# A broker that told its callers its own address would have them come back past the relay or the order they were given.
_NO_GOSSIP: Final = "  no_advertise: true"


def _leafnodes(node: NodeBroker) -> list[str]:
    if node.tls is None:
        return []
    out = ["leafnodes {", "  reconnect: 1"]
    if node.site_port and node.site_trusts:
        site_tls = TlsFiles(node.tls.chain, node.tls.key, node.site_trusts)
        out += [
            f'  listen: "{node.site_host}:{node.site_port}"',
            f"  {_NO_GOSSIP.strip()}",
            *_tls(site_tls, verify=True),
            f"  authorization {{user: {SITE_LINK_USER}, password: {SITE_LINK_USER}, account: SITE}}",
        ]
    out.append("  remotes: [")
    if node.hub_urls:
        urls = ", ".join(_quoted(url) for url in node.hub_urls)
        out += ["    {", "      account: CONTROL", f"      urls: [{urls}]", "      no_randomize: true"]
        out += [f"    {line}" for line in _tls(node.tls, verify=False)] + ["    }"]
    if node.earlier and node.site_trusts:
        site_tls = TlsFiles(node.tls.chain, node.tls.key, node.site_trusts)
        urls = ", ".join(_quoted(f"tls://{SITE_LINK_USER}:{SITE_LINK_USER}@{each}") for each in node.earlier)
        # What a broker keeps for MQTT stays with it. Were it to cross, every node would keep every frame of the site,
        # and the acknowledgement to a device could come from a neighbour.
        own = f'["{subjects.MQTT_KEPT}.>", "$MQTT.qos2.>", "$MQTT.out.>"]'
        out += ["    {", "      account: SITE", f"      urls: [{urls}]", "      no_randomize: true"]
        out += [f"      deny_imports: {own}", f"      deny_exports: {own}"]
        out += [f"    {line}" for line in _tls(site_tls, verify=False)] + ["    }"]
    return [*out, "  ]", "}"]


def _device(device: Device) -> str:
    """A device speaks topics. What the fabric itself says, and how streams are ruled, is not its business."""
    closed = ["$JS.>", "$SYS.>", "$KV.>", "$OBJ.>", *(f"{root}.>" for root in subjects.RESERVED_ROOTS)]
    # The broker delivers under `$MQTT` itself, so a device must be able to hear it, but has nothing to say there.
    publish = _list(s for topic in device.publish for s in subjects.subjects_of_topic_filter(topic))
    subscribe = _list((*(s for topic in device.subscribe for s in subjects.subjects_of_topic_filter(topic)), "$MQTT.>"))
    return (
        f"{{user: {_quoted(device.user)}, password: {_quoted(device.password)}, permissions: {{"
        f"publish: {{allow: {publish}, deny: {_list((*closed, '$MQTT.>'))}}}, "
        f"subscribe: {{allow: {subscribe}, deny: {_list(closed)}}}}}}}"
    )


def _list(items: Iterable[str]) -> str:
    return "[" + ", ".join(_quoted(item) for item in items) + "]"


def _tls(files: TlsFiles, *, verify: bool) -> list[str]:
    return [
        "  tls {",
        f"    cert_file: {_quoted(files.chain)}",
        f"    key_file: {_quoted(files.key)}",
        f"    ca_file: {_quoted(files.trusts)}",
        *(["    verify: true"] if verify else []),
        "    timeout: 5",
        "  }",
    ]


def _quoted(word: str | Path) -> str:
    return json.dumps(str(word))


def _text(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1", "[::1]") or host.startswith("127.")
