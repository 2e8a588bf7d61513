"""What a TFLite model contains: operators, weights with their scales, and the memory that it needs."""

import collections
import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.arena import arena_bytes
from tfx_compression.tflite.constants import affine_parameters, is_decodable, stored_values

_FLOATS = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)


@dataclasses.dataclass(frozen=True)
class ModelContents:
    """The operators and weights of a TFLite model.

    Attributes:
      ops: Number of occurrences of each operator.
      float_ops: Number of occurrences of operators that return floats. A model for integer hardware has none.
      weights: By the layer that uses them, the constants of rank 2 or more, minus their zero point, so that 0 is a zero
        weight.
      scales: By the same names, the factors that turn the weights into real numbers; they broadcast against them.
      arena_bytes: Bytes of memory for the tensors between the operators, for one row.
    """

    ops: dict[str, int]
    float_ops: dict[str, int]
    weights: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    arena_bytes: int

    def real_weights(self, name: str) -> np.ndarray:
        """Returns weights as real numbers, in float32."""
        return self.weights[name].astype(np.float32) * self.scales[name]

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in all weights."""
        size = sum(weight.size for weight in self.weights.values())
        return sum(weight.size - np.count_nonzero(weight) for weight in self.weights.values()) / size if size else 0.0


def read_contents(content: bytes) -> ModelContents:
    """Reads the operators and weights of a TFLite model without running it.

    Raises:
      ModelError: The content is no flatbuffer of TFLite (code `not-tflite`) or is damaged (`damaged-tflite`).
    """
    model = flatbuffer.parse(content)
    try:
        ops, float_ops = _count_operators(model)
        weights, scales = _read_weights(model)
        return ModelContents(ops, float_ops, weights, scales, arena_bytes(model))
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise flatbuffer.damaged(content, error) from error


def _count_operators(model: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the number of all operators, and of those that return floats, by name."""
    ops: collections.Counter[str] = collections.Counter()
    float_ops: collections.Counter[str] = collections.Counter()
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = flatbuffer.builtin_name(model, operator)
            ops[name] += 1
            if any(graph.tensors[index].type in _FLOATS for index in operator.outputs):
                float_ops[name] += 1
    return dict(ops), dict(float_ops)


def _read_weights(model: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the constants of rank 2 or more, minus their zero point, and their scales."""
    weights: dict[str, np.ndarray] = {}
    scales: dict[str, np.ndarray] = {}
    for graph in model.subgraphs:
        blockwise = (flatbuffer.blockwise_quantization(tensor) for tensor in graph.tensors)
        block_scales = {details.scales for details in blockwise if details is not None}
        for index, tensor in enumerate(graph.tensors):
            data = model.buffers[tensor.buffer].data
            if data is None or not len(data) or tensor.shape is None or len(tensor.shape) < 2:
                continue
            if not is_decodable(tensor) or index in block_scales:
                continue
            values = stored_values(bytes(data), tensor)
            layer = _layer_of_constant(graph, index)
            name = layer if layer not in weights else f"{layer}/{index}"
            zero_point, scales[name] = affine_parameters(model, graph, tensor)
            weights[name] = values - zero_point if zero_point.any() else values
    return weights, scales


def _layer_of_constant(graph: Any, constant: int) -> str:
    """Returns the name of the layer that uses a constant.

    The converter names constants `arith.constant7`, but the output of an operator after its layer:
    `digits/conv_1/Relu;digits/conv_1/BiasAdd;…`.
    """
    tensor = constant
    for operator in graph.operators:  # They run in this order, so a DEQUANTIZE comes before the operator that uses it.
        if tensor in operator.inputs:
            tensor = operator.outputs[0]
            if len(operator.inputs) > 1:
                break
    constant_name = graph.tensors[constant].name.decode()
    if tensor == constant:
        return constant_name
    name = graph.tensors[tensor].name.decode()
    layer = flatbuffer.layer_name(name)
    return layer if layer != name else constant_name
