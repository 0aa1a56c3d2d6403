"""Ask a model from a program on a node: `infer("digits", {"image": array})`.

The call goes to the node's own inference gateway, which brings it to the nearest instance that is well; nothing here
knows where that is. Tensors given as NumPy arrays travel as they lie in memory and come back as arrays; nested lists
travel as JSON and come back as lists, and then NumPy need not be installed. `Mesh` keeps its connection and is for one
thread at a time; `AsyncMesh` is for asyncio. Belongs to the client side: it imports nothing but errors.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import quote, urlsplit

from batuta.errors import BatutaError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Urgency = Literal["critical", "normal", "bulk"]

DEFAULT_URL: Final = "http://127.0.0.1:8500"
DEFAULT_DEADLINE_MS: Final = 30_000
GRACE_S: Final = 2.0
"""The gateway answers by the deadline, also when it has no answer; so much later it is not there."""
ANSWER_BYTES_MAX: Final = 256 << 20
HEAD_BYTES_MAX: Final = 64 * 1024
JSON_BYTES: Final = "Inference-Header-Content-Length"

_DATATYPES: Final = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
_DTYPES: Final = {datatype: name for name, datatype in _DATATYPES.items()}


class InferenceFailed(BatutaError):
    """The call was not answered. `code` is a stable word, `status` the HTTP status."""

    def __init__(self, code: str, status: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


def infer(model: str, inputs: Mapping[str, Any], **options: Any) -> Outputs:
    """One call on a connection of its own; options as in `Mesh.infer`."""
    with Mesh() as mesh:
        return mesh.infer(model, inputs, **options)


async def ainfer(model: str, inputs: Mapping[str, Any], **options: Any) -> Outputs:
    """The same for asyncio."""
    async with AsyncMesh() as mesh:
        return await mesh.infer(model, inputs, **options)


@dataclass(slots=True)
class Outputs:
    """The model's outputs by name, and who answered."""

    tensors: dict[str, Any]
    model: str = ""
    version: str = ""
    instance: str = ""
    node: str = ""
    nearness: str = ""
    attempts: int = 1
    """How many instances were asked until one answered."""

    def __getitem__(self, name: str) -> Any:
        return self.tensors[name]


class Mesh:
    """Calls over one connection, which is made anew when it was lost. For one thread at a time."""

    def __init__(self, url: str = "", *, namespace: str = "") -> None:
        self._where = _Where.of(url, namespace)
        self._connection: http.client.HTTPConnection | None = None

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str = "",
        application: str = "",
        outputs: Sequence[str] = (),
        deadline_ms: int = DEFAULT_DEADLINE_MS,
        urgency: Urgency = "normal",
        traceparent: str = "",
    ) -> Outputs:
        """What the model answers. Raises InferenceFailed, with a code, by the deadline at the latest."""
        call = _Call.of(
            self._where, model, inputs, version=version, application=application, outputs=outputs,
            deadline_ms=deadline_ms, urgency=urgency, traceparent=traceparent,
        )  # fmt: skip
        for is_first in (True, False):
            kept = self._connection is not None
            try:
                return self._once(call)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # A connection that was kept may have ended with the gateway that had it; a new one tells.
                if not (is_first and kept) or isinstance(error, TimeoutError):
                    raise _no_gateway(self._where, error) from error
        raise AssertionError("the second time either returns or raises")

    def _once(self, call: _Call) -> Outputs:
        connection = self._connection
        if connection is None:
            connection = self._connection = http.client.HTTPConnection(self._where.host, self._where.port)
        connection.timeout = call.timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(call.timeout_s)
        connection.request("POST", call.path, call.body, call.headers)
        answer = connection.getresponse()
        body = answer.read(ANSWER_BYTES_MAX)
        return call.read(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncMesh:
    """The same for asyncio; calls may run side by side, each on a connection of its own, which are kept."""

    def __init__(self, url: str = "", *, namespace: str = "") -> None:
        self._where = _Where.of(url, namespace)
        self._kept: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str = "",
        application: str = "",
        outputs: Sequence[str] = (),
        deadline_ms: int = DEFAULT_DEADLINE_MS,
        urgency: Urgency = "normal",
        traceparent: str = "",
    ) -> Outputs:
        """What the model answers. Raises InferenceFailed, with a code, by the deadline at the latest."""
        call = _Call.of(
            self._where, model, inputs, version=version, application=application, outputs=outputs,
            deadline_ms=deadline_ms, urgency=urgency, traceparent=traceparent,
        )  # fmt: skip
        try:
            async with asyncio.timeout(call.timeout_s):
                while self._kept:
                    try:
                        return await self._on(self._kept.pop(), call)
                    except (OSError, EOFError):
                        continue  # it ended while it was kept; nothing was answered on it
                made = await asyncio.open_connection(self._where.host, self._where.port, limit=HEAD_BYTES_MAX)
                return await self._on(made, call)
        except (OSError, EOFError) as error:
            raise _no_gateway(self._where, error) from error

    async def _on(self, line: tuple[asyncio.StreamReader, asyncio.StreamWriter], call: _Call) -> Outputs:
        reader, writer = line
        try:
            lines = (f"POST {call.path} HTTP/1.1", *(f"{name}: {value}" for name, value in call.headers.items()))
            head = "\r\n".join((*lines, f"Host: {self._where.host}", f"Content-Length: {len(call.body)}", "", ""))
            writer.write(head.encode() + call.body)
            first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = (each.partition(":") for each in rest if each)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            length = int(headers.get("content-length", "0"))
            if not 0 <= length <= ANSWER_BYTES_MAX:
                raise OSError(f"an answer of {length} bytes")
            body = await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        if headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._kept.append(line)
        return call.read(int(first.split(" ")[1]), headers, body)

    async def close(self) -> None:
        while self._kept:
            self._kept.pop()[1].close()

    async def __aenter__(self) -> AsyncMesh:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# --- What goes over the wire ----------------------------------------------------------------------------------------


class _Where(NamedTuple):
    host: str
    port: int
    namespace: str

    @staticmethod
    def of(url: str, namespace: str) -> _Where:
        found = urlsplit(url or os.environ.get("BATUTA_INFERENCE_URL", "") or DEFAULT_URL)
        if found.scheme != "http" or not found.hostname:
            raise InferenceFailed("malformed", 0, f"{url!r} is no address of a gateway: http://127.0.0.1:8500")
        return _Where(found.hostname, found.port or 80, namespace or os.environ.get("BATUTA_NAMESPACE", ""))


def _no_gateway(where: _Where, error: BaseException) -> InferenceFailed:
    if isinstance(error, TimeoutError):
        return InferenceFailed("deadline_passed", 0, f"the gateway at {where.host}:{where.port} did not answer in time")
    message = f"no inference gateway answers at {where.host}:{where.port}: {error or type(error).__name__}"
    return InferenceFailed("no_gateway", 0, message)


@dataclass(slots=True)
class _Call:
    path: str
    body: bytes
    headers: dict[str, str]
    timeout_s: float
    arrays: bool
    """Whether answers are wanted as NumPy arrays."""
    names: tuple[str, ...] = field(default=())

    @staticmethod
    def of(
        where: _Where, model: str, inputs: Mapping[str, Any], *, version: str, application: str,
        outputs: Sequence[str], deadline_ms: int, urgency: Urgency, traceparent: str,
    ) -> _Call:  # fmt: skip
        arrays = any(hasattr(value, "dtype") for value in inputs.values())
        document: dict[str, Any] = {"inputs": []}
        pieces: list[bytes] = []
        for name, value in inputs.items():
            described, piece = _described(name, value)
            document["inputs"].append(described)
            if piece is not None:
                pieces.append(piece)
        if outputs:
            document["outputs"] = [{"name": name, "parameters": {"binary_data": arrays}} for name in outputs]
        if arrays:
            document["parameters"] = {"binary_data_output": True}
        text = json.dumps(document).encode()
        headers = {"Batuta-Deadline-Ms": str(deadline_ms), "Batuta-Class": urgency}
        if pieces:
            headers |= {JSON_BYTES: str(len(text)), "Content-Type": "application/octet-stream"}
        else:
            headers["Content-Type"] = "application/json"
        for header, said in (
            ("Batuta-Namespace", where.namespace),
            ("Batuta-Application", application),
            ("traceparent", traceparent),
        ):
            if said:
                headers[header] = said
        versions = f"/versions/{quote(version, safe='')}" if version else ""
        path = f"/v2/models/{quote(model, safe='')}{versions}/infer"
        return _Call(path, text + b"".join(pieces), headers, deadline_ms / 1000 + GRACE_S, arrays)

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> Outputs:
        json_bytes = int(headers.get(JSON_BYTES.lower(), 0)) or len(body)
        try:
            said = json.loads(body[:json_bytes])
        except ValueError:
            said = {}
        if status != 200 or not isinstance(said, dict) or "outputs" not in said:
            message = said.get("error") if isinstance(said, dict) else None
            words = str(message or f"the gateway answered {status}")
            raise InferenceFailed(headers.get("batuta-error", "failed"), status, words)
        tensors: dict[str, Any] = {}
        at = json_bytes
        for tensor in said["outputs"]:
            size = int((tensor.get("parameters") or {}).get("binary_data_size", 0))
            tensors[tensor["name"]] = self._tensor(tensor, body[at : at + size])
            at += size
        return Outputs(
            tensors,
            model=str(said.get("model_name", "")),
            version=str(said.get("model_version", "")),
            instance=headers.get("batuta-instance", ""),
            node=headers.get("batuta-node", ""),
            nearness=headers.get("batuta-nearness", ""),
            attempts=int(headers.get("batuta-attempts", 1)),
        )

    def _tensor(self, tensor: Mapping[str, Any], piece: bytes) -> Any:
        shape, datatype = [int(each) for each in tensor["shape"]], str(tensor["datatype"])
        if not self.arrays:
            return _nested(list(tensor["data"]), shape)
        import numpy

        if datatype == "BYTES":
            data = _strings(piece) if piece else [str(each).encode() for each in tensor["data"]]
            return numpy.array(data, dtype=object).reshape(shape)
        dtype = numpy.dtype(_DTYPES[datatype]).newbyteorder("<")
        if "data" in tensor:
            return numpy.array(tensor["data"], dtype=dtype).reshape(shape)
        return numpy.frombuffer(piece, dtype=dtype).reshape(shape)


def _described(name: str, value: Any) -> tuple[dict[str, Any], bytes | None]:
    """One input as the protocol says it, and its bytes when it is an array."""
    if hasattr(value, "dtype"):
        import numpy

        kind = numpy.dtype(value.dtype)
        if kind.name not in _DATATYPES:
            words = [each.encode() if isinstance(each, str) else bytes(each) for each in numpy.asarray(value).ravel()]
            piece = b"".join(len(each).to_bytes(4, "little") + each for each in words)
            datatype = "BYTES"
        else:
            piece = numpy.ascontiguousarray(value, dtype=kind.newbyteorder("<")).tobytes()
            datatype = _DATATYPES[kind.name]
        parameters = {"binary_data_size": len(piece)}
        return {"name": name, "datatype": datatype, "shape": list(value.shape), "parameters": parameters}, piece
    shape, flat = _flat(value)
    return {"name": name, "datatype": _datatype(flat), "shape": shape, "data": flat}, None


def _flat(value: Any) -> tuple[list[int], list[Any]]:
    """Shape and numbers, row by row, of nested lists."""
    if not isinstance(value, (list, tuple)):
        return [], [value]
    if not value:
        return [0], []
    parts = [_flat(each) for each in value]
    if any(shape != parts[0][0] for shape, _ in parts):
        raise ValueError("the rows of a tensor are not equally long")
    return [len(parts), *parts[0][0]], [each for _, flat in parts for each in flat]


def _datatype(flat: Sequence[Any]) -> str:
    if all(isinstance(each, bool) for each in flat):
        return "BOOL" if flat else "FP32"
    if all(isinstance(each, int) for each in flat):
        return "INT64"
    return "BYTES" if all(isinstance(each, str) for each in flat) else "FP32"


def _nested(flat: list[Any], shape: Sequence[int]) -> Any:
    if flat and isinstance(flat[0], list):
        return flat  # it came nested
    for length in reversed(shape[1:]):
        flat = [flat[i : i + length] for i in range(0, len(flat), length)] if length else []
    return flat


def _strings(piece: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(piece):
        length = int.from_bytes(piece[at : at + 4], "little")
        found.append(piece[at + 4 : at + 4 + length])
        at += 4 + length
    return found
