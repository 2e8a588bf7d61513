"""Constraints on kernels, applied after each training step whatever the optimizer did."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import tensorflow as tf

from tfx_compression.kernels import Kernel
from tfx_compression.model_handle.compressed import Masks
from tfx_compression.sparsity_fine_tuner.variables import unique


class WeightConstraint(Protocol):
    """A projection of kernels onto the values that they may have."""

    @property
    def variables(self) -> list[tf.Variable]:
        """The state of the constraint, which checkpoints keep."""

    def apply(self) -> None:
        """Projects the kernels. It may run inside a tf.function."""


class MaskConstraint:
    """Keeps pruned weights zero. A mask updater may replace the masks while training.

    Attributes:
      enabled: Whether `apply` has an effect. It is off for the step before masks are chosen again, so that pruned
        weights move and may come back.

    Args:
      kernels: Kernels of the model by name.
      masks: Masks by kernel name, False (or 0) where a weight is pruned.
    """

    def __init__(self, kernels: Mapping[str, Kernel], masks: Masks):
        self._pairs: dict[str, tuple[tf.Variable, tf.Variable]] = {}
        self.add(kernels, masks)
        self.enabled = tf.Variable(True, trainable=False, name="masks_enabled")

    @property
    def variables(self) -> list[tf.Variable]:
        """The masks, and whether they are applied."""
        return [self.enabled, *(mask for _, mask in self._pairs.values())]

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The current masks by kernel name."""
        return {name: mask.numpy() for name, (_, mask) in self._pairs.items()}

    def add(self, kernels: Mapping[str, Kernel], masks: Masks) -> None:
        """Adds kernels. Call it before training: the training step is traced once."""
        for name, mask in masks.items():
            variable = tf.Variable(mask.astype(bool), trainable=False, name=f"{name.replace('/', '_')}_mask")
            self._pairs[name] = (_variable(kernels[name]), variable)

    def replace(self, masks: Masks) -> None:
        """Replaces the masks of the given kernels and applies all masks."""
        for name, mask in masks.items():
            self._pairs[name][1].assign(mask.astype(bool))
        self.enabled.assign(True)
        self.apply()

    def apply(self) -> None:
        """Sets the pruned weights to zero, unless the constraint is disabled."""
        if not self._pairs:
            return
        tf.cond(self.enabled, self._zero, lambda: None)

    def _zero(self) -> None:
        for variable, mask in self._pairs.values():
            variable.assign(variable * tf.cast(mask, variable.dtype))


class ClusterConstraint:
    """Keeps the weights of a cluster equal: each weight is set to the mean of its cluster.

    Args:
      kernels: Kernels of the model by name.
      clusters: Cluster number of each weight, by kernel name and in the kernel's shape.
    """

    def __init__(self, kernels: Mapping[str, Kernel], clusters: Mapping[str, np.ndarray]):
        self._kernels = [
            (_variable(kernels[name]), tf.constant(numbers, tf.int32), int(numbers.max()) + 1)
            for name, numbers in clusters.items()
        ]

    @property
    def variables(self) -> list[tf.Variable]:
        """An empty list: clusters don't change while training."""
        return []

    def apply(self) -> None:
        """Sets each weight to the mean of its cluster."""
        for variable, numbers, count in self._kernels:
            means = tf.math.unsorted_segment_mean(tf.reshape(variable, [-1]), tf.reshape(numbers, [-1]), count)
            variable.assign(tf.gather(means, numbers))


def _variable(kernel: Kernel) -> tf.Variable:
    (variable,) = unique([kernel.variable])
    return variable
