"""Training of a pruned Keras model that keeps its zeros, without a pipeline."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfx_compression.models import keras2, kernels, layers
from tfx_compression.models.compressed import Compressed, Masks, Summary, require_zeros
from tfx_compression.models.errors import ModelError
from tfx_compression.sparsity_fine_tuner.config import FineTuning


def fine_tune(
    model: tf_keras.Model | str,
    data: tf.data.Dataset,
    config: FineTuning,
    *,
    masks: Masks | None = None,
    validation_data: tf.data.Dataset | None = None,
    compile_fn: Callable[[tf_keras.Model], None] | None = None,
    callbacks: Sequence[tf_keras.callbacks.Callback] = (),
) -> Compressed:
    """Trains a pruned model; the weights that are pruned stay zero.

    Args:
      model: a Keras 2 model, which is changed in place, or the path of one.
      data: batches of (features, label), as Keras' `fit` takes them.
      config: how to train.
      masks: what was pruned, as `prune` returns it; by default every weight of a kernel that is zero now.
      validation_data: as `data`, evaluated after each epoch.
      compile_fn: compiles the network it is given; by default loss, metrics and optimizer are those that the model was
        compiled with. Its learning rate is replaced by the configuration's.
      callbacks: Keras callbacks.

    Raises:
      ModelError: for a model that was never compiled and no `compile_fn`, a loss that is not a number, or masks that
        don't fit.
    """
    loaded = keras2.load(model) if isinstance(model, str) else model
    network = keras2.network(loaded)
    masks = dict(masks) if masks is not None else _zeros_of(network)
    require_zeros(loaded, masks, "the model before training")
    before = layers.measure(network)
    for dataset in (data, validation_data):
        if (
            dataset is not None
            and config.steps_per_epoch is None
            and dataset.cardinality() == tf.data.INFINITE_CARDINALITY
        ):
            raise ModelError(
                "The data never ends (it repeats), so neither would an epoch. Remedy: FineTuning.steps_per_epoch."
            )
    tf_keras.utils.set_random_seed(config.seed)
    trained = _Masked(network.inputs, network.outputs, name=network.name)
    trained.keep_zero(masks)
    _compile(trained, loaded, compile_fn)
    # Set before the first step; a schedule of the Trainer's is replaced, which assigning a rate to it could not.
    trained.optimizer = keras2.fresh_optimizer(trained.optimizer, config.learning_rate)
    if config.steps_per_epoch is not None:
        data = data.repeat()
        validation_data = validation_data.take(config.steps_per_epoch) if validation_data is not None else None
    history = trained.fit(
        data,
        epochs=config.epochs,
        steps_per_epoch=config.steps_per_epoch,
        validation_data=validation_data,
        callbacks=[tf_keras.callbacks.TerminateOnNaN(), *callbacks],
        verbose=2,
    )
    broken = [weight.name for weight in network.weights if not np.isfinite(weight.numpy()).all()]
    if broken or not np.isfinite(history.history["loss"]).all():
        raise ModelError(
            f"The loss is not a number after {len(history.history['loss'])} epochs: training diverged (weights that "
            f"are not finite: {', '.join(broken) or 'none'}). Remedy: a smaller FineTuning.learning_rate than "
            f"{config.learning_rate}, or look for labels and features that are not finite."
        )
    require_zeros(loaded, masks, "the model after training")
    return Compressed(loaded, Summary(before=before, after=layers.measure(network)), masks)


class _Masked(tf_keras.Model):
    """A functional model whose pruned weights are zero again after each step."""

    def keep_zero(self, masks: Masks) -> None:
        found = kernels.of_keras(self)
        self._pruned = []
        for name, mask in masks.items():
            variable = found[name].variable
            self._pruned.append((variable, tf.constant(mask, variable.dtype)))

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        logs = super().train_step(data)
        for variable, mask in self._pruned:
            variable.assign(variable * mask)
        return logs


def _compile(
    trained: tf_keras.Model, loaded: tf_keras.Model, compile_fn: Callable[[tf_keras.Model], None] | None
) -> None:
    if compile_fn is not None:
        compile_fn(trained)
    elif compiled := keras2.compile_arguments(loaded):
        trained.compile(**compiled)
    if trained.optimizer is None:
        raise ModelError(
            "The model was saved without being compiled (or with include_optimizer=False), so there is no loss to "
            "train it with. Remedy: a compile_fn(model) in the module file that calls model.compile(…)."
        )


def _zeros_of(network: tf_keras.Model) -> dict[str, np.ndarray]:
    found = {name: kernel.values != 0 for name, kernel in kernels.of_keras(network).items()}
    return {name: mask for name, mask in found.items() if not mask.all()}
