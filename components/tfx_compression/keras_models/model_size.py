"""The size of a model: parameters, zeros, multiply-accumulates and bytes, in total and per layer."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import pydantic
import tensorflow as tf

from tfx_compression import kernels
from tfx_compression.compressed_size import gzipped
from tfx_compression.keras_models import graph
from tfx_compression.kernels import Kernel
from tfx_compression.kernels.variable_uses import VariableUse, find_uses, total_macs, variable_id


class LayerSize(pydantic.BaseModel):
    """The size of one kernel, or of the weights of a layer without kernels.

    Attributes:
      name: Name of the layer, followed by the kernel's if it has several. In a SavedModel without layers, the
        variable's.
      type: Keras class. In a SavedModel without layers, the TensorFlow operation.
      parameters: Number of weights, biases included.
      zeros: Number of zeros in the kernel.
      sparsity: Fraction of zeros in the kernel.
      macs: Multiply-accumulates of the kernel for one row; None if unknown, 0 for weights that are no kernel.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    name: str
    type: str
    parameters: int
    zeros: int
    sparsity: float
    macs: int | None


class ModelSize(pydantic.BaseModel):
    """The size of a model.

    Attributes:
      parameters: Number of weights in all layers.
      sparsity: Fraction of zeros in all kernels, that is in the weights of convolutions and dense layers, without
        biases and normalization.
      macs: Multiply-accumulates for one row, over the layers where they are known; None if they are known nowhere.
      nonzero_macs: Multiply-accumulates whose weight is not zero, likewise.
      bytes: Bytes of the weights in memory.
      bytes_gzip: Bytes of the weights, gzipped.
      layers: Sizes of all layers with weights.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    parameters: int
    sparsity: float
    macs: int | None
    nonzero_macs: int | None
    bytes: int
    bytes_gzip: int
    layers: tuple[LayerSize, ...]


def measure(model: Any) -> ModelSize:
    """Measures a Keras 2 or Keras 3 model.

    The multiply-accumulates are those of the kernels in the model's graph, summed over all calls of a layer and all
    steps of a loop. Products of activations with each other don't count.
    """
    macs = _macs_by_variable(model)
    uncounted = {variable_id(weight) for weight in kernels.quantization_variables(model)}
    by_layer: dict[int, list[Kernel]] = {}
    for kernel in kernels.find_kernels(model).values():
        by_layer.setdefault(id(kernel.layer), []).append(kernel)
    sizes: list[LayerSize] = []
    for name, layer in kernels.leaf_layers(model).items():
        layer_kernels = by_layer.get(id(layer), [])
        for kernel in layer_kernels:
            sizes.append(measure_kernel(kernel, type(layer).__name__, macs.pop(variable_id(kernel.variable), None)))
        weights = {variable_id(weight): weight for weight in kernels.direct_weights(layer) if _is_numeric(weight)}
        other_ids = set(weights) - {variable_id(kernel.variable) for kernel in layer_kernels} - uncounted
        others = sum(_parameters(weights[key]) for key in other_ids)
        if others > 0 and layer_kernels:  # The bias counts with the layer's last kernel.
            sizes[-1] = sizes[-1].model_copy(update={"parameters": sizes[-1].parameters + others})
        elif others > 0:
            sizes.append(measure_other_weights(name, type(layer).__name__, others))
    kernel_parameters = sum(_parameters(kernel.variable) for each in by_layer.values() for kernel in each)
    counted = (weight for weight in model.weights if _is_numeric(weight) and variable_id(weight) not in uncounted)
    return total_size(sizes, kernel_parameters, (np.asarray(weight) for weight in counted))


def measure_kernel(kernel: Kernel, type_name: str, macs: int | None) -> LayerSize:
    """Returns the size of a kernel.

    Args:
      kernel: The kernel.
      type_name: `LayerSize.type`.
      macs: Multiply-accumulates for one row; None if unknown.
    """
    values = kernel.values
    zeros = int(values.size - np.count_nonzero(values))
    sparsity = zeros / values.size if values.size else 0.0
    return LayerSize(
        name=kernel.name, type=type_name, parameters=int(values.size), zeros=zeros, sparsity=sparsity, macs=macs
    )


def measure_other_weights(name: str, type_name: str, parameters: int) -> LayerSize:
    """Returns the size of weights that are no kernel, such as those of a normalization layer."""
    return LayerSize(name=name, type=type_name, parameters=parameters, zeros=0, sparsity=0.0, macs=0)


def total_size(layers: list[LayerSize], kernel_parameters: int, weights: Iterable[np.ndarray]) -> ModelSize:
    """Returns the size of a model.

    Args:
      layers: Sizes of its layers.
      kernel_parameters: Number of weights in all kernels.
      weights: All weights. They are read one at a time, so that a generator saves memory.
    """
    parameters = raw = gzip = 0
    for weight in weights:
        parameters += weight.size
        raw += weight.nbytes
        gzip += gzipped(weight.tobytes())
    macs = sum(layer.macs or 0 for layer in layers)
    known = macs > 0 or all(layer.macs is not None for layer in layers)
    return ModelSize(
        parameters=parameters,
        sparsity=sum(layer.zeros for layer in layers) / kernel_parameters if kernel_parameters else 0.0,
        macs=macs if known else None,
        nonzero_macs=round(sum((layer.macs or 0) * (1 - layer.sparsity) for layer in layers)) if known else None,
        bytes=raw,
        bytes_gzip=gzip,
        layers=tuple(layers),
    )


def _macs_by_variable(model: Any) -> dict[int, int | None]:
    """Returns multiply-accumulates for one row by `variable_id`; empty if the model's graph can't be traced."""
    if not graph.has_inputs_and_outputs(model):
        return {}
    rows = model.inputs[0].shape[0] or 1  # A stateful model has a fixed batch size.
    specs = [tf.TensorSpec([rows, *tensor.shape[1:]], tensor.dtype) for tensor in model.inputs]
    network = graph.extract_network(model)
    structure = graph.io_structures(network)[0]

    def call(*inputs: tf.Tensor) -> Any:
        return network(tf.nest.pack_sequence_as(structure, inputs), training=False)

    try:
        function = tf.function(call).get_concrete_function(*specs)
    except (ValueError, TypeError, tf.errors.OpError):  # Inputs may be no plain tensors; user layers may fail.
        return {}
    return {key: total_macs([_for_one_row(use, rows) for use in uses]) for key, uses in find_uses(function).items()}


def _for_one_row(use: VariableUse, rows: int) -> VariableUse:
    if use.macs is None or use.kind == "recurrent":  # A loop's are for one row already.
        return use
    return dataclasses.replace(use, macs=use.macs // rows)


def _is_numeric(weight: Any) -> bool:
    """Returns whether a weight holds numbers. In Keras 2, the vocabulary of a lookup layer is a weight, too."""
    return hasattr(weight, "shape")


def _parameters(variable: Any) -> int:
    return int(np.prod(variable.shape))
