"""What a Keras model is made of: its kernels, their zeros and the multiply-accumulates they take."""

import math

import numpy as np
import pydantic
import tf_keras

from tfx_compression.models.gzipped import gzipped

_TRANSPOSED = (tf_keras.layers.Conv1DTranspose, tf_keras.layers.Conv2DTranspose, tf_keras.layers.Conv3DTranspose)
_SLIDING = (
    tf_keras.layers.Dense,
    tf_keras.layers.Conv1D,
    tf_keras.layers.Conv2D,
    tf_keras.layers.Conv3D,
    tf_keras.layers.DepthwiseConv1D,
    tf_keras.layers.DepthwiseConv2D,
    tf_keras.layers.SeparableConv1D,
    tf_keras.layers.SeparableConv2D,
)
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

    The name is the layer's, behind those of the models that it is nested in (`encoder/dense`); a layer with several
    kernels (separable convolution) gives `layer/attribute` for each.
    """
    found = {}
    for name, layer in leaves(model).items():
        own = [attribute for attribute in KERNELS if _rank(layer, attribute) >= 2]
        for attribute in own:
            found[name if len(own) == 1 else f"{name}/{attribute}"] = (layer, attribute)
    return found


def leaves(model: tf_keras.Model) -> dict[str, tf_keras.layers.Layer]:
    """The layers of a model and of the models nested in it, each once, by name as in `kernels`."""
    found: dict[str, tf_keras.layers.Layer] = {}
    seen: set[int] = set()

    def visit(layers: list[tf_keras.layers.Layer], scope: str) -> None:
        for layer in layers:
            if isinstance(layer, tf_keras.Model):
                visit(layer.layers, f"{scope}{layer.name}/")
            elif id(layer) not in seen:
                seen.add(id(layer))
                found[f"{scope}{layer.name}"] = layer

    visit(model.layers, "")
    return found


def measure(model: tf_keras.Model) -> ModelSize:
    """Counts parameters, zeros and multiply-accumulates of a Keras model, per layer and whole."""
    rows: list[LayerSize] = []
    size = zeros = 0
    by_layer: dict[int, list[tuple[str, str]]] = {}
    for name, (layer, attribute) in kernels(model).items():
        by_layer.setdefault(id(layer), []).append((name, attribute))
    for leaf, layer in leaves(model).items():
        others = layer.count_params()
        for name, attribute in by_layer.get(id(layer), ()):
            kernel = np.asarray(getattr(layer, attribute))
            found = int(kernel.size - np.count_nonzero(kernel))
            size, zeros, others = size + kernel.size, zeros + found, others - kernel.size
            rows.append(_row(name, layer, kernel.size, found, kernel.size, _macs(layer, kernel.size)))
        if others and id(layer) in by_layer:  # the bias is counted with the layer's last kernel
            rows[-1] = rows[-1].model_copy(update={"parameters": rows[-1].parameters + others})
        elif others:
            rows.append(_row(leaf, layer, others, 0, 0, None))
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
    """Each weight of a dense or convolution kernel is used once per place of the output (transposed: of the input)."""
    transposed = isinstance(layer, _TRANSPOSED)
    if (not transposed and not isinstance(layer, _SLIDING)) or len(layer.inbound_nodes) > 1:  # several calls add up
        return None
    shape = layer.input_shape if transposed else layer.output_shape
    if not isinstance(shape, tuple):
        return None
    places = shape[2:] if getattr(layer, "data_format", None) == "channels_first" else shape[1:-1]
    return None if None in places else int(kernel_size) * math.prod(places)
