"""Serving: one loaded model, and all the ways in which it is asked, put together for a worker.

Belongs beside the worker and not in it: topics are one way of asking, requests another, and either may be without the
other. What runs, runs through one `Batching`, so frames and requests share runs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from batuta.core.serving import SOCKET_FILE
from batuta.dataflow.engines import Unfit, load
from batuta.dataflow.oip.batching import Batching
from batuta.dataflow.oip.endpoint import Endpoint
from batuta.dataflow.oip.http import BODY_BYTES_MAX, HELD_BYTES_MAX, MIB, Listener
from batuta.dataflow.oip.on_fabric import OnFabric
from batuta.dataflow.oip.shaped import Shaped
from batuta.dataflow.oip.transformed import Transformed
from batuta.dataflow.sampling import sketch_of
from batuta.dataflow.transforming import TEXT_BYTES_MAX, Transform
from batuta.dataflow.unix import listen_unix

if TYPE_CHECKING:
    from nats.aio.client import Client

    from batuta.core.worker import WorkerOrder
    from batuta.dataflow.oip.faults import Fault
    from batuta.dataflow.tally import Tally

FINISH_S = 5.0
"""How long requests that were taken may still take when the worker is told to end."""


class Serving:
    """One worker's model."""

    def __init__(self, order: WorkerOrder, tally: Tally) -> None:
        """Loads the model; raises Unfit."""
        model = order.instance.model
        assert model is not None
        self.order = order
        self.tally = tally
        kinds = [grant.kind for grant in order.instance.accelerators]
        self.engine = load(order.artifact, model.variant.format, kinds, model.signature)
        self.batching = Batching(self.engine, model.batch, model.linger_ms)
        self.batching.try_out()
        tally.sampling.sketch = sketch_of(order.drift, tally.error)
        self.batching.look = tally.sampling.look
        self.transform = transform_of(order)
        self.transformed = Transformed(self.engine, self.transform) if self.transform is not None else None
        shaped = self.transformed or Shaped(self.engine, model.before, model.after, model.labels)
        self.endpoint = Endpoint(model.name, model.version, self.engine, self.batching, shaped)
        self.endpoint.told = self._told
        memory_bytes = int(order.instance.memory_bytes)
        held = min(HELD_BYTES_MAX, max(16 * MIB, memory_bytes // 2)) if memory_bytes else HELD_BYTES_MAX
        self.listener = Listener(self.endpoint, BODY_BYTES_MAX, held)
        self._fabric: OnFabric | None = None

    async def listen(self) -> None:
        """At the socket, and at the port if there is one. Raises OSError when the port is taken."""
        await self.listener.listen(sock=listen_unix(self._socket))
        if self._port is not None:
            await self.listener.listen(port=self._port)

    async def join(self, client: Client) -> None:
        """Answers on the fabric too, and says where."""
        self._fabric = OnFabric(
            client,
            self.order.broker["node"],
            self.order.instance,
            self.endpoint,
            socket=str(self._socket),
            port=self._port,
            p50_ms=self.tally.p50_ms,
        )
        await self._fabric.begin()

    async def close(self) -> None:
        """Takes no more, answers what it has taken."""
        self.endpoint.is_ready = False
        if self._fabric is not None:
            await self._fabric.stop()
        self.listener.close()
        if not await self.batching.drain(FINISH_S):
            self.tally.error(
                f"{self.batching.guests} requests had no answer {FINISH_S:.0f} s after the end was asked for"
            )
        if self._fabric is not None:
            await self._fabric.settled()
        if self.transform is not None:
            self.transform.close()

    @property
    def _socket(self) -> Path:
        return Path(self.order.directory) / SOCKET_FILE

    @property
    def _port(self) -> int | None:
        return self.order.instance.serve.port if self.order.instance.serve is not None else None

    def _told(self, took_ms: float, fault: Fault | None) -> None:
        self.tally.received += 1
        if fault is None:
            self.tally.answered_after(took_ms)
        elif fault.code == "model_failed":
            self.tally.errors += 1
            self.tally.error(f"a request: {fault.message}")
        else:
            self.tally.refused[fault.code] = self.tally.refused.get(fault.code, 0) + 1


def transform_of(order: WorkerOrder) -> Transform | None:
    """The version's own Python, started. Raises Unfit."""
    model = order.instance.model
    if not order.transform or model is None:
        return None
    with Path(order.transform).open("rb") as file:
        text = file.read(TEXT_BYTES_MAX + 1)
    # What is run is what was hashed, whatever happens to the file; who had to sign it has signed this.
    digest = f"sha256:{hashlib.sha256(text).hexdigest()}"
    if len(text) <= TEXT_BYTES_MAX and digest != model.transform:
        raise Unfit("digest_mismatch", f"its transform is {digest[:19]}…, not {str(model.transform)[:19]}…")
    return Transform(text)
