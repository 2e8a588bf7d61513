"""TFLite models made by hand, tensor by tensor: what no converter makes, and what none should."""

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

Op = schema.BuiltinOperator
Type = schema.TensorType
_TYPES = {np.dtype(np.float32): Type.FLOAT32, np.dtype(np.int8): Type.INT8, np.dtype(np.int32): Type.INT32}


class Graph:
    """A subgraph; each method adds to it and returns the index of a tensor."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.data: list[bytes | None] = []
        self.operators: list[tuple[int | str, Any]] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: int = Type.FLOAT32,
        *,
        data: bytes | None = None,
        scale: float | Sequence[float] = (),
        zero_point: int = 0,
    ) -> int:
        """A tensor; scales, where there are several, go with the first dimension. -1 is a size that is free."""
        made = schema.TensorT()
        made.name, made.type = name, dtype
        made.shape = [max(size, 1) for size in shape]
        made.shapeSignature = list(shape) if -1 in shape else None
        scales = [float(value) for value in np.ravel(scale)]
        if scales:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = scales, [zero_point] * len(scales)
        self.tensors.append(made)
        self.data.append(data)
        return len(self.tensors) - 1

    def constant(self, name: str, values: np.ndarray, scale: float | Sequence[float] = ()) -> int:
        """A constant of the values' own type."""
        values = np.asarray(values)
        return self.tensor(name, values.shape, _TYPES[values.dtype], data=values.tobytes(), scale=scale)

    def apply(
        self, op: int | str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None, kind: int = 0
    ) -> int:
        """An operator, by the number of a builtin one or the name of a custom one; returns its first output."""
        made = schema.OperatorT()
        made.inputs, made.outputs = list(inputs), list(outputs)
        made.builtinOptions, made.builtinOptionsType = options, kind
        self.operators.append((op, made))
        return outputs[0]


def model(
    *graphs: Graph, signatures: Mapping[str, tuple[int, Mapping[str, int], Mapping[str, int]]] | None = None
) -> bytes:
    """The flatbuffer of some graphs, the first of which is the main one.

    Args:
      graphs: its subgraphs.
      signatures: by name, the number of a graph, and its inputs and outputs, name to tensor.
    """
    made = schema.ModelT()
    made.version, made.buffers, made.subgraphs, made.operatorCodes = 3, [schema.BufferT()], [], []
    codes = list(dict.fromkeys(op for graph in graphs for op, _ in graph.operators))
    for op in codes:
        code = schema.OperatorCodeT()
        code.version = 1
        code.builtinCode = Op.CUSTOM if isinstance(op, str) else op
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.customCode = op if isinstance(op, str) else None
        made.operatorCodes.append(code)
    for graph in graphs:
        for tensor, data in zip(graph.tensors, graph.data, strict=True):
            tensor.buffer = 0
            if data is not None:
                buffer = schema.BufferT()
                buffer.data = np.frombuffer(data, np.uint8)
                made.buffers.append(buffer)
                tensor.buffer = len(made.buffers) - 1
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.inputs, subgraph.outputs = graph.tensors, graph.inputs, graph.outputs
        subgraph.operators = []
        for op, operator in graph.operators:
            operator.opcodeIndex = codes.index(op)
            subgraph.operators.append(operator)
        made.subgraphs.append(subgraph)
    made.signatureDefs = []
    for key, (index, inputs, outputs) in (signatures or {}).items():
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key, index
        signature.inputs, signature.outputs = _map(inputs), _map(outputs)
        made.signatureDefs.append(signature)
    builder = flatbuffers.Builder(1024)
    builder.Finish(made.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _map(tensors: Mapping[str, int]) -> list[Any]:
    made = []
    for name, index in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        made.append(entry)
    return made


def one_operator(op: int, options: Any = None, kind: int = 0, dtype: int = Type.FLOAT32, batch: int = -1) -> Graph:
    """A graph of one operator from `x` to `y`, both [batch, 3]."""
    graph = Graph()
    graph.inputs = [graph.tensor("x", [batch, 3], dtype)]
    graph.outputs = [graph.apply(op, [0], [graph.tensor("y", [batch, 3], dtype)], options, kind)]
    return graph
