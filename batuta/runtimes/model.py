"""Runs a model: one worker process per instance, `batuta.dataflow.worker`, kept like any other process.

The node agent never imports ONNX Runtime; whether it is installed is a question to the file system. Readiness and
liveness are the worker's own word, its pulse: a file that moves once a second. A pulse that stands still is a worker
that hangs.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from batuta.core.observed import Measures
from batuta.core.worker import NEIGHBOURS_FILE, PULSE_BYTES_MAX, PULSE_FILE, PULSE_STALE_MS, Pulse, WorkerOrder
from batuta.errors import RuntimeFailure
from batuta.kinds.base import Bytes, decode_hook, encode_hook
from batuta.runtimes.base import Condition
from batuta.runtimes.keeping import Keeping, Run, environment
from batuta.runtimes.kept import starts_so_far, write_whole
from batuta.runtimes.sandbox import Limits, Program

if TYPE_CHECKING:
    from batuta.kinds.model import Format
    from batuta.runtimes.base import Handle, Order
    from batuta.runtimes.kept import Kept

WORKER = "batuta.dataflow.worker"
WORKER_NEEDS = ("numpy", "httptools", "uvloop")
LOADS: dict[Format, str] = {"onnx": "onnxruntime", "tflite": "ai_edge_litert", "pte": "executorch"}
"""By format: the module that loads it."""
LOADS_WITH: dict[Format, tuple[str, ...]] = {"pte": ("torch",)}
"""And those that it cannot do without, where it does not bring them."""
# What Python, NumPy and the runtime take before any model is loaded. A component's memory is for its model.
BASE_BYTES: dict[Format, int] = {"onnx": 128 << 20, "tflite": 128 << 20, "pte": 512 << 20}
# And what a version's own Python takes in its own process.
TRANSFORM_BASE_BYTES = 96 << 20


class ModelRun(Run):
    def __init__(self, order: Order, program: Program, kept: Kept) -> None:
        super().__init__(order, program, kept)
        self.pulse: Pulse | None = None
        self.unreadable = 0
        """Pulses that could not be read; it stands still meanwhile, and so is noticed."""
        self._moved_at = asyncio.get_running_loop().time()
        self._seen: tuple[int, int] = (0, 0)

    def still_ms(self) -> int:
        """Looks at the pulse, and says for how long it has stood still by this process's own clock."""
        path = self.order.directory / PULSE_FILE
        now = asyncio.get_running_loop().time()
        try:
            # A full disk cannot take a new pulse; then the old one is touched.
            seen = (path.stat().st_ino, path.stat().st_mtime_ns)
            if seen != self._seen:
                with path.open("rb") as file:
                    pulse = msgspec.json.decode(file.read(PULSE_BYTES_MAX), type=Pulse, dec_hook=decode_hook)
                if pulse.start == self.kept.starts:
                    self._seen, self.pulse, self._moved_at = seen, pulse, now
        except FileNotFoundError:
            pass
        except (OSError, ValueError):
            self.unreadable += 1
        return int((now - self._moved_at) * 1000)


class ModelRuntime(Keeping[ModelRun]):
    """Models of one format, each in a process of its own."""

    def __init__(self, how: Format = "onnx") -> None:
        super().__init__()
        self.name = self.how = how

    def available(self) -> bool:
        return super().available() and all(_is_here(each) for each in (*WORKER_NEEDS, *modules(self.how)))

    def program(self, order: Order) -> Program:
        instance = order.instance
        if instance.model is None:
            raise RuntimeFailure("start_failed", f"{instance.name} is not a model")
        artifact = order.artifacts.get(instance.model.variant.digest)
        if artifact is None:
            raise RuntimeFailure("artifact_missing", f"{instance.model.variant.digest} was not given to the runtime")
        order.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        said = WorkerOrder(
            instance=msgspec.structs.replace(instance, fallback=None, newcomer=None),
            artifact=str(artifact),
            bundles=tuple(str(order.artifacts[d]) for d in instance.model.bundles),
            transform=str(order.artifacts[instance.model.transform]) if instance.model.transform is not None else "",
            drift=str(order.artifacts[instance.model.drift]) if instance.model.drift is not None else "",
            directory=str(order.directory),
            broker=dict(order.broker),
            start=starts_so_far(order.directory) + 1,
        )
        base_bytes = BASE_BYTES[instance.model.variant.format]
        base_bytes += TRANSFORM_BASE_BYTES if instance.model.transform is not None else 0
        return Program(
            # Isolated from the instance's own directory, which is its working directory: no file there can be imported.
            command=(sys.executable, "-P", "-m", WORKER),
            env={**environment(order), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            directory=order.directory,
            limits=Limits(memory_bytes=int(instance.memory_bytes) + base_bytes if instance.memory_bytes else 0),
            stdin=msgspec.json.encode(said, enc_hook=encode_hook),
        )

    async def start(self, order: Order) -> Handle:
        _tell_neighbours(order)
        return await super().start(order)

    async def recover(self, order: Order, handle: Handle) -> bool:
        found = await super().recover(order, handle)
        if found:
            _tell_neighbours(order)
        return found

    async def update(self, order: Order) -> None:
        await super().update(order)
        _tell_neighbours(order)

    def watch(self, order: Order, program: Program, kept: Kept) -> ModelRun:
        return ModelRun(order, program, kept)

    def fares(self, run: ModelRun) -> Condition:
        still_ms = run.still_ms()
        if still_ms > PULSE_STALE_MS:
            return Condition("unready", f"the worker has given no sign of life for {still_ms // 1000} s", "not_live")
        if run.pulse is None or run.pulse.state == "loading":
            return Condition("running", "loading the model", "not_ready")
        if run.pulse.state == "failed":
            return Condition("unready", run.pulse.detail, run.pulse.code)
        measures = msgspec.structs.replace(run.pulse.measures, rss_bytes=Bytes(run.kept.rss_bytes))
        return Condition("ready", measures=measures if run.kept.rss_bytes else run.pulse.measures)

    def ended(self, run: ModelRun) -> Condition:
        run.still_ms()
        if run.pulse is not None and run.pulse.state == "failed":
            return Condition("gone", run.pulse.detail, run.pulse.code, final=run.pulse.final)
        measures = run.pulse.measures if run.pulse is not None else Measures()
        return super().ended(run)._replace(measures=measures)


def modules(how: Format) -> tuple[str, ...]:
    """What must be installed for files of this format."""
    return (LOADS[how], *LOADS_WITH.get(how, ()))


def _is_here(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def versions() -> dict[str, str]:
    """By format: what loads it here, with its version, read from the file system. Nothing is imported for it."""
    found: dict[str, str] = {}
    for how, module in LOADS.items():
        spec = importlib.util.find_spec(module)
        if spec is None or not all(_is_here(each) for each in modules(how)):
            continue
        # A package in several pieces, as ExecuTorch is, has no file of its own.
        places = [Path(spec.origin).parent] if spec.origin else [Path(p) for p in spec.submodule_search_locations or ()]
        if not places:
            continue
        beside = places[0].parent
        # A build for graphics cards is another distribution of the same module: onnxruntime_gpu.
        notes = sorted(beside.glob(f"{module}-*.dist-info")) or sorted(beside.glob(f"{module}_*.dist-info"))
        found[how] = notes[0].name.removesuffix(".dist-info").replace("-", " ") if notes else module
    return found


def _tell_neighbours(order: Order) -> None:
    order.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(order.directory / NEIGHBOURS_FILE, json.dumps(list(order.neighbours)))
