"""AgentConfig: what a node's operator may choose, and the directories that follow from it."""

from __future__ import annotations

from pathlib import Path

from batuta.kinds.base import Record


class AgentConfig(Record):
    """How one node agent runs. What the hub decides is not here: it comes with the assignment."""

    state: str
    """The directory given by `--state`; the node's own files are below `node/` in it."""
    token: str = ""
    """The join line's token; empty once the node is enrolled."""
    name: str = ""
    """The node's name; the machine's host name when left out."""
    site: str = ""
    """The site to join, when the token leaves it open."""
    cpu_millis: int | None = None
    """Offer this much processor time instead of all there is: several nodes can share a machine."""
    memory_bytes: int | None = None
    """Offer this much memory instead of all there is."""
    listen: str = "127.0.0.1"
    """Address of the SITE and MQTT listeners; loopback keeps devices and neighbours of other machines out."""
    advertise: str = ""
    """Address that neighbours are told, when it is not `listen`."""
    via: str = ""
    """`host:port` through which the hub's broker is reached instead of the address it gave: a relay, a port forward."""
    mqtt_port: int = 1883
    """MQTT listener; the next free port when it is taken, and said so."""
    inference_port: int | None = None
    """Where programs of this node ask models, at loopback; the next free port when it is taken, and said so. Left out,
    the usual one, or any when `mqtt_port` is any."""
    artifacts_bytes: int = 4 * 2**30
    """Disk budget of the artifact cache. What the ledger needs is kept even beyond it."""
    contact_every_ms: int = 1_000
    """Time between heartbeats until the hub says otherwise."""
    report_every_ms: int = 15_000
    """Time between reports when nothing changes."""
    engine: str = ""
    """The socket of Podman or Docker; found by itself when left out, and `none` for no containers."""
    mountable: tuple[str, ...] = ()
    """Paths of this machine that containers may mount, with all that is below them."""
    pulls_images: bool = True
    """May images be pulled from registries? Where not, only those that the hub keeps can run."""
    addresses: tuple[str, ...] = ()
    """Names and addresses of this machine that go into its certificate, so that neighbours can check it."""
    busy_percent_max: float = 50.0
    """A machine whose processors are busier measures no models for the hub; 0: it never does."""
    tied: bool = False
    """The broker dies with the agent, however that ends: for demonstrations, never for a machine that matters."""
    debug_modules: str = ""
    """Write the names of all loaded modules to this file once the node runs: how a test proves that the agent is
    light."""

    @property
    def home(self) -> Path:
        """All that this node keeps."""
        return Path(self.state).expanduser().absolute() / "node"

    @property
    def identity(self) -> Path:
        """Key, certificate, CAs, and which hub they are for."""
        return self.home / "identity"

    @property
    def ledger(self) -> Path:
        return self.home / "ledger"

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def instances(self) -> Path:
        """One directory an instance: working files and logs."""
        return self.home / "instances"

    @property
    def broker(self) -> Path:
        return self.home / "broker"

    @property
    def lock(self) -> Path:
        return self.home / "agent.lock"
