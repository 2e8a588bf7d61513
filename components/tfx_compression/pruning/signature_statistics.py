"""Statistics of a SavedModel without layers: gradients and the loss, through its signature."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.errors import ModelError
from tfx_compression.kernels import Kernel
from tfx_compression.pruning.sample import Sample
from tfx_compression.saved_models.saved_model import SavedModel

# Labels and the outputs of the signature, by name, to the mean loss of the batch or one loss per row.
LossFn = Callable[[Any, Mapping[str, tf.Tensor]], tf.Tensor]


class SignatureStatistics(Sample):
    """`Statistics` of a SavedModel, a loss and a sample of data.

    Args:
      saved: The SavedModel. Its first signature (`serving_default`) is called.
      data: Batches of (features, labels), with features by the signature's argument, or its one argument itself.
      kernels: Kernels of the model, by name.
      rows: Number of rows of the data to use.
      batch_size: Rows per batch.
      loss_fn: Loss of a batch.
    """

    def __init__(
        self,
        saved: SavedModel,
        data: tf.data.Dataset,
        kernels: Mapping[str, Kernel],
        rows: int,
        batch_size: int,
        loss_fn: LossFn,
    ):
        self._signature = next(iter(saved.signatures.values()))
        super().__init__(data, rows, batch_size, saved.path)
        self._kernels = kernels
        self._loss_fn = loss_fn

    def gradients(self, batch: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the gradient of the batch's mean loss with respect to each kernel, in the kernel's shape.

        Raises:
          ModelError: The loss can't be computed from the signature's outputs.
        """
        variables = [self._kernels[name].variable for name in names]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = self._mean_loss(batch)
        gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return {name: tf.convert_to_tensor(value).numpy() for name, value in zip(names, gradients, strict=True)}

    def gates(self, batch: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns nothing: without layers, the outputs that a kernel produces are unknown."""
        return {}

    def activations(self, batch: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns nothing, for the same reason."""
        return {}

    def scales(self) -> dict[str, np.ndarray]:
        """Returns nothing, for the same reason."""
        return {}

    def metrics(self) -> dict[str, float]:
        """Returns the loss on the sample, with the current weights."""
        sums = [
            (float(self._mean_loss(batch)), int(tf.shape(tf.nest.flatten(batch[1])[0])[0])) for batch in self.batches()
        ]
        rows = sum(count for _, count in sums)
        return {"loss": sum(loss * count for loss, count in sums) / rows}

    def _mean_loss(self, batch: Any) -> tf.Tensor:
        features, labels = batch[0], batch[1]
        if not isinstance(features, Mapping):
            features = {next(iter(self._signature.structured_input_signature[1])): features}
        try:
            return tf.reduce_mean(self._loss_fn(labels, self._signature(**features)))
        except (TypeError, ValueError, KeyError, tf.errors.OpError) as error:
            raise ModelError(
                f"The loss of the SavedModel can't be computed: {error} Its signature takes "
                f"{sorted(self._signature.structured_input_signature[1])} and returns "
                f"{sorted(self._signature.structured_outputs)}. Remedy: a loss_fn(labels, outputs) that fits it.",
                field="loss_fn",
                code="loss-not-computable",
            ) from error
