"""The data of a training: seeded passes over the training data, class weights, and evaluation data that ends."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from tfx_compression.data.batches import BATCH_ROWS, as_batches
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.sparsity_fine_tuner.config import FineTuning

# Maps the number of a pass to its batches, which are the same, in the same order, whenever it is called.
Batches = Callable[[int], tf.data.Dataset]


def seeded_passes(data: Any, config: FineTuning) -> Batches:
    """Returns the batches of each pass, weighted by class. Arrays are shuffled for each pass, as Keras' `fit` does.

    It seeds the global generators before each pass, for a user's input_fn that shuffles without a seed.
    """
    if not isinstance(data, tf.data.Dataset) and not callable(data):
        rows = as_batches(data).unbatch()
        size = int(rows.reduce(tf.constant(0, tf.int64), lambda count, _: count + 1))

        def data(number: int) -> tf.data.Dataset:
            return rows.shuffle(size, config.seed + number).batch(BATCH_ROWS)

    def batches(number: int) -> tf.data.Dataset:
        tf_keras.utils.set_random_seed(config.seed + number)
        return _weighted_by_class(data if isinstance(data, tf.data.Dataset) else data(number), config)

    return batches


def finite_evaluation_data(data: tf.data.Dataset | None, config: FineTuning) -> tf.data.Dataset | None:
    """Returns evaluation data that ends: data that repeats is limited to `config.steps_per_epoch`.

    Raises:
      ModelError: If the data is empty, or never ends and there is no limit.
    """
    if data is None:
        return None
    size = int(data.cardinality())
    if size == tf.data.INFINITE_CARDINALITY:
        if config.steps_per_epoch is not None:
            return data.take(config.steps_per_epoch)
        raise ModelError(
            "The evaluation data never ends (it repeats), so neither would an epoch. Remedy: "
            "FineTuning.steps_per_epoch.",
            field="FineTuning.steps_per_epoch",
            code="evaluation-data-infinite",
        )
    if size == 0 or (size == tf.data.UNKNOWN_CARDINALITY and not any(True for _ in data.take(1))):
        raise ModelError(
            "The evaluation data is empty. Remedy: check the split, or leave it out.", code="evaluation-data-empty"
        )
    return data


def total_steps(data: Batches, config: FineTuning) -> int:
    """Returns the number of steps of a training. It counts the batches of a pass if the dataset doesn't know them.

    Raises:
      ModelError: If the data never ends, or is empty.
    """
    if config.steps_per_epoch is not None:
        return config.steps_per_epoch * config.epochs
    dataset = data(0)
    size = int(dataset.cardinality())
    if size == tf.data.INFINITE_CARDINALITY:
        raise ModelError(
            "The training data never ends (it repeats), so neither would an epoch. Remedy: FineTuning.steps_per_epoch.",
            field="FineTuning.steps_per_epoch",
            code="training-data-infinite",
        )
    if size < 0:
        size = int(dataset.reduce(tf.constant(0, tf.int64), lambda count, _: count + 1))
    if size == 0:
        raise ModelError(
            "The training data is empty. Remedy: check the split, and batch_size with drop_remainder.",
            code="training-data-empty",
        )
    return size * config.epochs


def _weighted_by_class(data: Any, config: FineTuning) -> Any:
    if not config.class_weights:
        return data
    labels_spec = data.element_spec[1]
    if not isinstance(labels_spec, tf.TensorSpec):
        raise ConfigError(
            "FineTuning.class_weights is for models of one output; the labels are of several. Remedy: weights of the "
            "rows, by sample_weight_key or as the data's third part.",
            field="FineTuning.class_weights",
            code="several-outputs",
        )
    if (labels_spec.shape.rank or 0) > 2:
        raise ConfigError(
            f"FineTuning.class_weights is for one label per row, and the labels, {labels_spec.shape}, have more. "
            "Remedy: weights as the data's third part.",
            field="FineTuning.class_weights",
            code="several-labels",
        )
    largest = max(config.class_weights)
    table = tf.constant([config.class_weights.get(number, 1.0) for number in range(largest + 1)], tf.float32)

    def weigh(features: Any, labels: Any, weights: Any = None) -> tuple[Any, Any, Any]:
        classes = labels if labels.shape.rank in (1, None) or labels.shape[-1] == 1 else tf.argmax(labels, -1)
        numbers = tf.reshape(tf.cast(classes, tf.int32), [-1])
        by_class = tf.where(numbers <= largest, tf.gather(table, tf.minimum(numbers, largest)), 1.0)
        if weights is not None:
            by_class *= tf.reshape(tf.cast(weights, tf.float32), [-1])
        return features, labels, by_class

    return data.map(weigh)
