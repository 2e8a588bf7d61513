"""Reads the operators that the rules of devices look at from a parsed flatbuffer."""

import copy
import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfx_compression.tflite.flatbuffer import operators
from tfx_compression.tflite_quantizer.devices.nodes import Node, NodeTensor

_TYPES = {number: name.lower() for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
_ACTIVATIONS = {number: name for name, number in vars(schema.ActivationFunctionType).items() if isinstance(number, int)}
_BLOCKWISE = 2  # QuantizationDetails of the schema; newer than TensorFlow 2.16's


def read_nodes(model: Any, subgraph: int = 0) -> list[Node]:
    """Returns the operators of a subgraph of a parsed flatbuffer."""
    graph = model.subgraphs[subgraph]
    single = copy.copy(model)
    single.subgraphs = [graph]
    tensors = [_tensor(model, tensor) for tensor in graph.tensors]
    nodes = []
    for operator, stored in zip(operators(single), graph.operators, strict=True):
        code = model.operatorCodes[stored.opcodeIndex]
        node = Node(
            operator.index,
            operator.op,
            operator.layer,
            int(code.version),
            bool(code.customCode),
            stored.builtinOptions,
            _ACTIVATIONS[getattr(stored.builtinOptions, "fusedActivationFunction", 0)],
            tuple(None if place < 0 else tensors[place] for place in operator.inputs),
            tuple(tensors[place] for place in operator.outputs),
        )
        if node.folded:
            for place in operator.outputs:
                tensors[place] = dataclasses.replace(tensors[place], constant=True)
        nodes.append(node)
    return nodes


def _tensor(model: Any, tensor: Any) -> NodeTensor:
    data = model.buffers[tensor.buffer].data
    constant = data is not None and len(data) > 0
    signature = tensor.shapeSignature if tensor.shapeSignature is not None else ()
    shape = signature if len(signature) else (tensor.shape if tensor.shape is not None else ())
    dtype = _TYPES.get(tensor.type, f"type {tensor.type}")
    quantization = tensor.quantization
    scales = quantization.scale if quantization is not None and quantization.scale is not None else ()
    zeros = quantization.zeroPoint if quantization is not None and quantization.zeroPoint is not None else ()
    return NodeTensor(
        tensor.name.decode(),
        dtype,
        tuple(int(size) for size in shape),
        constant,
        tuple(np.frombuffer(bytes(data), np.int32).tolist()) if constant and dtype == "int32" else None,
        tuple(float(scale) for scale in scales),
        tuple(int(zero) for zero in zeros),
        quantization is not None and quantization.detailsType == _BLOCKWISE,
    )
