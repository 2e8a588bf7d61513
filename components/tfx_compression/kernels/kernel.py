"""The kernel: the weight tensor that pruning works on, in a model of any kind."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

KernelKind = Literal["dense", "convolution", "transposed", "depthwise", "einsum", "recurrent", "embedding"]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A weight tensor that takes part in a multiplication.

    Attributes:
      name: Unique name in the model: the layer's, after the models and layers that it is nested in (`encoder/dense`),
        followed by the attribute's if the layer has several kernels. In a SavedModel without layers, the variable's.
      variable: A tf.Variable or a Keras 3 Variable, which both have `numpy()`, `assign(array)` and `shape`.
      kind: Kind of the multiplication.
      input_axes: Axes that the multiplication sums over. The last one is contiguous in the runtime's memory. Empty for
        an embedding.
      output_axes: The other axes.
      layer: The Keras layer that it belongs to, if any.
      attribute: Name of the kernel in that layer.
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
        """Whether single weights of the kernel can be pruned. Depthwise kernels have few weights and need them."""
        return self.kind != "depthwise"

    def to_matrix(self, values: np.ndarray) -> np.ndarray:
        """Reshapes values from the kernel's shape to [inputs, outputs], the transpose of the runtime's layout."""
        rows = math.prod(values.shape[axis] for axis in self.input_axes)
        return values.transpose(self.input_axes + self.output_axes).reshape(rows, -1)

    def from_matrix(self, matrix: np.ndarray) -> np.ndarray:
        """Reshapes a matrix of [inputs, outputs] back to the kernel's shape."""
        order = self.input_axes + self.output_axes
        return matrix.reshape([self.shape[axis] for axis in order]).transpose(np.argsort(order))
