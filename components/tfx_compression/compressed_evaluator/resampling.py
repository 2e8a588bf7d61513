"""Jackknife and bootstrap: the rows of each sample, the metrics of each sample, and the confidence intervals."""

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import apache_beam as beam
import numpy as np
from tensorflow_model_analysis.evaluators import jackknife, poisson_bootstrap
from tensorflow_model_analysis.evaluators import metrics_plots_and_validations_evaluator as stock
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import config_pb2

from tfx_compression.compressed_evaluator import combiners
from tfx_compression.compressed_evaluator.batches import RowSelection

_SAMPLES = 20  # as in TFMA


@dataclasses.dataclass(frozen=True)
class Resampling:
    """How rows are sampled for confidence intervals, as TFMA does it.

    The jackknife leaves out one of 20 random parts at a time. The bootstrap draws each row as often as a Poisson
    distribution of mean 1 says, 20 times.

    Attributes:
      method: The method; None samples nothing.
      count: Number of parts or draws.
    """

    method: Literal["jackknife", "bootstrap"] | None = None
    count: int = 0

    @classmethod
    def from_config(cls, config: config_pb2.EvalConfig) -> "Resampling":
        """Returns the resampling that TFMA's configuration asks for."""
        options = config.options
        if not options.compute_confidence_intervals.value:
            return cls()
        if options.confidence_intervals.method == config_pb2.ConfidenceIntervalOptions.JACKKNIFE:
            return cls("jackknife", _SAMPLES)
        return cls("bootstrap", _SAMPLES)

    @property
    def accumulators(self) -> int:
        """Number of accumulators of a slice."""
        return {None: 1, "jackknife": self.count, "bootstrap": self.count + 1}[self.method]

    def split(self, rows: RowSelection) -> list[tuple[int, RowSelection]]:
        """Returns the rows that each accumulator gets, by its number. The bootstrap's first one gets all rows."""
        if self.method is None:
            return [(0, rows)]
        batch = rows.batch
        if self.method == "jackknife":
            if "parts" not in batch.cache:
                # Starting at a random part spreads the rows of small batches over all parts.
                first = batch.generator.integers(self.count)
                batch.cache["parts"] = batch.generator.permutation((first + np.arange(batch.size)) % self.count)
            part = batch.cache["parts"][rows.index]
            selected = [(number, rows.index[part == number]) for number in range(self.count)]
        else:
            if "counts" not in batch.cache:
                batch.cache["counts"] = batch.generator.poisson(1, [self.count, batch.size])
            drawn = [np.repeat(rows.index, counts[rows.index]) for counts in batch.cache["counts"]]
            selected = list(enumerate([rows.index, *drawn]))
        return [(number, RowSelection(batch, index)) for number, index in selected if len(index)]


class ComputeSamples(beam.CombineFn):
    """Combines the rows of a slice into their number and the metrics of each sample; the first sample is all rows."""

    def __init__(self, computations: Sequence[metric_types.MetricComputation], resampling: Resampling):
        self._combiners = [combiners.wrap(number, each) for number, each in enumerate(computations)]
        self._resampling = resampling

    def setup(self) -> None:
        for each in self._combiners:
            each.combiner.setup()

    def teardown(self) -> None:
        for each in self._combiners:
            each.combiner.teardown()

    def create_accumulator(self) -> list[Any]:
        return [0, *(self._empty() for _ in range(self._resampling.accumulators))]

    def add_input(self, accumulator: list[Any], rows: RowSelection) -> list[Any]:
        accumulator[0] += len(rows.index)
        for number, selected in self._resampling.split(rows):
            states = accumulator[1 + number]
            for place, combiner in enumerate(self._combiners):
                states[place] = combiner.add_rows(states[place], selected)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[list[Any]]) -> list[Any]:
        counts, *samples = zip(*accumulators, strict=True)
        return [sum(counts), *(self._merge(sample) for sample in samples)]

    def compact(self, accumulator: list[Any]) -> list[Any]:
        count, *samples = accumulator
        return [
            count,
            *([c.compact(state) for c, state in zip(self._combiners, sample, strict=True)] for sample in samples),
        ]

    def extract_output(self, accumulator: list[Any]) -> tuple[int, list[metric_types.MetricsDict]]:
        count, *samples = accumulator
        if self._resampling.method == "jackknife":
            samples = self._leave_one_out(samples)
        return count, [self._metrics(sample) for sample in samples]

    def _leave_one_out(self, parts: Sequence[list[Any]]) -> list[list[Any]]:
        """Returns all parts merged, then all but the first, all but the second, and so on.

        Each is merged from the sum of the parts before the one that is left out and the sum of those behind it.
        """
        before, behind = [self._empty()], [self._empty()]
        for front, back in zip(parts, reversed(parts), strict=True):
            before.append(self._merge(copy.deepcopy([before[-1], front])))
            behind.append(self._merge(copy.deepcopy([back, behind[-1]])))
        return [
            before[-1],
            *(self._merge(copy.deepcopy([before[n], behind[len(parts) - 1 - n]])) for n in range(len(parts))),
        ]

    def _empty(self) -> list[Any]:
        return [combiner.create_accumulator() for combiner in self._combiners]

    def _merge(self, samples: Iterable[list[Any]]) -> list[Any]:
        return [
            combiner.merge_accumulators(states)
            for combiner, states in zip(self._combiners, zip(*samples, strict=True), strict=True)
        ]

    def _metrics(self, sample: list[Any]) -> metric_types.MetricsDict:
        metrics: metric_types.MetricsDict = {}
        for combiner, state in zip(self._combiners, sample, strict=True):
            metrics.update(combiner.extract_output(state))
        return metrics


class AddIntervals(beam.PTransform):
    """Derives metrics and differences of each sample, and confidence intervals from all samples.

    Private metrics, such as histograms of 10,000 buckets, get intervals only if other metrics derive from them.
    """

    def __init__(self, resampling: Resampling, derived: beam.PTransform, skipped: Any, keep_private: bool):
        super().__init__()
        self._keep_private = keep_private
        self._resampling = resampling
        self._derived = derived
        self._skipped = skipped

    def expand(self, computed: beam.PCollection) -> beam.PCollection:
        if self._resampling.method is None:
            return self._sample(computed, 0)
        combine = {
            "jackknife": jackknife._JackknifeSampleCombineFn,
            "bootstrap": poisson_bootstrap._BootstrapSampleCombineFn,
        }[self._resampling.method]
        # TFMA's combiners number the sample of all rows, sample 0 here, as -1.
        samples = [
            self._sample(computed, number)
            | f"Number{number}" >> beam.MapTuple(jackknife._add_sample_id, sample_id=number - 1)
            for number in range(self._resampling.count + 1)
        ]
        return (
            samples
            | "Samples" >> beam.Flatten()
            | "Combine" >> beam.CombinePerKey(combine(self._resampling.count, self._skipped))
        )

    def _sample(self, computed: beam.PCollection, number: int) -> beam.PCollection:
        derived = (
            computed
            | f"Sample{number}" >> beam.Map(lambda item: (item[0], item[1][1][number]))
            | f"Derived{number}" >> self._derived
        )
        if self._keep_private:
            return derived
        return derived | f"Public{number}" >> beam.MapTuple(stock._remove_private_metrics)
