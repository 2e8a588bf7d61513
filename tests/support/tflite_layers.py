"""TFLite models of one layer with weights of 2 or 4 bits."""

from collections.abc import Sequence

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from tests.support import by_hand
from tests.support.by_hand import Graph, Op, Type

INT2 = 19  # TensorType; newer than the schema in TensorFlow 2.16
# Irrational, so that no sum is halfway between two steps, where kernels round differently.
SCALES = {"per tensor": [np.pi / 100], "per channel": [np.pi / 100, np.e / 40, np.sqrt(2) / 120]}


def sub_byte_layer(bits: int, scales: Sequence[float], activations: int, columns: int = 7) -> tuple[bytes, np.ndarray]:
    """Returns the model of a fully connected layer from `columns` numbers to 3, and its weights [3, columns].

    Int8 activations are `(stored - 3) * 0.05` in the input and `(stored + 2) * 0.2` in the output.
    """
    limit = 2 ** (bits - 1)
    weights = np.random.default_rng(bits).integers(-limit, limit, (3, columns))
    weights[0, :2] = -limit, limit - 1
    graph = Graph()
    quantized = activations == Type.INT8
    x = graph.tensor("x", [-1, columns], activations, scale=0.05 if quantized else (), zero_point=3)
    stored = Type.INT4 if bits == 4 else INT2
    kernel = graph.tensor("kernel", weights.shape, stored, data=_pack(weights, bits), scale=scales)
    y = graph.tensor("y", [-1, 3], activations, scale=0.2 if quantized else (), zero_point=-2)
    options, kind = schema.FullyConnectedOptionsT(), schema.BuiltinOptions.FullyConnectedOptions
    graph.inputs, graph.outputs = [x], [graph.apply(Op.FULLY_CONNECTED, [x, kernel, -1], [y], options, kind)]
    return by_hand.model(graph), weights


def _pack(values: np.ndarray, bits: int) -> bytes:
    """Returns integers of 2 or 4 bits, the first in the lowest bits of the first byte."""
    total = 0
    for place, value in enumerate(values.ravel()):
        total |= (int(value) % 2**bits) << (place * bits)
    return total.to_bytes(-(-values.size * bits // 8), "little")
