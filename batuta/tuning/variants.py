"""Making variants: what ONNX Runtime's own tools make of one file. Each function writes a file or says why it cannot.

Every variant keeps the names, types and, unless shapes are fixed on purpose, the shapes of inputs and outputs, so that
one can be exchanged for the other.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batuta.errors import ArtifactRefused
from batuta.model_push import signature_of
from batuta.tuning.session import Session, count_of, feedable, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batuta.kinds.model import Signature

CALIBRATE_AT_ONCE = 16
CALIBRATED_MAX = 1024
"""More samples than this make calibration slower, hardly better."""
ELEMENTS = {
    "float": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "string": 8, "bool": 9,
    "float16": 10, "double": 11,
}  # fmt: skip
"""ONNX Runtime's words for types, as ONNX numbers them."""
ATTEMPTS = ((True, False), (False, False), (True, True), (False, True))
"""By channel is the better way, and of all operators; the tools fail at either on some graphs, so the next is tried:
whether by channel, and whether only what gains most."""
GAINS = frozenset(
    ("MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "Attention", "FusedConv", "FusedMatMul", "Gather")
)
"""What is worth quantising."""
QUANTISED = frozenset(
    ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv",
     "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QGemm", "MatMulIntegerToFloat", "QAttention")
)  # fmt: skip


def simplified(source: Path, target: Path) -> str:
    """Constants folded and what does nothing left out: optimisations that hold on any machine. Returns how."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    # More than this level fuses for the machine at hand; nodes do that for themselves when they load.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    with _in_our_words("simplified"):
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return f"onnxruntime {ort.__version__}: offline optimisation, basic level"


def fixed(source: Path, target: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Inputs of these shapes and no others, as accelerators want them. Returns how."""
    import onnx
    from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_input_shape_fixed

    model = onnx.load(str(source))
    takes = {port.name: port.shape for port in Session(source).inputs}
    for name, shape in shapes.items():
        if name not in takes:
            raise _unmade(f"it has no input {name!r}; it has {', '.join(takes)}")
        if len(shape) != len(takes[name]) or any(a not in (-1, b) for a, b in zip(takes[name], shape, strict=True)):
            raise _unmade(f"input {name} is {list(takes[name])}, which {list(shape)} does not fit")
        with _in_our_words("fixed"):
            make_input_shape_fixed(model.graph, name, list(shape))
    with _in_our_words("fixed"):
        fix_output_shapes(model)
        onnx.save(model, str(target))
    return "onnxruntime.tools: shapes " + " ".join(f"{n}={','.join(map(str, s))}" for n, s in shapes.items())


def halved(source: Path, target: Path) -> str:
    """Weights and arithmetic in 16 bits; inputs and outputs keep their types. Returns how."""
    import onnx
    import onnxruntime as ort

    with _in_our_words("converted to fp16"):
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True)
        if not any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in model.graph.initializer):
            raise _unmade("nothing in it is computed in 32 bits that could be in 16")
        onnx.save(model, str(target))
    return f"onnxruntime {ort.__version__}: convert_float_to_float16, keep_io_types"


def quantised_dynamic(source: Path, target: Path) -> str:
    """Weights in 8 bits; what passes through is quantised as it goes. Returns how."""
    import onnxruntime as ort
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _can_be_quantised(source)
    with _prepared(source) as ready, _in_our_words("quantised"):
        quantize_dynamic(ready, target, weight_type=QuantType.QInt8, extra_options=_untold())
    _is_quantised(target)
    return f"onnxruntime {ort.__version__}: quantize_dynamic, weights int8"


def quantised_static(source: Path, target: Path, inputs: Mapping[str, Any]) -> str:
    """Weights and what passes through in 8 bits, by ranges that these inputs showed. Returns how."""
    import onnxruntime as ort
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    _can_be_quantised(source)
    session = Session(source)
    chosen = feedable(session, {name: value[:CALIBRATED_MAX] for name, value in inputs.items()})
    last: Exception | None = None
    for by_channel, only in ATTEMPTS:
        try:
            with _prepared(source) as ready, _quiet():
                quantize_static(
                    ready, target, _reader(session, chosen), quant_format=QuantFormat.QDQ, per_channel=by_channel,
                    op_types_to_quantize=sorted(GAINS) if only else None,
                    activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
                    extra_options={**_untold(), "QDQDisableWeightAdjustForInt32Bias": True},
                )  # fmt: skip
            break
        except Exception as error:  # the tools raise whatever Python raises
            last = error
    else:
        raise _unmade(f"it cannot be quantised: {first_line(last) if last else ''}")
    _is_quantised(target)
    how = ("by channel" if by_channel else "by tensor") + (", matrices only" if only else "")
    return f"onnxruntime {ort.__version__}: quantize_static, QDQ, int8 {how}, {count_of(chosen)} samples"


def is_interchangeable(base: Signature, made: Path, *, is_fixed: bool) -> None:
    """A variant takes and gives what its version does; fixed shapes are some of those that it takes."""
    found = signature_of(made)
    for what, before, after in (("input", base.inputs, found.inputs), ("output", base.outputs, found.outputs)):
        if [(t.name, t.dtype) for t in before] != [(t.name, t.dtype) for t in after]:
            said = ", ".join(f"{t.name} {t.dtype}" for t in after)
            raise _unmade(f"its {what}s would be {said}, which are not those of the version")
        for one, other in zip(before, after, strict=True):
            loose = is_fixed or what == "output"
            fits = len(one.shape) == len(other.shape) and all(
                a == b or (loose and -1 in (a, b)) for a, b in zip(one.shape, other.shape, strict=True)
            )
            if not fits:
                raise _unmade(f"its {what} {one.name} would be {list(other.shape)} in place of {list(one.shape)}")


@contextlib.contextmanager
def _prepared(source: Path) -> Iterator[Path]:
    """Shapes inferred and the graph simplified, which is where quantisation begins; without, where that fails."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="batuta-prepare-") as directory:
        ready = Path(directory) / "ready.onnx"
        try:
            with _quiet():
                # Symbolic inference needs SymPy and helps transformers with odd shapes; ONNX's own needs nothing.
                quant_pre_process(source, ready, skip_symbolic_shape=True)
        except Exception:  # as above; what cannot be prepared may still be quantised
            ready = source
        yield _typed(ready, Path(directory) / "typed.onnx")


def _typed(source: Path, target: Path) -> Path:
    """The graph with the types of all that passes through it, as ONNX Runtime knows them: the tools leave alone what
    has none, and ONNX's own inference knows nothing of what comes out of classical operators (scalers, encoders)."""
    import onnx
    from onnxruntime import InferenceSession

    with _in_our_words("typed"):
        model = onnx.shape_inference.infer_shapes(onnx.load(str(source)))
        known = {v.name for v in (*model.graph.value_info, *model.graph.output) if v.type.tensor_type.elem_type}
        lacking = [name for node in model.graph.node for name in node.output if name and name not in known]
        if not lacking:
            return source
        wide = onnx.ModelProto()
        wide.CopyFrom(model)
        wide.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in lacking)
        session = InferenceSession(wide.SerializeToString(), providers=["CPUExecutionProvider"])
        found = {port.name: port for port in session.get_outputs()}
        for name in lacking:
            inner = found[name].type[len("tensor(") : -1] if found[name].type.startswith("tensor(") else ""
            kind = ELEMENTS.get(inner)
            if kind is not None:
                # No dimensions: a single number, or nobody knows. Said to be the first, it would be believed.
                shape = [size if isinstance(size, (int, str)) else None for size in found[name].shape] or None
                model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, shape))
        onnx.save(model, str(target))
    return target


def _reader(session: Session, inputs: Mapping[str, Any]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The samples, a few at a time."""

        def __init__(self) -> None:
            self.at = 0

        def get_next(self) -> dict[str, Any] | None:
            size = session.batch or CALIBRATE_AT_ONCE
            begin, self.at = self.at, self.at + size
            chunk = {name: value[begin : begin + size] for name, value in inputs.items()}
            there = count_of(chunk)
            return chunk if there and there >= session.batch else None

    return Reader()


def _untold() -> dict[str, Any]:
    """Shape inference knows nothing of what comes out of classical operators (scalers, encoders): it is float32."""
    import onnx

    return {"DefaultTensorType": onnx.TensorProto.FLOAT}


def _can_be_quantised(source: Path) -> None:
    """Said in one way for all tools, which fail on such models each in its own."""
    if not _operators(source) & GAINS:
        raise _unmade("nothing in it can be quantised: it multiplies no matrices")


def _is_quantised(target: Path) -> None:
    if not _operators(target) & QUANTISED:
        raise _unmade("the tools found nothing in it to quantise")


def _operators(path: Path) -> set[str]:
    """All that it computes with, in its branches and loops too."""
    import onnx

    def of(graph: Any) -> set[str]:
        found = {node.op_type for node in graph.node}
        for node in graph.node:
            for attribute in node.attribute:
                found |= of(attribute.g) if attribute.HasField("g") else set()
        return found

    return of(onnx.load(str(path), load_external_data=False).graph)


@contextlib.contextmanager
def _in_our_words(what: str) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except ArtifactRefused:
        raise
    except Exception as error:  # the tools raise whatever Python raises
        raise _unmade(f"it cannot be {what}: {type(error).__name__}: {first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tools talk to the root logger about themselves."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def _unmade(why: str) -> ArtifactRefused:
    return ArtifactRefused("variant_unmade", why)
