"""Proving a model on this machine: the proving process, under the limits that the model will run under.

It yields to whatever runs (niceness 15), so what is measured on a busy machine is rather too slow than too fast; it is
tied to the node agent, has no way to the broker, and is given a time to end by.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import msgspec

from batuta.core.proving import RESULT_BYTES_MAX, Proof, ProvingOrder
from batuta.core.reasons import Reason
from batuta.core.worker import WorkerOrder
from batuta.errors import RuntimeFailure
from batuta.kinds.base import Bytes, decode_hook, encode_hook
from batuta.runtimes.keeping import DEFAULT_PATH
from batuta.runtimes.kept import Kept
from batuta.runtimes.model import BASE_BYTES
from batuta.runtimes.sandbox import Limits, Program

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.runtimes.base import Order

PROVING = "batuta.dataflow.proving"
PROVING_S = 600.0
"""Loading, replaying and measuring together; what takes longer is not fit to be switched in."""
NICE = 15
RESULT_FILE = "proof.json"


async def prove_instance(order: Order) -> Proof:
    """What the model of an instance proves to be. Raises RuntimeFailure when it cannot even be tried."""
    instance, model = order.instance, order.instance.model
    if model is None:
        raise RuntimeFailure("start_failed", f"{instance.name} is not a model")
    golden, allowed = model.golden, int(instance.memory_bytes)
    limits = [int(golden.memory_bytes)] if golden is not None and golden.memory_bytes is not None else []
    base_bytes = BASE_BYTES[model.variant.format]
    limits += [allowed + base_bytes] if allowed else []
    asked = ProvingOrder(
        artifact=str(order.artifacts[model.variant.digest]), format=model.variant.format,
        result=str(order.directory / RESULT_FILE), signature=model.signature,
        golden=str(order.artifacts[golden.digest]) if golden is not None else "",
        tolerance=golden.tolerance if golden is not None else 0.0,
        p50_ms_max=float(instance.slo_p99_ms) if instance.slo_p99_ms is not None else None,
        p99_ms_max=float(golden.p99_ms) if golden is not None and golden.p99_ms is not None else None,
        memory_bytes_max=Bytes(min(limits)) if limits else None,
        accelerators=tuple(grant.kind for grant in instance.accelerators),
        vouching=WorkerOrder(
            instance=instance, artifact=str(order.artifacts[model.variant.digest]), directory=str(order.directory),
            broker={}, start=0, bundles=tuple(str(order.artifacts[d]) for d in model.bundles),
            transform=str(order.artifacts[model.transform]) if model.transform is not None else "",
        ),
    )  # fmt: skip
    return await prove(asked, order.directory, allowed + base_bytes if allowed else 0)


async def prove(asked: ProvingOrder, directory: Path, memory_bytes: int = 0) -> Proof:
    """Runs the process in a directory of its own and reads what it wrote. Died or stuck, that is a Proof too."""
    result = _cleared(directory)
    program = Program(
        command=(sys.executable, "-P", "-m", PROVING),
        env={
            "PATH": os.environ.get("PATH", DEFAULT_PATH), "LANG": "C.UTF-8", "HOME": str(directory),
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        },
        directory=directory,
        limits=Limits(memory_bytes=memory_bytes, nice=NICE),
        stdin=msgspec.json.encode(asked, enc_hook=encode_hook),
        tied=True,
    )  # fmt: skip
    kept = await Kept.start(directory, program)
    try:
        async with asyncio.timeout(PROVING_S):
            await kept.ended.wait()
    except TimeoutError:
        return _failed("proving_failed", f"it was not done within {PROVING_S:.0f} s")
    finally:
        await kept.end(0)
        await kept.close()
    return _read(result, kept)


def _read(result: Path, kept: Kept) -> Proof:
    try:
        with result.open("rb") as file:
            return msgspec.json.decode(file.read(RESULT_BYTES_MAX), type=Proof, dec_hook=decode_hook)
    except FileNotFoundError:
        words = kept.exit.words if kept.exit is not None else "it ended"
        was_memory = kept.exit is not None and kept.exit.code == "memory_exceeded"
        code = "too_much_memory" if was_memory else "proving_failed"
        return _failed(code, f"{words}: {kept.logs.last_lines()}"[:300].rstrip(": "))
    except (msgspec.DecodeError, ValueError) as error:
        return _failed("proving_failed", f"what it wrote cannot be read: {error}")


def _cleared(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    result = directory / RESULT_FILE
    result.unlink(missing_ok=True)
    return result


def _failed(code: str, detail: str) -> Proof:
    return Proof(reasons=(Reason(code=code, subject="model", detail=detail),))
