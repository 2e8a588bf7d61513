"""What is kept true of the weights after each step, whatever the optimizer did: a projection of kernels."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfx_compression.kernels import Kernel
from tfx_compression.model_handle.compressed import Masks
from tfx_compression.sparsity_fine_tuner.trainee import unique


class Hold(Protocol):
    """A projection of some kernels."""

    @property
    def variables(self) -> list[tf.Variable]:
        """Its state."""

    def apply(self) -> None:
        """Projects, also inside a tf.function."""


class Zeros:
    """Weights that stay zero: masks, which may be exchanged while training.

    Args:
      kernels: of the model, by name.
      masks: by kernel, False (or 0) where it is pruned.
    """

    def __init__(self, kernels: Mapping[str, Kernel], masks: Masks):
        self._pairs: dict[str, tuple[tf.Variable, tf.Variable]] = {}
        self.add(kernels, masks)
        self.on = tf.Variable(True, trainable=False, name="masks_hold")

    @property
    def variables(self) -> list[tf.Variable]:
        """The masks."""
        return [self.on, *(mask for _, mask in self._pairs.values())]

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks of now."""
        return {name: mask.numpy() for name, (_, mask) in self._pairs.items()}

    def add(self, kernels: Mapping[str, Kernel], masks: Masks) -> None:
        """Takes more kernels, before training."""
        for name, mask in masks.items():
            kept = tf.Variable(mask.astype(bool), trainable=False, name=f"{name.replace('/', '_')}_mask")
            self._pairs[name] = (_variable(kernels[name]), kept)

    def exchange(self, masks: Masks) -> None:
        """Takes other masks, of the same kernels, and applies them."""
        for name, mask in masks.items():
            self._pairs[name][1].assign(mask.astype(bool))
        self.on.assign(True)
        self.apply()

    def apply(self) -> None:
        """Zeroes what is masked, unless `on` is False: just before masks are chosen anew, all may move a step."""
        if not self._pairs:
            return
        tf.cond(self.on, self._zero, lambda: None)

    def _zero(self) -> None:
        for variable, mask in self._pairs.values():
            variable.assign(variable * tf.cast(mask, variable.dtype))


class Clusters:
    """Weights that share values: each is the mean of its cluster.

    Args:
      kernels: of the model, by name.
      indices: by kernel, the number of each weight's cluster, in the kernel's shape.
    """

    def __init__(self, kernels: Mapping[str, Kernel], indices: Mapping[str, np.ndarray]):
        self._pairs = [
            (_variable(kernels[name]), tf.constant(index, tf.int32), int(index.max()) + 1)
            for name, index in indices.items()
        ]

    @property
    def variables(self) -> list[tf.Variable]:
        """None: which weights belong together is settled before training."""
        return []

    def apply(self) -> None:
        """Sets each weight to the mean of its cluster."""
        for variable, index, count in self._pairs:
            means = tf.math.unsorted_segment_mean(tf.reshape(variable, [-1]), tf.reshape(index, [-1]), count)
            variable.assign(tf.gather(means, index))


def _variable(kernel: Kernel) -> Any:
    (variable,) = unique([kernel.variable])
    return variable
