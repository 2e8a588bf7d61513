"""What a Keras model is made of: its kernels, their zeros and the multiply-accumulates they take."""

import math
from collections.abc import Iterator

import numpy as np
import pydantic
import tf_keras

from tfx_compression.models.gzipped import gzipped

KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")


class LayerSize(pydantic.BaseModel):
    """One kernel, or the weights of one layer that has none.

    Attributes:
      name: layer name, with the kernel's where it has several.
      type: Keras class.
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
      bytes: size of the weights as they are in memory.
      bytes_gzip: the same, gzipped.
      layers: one entry per layer with weights.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    parameters: int
    sparsity: float
    macs: int
    bytes: int
    bytes_gzip: int
    layers: tuple[LayerSize, ...]


def kernels(model: tf_keras.Model) -> dict[str, tuple[tf_keras.layers.Layer, str]]:
    """The layers that have kernels of rank 2 or more, as `{name: (layer, attribute)}`, in the model's order.

    The name is the layer's; a layer with several kernels (separable convolution) gives `layer/attribute` for each.
    """
    found = {}
    for layer in leaves(model):
        own = [attribute for attribute in KERNELS if _rank(layer, attribute) >= 2]
        for attribute in own:
            found[layer.name if len(own) == 1 else f"{layer.name}/{attribute}"] = (layer, attribute)
    return found


def leaves(model: tf_keras.Model) -> Iterator[tf_keras.layers.Layer]:
    """The layers of a model and of the models in it, each once."""
    seen: set[int] = set()
    pending = list(model.layers)
    while pending:
        layer = pending.pop(0)
        if isinstance(layer, tf_keras.Model):
            pending = [*layer.layers, *pending]
        elif id(layer) not in seen:
            seen.add(id(layer))
            yield layer


def measure(model: tf_keras.Model) -> ModelSize:
    """Counts parameters, zeros and multiply-accumulates of a Keras model, per layer and whole."""
    rows: list[LayerSize] = []
    size = zeros = 0
    by_layer: dict[int, list[tuple[str, str]]] = {}
    for name, (layer, attribute) in kernels(model).items():
        by_layer.setdefault(id(layer), []).append((name, attribute))
    for layer in leaves(model):
        others = layer.count_params()
        for name, attribute in by_layer.get(id(layer), ()):
            kernel = np.asarray(getattr(layer, attribute))
            found = int(kernel.size - np.count_nonzero(kernel))
            size, zeros, others = size + kernel.size, zeros + found, others - kernel.size
            rows.append(_row(name, layer, kernel.size, found, kernel.size, _macs(layer, kernel.size)))
        if others and id(layer) in by_layer:  # the bias is counted with the layer's last kernel
            rows[-1] = rows[-1].model_copy(update={"parameters": rows[-1].parameters + others})
        elif others:
            rows.append(_row(layer.name, layer, others, 0, 0, None))
    weights = [np.asarray(weight) for weight in model.weights]
    return ModelSize(
        parameters=sum(weight.size for weight in weights),
        sparsity=zeros / size if size else 0.0,
        macs=sum(row.macs or 0 for row in rows),
        bytes=sum(weight.nbytes for weight in weights),
        bytes_gzip=sum(gzipped(weight.tobytes()) for weight in weights),
        layers=tuple(rows),
    )


def _row(
    name: str, layer: tf_keras.layers.Layer, parameters: int, zeros: int, kernel: int, macs: int | None
) -> LayerSize:
    sparsity = zeros / kernel if kernel else 0.0
    return LayerSize(
        name=name,
        type=type(layer).__name__,
        parameters=int(parameters),
        zeros=zeros,
        sparsity=sparsity,
        macs=macs,
    )


def _rank(layer: tf_keras.layers.Layer, attribute: str) -> int:
    return len(getattr(getattr(layer, attribute, None), "shape", ()))


def _macs(layer: tf_keras.layers.Layer, kernel_size: int) -> int | None:
    """Each weight is used once per place of the output, or of the input of a transposed convolution."""
    transposed = type(layer).__name__.endswith("Transpose")
    try:
        shape = layer.input_shape if transposed else layer.output_shape
    except AttributeError:  # a layer that is called more than once has no single shape
        return None
    if not isinstance(shape, tuple):
        return None
    places = shape[2:] if getattr(layer, "data_format", None) == "channels_first" else shape[1:-1]
    return None if None in places else int(kernel_size) * math.prod(places)
