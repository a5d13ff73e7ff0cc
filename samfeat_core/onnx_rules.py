"""What an ONNX graph must keep to, so that TensorRT 8.5 (JetPack 5) and TensorRT 10 (JetPack 6) read it.

The table is what `docs/operators.md` of onnx-tensorrt lists both in its branch release/8.5-GA and in 10.1-GA, less the
operators whose output has no shape before it is computed. TensorRT 8.5 has no INT64: it takes such numbers for INT32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from samfeat_core.engines import TENSORRT_TOP_K

OPSETS = range(9, 18)  # TensorRT 8.5 reads up to 17, TensorRT 10 from 9 on
Kinds = frozenset[int]
FLOAT: Kinds = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
INT: Kinds = frozenset({TensorProto.INT32, TensorProto.INT64})
BOOL: Kinds = frozenset({TensorProto.BOOL})
BYTE: Kinds = frozenset({TensorProto.INT8})
PIXEL: Kinds = frozenset({TensorProto.UINT8})  # only as an input of the graph that is cast to floating point

_FLOAT_ONLY = """
    Acos Acosh ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip ConstantOfShape Conv
    ConvTranspose Cos Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
    GridSample HardSigmoid InstanceNormalization LRN LSTM LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool
    MeanVarianceNormalization PRelu Pow RNN Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Resize ReverseSequence RoiAlign Round Selu Sigmoid
    Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu TopK
"""
_FLOAT_OR_INT = """
    Abs Add DepthToSpace Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Neg Pad ScatterElements
    Shrink Sign SpaceToDepth Sub Sum
"""
_ANY = "Concat Expand Flatten Gather GatherElements Identity Reshape Slice Split Squeeze Tile Transpose Trilu Unsqueeze"
OPERATORS: dict[str, Kinds] = {
    **dict.fromkeys(_FLOAT_ONLY.split(), FLOAT),
    **dict.fromkeys(_FLOAT_OR_INT.split(), FLOAT | INT),
    **dict.fromkeys(("And", "Not", "Or", "Xor"), BOOL),
    **dict.fromkeys(_ANY.split(), FLOAT | INT | BOOL),
    "Where": FLOAT | INT | BOOL,
    "Cast": FLOAT | INT | BOOL | PIXEL,
    "QuantizeLinear": FLOAT,
    "DequantizeLinear": BYTE | FLOAT,  # the second input is the step
}
# Inputs that say what an operator does and must be known before it runs: from this one on, or these.
_PARAMETERS = {
    **dict.fromkeys(
        ("Pad", "Resize", "Slice", "Split", "Squeeze", "Unsqueeze", "Reshape", "Expand", "Tile", "TopK"), 1
    ),
    **dict.fromkeys(("ReduceSum", "Clip", "InstanceNormalization", "QuantizeLinear", "DequantizeLinear"), 1),
}
_INDICES = {"Gather": 1, "GatherElements": 1, "ScatterElements": 1}  # inputs that are whole numbers
_MODES = {
    "Pad": {"mode": {"constant", "reflect", "edge"}},
    "Resize": {
        "mode": {"nearest", "linear"},
        "coordinate_transformation_mode": {"half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"},
    },
}


def violations(model: ModelProto) -> list[str]:
    """What keeps TensorRT 8.5 or 10 from reading a graph, a line each; none when they can.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: this is no valid ONNX model.
    """
    onnx.checker.check_model(model, full_check=True)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    values = [*graph.input, *graph.value_info, *graph.output]
    types |= {value.name: value.type.tensor_type.elem_type for value in values}
    return [
        *_opsets(model),
        *(f"{value.name}: no static shape" for value in values if not _is_static(value)),
        *_whole_numbers(constants),
        *(f"{v.name}: INT64 outside the graph" for v in (*graph.input, *graph.output) if types[v.name] in INT),
        *(f"{node.op_type} {node.name}: {problem}" for node in graph.node for problem in _node(node, types, constants)),
    ]


def _opsets(model: ModelProto) -> Iterator[str]:
    for used in model.opset_import:
        if used.domain not in ("", "ai.onnx"):
            yield f"operators of {used.domain}"
        elif used.version not in OPSETS:
            yield f"opset {used.version}, expected {OPSETS[0]} to {OPSETS[-1]}"


def _is_static(value: ValueInfoProto) -> bool:
    shape = value.type.tensor_type.shape
    return value.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in shape.dim)


def _whole_numbers(constants: dict[str, np.ndarray]) -> Iterator[str]:
    """INT64 becomes INT32. The greatest of all is how ONNX says "to the end", and stays more than any size."""
    limits, to_the_end = np.iinfo(np.int32), np.iinfo(np.int64)
    for name, value in constants.items():
        if value.dtype == np.int64:
            value = value[(value != to_the_end.max) & (value != to_the_end.min)]
            if value.size and (value.min() < limits.min or value.max() > limits.max):
                yield f"{name}: {value} does not fit 32 bits"


def _node(node: NodeProto, types: dict[str, int], constants: dict[str, np.ndarray]) -> Iterator[str]:
    allowed = OPERATORS.get(node.op_type)
    if allowed is None:
        yield "not among the operators that TensorRT 8.5 and 10 both read"
        return
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    first_parameter = _PARAMETERS.get(node.op_type, len(node.input))
    for i, name in enumerate(node.input):
        if name and i >= first_parameter:
            if name not in constants:
                yield f"{name} is computed, expected a constant"
        elif name and types[name] not in (INT if _INDICES.get(node.op_type) == i else _allowed(node, i, allowed)):
            yield f"{name} is {TensorProto.DataType.Name(types[name])}"
    for name, known in _MODES.get(node.op_type, {}).items():
        if name in attributes and attributes[name].decode() not in known:
            yield f"{name} {attributes[name].decode()}"
    if node.op_type == "TopK":
        yield from _top_k(attributes, constants.get(node.input[1]))
    elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _quantization(node, constants)
    elif node.op_type == "Cast" and types[node.input[0]] in PIXEL and attributes["to"] not in FLOAT:
        yield "UINT8 can only become floating point"


def _allowed(node: NodeProto, i: int, allowed: Kinds) -> Kinds:
    return BOOL if node.op_type == "Where" and i == 0 else allowed


def _top_k(attributes: dict, count: np.ndarray | None) -> Iterator[str]:
    if count is not None and int(count.item()) > TENSORRT_TOP_K:
        yield f"K is {count.item()}, expected at most {TENSORRT_TOP_K}"
    if not attributes.get("sorted", 1):
        yield "sorted must be 1"


def _quantization(node: NodeProto, constants: dict[str, np.ndarray]) -> Iterator[str]:
    zero = constants.get(node.input[2]) if len(node.input) == 3 else None
    if zero is None or zero.dtype != np.int8 or zero.any():
        yield "the zero point must be there, INT8 and 0"
