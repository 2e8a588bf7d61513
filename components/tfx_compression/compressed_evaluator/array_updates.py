"""Adds batches of rows as arrays to the accumulators of TFMA's most used combiners, with the same numbers.

The combiners and their attributes are TFMA's own and private.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.contrib.aggregates import binary_confusion_matrices as confusion
from tf_keras.src.metrics.base_metric import MeanMetricWrapper
from tf_keras.src.utils import losses_utils

from tfx_compression.compressed_evaluator.batches import RowBatch, RowSelection


class NotArrayLikeError(Exception):
    """These rows don't fit into arrays: strings, padding, unknown classes, several weights. Add them one by one."""


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Labels and predictions of some rows.

    Attributes:
      labels: Labels, [rows, …].
      predictions: Predictions, [rows, …].
      weights: Example weights, [rows], or [rows, values] if each row has several single values.
    """

    labels: np.ndarray
    predictions: np.ndarray
    weights: np.ndarray


def _pairs(combiner: Any, batch: RowBatch, output: str) -> _Pairs:
    """Returns for the batch what `metric_util.to_label_prediction_example_weight` yields row by row."""
    key = getattr(combiner, "_key", None) or getattr(combiner, "_metric_key", None)
    model = key.model_name if key is not None else combiner._model_name
    sub_key = key.sub_key if key is not None else combiner._sub_key
    cached = ("pairs", model, output, combiner._example_weighted, sub_key and sub_key.class_id)
    if cached not in batch.cache:
        batch.cache[cached] = _read_pairs(combiner, batch, model, output)
        if sub_key and sub_key.class_id is not None:
            batch.cache[cached] = _select_class(batch.cache[cached], sub_key.class_id)
    if sub_key and (sub_key.k is not None or sub_key.top_k is not None) and not _has_sub_key_in_config(combiner):
        raise NotArrayLikeError
    return batch.cache[cached]


def _has_sub_key_in_config(combiner: Any) -> bool:
    return bool(getattr(combiner, "_sub_key_in_config", False))


def _read_pairs(combiner: Any, batch: RowBatch, model: str, output: str) -> _Pairs:
    labels = batch.column(tfma.LABELS_KEY, model, output)
    predictions = batch.column(tfma.PREDICTIONS_KEY, model, output)
    weights = batch.column(tfma.EXAMPLE_WEIGHTS_KEY, model, output) if combiner._example_weighted else None
    if isinstance(predictions, Mapping):
        specs = combiner._eval_config.model_specs if combiner._eval_config is not None else ()
        keys = {spec.prediction_key for spec in specs if spec.name == model or len(specs) == 1}
        predictions = next((predictions[key] for key in keys if key and key in predictions), None)
    weights = np.ones(batch.size, np.float32) if weights is None else weights
    if not all(isinstance(each, np.ndarray) and each.dtype.kind in "biuf" for each in (labels, predictions, weights)):
        raise NotArrayLikeError
    if weights.size != batch.size or (labels == -1).any():  # -1 is a label that was in no vocabulary
        raise NotArrayLikeError
    return _Pairs(_squeeze(labels), _squeeze(predictions), weights.reshape(-1))


def _squeeze(values: np.ndarray) -> np.ndarray:
    """Removes each row's dimensions of size 1 but keeps at least one dimension, as TFMA does for a row."""
    return values.reshape([len(values), *([size for size in values.shape[1:] if size != 1] or [1])])


def _one_hot(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    if labels.shape == predictions.shape:
        return labels
    if labels.shape[1:] != (1,) or predictions.ndim != 2 or labels.max() >= predictions.shape[1]:
        raise NotArrayLikeError
    return np.eye(predictions.shape[1])[labels[:, 0].astype(int)]


def _select_class(pairs: _Pairs, class_id: int) -> _Pairs:
    if pairs.predictions.ndim != 2 or not 0 <= class_id < pairs.predictions.shape[1]:
        raise NotArrayLikeError
    labels = _one_hot(pairs.labels, pairs.predictions)
    return _Pairs(labels[:, [class_id]], pairs.predictions[:, [class_id]], pairs.weights)


def _flatten(combiner: Any, batch: RowBatch, fractional: bool) -> _Pairs:
    """Returns pairs of single values, all [rows, values]. With `fractional`, each label is split into a 0 and a 1."""
    pairs = _pairs(combiner, batch, (getattr(combiner, "_key", None) or combiner._metric_key).output_name)
    # TFMA's scalars are doubles. NumPy would round a threshold to the float32 of the predictions.
    labels = _one_hot(pairs.labels, pairs.predictions).reshape(batch.size, -1).astype(np.float64)
    predictions = pairs.predictions.reshape(batch.size, -1).astype(np.float64)
    weights = np.repeat(pairs.weights.astype(np.float64)[:, None], predictions.shape[1], axis=1)
    if combiner._class_weights:
        weights = weights * [combiner._class_weights.get(place, 0.0) for place in range(predictions.shape[1])]
    if not fractional:
        return _Pairs(labels, predictions, weights)
    if ((labels < 0) | (labels > 1)).any():
        raise NotArrayLikeError  # TFMA raises an error for the row
    return _Pairs(
        np.concatenate([np.zeros_like(labels), np.ones_like(labels)], axis=1),
        np.concatenate([predictions, predictions], axis=1),
        np.concatenate([weights * (1 - labels), weights * labels], axis=1),
    )


def _flatten_rows(combiner: Any, rows: RowSelection, fractional: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns labels, predictions and weights of the rows' single values, [values]."""
    key = ("flat", id(combiner), fractional)
    if key not in rows.batch.cache:
        rows.batch.cache[key] = _flatten(combiner, rows.batch, fractional)
    pairs = rows.batch.cache[key]
    labels, predictions, weights = (
        values[rows.index].reshape(-1) for values in (pairs.labels, pairs.predictions, pairs.weights)
    )
    weighty = np.abs(weights) > 1e-9 if fractional else slice(None)  # TFMA drops weights that math.isclose calls 0
    return labels[weighty], predictions[weighty], weights[weighty]


def _update_example_count(combiner: Any, accumulator: float, rows: RowSelection) -> float:
    if not combiner._example_weighted:
        return accumulator + len(rows.index)
    weights = rows.batch.column(tfma.EXAMPLE_WEIGHTS_KEY, combiner._model_name, combiner._output_name)
    if weights is None:
        return accumulator + len(rows.index)
    if not isinstance(weights, np.ndarray) or weights.dtype.kind not in "biuf":
        raise NotArrayLikeError
    return accumulator + float(np.sum(weights[rows.index]))


def _update_keras_metrics(combiner: Any, accumulator: Any, rows: RowSelection) -> Any:
    """Adds rows to Keras metrics and losses. Those that are the mean of one value per row compute the values once."""
    aggregation = combiner._aggregation_type
    if combiner._class_weights or (aggregation is not None and aggregation.micro_average) or accumulator._pad:
        raise NotArrayLikeError
    inputs = [_keras_pairs(combiner, rows.batch, name) for name in combiner._output_names]
    for place, name in enumerate(combiner._output_names):
        pairs = inputs[place]
        for number, metric in enumerate(combiner._metrics[name]):
            values = _row_values(combiner, (place, number), metric, rows.batch, pairs)
            weights = pairs.weights[rows.index]
            if values is not None:
                total = [np.dot(values[rows.index], weights), np.sum(weights, dtype=np.float64)]
                accumulator.add_weights(place, number, np.asarray(total))
                continue
            metric.reset_states()
            metric.update_state(pairs.labels[rows.index], pairs.predictions[rows.index], weights[:, None])
            accumulator.add_weights(place, number, metric.get_weights())
    return accumulator


def _keras_pairs(combiner: Any, batch: RowBatch, output: str) -> _Pairs:
    pairs = _pairs(combiner, batch, output)
    if _has_sub_key_in_config(combiner):
        return dataclasses.replace(pairs, labels=_one_hot(pairs.labels, pairs.predictions))
    return pairs


def _row_values(
    combiner: Any, place: tuple[int, int], metric: Any, batch: RowBatch, pairs: _Pairs
) -> np.ndarray | None:
    """Returns the values of a mean metric, [rows] in float64; None if it doesn't have one value per row."""
    if type(metric).update_state is not MeanMetricWrapper.update_state:
        return None
    key = ("values", id(combiner), place)
    if key not in batch.cache:
        labels, predictions = (tf.cast(each, metric.dtype) for each in (pairs.labels, pairs.predictions))
        predictions, labels = losses_utils.squeeze_or_expand_dimensions(predictions, labels)
        values = metric._fn(labels, predictions, **metric._fn_kwargs)
        masked = losses_utils.get_mask(values) is not None
        one_per_row = not masked and int(tf.size(values)) == batch.size
        batch.cache[key] = values.numpy().astype(np.float64).reshape(-1) if one_per_row else None
    return batch.cache[key]


def _update_histogram(combiner: Any, accumulator: Any, rows: RowSelection) -> Any:
    """Adds rows to a `combiners.HistogramBuckets`."""
    labels, predictions, weights = _flatten_rows(combiner, rows, combiner._fractional_labels)
    position = predictions if combiner._prediction_based_bucketing else labels
    last = combiner._num_buckets + 1
    place = (position.astype(np.float64) - combiner._left) / combiner._range * combiner._num_buckets + 1
    # TFMA's combiner fails for NaN. Here NaN is above no threshold, as in TFMA's confusion matrices, so that a NaN
    # prediction of one candidate, which the gate refuses, doesn't stop the evaluation of the others.
    bucket = np.where(place >= 0, np.minimum(place, last), 0).astype(np.int64)
    accumulator.add(bucket, np.stack([labels * weights, predictions * weights, weights]))
    return accumulator


def _update_confusion_matrices(combiner: Any, accumulator: dict, rows: RowSelection) -> dict:
    if combiner._example_id_key:
        raise NotArrayLikeError
    matrices = combiner._binary_confusion_matrices
    labels, predictions, weights = _flatten_rows(combiner, rows, combiner._enable_fractional_labels)
    for threshold in matrices._thresholds:
        positive = labels == 1.0 if combiner._enable_fractional_labels else labels > threshold
        above = predictions > threshold
        counts = confusion.Matrix(
            tp=float(weights[positive & above].sum()),
            tn=float(weights[~positive & ~above].sum()),
            fp=float(weights[~positive & above].sum()),
            fn=float(weights[positive & ~above].sum()),
        )
        entry = confusion._ThresholdEntry(counts, [], [], [], [])
        accumulator[threshold] = matrices._merge_entry(accumulator, threshold, entry)
    return accumulator


_REGRESSION_ERRORS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "_MeanAbsoluteErrorCombiner": lambda labels, predictions: np.abs(labels - predictions),
    "_MeanSquaredErrorCombiner": lambda labels, predictions: (labels - predictions) ** 2,
}


def _update_regression_error(combiner: Any, accumulator: Any, rows: RowSelection) -> Any:
    labels, predictions, weights = _flatten_rows(combiner, rows, fractional=False)
    errors = _REGRESSION_ERRORS[type(combiner).__name__](labels.astype(np.float64), predictions.astype(np.float64))
    known = ~np.isnan(errors)
    accumulator.total_regression_error += float(np.dot(errors[known], weights[known]))
    accumulator.total_example_weights += float(weights[known].sum())
    return accumulator


# By the class name of TFMA's combiner, the function (combiner, accumulator, rows) -> accumulator that adds rows.
ARRAY_UPDATES: Mapping[str, Callable[[Any, Any, RowSelection], Any]] = {
    "_ExampleCountCombiner": _update_example_count,
    "_CompilableMetricsCombiner": _update_keras_metrics,
    "_CalibrationHistogramCombiner": _update_histogram,
    "_BinaryConfusionMatrixCombiner": _update_confusion_matrices,
    **dict.fromkeys(_REGRESSION_ERRORS, _update_regression_error),
}
