"""Statistics of a model between two training steps, for mask updates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.pruning.keras_statistics import KerasStatistics
from tfx_compression.sparsity_fine_tuner.variables import unique


class TrainingStatistics(KerasStatistics):
    """Statistics that leave the metrics of the epoch as they are.

    Keras 2 adds each loss that it computes to its metrics.
    """

    def gradients(self, batch: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See the base class."""
        states = unique(variable for metric in self._model.metrics for variable in metric.variables)
        values = [variable.numpy() for variable in states]
        gradients = super().gradients(batch, names)
        for variable, value in zip(states, values, strict=True):
            variable.assign(value)
        return gradients

    def mean_gradients(self, names: list[str]) -> dict[str, np.ndarray]:
        """Returns the gradients of the mean loss of the sample with respect to kernels, by their names."""
        batches = [self.gradients(batch, names) for batch in self.batches()]
        return {name: np.mean([gradients[name] for gradients in batches], axis=0) for name in names}

    def _gradients(self, variables: Sequence[Any], features: Any, labels: Any, weights: Any) -> list[tf.Tensor]:
        """Computes the gradients on each device of a strategy: outside of them, variables can't be watched."""
        strategy = tf.distribute.get_strategy()
        devices = strategy.num_replicas_in_sync
        if devices == 1:
            return super()._gradients(variables, features, labels, weights)
        gradients = strategy.run(super()._gradients, (variables, features, labels, weights))
        # Every device computes the same, of the loss divided by the number of devices.
        return [strategy.experimental_local_results(value)[0] * devices for value in gradients]
