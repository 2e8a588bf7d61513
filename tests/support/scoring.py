"""Kernels and statistics made by hand, for tests of importance scores."""

from typing import Any

import numpy as np
import tensorflow as tf
from tfx_compression.kernels import Kernel
from tfx_compression.pruning import criteria, importance
from tfx_compression.pruning.plan import PruningPlan


def kernel(values: Any, kind: Any = "convolution", name: str = "k", outputs: Any = None) -> Kernel:
    values = np.asarray(values, np.float32)
    outputs = (values.ndim - 1,) if outputs is None else outputs
    inputs = tuple(axis for axis in range(values.ndim) if axis not in outputs)
    return Kernel(name, tf.Variable(values), kind, inputs, outputs)


def random_kernel(*shape: int, seed: int = 0, **arguments: Any) -> Kernel:
    return kernel(np.random.default_rng(seed).normal(size=shape), **arguments)


def scores(
    one: Kernel, criterion: str, technique: Any = "filter", statistics: Any = None, axes: Any = None, **plan: Any
) -> np.ndarray:
    """Returns the scores of one kernel by a criterion."""
    plan = PruningPlan(criterion=criterion, technique=technique, **plan)
    actual = importance.score({one.name: one}, [one.name], plan, criteria.lookup(criterion), statistics, axes)
    return actual[one.name]


class FakeStatistics:
    """Statistics made by hand: one entry per batch, and the same ones per row."""

    def __init__(self, gradients: Any = (), activations: Any = (), scale: Any = None, gates: Any = ()):
        self._gradients, self._activations, self._scale, self._gates = gradients, activations, scale, gates

    def batches(self) -> Any:
        return range(len(self._gradients or self._activations))

    rows = batches

    def gradients(self, batch: Any, names: Any) -> Any:
        return dict.fromkeys(names, np.asarray(self._gradients[batch], np.float32))

    def gates(self, batch: Any, names: Any) -> Any:
        return dict.fromkeys(names, np.asarray(self._gates[batch], np.float32)) if self._gates else {}

    def activations(self, batch: Any, names: Any) -> Any:
        return dict.fromkeys(names, np.asarray(self._activations[batch], np.float32))

    def scales(self) -> Any:
        return {} if self._scale is None else {"k": np.asarray(self._scale, np.float32)}

    def metrics(self) -> Any:
        return {}
