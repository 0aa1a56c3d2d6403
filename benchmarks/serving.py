"""What serving costs: one model, one load generator, four ways of asking, and MLServer as the peer.

    python benchmarks/serving.py [--json] [--seconds 5] [--peer DIRECTORY]

The model is a classifier of digits (64 inputs, 128 hidden, 10 classes), trained here and exported to ONNX; everybody
runs that file in ONNX Runtime with one thread. Requests are one row each, the same bytes for everybody.

direct   `session.run` in a process that does nothing else
stream   20,000 MQTT frames wait in the inbox of a real broker; a real worker pulls them in batches of 32, answers, sees
         each answer kept, acknowledges each frame. What is added is the time per frame less that of the model's rows
OIP      the same worker at its port, JSON and binary tensors, 1 and 16 connections that stay open
MLServer from PyPI in an environment of its own, with a runtime of ten lines that calls ONNX Runtime by MLServer's own
         NumPy codec; one process, no parallel workers, no access log, no metrics, no compression: its quickest way.
         It has no binary tensors, so it is compared by JSON

All of them, the generator too, run at the niceness of Batuta's instances. Ratios are JSON against JSON, 16 connections.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import venv
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import paho.mqtt.client as mqtt
import psutil

from batuta.core.decided import Capture, Instance, ModelOrder
from batuta.dataflow.connect import connect
from batuta.dataflow.inbox import Inbox
from batuta.fabric import subjects
from batuta.fabric.broker import Broker, NodeBroker, free_port, node_config
from batuta.kinds.application import Input, Output, Serve
from batuta.kinds.base import Bytes
from batuta.kinds.model import Variant
from batuta.runtimes.base import Order
from batuta.runtimes.model import ModelRuntime
from batuta.runtimes.sandbox import NICE

PEER = "mlserver==1.7.1"
DIGEST = "sha256:" + "1" * 64
BATCH = 32
FRAMES = 20_000
ROWS = 1_000
CONNECTIONS = (1, 16)
LOAD = Path(__file__).with_name("load.py")
OUTPUTS = (Output(topic="meters/{1}/reading"),)
CAPTURE = Capture(consumer="default_bench_read", topics=("cameras/+/frame",), outputs=OUTPUTS)
PEER_RUNTIME = """
import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

class Onnx(MLModel):
    async def load(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(self.settings.parameters.uri, options)
        self.names = [each.name for each in self.session.get_outputs()]
        return True

    async def predict(self, request: InferenceRequest) -> InferenceResponse:
        given = NumpyCodec.decode_input(request.inputs[0])
        found = self.session.run(self.names, {"X": given})
        outputs = [NumpyCodec.encode_output(name, each) for name, each in zip(self.names, found)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)
"""


class Model:
    """The file, and what it says."""

    def __init__(self, directory: Path) -> None:
        from skl2onnx import to_onnx
        from sklearn.datasets import load_digits
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier
        from sklearn.utils._testing import ignore_warnings

        images, classes = load_digits(return_X_y=True)
        self.rows = (images[:ROWS] / 16).astype(np.float32)
        fit = ignore_warnings(category=ConvergenceWarning)(MLPClassifier((128,), max_iter=40, random_state=0).fit)
        made = fit(self.rows, classes[:ROWS])
        self.path = directory / "digits.onnx"
        exported = to_onnx(made, self.rows[:1], options={"zipmap": False}, target_opset=17)
        self.path.write_bytes(exported.SerializeToString())


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options.add_argument("--seconds", type=float, default=5.0, help="how long each load lasts")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "batuta-bench" / PEER.replace("==", "-")
    options.add_argument("--peer", type=Path, default=cache, help="where MLServer's environment is, or is made")
    chosen = options.parse_args()
    peer = peer_environment(chosen.peer)
    os.nice(NICE)
    with tempfile.TemporaryDirectory(prefix="batuta-bench-") as directory:
        model = Model(Path(directory))
        figures = direct(model)
        figures |= asyncio.run(batuta(model, Path(directory), chosen.seconds))
        figures |= mlserver(model, Path(directory), peer, chosen.seconds)
    added = figures["stream_us_per_message_b32"] - figures["direct_us_per_row_b32"]
    figures["stream_added_us_per_message_b32"] = round(added, 1)
    figures["oip_rps"], figures["oip_p99_ms"] = figures["oip_json_16_rps"], figures["oip_json_16_p99_ms"]
    figures["mlserver_rps"], figures["mlserver_p99_ms"] = figures["mlserver_16_rps"], figures["mlserver_16_p99_ms"]
    figures["oip_vs_mlserver_throughput"] = round(figures["oip_rps"] / figures["mlserver_rps"], 2)
    print(f"one row of 64 numbers, {os.cpu_count()} processors, Python {sys.version.split()[0]}")
    for key, value in figures.items():
        print(f"  {key:34} {value}")
    if chosen.json:
        print(json.dumps(figures))
    return 0


def direct(model: Model) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(model.path), options)
    names = [each.name for each in session.get_outputs()]
    figures: dict[str, Any] = {}
    for rows, count in ((1, 20_000), (BATCH, 10_000)):
        feed = {"X": model.rows[:rows]}
        took = []
        for _ in range(count):
            begun = time.perf_counter()
            session.run(names, feed)
            took.append(time.perf_counter() - begun)
        took.sort()
        if rows == 1:
            figures["direct_rps"] = round(count / sum(took), 1)
            figures["direct_p50_ms"] = round(took[count // 2] * 1000, 4)
            figures["direct_p99_ms"] = round(took[int(count * 0.99)] * 1000, 4)
        else:
            figures["direct_us_per_row_b32"] = round(sum(took) / count / rows * 1e6, 3)
    return figures


# --- Batuta ---


async def batuta(model: Model, directory: Path, seconds: float) -> dict[str, Any]:
    client_port, mqtt_port, port = (free_port("127.0.0.1") for _ in range(3))
    broker = Broker(directory / "broker", tied=True)
    config = NodeBroker(
        node="na", store=directory / "store", client_port=client_port, mqtt_port=mqtt_port, agent_password="a",
        site_password="s",
    )  # fmt: skip
    await broker.start(node_config(config))
    secret = directory / "site.json"
    secret.write_bytes(msgspec.json.encode({"user": "site", "password": "s"}))
    reach = {"url": f"nats://127.0.0.1:{client_port}", "credentials": str(secret), "node": "na"}
    order = Order(instance(port), directory / "instance", {DIGEST: model.path}, reach, ("na",))
    runtime = ModelRuntime()
    client = await connect(reach, "benchmark", asyncio.Event())
    assert client is not None
    inbox = Inbox(client, "na")
    inbox.follow([CAPTURE])
    await inbox.ensure()
    keeping = asyncio.create_task(inbox.run())
    try:
        await asyncio.to_thread(publish, mqtt_port, model)
        figures = await stream(runtime, order, client)
        request_json, request_binary = requests(model)
        for name, request in (("json", request_json), ("binary", request_binary)):
            for connections in CONNECTIONS:
                found = await asyncio.to_thread(loaded, port, request, connections, seconds)
                figures |= {f"oip_{name}_{connections}_{key}": value for key, value in found.items()}
        pid = int((await started(runtime, order))["pid"])
        figures["oip_rss_mb"] = rss_mb(pid)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await runtime.stop(order.instance.name, 5_000)
        await runtime.close()
        await client.close()
        await broker.stop()
    return figures


def instance(port: int) -> Instance:
    variant = Variant(name="fp32", format="onnx", digest=DIGEST, size_bytes=Bytes(1))
    return Instance(
        namespace="default", application="bench", component="read", revision=1, slot="0", epoch=1,
        model=ModelOrder(name="digits", version="1", variant=variant, batch=BATCH), serve=Serve(port=port),
        inputs=(Input(topic="cameras/+/frame"),), outputs=OUTPUTS,
    )  # fmt: skip


async def stream(runtime: ModelRuntime, order: Order, client: Any) -> dict[str, Any]:
    """From the first answers that are kept to the last, and what the worker's processor did meanwhile.

    Asked of the store twenty times a second: hearing every answer would cost the machine as much as making it.
    """
    jetstream = client.jetstream()

    async def kept(least: int) -> tuple[float, int]:
        while True:
            count = int((await jetstream.stream_info(subjects.result_stream("na", "meters"))).state.messages)
            if count >= least:
                return time.perf_counter(), count
            await asyncio.sleep(0.05)

    worker = psutil.Process(int((await runtime.start(order))["pid"]))
    async with asyncio.timeout(300):
        begun, first = await kept(1)
        before = worker.cpu_times()
        ended, last = await kept(FRAMES)
    after = worker.cpu_times()
    busy_s = after.user + after.system - before.user - before.system
    return {
        "stream_us_per_message_b32": round((ended - begun) / (last - first) * 1e6, 1),
        "stream_processor_us_per_message_b32": round(busy_s / (last - first) * 1e6, 1),
    }


def publish(port: int, model: Model) -> None:
    device = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
    device.max_inflight_messages_set(500)
    device.max_queued_messages_set(0)
    kept, done = 0, threading.Event()

    def count(*_: Any) -> None:
        nonlocal kept
        kept += 1
        if kept == FRAMES:
            done.set()

    device.on_publish = count
    device.connect("127.0.0.1", port)
    device.loop_start()
    frames = [msgspec.json.encode(row.tolist()) for row in model.rows]
    for i in range(FRAMES):
        device.publish(f"cameras/c{i % 100}/frame", frames[i % len(frames)], qos=1)
    if not done.wait(300):
        raise TimeoutError(f"{kept} of {FRAMES} frames were kept")
    device.disconnect()
    device.loop_stop()


async def started(runtime: ModelRuntime, order: Order) -> dict[str, Any]:
    return dict(runtime._runs[order.instance.name].kept.handle)


# --- The peer ---


def peer_environment(directory: Path) -> Path:
    python = directory / "bin" / "python"
    done = directory / "made"
    if not done.exists():
        print(f"making an environment for {PEER} in {directory}; it takes a minute", flush=True)
        venv.create(directory, with_pip=True, clear=True)
        wanted = [PEER, f"onnxruntime=={ort.__version__}"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True, stdout=subprocess.DEVNULL)
        done.touch()
    return python


def mlserver(model: Model, directory: Path, python: Path, seconds: float) -> dict[str, Any]:
    at = directory / "mlserver"
    at.mkdir()
    http, grpc = free_port("127.0.0.1"), free_port("127.0.0.1")
    settings = {
        "debug": False, "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "parallel_workers": 0,
        "metrics_endpoint": None, "gzip_enabled": False,
    }  # fmt: skip
    (at / "settings.json").write_text(json.dumps(settings))
    said = {"name": "digits", "implementation": "peer.Onnx", "parameters": {"uri": str(model.path), "version": "1"}}
    (at / "model-settings.json").write_text(json.dumps(said))
    (at / "peer.py").write_text(PEER_RUNTIME)
    with (at / "log").open("wb") as log:
        server = subprocess.Popen([str(python.parent / "mlserver"), "start", "."], cwd=at, stdout=log, stderr=log)
    try:
        request, _ = requests(model)
        await_ready(http, server, at / "log")
        figures: dict[str, Any] = {}
        for connections in CONNECTIONS:
            found = loaded(http, request, connections, seconds)
            figures |= {f"mlserver_{connections}_{key}": value for key, value in found.items()}
        figures["mlserver_rss_mb"] = rss_mb(server.pid)
        return figures
    finally:
        server.terminate()
        server.wait(30)


def await_ready(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    import urllib.request

    until = time.monotonic() + 120
    while time.monotonic() < until:
        if server.poll() is not None:
            raise RuntimeError(f"MLServer ended: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/digits/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("MLServer did not get ready")


# --- Asking ---


def requests(model: Model) -> tuple[bytes, bytes]:
    """JSON and binary."""
    row = model.rows[:1]
    path = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\n"
    tensor: dict[str, Any] = {"name": "X", "shape": [1, 64], "datatype": "FP32"}
    body = json.dumps({"inputs": [{**tensor, "data": row.ravel().tolist()}]}).encode()
    plain = path + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    tensor["parameters"] = {"binary_data_size": row.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    size = len(head) + row.nbytes
    lengths = b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(head), size)
    return plain, path + lengths + head + row.tobytes()


def loaded(port: int, request: bytes, connections: int, seconds: float) -> dict[str, Any]:
    for length in (1.0, seconds):
        command = [sys.executable, str(LOAD), f"127.0.0.1:{port}", str(connections), str(length)]
        found = json.loads(subprocess.run(command, input=request, check=True, capture_output=True).stdout)
    if found["wrong"] or not found["requests"]:
        raise RuntimeError(f"{found['wrong']} wrong answers, {found['requests']} right ones")
    return {key: found[key] for key in ("rps", "p50_ms", "p99_ms")}


def rss_mb(pid: int) -> float:
    process = psutil.Process(pid)
    everything = [process, *process.children(recursive=True)]
    return round(sum(each.memory_info().rss for each in everything) / 1e6, 1)


if __name__ == "__main__":
    sys.exit(main())
