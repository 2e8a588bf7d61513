"""The kernels of a model: the weights that pruning looks at, whatever kind of model they belong to."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

# Attributes of Keras 2 and Keras 3 layers. The kernel of an inner layer (a cell of an RNN, the query projection of an
# attention layer) belongs to that inner layer.
KERNEL_ATTRIBUTES = ("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel", "embeddings")

KernelKind = Literal["dense", "convolution", "transposed", "depthwise", "einsum", "recurrent", "embedding"]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A weight tensor that takes part in a multiplication.

    Attributes:
      name: unique in the model: the layer's, behind those that it is nested in (`encoder/dense`), and the kernel's
        where a layer has several; of a SavedModel without layers, the variable's.
      variable: a tf.Variable or a Keras 3 Variable: `.numpy()`, `.assign(array)`, `.shape`.
      kind: what it multiplies.
      input_axes: the axes that the multiplication sums over, the one that lies closest together in the runtime's memory
        last. Empty for an embedding.
      output_axes: the other axes.
      layer: the Keras layer that it belongs to, or None.
      attribute: its name in the layer.
    """

    name: str
    variable: Any
    kind: KernelKind
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    layer: Any = None
    attribute: str = ""

    @property
    def values(self) -> np.ndarray:
        """The weights, in the kernel's shape."""
        return np.asarray(self.variable.numpy())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return tuple(int(size) for size in self.variable.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one weight."""
        return int(np.dtype(getattr(self.variable.dtype, "name", self.variable.dtype)).itemsize)

    @property
    def prunable(self) -> bool:
        """Whether single weights of it are pruned: not of depthwise kernels, which have few and need them."""
        return self.kind != "depthwise"

    def to_matrix(self, values: np.ndarray) -> np.ndarray:
        """`values`, in the kernel's shape, as [inputs, outputs], as the runtime lays the kernel out (transposed)."""
        rows = math.prod(values.shape[axis] for axis in self.input_axes)
        return values.transpose(self.input_axes + self.output_axes).reshape(rows, -1)

    def from_matrix(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `to_matrix`."""
        order = self.input_axes + self.output_axes
        return matrix.reshape([self.shape[axis] for axis in order]).transpose(np.argsort(order))


def sublayers(layer: Any) -> list[Any]:
    """The layers that a layer or model is made of, of Keras 2 or Keras 3."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def is_quantize_wrapper(layer: Any) -> bool:
    """Whether a layer is tfmot's, around one that it makes quantization-aware: its weights are ranges only."""
    return any(kind.__name__ == "QuantizeWrapper" for kind in type(layer).__mro__)


def leaf_layers(model: Any) -> dict[str, Any]:
    """The layers of a Keras model that hold weights of their own or no other layers, each once, in the model's order.

    By name, behind the names of the models and layers that they are nested in: `encoder/dense`, `lstm/lstm_cell`. A
    quantization-aware layer is the one that tfmot wraps, under the wrapper's name.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(layer: Any, name: str) -> None:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        if is_quantize_wrapper(layer):
            found[name] = layer.layer
            return
        inner = sublayers(layer)
        if not inner or direct_weights(layer):
            found[name] = layer
        for child in inner:
            visit(child, f"{name}/{child.name}")

    for layer in sublayers(model):
        visit(layer, layer.name)
    return found


def direct_weights(layer: Any) -> list[Any]:
    """The weights of a layer that are not of the layers inside it."""
    inner = {id(weight) for child in sublayers(layer) for weight in child.weights}
    return [weight for weight in layer.weights if id(weight) not in inner]


def quantization_variables(model: Any) -> list[Any]:
    """What tfmot adds to the weights of a quantization-aware model: the ranges that it rounds in, counts of steps."""
    found: list[Any] = []
    for layer in model._flatten_layers(include_self=False):
        if type(layer).__name__ == "QuantizeLayer":
            found += layer.weights
        elif is_quantize_wrapper(layer):
            own = {id(weight) for weight in (*layer.layer.weights, *_unrounded(layer).values())}
            found += [weight for weight in layer.weights if id(weight) not in own]
    return found


def _unrounded(wrapper: Any) -> dict[str, Any]:
    """The variables that a wrapper of tfmot's rounds, by attribute of its layer, which holds the rounded tensor."""
    return {wrapper._weight_name(weight.name): weight for weight, _, _ in wrapper._weight_vars}


def find_kernels(model: Any) -> dict[str, Kernel]:
    """The kernels of rank 2 or more of a Keras 2 or Keras 3 model, by name, in the model's order."""
    unrounded = {
        id(layer.layer): _unrounded(layer)
        for layer in model._flatten_layers(include_self=False)
        if is_quantize_wrapper(layer)
    }
    found = {}
    for leaf, layer in leaf_layers(model).items():
        attributes = [name for name in KERNEL_ATTRIBUTES if len(getattr(getattr(layer, name, None), "shape", ())) >= 2]
        for attribute in attributes:
            name = leaf if len(attributes) == 1 else f"{leaf}/{attribute}"
            kind, inputs, outputs = _axes(layer, attribute)
            variable = unrounded.get(id(layer), {}).get(attribute, getattr(layer, attribute))
            found[name] = Kernel(name, variable, kind, inputs, outputs, layer, attribute)
    return found


def _axes(layer: Any, attribute: str) -> tuple[KernelKind, tuple[int, ...], tuple[int, ...]]:
    """What a layer's kernel multiplies, the axes that are summed over, and the others."""
    rank = len(getattr(layer, attribute).shape)
    kind = type(layer).__name__
    every = tuple(range(rank))
    if attribute == "embeddings":
        return "embedding", (), every
    if attribute == "recurrent_kernel":
        return "recurrent", every[:-1], every[-1:]
    if attribute == "depthwise_kernel" or kind.startswith("DepthwiseConv"):
        return "depthwise", every[:-2], every[-2:]
    if kind.endswith("Transpose"):
        return "transposed", (*every[:-2], rank - 1), (rank - 2,)
    if kind == "EinsumDense":
        weights, result = layer.equation.replace(" ", "").split(",")[1].split("->")
        outputs = tuple(axis for axis, letter in enumerate(weights) if letter in result)
        return "einsum", tuple(axis for axis in every if axis not in outputs), outputs
    return ("dense" if rank == 2 else "convolution"), every[:-1], every[-1:]
