"""What a Keras model is made of: its kernels, their zeros and the multiply-accumulates they take."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import pydantic
import tensorflow as tf

from tfx_compression import kernels
from tfx_compression.compressed_size import gzipped
from tfx_compression.keras_models import graph
from tfx_compression.kernels import Kernel, variable_uses


class LayerSize(pydantic.BaseModel):
    """One kernel, or the weights of one layer that has none.

    Attributes:
      name: layer name, with the kernel's where it has several; of a SavedModel without layers, the variable's.
      type: Keras class; of a SavedModel without layers, the TensorFlow operation.
      parameters: number of weights, biases included.
      zeros: how many of the kernel's weights are zero.
      sparsity: zeros as a fraction of the kernel.
      macs: multiply-accumulates for one row, or None where the layer's are not known.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    name: str
    type: str
    parameters: int
    zeros: int
    sparsity: float
    macs: int | None


class ModelSize(pydantic.BaseModel):
    """A model in numbers.

    Attributes:
      parameters: number of weights, in all layers.
      sparsity: fraction of zeros in all kernels (convolution and dense weights; not biases or normalisation).
      macs: multiply-accumulates for one row, over the layers where they are known.
      nonzero_macs: those of them whose weight is not zero.
      bytes: size of the weights as they are in memory.
      bytes_gzip: the same, gzipped.
      layers: one entry per layer with weights.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    parameters: int
    sparsity: float
    macs: int
    nonzero_macs: int
    bytes: int
    bytes_gzip: int
    layers: tuple[LayerSize, ...]


def measure(model: Any) -> ModelSize:
    """Counts parameters, zeros and multiply-accumulates of a Keras 2 or Keras 3 model, per layer and whole.

    Multiply-accumulates are those of the kernels, as the model's graph uses them: of a layer that is called several
    times or in a loop, all of them. Products of activations with each other are not counted.
    """
    macs = _macs(model)
    ranges = {_key(weight) for weight in kernels.quantization_variables(model)}
    by_layer: dict[int, list[Kernel]] = {}
    for kernel in kernels.find_kernels(model).values():
        by_layer.setdefault(id(kernel.layer), []).append(kernel)
    rows: list[LayerSize] = []
    for leaf, layer in kernels.leaf_layers(model).items():
        own = by_layer.get(id(layer), [])
        rows += [measure_kernel(kernel, type(layer).__name__, macs.pop(_key(kernel.variable), None)) for kernel in own]
        weights = {_key(weight): weight for weight in kernels.direct_weights(layer) if _is_numbers(weight)}
        beside = set(weights) - {_key(kernel.variable) for kernel in own} - ranges
        others = sum(_size(weights[key]) for key in beside)
        if others > 0 and own:  # the bias is counted with the layer's last kernel
            rows[-1] = rows[-1].model_copy(update={"parameters": rows[-1].parameters + others})
        elif others > 0:
            rows.append(measure_other_weights(leaf, type(layer).__name__, others))
    size = sum(_size(kernel.variable) for own in by_layer.values() for kernel in own)
    counted = (weight for weight in model.weights if _is_numbers(weight) and _key(weight) not in ranges)
    return total_size(rows, size, (np.asarray(weight) for weight in counted))


def measure_kernel(kernel: Kernel, kind: str, macs: int | None) -> LayerSize:
    """The entry of a kernel."""
    values = kernel.values
    zeros = int(values.size - np.count_nonzero(values))
    sparsity = zeros / values.size if values.size else 0.0
    return LayerSize(
        name=kernel.name, type=kind, parameters=int(values.size), zeros=zeros, sparsity=sparsity, macs=macs
    )


def measure_other_weights(name: str, kind: str, parameters: int) -> LayerSize:
    """The entry of weights that are no kernel."""
    return LayerSize(name=name, type=kind, parameters=parameters, zeros=0, sparsity=0.0, macs=None)


def total_size(rows: list[LayerSize], size: int, weights: Iterable[np.ndarray]) -> ModelSize:
    """The sums over a model's entries, its kernels of `size` numbers, and all its weights, of which one is held."""
    parameters = raw = packed = 0
    for weight in weights:
        parameters += weight.size
        raw += weight.nbytes
        packed += gzipped(weight.tobytes())
    return ModelSize(
        parameters=parameters,
        sparsity=sum(row.zeros for row in rows) / size if size else 0.0,
        macs=sum(row.macs or 0 for row in rows),
        nonzero_macs=round(sum((row.macs or 0) * (1 - row.sparsity) for row in rows)),
        bytes=raw,
        bytes_gzip=packed,
        layers=tuple(rows),
    )


def _macs(model: Any) -> dict[int, int | None]:
    """Multiply-accumulates by the handle of the kernel's variable; none of a model whose graph can't be seen."""
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        return {}
    rows = model.inputs[0].shape[0] or 1  # of a stateful model, the size of its batches
    specs = [tf.TensorSpec([rows, *tensor.shape[1:]], tensor.dtype) for tensor in model.inputs]
    network = graph.extract_network(model)
    taken = graph.io_structures(network)[0]

    def call(*inputs: tf.Tensor) -> Any:
        return network(tf.nest.pack_sequence_as(taken, inputs), training=False)

    try:
        function = tf.function(call).get_concrete_function(*specs)
    except (ValueError, TypeError, tf.errors.OpError):  # of inputs that no such tensors are, or of layers of the user's
        return {}
    return {
        key: variable_uses.total_macs([_of_one_row(use, rows) for use in uses])
        for key, uses in variable_uses.find_uses(function).items()
    }


def _of_one_row(use: variable_uses.VariableUse, rows: int) -> variable_uses.VariableUse:
    if use.macs is None or use.kind == "recurrent":  # a loop's are those of one row
        return use
    return dataclasses.replace(use, macs=use.macs // rows)


def _key(variable: Any) -> int:
    return id(variable_uses.resource_handle(variable))


def _is_numbers(weight: Any) -> bool:
    """Whether a weight is one: Keras 2 counts the vocabulary of a lookup layer among them."""
    return hasattr(weight, "shape")


def _size(variable: Any) -> int:
    return int(np.prod(variable.shape))
