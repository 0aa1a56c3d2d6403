"""A real Podman for tests: its own storage, its own socket, and an image made here of one static program.

Where Podman cannot run, those tests are skipped and say why. Sandboxes differ: where the kernel's old and new control
groups are mounted beside each other, which crun refuses, the engine gets a mount namespace without the new ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from batuta.demo.stage import kill, processes_in

if TYPE_CHECKING:
    from collections.abc import Iterator

UNIFIED = Path("/sys/fs/cgroup/unified")
BRIDGE = Path("/sys/class/net/docker0")
PROGRAMS = (
    "sh", "sleep", "echo", "cat", "touch", "ls", "id", "kill", "env", "ps", "httpd", "nc", "wget", "dd", "seq",
    "test", "tail", "date", "printf", "yes", "head", "ulimit", "mkdir", "rm", "true", "false",
)  # fmt: skip
CONTAINERS_CONF = """
[containers]
# A sandbox may not raise its own limits, and Podman would.
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
events_logger = "file"
tmp_dir = "{place}/tmp"
lock_type = "file"
"""
REGISTRIES_CONF = 'unqualified-search-registries = []\n[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n'


def busybox() -> Path:
    found = shutil.which("busybox")
    if found is None or b"/lib64/ld-linux" in Path(found).read_bytes()[:4096]:
        pytest.skip("no static busybox here: apt-get install busybox-static")
    return Path(found)


def rootfs(extra: dict[str, bytes] | None = None) -> bytes:
    """A root file system with one program, as a tar that is the same every time."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("bin", "tmp", "etc", "data"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        files = {
            "bin/busybox": busybox().read_bytes(),
            "etc/passwd": b"root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n",
        }
        for name, data in {**files, **(extra or {})}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
        for name in PROGRAMS:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return out.getvalue()


class Built:
    """An image as an OCI archive, and the digests by which it may be called."""

    def __init__(
        self, directory: Path, *, name: str = "batuta-test", layer: bytes | None = None, **config: Any
    ) -> None:
        layer = rootfs() if layer is None else layer
        self.path = directory / f"{name}.tar"
        said = {
            "architecture": "arm64" if os.uname().machine == "aarch64" else "amd64",
            "os": "linux",
            "config": {
                "Env": ["PATH=/bin"],
                "Entrypoint": ["/bin/sh", "-c"],
                "Cmd": ["echo nothing was said"],
                **config,
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
        configuration = json.dumps(said).encode()
        self.id = _digest(configuration)
        manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
             "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": self.id,
                        "size": len(configuration)},
             "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": _digest(layer),
                         "size": len(layer)}]}
        ).encode()  # fmt: skip
        self.manifest = _digest(manifest)
        index = {
            "schemaVersion": 2,
            "manifests": [
                {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.manifest,
                 "size": len(manifest), "annotations": {"org.opencontainers.image.ref.name": f"localhost/{name}:1"}}
            ],
        }  # fmt: skip
        layer_path = f"blobs/{_digest(layer).replace(':', '/')}"
        older = [{"Config": f"blobs/{self.id.replace(':', '/')}", "RepoTags": [f"localhost/{name}:1"],
                  "Layers": [layer_path]}]  # fmt: skip
        with tarfile.open(self.path, "w") as tar:
            for path, data in (
                # As newer Docker saves it: in both forms, so that every engine reads one of them.
                ("manifest.json", json.dumps(older).encode()),
                ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), ("index.json", json.dumps(index).encode()),
                *((f"blobs/{_digest(d).replace(':', '/')}", d) for d in (layer, configuration, manifest)),
            ):  # fmt: skip
                entry = tarfile.TarInfo(path)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        self.digest = _digest(self.path.read_bytes())
        self.image = f"localhost/{name}@{self.manifest}"
        self.size = self.path.stat().st_size


class Engine:
    """One Podman service, which can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "podman.sock"
        self._holder: subprocess.Popen[bytes] | None = None
        self._service: subprocess.Popen[bytes] | None = None
        # Nothing is shared with an engine of the machine, nor with that of another test process.
        files = {"containers.conf": CONTAINERS_CONF.format(place=directory), "registries.conf": REGISTRIES_CONF}
        for name, text in files.items():
            (directory / name).write_text(text)
        self._env = {
            "PATH": os.environ["PATH"], "HOME": str(directory), "XDG_RUNTIME_DIR": str(directory),
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(directory / "registries.conf"),
        }  # fmt: skip

    def open(self) -> None:
        if os.geteuid() == 0 and UNIFIED.is_dir() and (UNIFIED / "cgroup.controllers").read_text().strip():
            line = f"umount {UNIFIED} && echo && exec sleep infinity"
            self._holder = subprocess.Popen(
                ["unshare", "-m", "sh", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            assert self._holder.stdout is not None
            if not self._holder.stdout.readline():
                pytest.skip("no mount namespace can be had here, and crun refuses mixed control groups")
        self.start()

    def podman(self, *words: str) -> list[str]:
        place = self.directory / "storage"
        inside = ["nsenter", "-m", "-t", str(self._holder.pid), "--"] if self._holder is not None else []
        return [*inside, "podman", "--root", str(place), "--runroot", str(self.directory / "run"),
                "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", *words]  # fmt: skip

    def service(self) -> list[str]:
        return self.podman("system", "service", "--time=0", f"unix://{self.socket}")

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        with (self.directory / "service.log").open("ab") as log:
            self._service = subprocess.Popen(
                self.service(), env=self._env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                self.ask("GET", "/_ping")
                return
            if self._service.poll() is not None or time.monotonic() > until:
                pytest.skip(f"{self.service()[0]} does not serve here: {self.said()}")
            time.sleep(0.05)

    def said(self) -> str:
        return (self.directory / "service.log").read_text(errors="replace")[-600:]

    def kill(self) -> None:
        """Only the service: what it started goes on."""
        assert self._service is not None
        self._service.kill()
        self._service.wait()

    def revive(self) -> None:
        """Some test has left it dead."""
        assert self._service is not None
        if self._service.poll() is not None:
            self.start()

    def ask(self, method: str, path: str, **more: Any) -> Any:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), timeout=60) as client:
            answer = client.request(method, f"http://engine/v1.41{path}", **more)
        if answer.status_code >= 400 and answer.status_code != 404:
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text[:400]}")
        if answer.status_code == 404:
            return None
        try:
            return answer.json()
        except ValueError:  # nothing, or progress line by line
            return None

    def containers(self, **labels: str) -> list[dict[str, Any]]:
        """All of them, running or not, that bear these labels."""
        wanted = json.dumps({"label": [f"dev.batuta.{key}={value}" for key, value in labels.items()]})
        found: list[dict[str, Any]] = self.ask("GET", "/containers/json", params={"all": "1", "filters": wanted})
        return found

    def inspect(self, container: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.ask("GET", f"/containers/{container}/json")
        return found

    def images(self) -> set[str]:
        return {str(image["Id"]) for image in self.ask("GET", "/images/json", params={"all": "1"})}

    def kill_container(self, container: str) -> None:
        found = self.inspect(container)
        assert found is not None
        os.kill(found["State"]["Pid"], signal.SIGKILL)

    def clear(self) -> None:
        """No container is left of whoever used it."""
        for found in self.ask("GET", "/containers/json", params={"all": "1"}):
            self.ask("DELETE", f"/containers/{found['Id']}", params={"force": "1", "v": "1"})

    def close(self) -> None:
        with contextlib.suppress(httpx.HTTPError, AssertionError):
            self.clear()
        for process in (self._service, self._holder):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        # What watched a command in a container stays for five minutes, for nobody.
        kill(processes_in(self.directory))


class Docker(Engine):
    """One Docker daemon with a containerd of its own. Killed, it would take its containers along."""

    def open(self) -> None:
        self._had_bridge = BRIDGE.exists()
        self.start()

    def close(self) -> None:
        super().close()
        subprocess.run(["umount", str(self.directory / "exec" / "netns" / "default")], check=False, capture_output=True)
        if not self._had_bridge and BRIDGE.exists() and shutil.which("ip"):
            subprocess.run(["ip", "link", "delete", BRIDGE.name], check=False)

    def service(self) -> list[str]:
        home = self.directory
        return ["dockerd", "--data-root", str(home / "data"), "--exec-root", str(home / "exec"),
                "--pidfile", str(home / "pid"), "--host", f"unix://{self.socket}", "--storage-driver", "vfs",
                # The machine's own rules and routes are left alone: what is published goes through a program.
                "--iptables=false", "--ip-forward=false", "--ip-masq=false",
                "--insecure-registry", "127.0.0.0/8"]  # fmt: skip


def can_run(engine: Engine, directory: Path) -> str:
    """Nothing, or why a container with limits cannot run here."""
    built = Built(directory, name="can-it-run")
    engine.ask("POST", "/images/load", content=built.path.read_bytes(), headers={"Content-Type": "application/x-tar"})
    wanted = {"Image": built.id, "Cmd": ["sleep 60"], "HostConfig": {"Memory": 32 << 20, "NetworkMode": "host"}}
    try:
        made = engine.ask("POST", "/containers/create", json=wanted)
        engine.ask("POST", f"/containers/{made['Id']}/start")
    except AssertionError as error:
        return str(error)
    finally:
        engine.clear()
    return ""


@pytest.fixture(scope="session")
def podman() -> Iterator[Engine]:
    """One engine for all tests of a process; whoever uses it clears up after itself."""
    if shutil.which("podman") is None:
        pytest.skip("NOT TESTED: containers. There is no podman here: apt-get install podman busybox-static")
    yield from opened(Engine)


@pytest.fixture(scope="session")
def docker() -> Iterator[Engine]:
    """The same of Docker."""
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("NOT TESTED: Docker. There is no dockerd here, or no right to start it: apt-get install docker.io")
    yield from opened(Docker)


def opened(kind: type[Engine]) -> Iterator[Engine]:
    # Sockets have short names, and pytest's directories long ones.
    directory = Path(tempfile.mkdtemp(prefix="batuta-engine-"))
    engine = kind(directory)
    try:
        engine.open()
        if why := can_run(engine, directory):
            pytest.skip(f"{engine.service()[0]} runs no containers here: {why}")
        yield engine
    finally:
        engine.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def engine(podman: Engine) -> Iterator[Engine]:
    yield from cleared(podman)


@pytest.fixture(params=["podman", "docker"])
def any_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    yield from cleared(request.getfixturevalue(request.param))


def cleared(engine: Engine) -> Iterator[Engine]:
    try:
        yield engine
    finally:
        engine.revive()
        engine.clear()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
