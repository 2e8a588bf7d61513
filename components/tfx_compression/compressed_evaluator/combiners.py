"""TFMA's accumulators, filled from whole batches where that gives the same numbers, row by row elsewhere.

TFMA's combiners take one row at a time, which costs more than running the model. Here the most used of them get their
rows as arrays; merging, results and everything derived from them stay TFMA's. The names below are TFMA's own and
private: tests hold the results against the stock Evaluator's.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.contrib.aggregates import binary_confusion_matrices as confusion
from tensorflow_model_analysis.metrics import calibration_histogram, metric_types
from tf_keras.src.metrics.base_metric import MeanMetricWrapper
from tf_keras.src.utils import losses_utils

from tfx_compression.compressed_evaluator.batches import Batch, Rows

Accumulator = Any


class _RowByRow(Exception):  # noqa: N818 - no error: how a batch is told to go the other way
    """These rows are not as arrays take them: strings, padding, unknown classes, weights of several values."""


class Combiner:
    """TFMA's combiner of a computation, which takes rows of a batch.

    Args:
      number: the computation's place among all.
      combiner: TFMA's.
      batched: what takes rows as arrays, if there is such a thing.
    """

    def __init__(self, number: int, combiner: Any, batched: Callable[[Any, Accumulator, Rows], Accumulator] | None):
        self._number = number
        self._batched = batched
        self.combiner = combiner

    def create_accumulator(self) -> Accumulator:
        """An empty one."""
        return self.combiner.create_accumulator()

    def add_rows(self, accumulator: Accumulator, rows: Rows) -> Accumulator:
        """The accumulator with these rows added."""
        if self._batched is not None:
            try:
                return self._batched(self.combiner, accumulator, rows)
            except _RowByRow:
                pass
        return self._add_row_by_row(accumulator, rows)

    def _add_row_by_row(self, accumulator: Accumulator, rows: Rows) -> Accumulator:
        return self.combiner.add_inputs(accumulator, rows.inputs(self._number))

    def merge_accumulators(self, accumulators: Iterable[Accumulator]) -> Accumulator:
        """The sum; the first one may be changed."""
        return self.combiner.merge_accumulators(iter(accumulators))  # some of TFMA's take the first of a list twice

    def compact(self, accumulator: Accumulator) -> Accumulator:
        """The accumulator, smaller."""
        return self.combiner.compact(accumulator)

    def extract_output(self, accumulator: Accumulator) -> metric_types.MetricsDict:
        """The metrics; what they are computed from is kept as it is."""
        return self.combiner.extract_output(accumulator)


class _Histogram(Combiner):
    """Calibration histograms as arrays: a part of TFMA's 10,000 buckets for each sample of each slice is too much."""

    def create_accumulator(self) -> "_Buckets":
        return _Buckets()

    def _add_row_by_row(self, accumulator: "_Buckets", rows: Rows) -> "_Buckets":
        found = super()._add_row_by_row(self.combiner.create_accumulator(), rows).values()
        sums = [(each.weighted_labels, each.weighted_predictions, each.weighted_examples) for each in found]
        accumulator.add(np.array([each.bucket_id for each in found], np.int64), np.array(sums).reshape(-1, 3).T)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable["_Buckets"]) -> "_Buckets":
        whole = _Buckets()
        for accumulator in accumulators:
            whole.add(*accumulator.sums())
        return whole

    def compact(self, accumulator: "_Buckets") -> "_Buckets":
        accumulator.sums()
        return accumulator

    def extract_output(self, accumulator: "_Buckets") -> metric_types.MetricsDict:
        numbers, sums = accumulator.sums()
        buckets = (calibration_histogram.Bucket(*each) for each in zip(numbers.tolist(), *sums.tolist(), strict=True))
        found: metric_types.MetricsDict = self.combiner.extract_output({each.bucket_id: each for each in buckets})
        return found


class _Buckets:
    """Sums of labels, predictions and weights by the number of a bucket; added up when they become many."""

    _MANY = 50_000

    def __init__(self) -> None:
        self._parts = [(np.empty(0, np.int64), np.empty([3, 0]))]
        self._size = 0

    def add(self, numbers: np.ndarray, values: np.ndarray) -> None:
        """Adds values [3, n] to the buckets of these n numbers, which may repeat."""
        self._parts.append((numbers, values))
        self._size += len(numbers)
        if self._size > self._MANY:
            self.sums()

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers in order, and their sums [3, n]."""
        if len(self._parts) > 1:
            numbers, values = (np.concatenate(each, axis=-1) for each in zip(*self._parts, strict=True))
            kinds, place = np.unique(numbers, return_inverse=True)
            self._parts = [(kinds, np.stack([np.bincount(place, each, len(kinds)) for each in values]))]
            self._size = 0
        return self._parts[0]


def wrap(number: int, computation: metric_types.MetricComputation) -> Combiner:
    """The combiner of the computation at that place, as fast as its settings allow."""
    combiner = computation.combiner
    name = type(combiner).__name__
    standard = all(
        type(each) is metric_types.StandardMetricInputsPreprocessor for each in computation.preprocessors or ()
    )
    kind = _Histogram if name == "_CalibrationHistogramCombiner" else Combiner
    return kind(number, combiner, _BATCHED.get(name) if standard else None)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Labels [rows, …], predictions [rows, …], weights [rows]."""

    labels: np.ndarray
    predictions: np.ndarray
    weights: np.ndarray


def _pairs(combiner: Any, batch: Batch, output: str) -> _Pairs:
    """What `metric_util.to_label_prediction_example_weight` yields row by row, for the whole batch."""
    key = getattr(combiner, "_key", None) or getattr(combiner, "_metric_key", None)
    model = key.model_name if key is not None else combiner._model_name
    sub_key = key.sub_key if key is not None else combiner._sub_key
    found = ("pairs", model, output, combiner._example_weighted, sub_key and sub_key.class_id)
    if found not in batch.cache:
        batch.cache[found] = _look_up(combiner, batch, model, output)
        if sub_key and sub_key.class_id is not None:
            batch.cache[found] = _of_class(batch.cache[found], sub_key.class_id)
    if sub_key and (sub_key.k is not None or sub_key.top_k is not None) and not _in_config(combiner):
        raise _RowByRow
    return batch.cache[found]


def _in_config(combiner: Any) -> bool:
    return bool(getattr(combiner, "_sub_key_in_config", False))


def _look_up(combiner: Any, batch: Batch, model: str, output: str) -> _Pairs:
    labels = batch.column(tfma.LABELS_KEY, model, output)
    predictions = batch.column(tfma.PREDICTIONS_KEY, model, output)
    weights = batch.column(tfma.EXAMPLE_WEIGHTS_KEY, model, output) if combiner._example_weighted else None
    if isinstance(predictions, Mapping):
        specs = combiner._eval_config.model_specs if combiner._eval_config is not None else ()
        keys = {spec.prediction_key for spec in specs if spec.name == model or len(specs) == 1}
        predictions = next((predictions[key] for key in keys if key and key in predictions), None)
    weights = np.ones(batch.size, np.float32) if weights is None else weights
    if not all(isinstance(each, np.ndarray) and each.dtype.kind in "biuf" for each in (labels, predictions, weights)):
        raise _RowByRow
    if weights.size != batch.size or (labels == -1).any():  # -1: a label that was in no vocabulary
        raise _RowByRow
    return _Pairs(_squeezed(labels), _squeezed(predictions), weights.reshape(-1))


def _squeezed(values: np.ndarray) -> np.ndarray:
    """Each row without its dimensions of one, but with one dimension at least, as TFMA's rows are."""
    return values.reshape([len(values), *([size for size in values.shape[1:] if size != 1] or [1])])


def _one_hot(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    if labels.shape == predictions.shape:
        return labels
    if labels.shape[1:] != (1,) or predictions.ndim != 2 or labels.max() >= predictions.shape[1]:
        raise _RowByRow
    return np.eye(predictions.shape[1])[labels[:, 0].astype(int)]


def _of_class(pairs: _Pairs, class_id: int) -> _Pairs:
    if pairs.predictions.ndim != 2 or not 0 <= class_id < pairs.predictions.shape[1]:
        raise _RowByRow
    labels = _one_hot(pairs.labels, pairs.predictions)
    return _Pairs(labels[:, [class_id]], pairs.predictions[:, [class_id]], pairs.weights)


def _flat(combiner: Any, batch: Batch, fractional: bool) -> _Pairs:
    """Pairs of single values [rows, values]; each label in two parts, 0 and 1, where they may be `fractional`."""
    pairs = _pairs(combiner, batch, (getattr(combiner, "_key", None) or combiner._metric_key).output_name)
    # Doubles, as TFMA's scalars are: NumPy would round a threshold to the float32 of the predictions beside it.
    labels = _one_hot(pairs.labels, pairs.predictions).reshape(batch.size, -1).astype(np.float64)
    predictions = pairs.predictions.reshape(batch.size, -1).astype(np.float64)
    weights = np.repeat(pairs.weights.astype(np.float64)[:, None], predictions.shape[1], axis=1)
    if combiner._class_weights:
        weights = weights * [combiner._class_weights.get(place, 0.0) for place in range(predictions.shape[1])]
    if not fractional:
        return _Pairs(labels, predictions, weights)
    if ((labels < 0) | (labels > 1)).any():
        raise _RowByRow  # TFMA's own message
    return _Pairs(
        np.concatenate([np.zeros_like(labels), np.ones_like(labels)], axis=1),
        np.concatenate([predictions, predictions], axis=1),
        np.concatenate([weights * (1 - labels), weights * labels], axis=1),
    )


def _flat_rows(combiner: Any, rows: Rows, fractional: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    key = ("flat", id(combiner), fractional)
    if key not in rows.batch.cache:
        rows.batch.cache[key] = _flat(combiner, rows.batch, fractional)
    pairs = rows.batch.cache[key]
    labels, predictions, weights = (
        values[rows.index].reshape(-1) for values in (pairs.labels, pairs.predictions, pairs.weights)
    )
    kept = np.abs(weights) > 1e-9 if fractional else slice(None)  # TFMA leaves out what math.isclose calls nothing
    return labels[kept], predictions[kept], weights[kept]


def _example_count(combiner: Any, accumulator: float, rows: Rows) -> float:
    if not combiner._example_weighted:
        return accumulator + len(rows.index)
    weights = rows.batch.column(tfma.EXAMPLE_WEIGHTS_KEY, combiner._model_name, combiner._output_name)
    if weights is None:
        return accumulator + len(rows.index)
    if not isinstance(weights, np.ndarray) or weights.dtype.kind not in "biuf":
        raise _RowByRow
    return accumulator + float(np.sum(weights[rows.index]))


def _keras(combiner: Any, accumulator: Any, rows: Rows) -> Any:
    """Metrics and losses of Keras: those that are means of one value for each row have these computed once."""
    aggregation = combiner._aggregation_type
    if combiner._class_weights or (aggregation is not None and aggregation.micro_average) or accumulator._pad:
        raise _RowByRow
    inputs = [_keras_pairs(combiner, rows.batch, name) for name in combiner._output_names]
    for place, name in enumerate(combiner._output_names):
        pairs = inputs[place]
        for number, metric in enumerate(combiner._metrics[name]):
            values = _values(combiner, (place, number), metric, rows.batch, pairs)
            weights = pairs.weights[rows.index]
            if values is not None:
                weighed = [np.dot(values[rows.index], weights), np.sum(weights, dtype=np.float64)]
                accumulator.add_weights(place, number, np.asarray(weighed))
                continue
            metric.reset_states()
            metric.update_state(pairs.labels[rows.index], pairs.predictions[rows.index], weights[:, None])
            accumulator.add_weights(place, number, metric.get_weights())
    return accumulator


def _keras_pairs(combiner: Any, batch: Batch, output: str) -> _Pairs:
    pairs = _pairs(combiner, batch, output)
    if _in_config(combiner):
        return dataclasses.replace(pairs, labels=_one_hot(pairs.labels, pairs.predictions))
    return pairs


def _values(combiner: Any, place: tuple[int, int], metric: Any, batch: Batch, pairs: _Pairs) -> np.ndarray | None:
    """What a mean metric has for each row, in float64; None where it has not one value for each."""
    if type(metric).update_state is not MeanMetricWrapper.update_state:
        return None
    key = ("values", id(combiner), place)
    if key not in batch.cache:
        labels, predictions = (tf.cast(each, metric.dtype) for each in (pairs.labels, pairs.predictions))
        predictions, labels = losses_utils.squeeze_or_expand_dimensions(predictions, labels)
        values = metric._fn(labels, predictions, **metric._fn_kwargs)
        masked = losses_utils.get_mask(values) is not None
        alone = not masked and int(tf.size(values)) == batch.size
        batch.cache[key] = values.numpy().astype(np.float64).reshape(-1) if alone else None
    return batch.cache[key]


def _histogram(combiner: Any, accumulator: _Buckets, rows: Rows) -> _Buckets:
    labels, predictions, weights = _flat_rows(combiner, rows, combiner._fractional_labels)
    position = predictions if combiner._prediction_based_bucketing else labels
    last = combiner._num_buckets + 1
    place = (position.astype(np.float64) - combiner._left) / combiner._range * combiner._num_buckets + 1
    # NaN, at which TFMA's combiner fails, is above no threshold, as in its confusion matrices: one candidate with a NaN
    # prediction is refused by the gate, and the others are still evaluated.
    bucket = np.where(place >= 0, np.minimum(place, last), 0).astype(np.int64)
    accumulator.add(bucket, np.stack([labels * weights, predictions * weights, weights]))
    return accumulator


def _confusion_matrix(combiner: Any, accumulator: dict, rows: Rows) -> dict:
    if combiner._example_id_key:
        raise _RowByRow
    matrices = combiner._binary_confusion_matrices
    labels, predictions, weights = _flat_rows(combiner, rows, combiner._enable_fractional_labels)
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


_ERRORS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "_MeanAbsoluteErrorCombiner": lambda labels, predictions: np.abs(labels - predictions),
    "_MeanSquaredErrorCombiner": lambda labels, predictions: (labels - predictions) ** 2,
}


def _regression_error(combiner: Any, accumulator: Any, rows: Rows) -> Any:
    labels, predictions, weights = _flat_rows(combiner, rows, fractional=False)
    errors = _ERRORS[type(combiner).__name__](labels.astype(np.float64), predictions.astype(np.float64))
    known = ~np.isnan(errors)
    accumulator.total_regression_error += float(np.dot(errors[known], weights[known]))
    accumulator.total_example_weights += float(weights[known].sum())
    return accumulator


_BATCHED: dict[str, Callable[[Any, Any, Rows], Any]] = {
    "_ExampleCountCombiner": _example_count,
    "_CompilableMetricsCombiner": _keras,
    "_CalibrationHistogramCombiner": _histogram,
    "_BinaryConfusionMatrixCombiner": _confusion_matrix,
    **dict.fromkeys(_ERRORS, _regression_error),
}
