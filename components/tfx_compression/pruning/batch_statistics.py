"""Statistics of batch normalizations, computed anew on data once channels are removed.

Without the removed channels the inputs of a normalization have other means and variances than the moving ones that the
training left. They are replaced by the moments over all batches, not by an exponential average of them (PreciseBN,
Wu & Johnson 2021, arXiv:2105.07576).
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.keras_models import execution, graph
from tfx_compression.pruning.sample import finite_inputs

LEAST_ROWS = 64  # fewer say less about the data than the statistics of the whole network do


def recalibrate(network: Any, data: tf.data.Dataset, batches: int, batch_size: int) -> tuple[list[Any], list[str]]:
    """Computes the moving means and variances of a network's batch normalizations anew.

    Each normalization uses the moments of the batch, as in training, and everything else is in inference mode. Frozen
    normalizations, and those inside other layers than models, are left as they are.

    Args:
      network: Functional Keras 2 or Keras 3 model, which is changed.
      data: Batches of (features, …).
      batches: Number of batches.
      batch_size: Rows per batch.

    Returns:
      The normalizations with new statistics, and messages for the user.

    Raises:
      DataError: A value of the data is NaN or infinite.
    """
    layers = {id(layer): layer for layer in _normalizations(network)}
    if not layers or not batches:
        return [], []
    if tf.distribute.has_strategy():
        return [], ["The statistics of batch normalizations are those of the whole network, as a strategy is active."]
    before = {key: (layer.moving_mean.numpy(), layer.moving_variance.numpy()) for key, layer in layers.items()}
    moments = _Moments(network, layers)
    with _no_momentum(layers.values()):
        for features, *_ in data.unbatch().batch(batch_size).take(batches):
            moments.add(finite_inputs(network, features, moments.rows))
    enough = moments.rows >= LEAST_ROWS
    changed, notes = [], []
    for key, layer in layers.items():
        new = [value.astype(old.dtype) for value, old in zip(moments.result(key), before[key], strict=True)]
        finite = all(np.isfinite(value).all() for value in new)
        mean, variance = new if enough and finite else before[key]
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
        if enough and finite:
            changed.append(layer)
        elif enough:
            notes.append(
                f"The input of {layer.name!r} is not finite on the data, so its statistics are left as they are."
            )
    if not enough:
        return [], [
            f"The data has {moments.rows} rows, too few for new statistics of the batch normalizations, which takes "
            f"{LEAST_ROWS}: they are those of the whole network. Remedy: more rows, or fine-tuning."
        ]
    if changed:
        notes.append(
            f"The statistics of {len(changed)} batch normalizations were computed anew on {moments.rows:,} rows."
        )
    return changed, notes


class _Moments:
    """The moments of the inputs of batch normalizations, over batches."""

    def __init__(self, network: Any, layers: dict[int, Any]):
        self._network, self._layers = network, layers
        self._order: list[int] = []  # of the ids of layers, once for each of their calls
        self._sums = {key: (np.float64(0), np.float64(0)) for key in layers}
        self._weights = dict.fromkeys(layers, 0)
        # TensorFlow counts the traces of a function's code, over all networks; a partial has none.
        traced = functools.partial(self._batch_moments)
        self._traced = tf.function(traced, autograph=False, reduce_retracing=True)
        self.rows = 0

    def add(self, inputs: list[Any]) -> None:
        """Adds the moments of a batch."""
        rows = int(tf.nest.flatten(inputs)[0].shape[0])
        values = self._traced(inputs)
        for key, (mean, variance) in zip(self._order, values, strict=True):
            means, squares = self._sums[key]
            mean_square = np.square(mean, dtype=np.float64) + np.asarray(variance, np.float64)
            self._sums[key] = means + rows * np.asarray(mean, np.float64), squares + rows * mean_square
            self._weights[key] += rows
        self.rows += rows

    def result(self, key: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and variance of all batches."""
        mean, square = (np.asarray(total) / self._weights[key] for total in self._sums[key])
        return mean, np.maximum(square - mean**2, 0)

    def _batch_moments(self, inputs: list[Any]) -> list[tuple[Any, Any]]:
        self._order.clear()
        values = []

        def apply(call: graph.Call) -> Any:
            layer = call.layer
            if id(layer) not in self._layers:
                return execution.call_layer(call)
            result = layer(*call.args, **{**call.kwargs, "training": True})
            self._order.append(id(layer))
            values.append(tuple(tf.identity(each) for each in (layer.moving_mean, layer.moving_variance)))
            return result

        execution.execute(self._network, inputs, apply)
        return values


def _normalizations(model: Any) -> Iterator[Any]:
    for call in graph.calls(model):
        if graph.is_functional(call.layer):
            yield from _normalizations(call.layer)
        elif hasattr(call.layer, "moving_mean") and hasattr(call.layer, "momentum") and call.layer.trainable:
            yield call.layer


@contextlib.contextmanager
def _no_momentum(layers: Iterable[Any]) -> Iterator[None]:
    """Makes the moving moments of normalizations those of the last batch."""
    momentum = [(layer, layer.momentum) for layer in layers]
    try:
        for layer, _ in momentum:
            layer.momentum = 0.0
        yield
    finally:
        for layer, value in momentum:
            layer.momentum = value
