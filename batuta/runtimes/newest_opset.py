"""Says which is the newest operator set that this Python's ONNX Runtime knows. A process of its own: it loads it.

There is no table of versions to be kept, and none to be wrong: it is asked for a model of an operator set that does not
exist, and names in its refusal the newest one that does.
"""

from __future__ import annotations

import re
import sys

NEVER = 1_000_000


def main() -> int:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(_model(NEVER), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever it raises, what counts is what it says
        if found := re.search(r"for domain ai\.onnx is till opset (\d+)", str(error)):
            sys.stdout.write(found.group(1))
            return 0
        sys.stderr.write(str(error)[:500])
    return 1


def _model(opset: int) -> bytes:
    """One node that hands its input on."""
    node = _bytes(1, b"x") + _bytes(2, b"y") + _bytes(4, b"Identity")
    graph = _bytes(1, node) + _bytes(2, b"g") + _bytes(11, _value(b"x")) + _bytes(12, _value(b"y"))
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _number(2, opset))


def _value(name: bytes) -> bytes:
    """A name and its type: one number of 32 bits."""
    shape = _bytes(2, _bytes(1, _number(1, 1)))
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, 1) + shape))


def _bytes(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2, len(data)]) + data


def _number(field: int, number: int) -> bytes:
    out = [field << 3]
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


if __name__ == "__main__":
    sys.exit(main())
