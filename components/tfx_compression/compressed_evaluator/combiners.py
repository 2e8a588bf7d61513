"""Wraps TFMA's combiners so that they take batches of rows.

TFMA's combiners take one row at a time, which costs more than running the model on it. Here the most used combiners are
updated with arrays (see `array_updates`) and the others row by row. Merging, results and everything derived from them
stay TFMA's, under TFMA's private names; tests compare the results with the stock Evaluator's.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from tensorflow_model_analysis.metrics import calibration_histogram, metric_types

from tfx_compression.compressed_evaluator.array_updates import ARRAY_UPDATES, NotArrayLikeError
from tfx_compression.compressed_evaluator.batches import RowSelection

Accumulator = Any


def wrap(number: int, computation: metric_types.MetricComputation) -> "BatchCombiner":
    """Returns a computation's combiner, updated with arrays if its settings allow it.

    Args:
      number: Position of the computation among all of them.
      computation: The computation.
    """
    combiner = computation.combiner
    name = type(combiner).__name__
    standard = all(
        type(each) is metric_types.StandardMetricInputsPreprocessor for each in computation.preprocessors or ()
    )
    wrapper = HistogramCombiner if name == "_CalibrationHistogramCombiner" else BatchCombiner
    return wrapper(number, combiner, ARRAY_UPDATES.get(name) if standard else None)


class BatchCombiner:
    """A TFMA combiner that takes rows of a batch.

    Args:
      number: Position of its computation among all of them.
      combiner: TFMA's combiner.
      update: Adds rows as arrays to an accumulator; None if the combiner takes only single rows.

    Attributes:
      combiner: TFMA's combiner.
    """

    def __init__(
        self, number: int, combiner: Any, update: Callable[[Any, Accumulator, RowSelection], Accumulator] | None
    ):
        self.combiner = combiner
        self._number = number
        self._update = update

    def create_accumulator(self) -> Accumulator:
        """Returns an empty accumulator."""
        return self.combiner.create_accumulator()

    def add_rows(self, accumulator: Accumulator, rows: RowSelection) -> Accumulator:
        """Returns the accumulator with these rows added."""
        if self._update is not None:
            try:
                return self._update(self.combiner, accumulator, rows)
            except NotArrayLikeError:
                pass
        return self._add_row_by_row(accumulator, rows)

    def _add_row_by_row(self, accumulator: Accumulator, rows: RowSelection) -> Accumulator:
        return self.combiner.add_inputs(accumulator, rows.inputs(self._number))

    def merge_accumulators(self, accumulators: Iterable[Accumulator]) -> Accumulator:
        """Returns the sum. It may change the first accumulator."""
        # TFMA's combiners merge the first one twice if they are given a list.
        return self.combiner.merge_accumulators(iter(accumulators))

    def compact(self, accumulator: Accumulator) -> Accumulator:
        """Returns an equal accumulator that is cheaper to send."""
        return self.combiner.compact(accumulator)

    def extract_output(self, accumulator: Accumulator) -> metric_types.MetricsDict:
        """Returns the metrics. The accumulator does not change."""
        return self.combiner.extract_output(accumulator)


class HistogramCombiner(BatchCombiner):
    """Calibration histograms as arrays: TFMA's 10,000 buckets for each sample of each slice take too much memory."""

    def create_accumulator(self) -> "HistogramBuckets":
        return HistogramBuckets()

    def _add_row_by_row(self, accumulator: "HistogramBuckets", rows: RowSelection) -> "HistogramBuckets":
        buckets = super()._add_row_by_row(self.combiner.create_accumulator(), rows).values()
        sums = [(each.weighted_labels, each.weighted_predictions, each.weighted_examples) for each in buckets]
        accumulator.add(np.array([each.bucket_id for each in buckets], np.int64), np.array(sums).reshape(-1, 3).T)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable["HistogramBuckets"]) -> "HistogramBuckets":
        merged = HistogramBuckets()
        for accumulator in accumulators:
            merged.add(*accumulator.sums())
        return merged

    def compact(self, accumulator: "HistogramBuckets") -> "HistogramBuckets":
        accumulator.sums()
        return accumulator

    def extract_output(self, accumulator: "HistogramBuckets") -> metric_types.MetricsDict:
        numbers, sums = accumulator.sums()
        buckets = (calibration_histogram.Bucket(*each) for each in zip(numbers.tolist(), *sums.tolist(), strict=True))
        metrics: metric_types.MetricsDict = self.combiner.extract_output({each.bucket_id: each for each in buckets})
        return metrics


class HistogramBuckets:
    """Sums of labels, predictions and weights by bucket, added up when there are many parts."""

    _MAX_PENDING = 50_000

    def __init__(self) -> None:
        self._parts = [(np.empty(0, np.int64), np.empty([3, 0]))]
        self._pending = 0

    def add(self, numbers: np.ndarray, values: np.ndarray) -> None:
        """Adds values.

        Args:
          numbers: Number of a bucket, [n]; numbers may repeat.
          values: Label, prediction and weight for each number, [3, n].
        """
        self._parts.append((numbers, values))
        self._pending += len(numbers)
        if self._pending > self._MAX_PENDING:
            self.sums()

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of the buckets in order, [buckets], and their sums, [3, buckets]."""
        if len(self._parts) > 1:
            numbers, values = (np.concatenate(each, axis=-1) for each in zip(*self._parts, strict=True))
            unique, place = np.unique(numbers, return_inverse=True)
            self._parts = [(unique, np.stack([np.bincount(place, each, len(unique)) for each in values]))]
            self._pending = 0
        return self._parts[0]
