"""The proving process: one file is loaded, replays golden inputs, is measured, and what came of it is written down.

A process of its own, because what it tries may kill it. It is started with a ProvingOrder on standard input and leaves
a Proof, one JSON document, where the order says; when it dies instead, that is an answer too. What nobody trusts is
not loaded: signers are asked for before anything else, as a worker does.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.core.proving import ORDER_BYTES_MAX, SAMPLES_MAX, SAMPLES_MIN, Measured, Proof, ProvingOrder
from batuta.core.reasons import Reason
from batuta.dataflow.vouching import vouched_for
from batuta.errors import ArtifactRefused
from batuta.kinds.base import Bytes, decode_hook, encode_hook

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batuta.dataflow.proving_served import ServedVersion
    from batuta.dataflow.proving_session import EngineSession
    from batuta.tuning.golden import Replayed
    from batuta.tuning.session import Loaded

WARM_UP = 5
SLOW_FACTOR = 10
"""However slow a model is, measuring ends after so many times the time that was meant for it."""


def prove(order: ProvingOrder) -> Proof:
    """Try it. Whatever is wrong with the file is in the Proof; nothing is raised for it."""
    runtime, measured = "", None
    try:
        if order.vouching is not None:
            vouched_for(order.vouching)
        from batuta.dataflow.proving_session import opened
        from batuta.tuning import golden as cases_of
        from batuta.tuning.session import anything, feedable

        session = opened(order.artifact, order.format, order.accelerators, order.signature)
        runtime = session.runtime
        if order.golden:
            golden = cases_of.read(Path(order.golden))
            served = _served(session, order) if golden.requests else None
            try:
                replayed = cases_of.replay(session, golden, order.tolerance, served.ask if served is not None else None)
            finally:
                if served is not None:
                    served.close()
            if replayed.wrong:
                return _refused(
                    runtime, "golden_mismatch", f"{replayed.wrong}; {order.tolerance:g} tolerated", replayed
                )
            inputs = (
                feedable(session, golden.inputs)
                if golden.inputs
                else anything(session, order.signature, session.batch or 1)
            )
            measured = _measured(session, inputs, order.measure_ms)
        else:
            replayed = None
            try:
                inputs = anything(session, order.signature, session.batch or 1)
                measured = _measured(session, inputs, order.measure_ms)
            except ArtifactRefused as error:
                if error.code != "artifact_unreadable":
                    raise
                # It was loaded, and what it does not take is what we made up: nothing is known against it.
                return Proof(runtime=runtime)
        reasons = tuple(_too_much(order, measured))
    except ArtifactRefused as error:
        return _refused(runtime, error.code, error.message)
    except MemoryError:
        return _refused(runtime, "too_much_memory", "the machine, or the limit, had no more to give")
    if replayed is None:
        return Proof(reasons=reasons, runtime=runtime, measured=measured)
    return Proof(
        reasons=reasons, runtime=runtime, measured=measured, cases=replayed.cases, furthest=round(replayed.furthest, 6)
    )


def _served(session: EngineSession, order: ProvingOrder) -> ServedVersion | None:
    """The version around the file; None where only the file is to be proved."""
    its = order.vouching
    if its is None or its.instance.model is None:
        return None
    from batuta.dataflow.proving_served import ServedVersion

    model = its.instance.model
    text = Path(its.transform).read_bytes() if its.transform else None
    return ServedVersion(session, model.before, model.after, model.labels, text)


def _measured(session: Loaded, inputs: Mapping[str, Any], measure_ms: int) -> Measured:
    """Item by item, over and over: the cases in turn, so that not one of them alone speaks for all."""
    items = list(_items(session, inputs))
    for i in range(WARM_UP):
        session.run(items[i % len(items)])
    took_us: list[int] = []
    began = time.perf_counter_ns()
    while len(took_us) < SAMPLES_MAX:
        spent_ms = (time.perf_counter_ns() - began) / 1e6
        enough = SAMPLES_MIN if spent_ms < measure_ms * SLOW_FACTOR else 1
        if spent_ms >= measure_ms and len(took_us) >= enough:
            break
        item = items[len(took_us) % len(items)]
        at = time.perf_counter_ns()
        session.run(item)
        took_us.append((time.perf_counter_ns() - at + 999) // 1000)
    took_us.sort()
    return Measured(
        p50_us=took_us[len(took_us) // 2], p99_us=took_us[min(len(took_us) - 1, len(took_us) * 99 // 100)],
        memory_bytes=Bytes(peak_bytes()), samples=len(took_us),
    )  # fmt: skip


def _items(session: Loaded, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One item each, or one batch of the only size that it takes."""
    size = session.batch or 1
    count = len(next(iter(inputs.values())))
    for begin in range(0, max(size, count - count % size), size):
        rows = [min(count - 1, begin + i) for i in range(size)]
        yield {name: value[rows] for name, value in inputs.items()}


def _too_much(order: ProvingOrder, measured: Measured) -> Iterator[Reason]:
    if order.p99_ms_max is not None and measured.p99_us > order.p99_ms_max * 1000:
        yield _reason("too_slow", f"p99 {measured.p99_us / 1000:g} ms, {order.p99_ms_max:g} ms allowed")
    if order.p50_ms_max is not None and measured.p50_us > order.p50_ms_max * 1000:
        said = f"half of all runs take more than {measured.p50_us / 1000:g} ms, p99 of {order.p50_ms_max:g} ms asked"
        yield _reason("too_slow", said)
    if order.memory_bytes_max is not None and measured.memory_bytes > order.memory_bytes_max:
        said = f"{measured.memory_bytes >> 20}Mi at its most, {order.memory_bytes_max >> 20}Mi allowed"
        yield _reason("too_much_memory", said)


def peak_bytes() -> int:
    """The most that this process has had in memory since it was executed."""
    found = re.search(rb"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_bytes(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _refused(runtime: str, code: str, detail: str, replayed: Replayed | None = None) -> Proof:
    cases, furthest = (replayed.cases, replayed.furthest) if replayed is not None else (0, 0.0)
    # JSON has no word for infinity.
    return Proof(reasons=(_reason(code, detail),), runtime=runtime, cases=cases, furthest=min(furthest, 1e9))


def _reason(code: str, detail: str) -> Reason:
    return Reason(code=code, subject="model", detail=detail[:300])


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(ORDER_BYTES_MAX), type=ProvingOrder, dec_hook=decode_hook)
    path = Path(order.result)
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_bytes(msgspec.json.encode(prove(order), enc_hook=encode_hook))
    fresh.replace(path)


if __name__ == "__main__":
    main()
