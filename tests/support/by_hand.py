"""TFLite models built by hand, tensor by tensor: cases that no converter writes, and that none should."""

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

Op = schema.BuiltinOperator
Type = schema.TensorType
_TYPES = {np.dtype(np.float32): Type.FLOAT32, np.dtype(np.int8): Type.INT8, np.dtype(np.int32): Type.INT32}


class Graph:
    """A subgraph under construction. Its methods return the index of a tensor.

    Attributes:
      inputs: Indices of the input tensors, for the caller to set.
      outputs: Indices of the output tensors, for the caller to set.
    """

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
        """Adds a tensor. A size of -1 is free. Several scales belong to the first dimension."""
        tensor = schema.TensorT()
        tensor.name, tensor.type = name, dtype
        tensor.shape = [max(size, 1) for size in shape]
        tensor.shapeSignature = list(shape) if -1 in shape else None
        scales = [float(value) for value in np.ravel(scale)]
        if scales:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = scales, [zero_point] * len(scales)
        self.tensors.append(tensor)
        self.data.append(data)
        return len(self.tensors) - 1

    def constant(self, name: str, values: np.ndarray, scale: float | Sequence[float] = ()) -> int:
        """Adds a constant of the values' type."""
        values = np.asarray(values)
        return self.tensor(name, values.shape, _TYPES[values.dtype], data=values.tobytes(), scale=scale)

    def apply(
        self, op: int | str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None, kind: int = 0
    ) -> int:
        """Adds an operator and returns its first output.

        Args:
          op: Number of a built-in operator, or name of a custom one.
          inputs: Input tensors.
          outputs: Output tensors.
          options: Options of a built-in operator.
          kind: Number of the options' class in `schema.BuiltinOptions`.
        """
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        operator.builtinOptions, operator.builtinOptionsType = options, kind
        self.operators.append((op, operator))
        return outputs[0]


def model(
    *graphs: Graph, signatures: Mapping[str, tuple[int, Mapping[str, int], Mapping[str, int]]] | None = None
) -> bytes:
    """Returns the flatbuffer of graphs.

    Args:
      graphs: The subgraphs. The first one is the main graph.
      signatures: By name, the index of a graph, and its inputs and outputs by name.
    """
    packed = schema.ModelT()
    packed.version, packed.buffers, packed.subgraphs, packed.operatorCodes = 3, [schema.BufferT()], [], []
    codes = list(dict.fromkeys(op for graph in graphs for op, _ in graph.operators))
    for op in codes:
        code = schema.OperatorCodeT()
        code.version = 1
        code.builtinCode = Op.CUSTOM if isinstance(op, str) else op
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.customCode = op if isinstance(op, str) else None
        packed.operatorCodes.append(code)
    for graph in graphs:
        for tensor, data in zip(graph.tensors, graph.data, strict=True):
            tensor.buffer = 0
            if data is not None:
                buffer = schema.BufferT()
                buffer.data = np.frombuffer(data, np.uint8)
                packed.buffers.append(buffer)
                tensor.buffer = len(packed.buffers) - 1
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.inputs, subgraph.outputs = graph.tensors, graph.inputs, graph.outputs
        subgraph.operators = []
        for op, operator in graph.operators:
            operator.opcodeIndex = codes.index(op)
            subgraph.operators.append(operator)
        packed.subgraphs.append(subgraph)
    packed.signatureDefs = []
    for key, (index, inputs, outputs) in (signatures or {}).items():
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key, index
        signature.inputs, signature.outputs = _tensor_maps(inputs), _tensor_maps(outputs)
        packed.signatureDefs.append(signature)
    builder = flatbuffers.Builder(1024)
    builder.Finish(packed.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def one_operator(op: int, options: Any = None, kind: int = 0, dtype: int = Type.FLOAT32, batch: int = -1) -> Graph:
    """Returns a graph of one operator from `x` to `y`, both of shape [batch, 3]."""
    graph = Graph()
    graph.inputs = [graph.tensor("x", [batch, 3], dtype)]
    graph.outputs = [graph.apply(op, [0], [graph.tensor("y", [batch, 3], dtype)], options, kind)]
    return graph


def _tensor_maps(tensors: Mapping[str, int]) -> list[Any]:
    maps = []
    for name, index in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        maps.append(entry)
    return maps
