"""TFMA's evaluation of batches: its computations, derived metrics, intervals, validation and files.

The stock Evaluator makes an element of every row for every slice. Here a batch is sliced, sampled and accumulated as
arrays (see `combiners`), so that a row costs little more than running the model on it.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam as beam
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis import constants
from tensorflow_model_analysis.evaluators import (
    evaluator,
    jackknife,
    metrics_validator,
    poisson_bootstrap,
)
from tensorflow_model_analysis.evaluators import metrics_plots_and_validations_evaluator as stock
from tensorflow_model_analysis.metrics import metric_specs, metric_types
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.utils import model_util

from tfx_compression.compressed_evaluator import combiners
from tfx_compression.compressed_evaluator.batches import Resampling, RowSelection, SliceBatches

_SAMPLES = 20  # as in TFMA


def needs_rows(eval_config: config_pb2.EvalConfig) -> bool:
    """Returns whether only TFMA's own evaluator can do it: queries that span several rows, or slices by SQL."""
    return any(spec.query_key for spec in eval_config.metrics_specs) or any(
        spec.slice_keys_sql for spec in eval_config.slicing_specs
    )


def batch_evaluator(
    eval_config: config_pb2.EvalConfig, schema: schema_pb2.Schema | None, run_after: str
) -> evaluator.Evaluator:
    """Returns an Evaluator for `tfma.ExtractEvaluateAndWriteResults` that takes batched extracts.

    Args:
      eval_config: TFMA's configuration, with its defaults filled in.
      schema: Schema of the examples.
      run_after: Name of the extractor that it runs after.
    """
    return evaluator.Evaluator(
        stage_name="EvaluateBatches", run_after=run_after, ptransform=_EvaluateBatches(eval_config, schema)
    )


class _EvaluateBatches(beam.PTransform):
    """Turns batched extracts into TFMA's dict of metrics, plots, attributions and validations."""

    def __init__(self, eval_config: config_pb2.EvalConfig, schema: schema_pb2.Schema | None):
        super().__init__()
        self._config = eval_config
        self._schema = schema

    def expand(self, extracts: beam.PCollection) -> evaluator.Evaluation:
        """Does what TFMA's `_ComputeMetricsAndPlots` and `_EvaluateMetricsPlotsAndValidations` do together."""
        config = self._config
        specs = list(config.metrics_specs)
        computations = stock._filter_and_separate_computations(
            metric_specs.to_computations(specs, eval_config=config, schema=self._schema)
        )
        baseline = model_util.get_baseline_model_spec(config)
        derived = stock._AddDerivedCrossSliceAndDiffMetrics(
            computations.derived_computations,
            computations.cross_slice_computations,
            list(config.cross_slicing_specs),
            baseline.name if baseline else None,
        )
        resampling = _resampling(config)
        computed = (
            extracts
            | "Slice" >> beam.ParDo(SliceBatches(config, computations.non_derived_computations))
            | "Compute" >> beam.CombinePerKey(_ComputeSamples(computations.non_derived_computations, resampling))
        )
        if config.options.min_slice_size.value > 1:
            computed |= "LargeSlices" >> beam.Filter(lambda item: item[1][0] >= config.options.min_slice_size.value)
        results = (
            computed
            | _AddIntervals(
                resampling,
                derived,
                metric_specs.metric_keys_to_skip_for_confidence_intervals(specs, config),
                keep_private=bool(computations.ci_derived_computations),
            )
            | "Intervals" >> beam.Map(stock._add_ci_derived_metrics, computations.ci_derived_computations)
            | "Public" >> beam.MapTuple(stock._remove_private_metrics)
        )
        key_types = {
            constants.METRICS_KEY: metric_types.MetricKey,
            constants.PLOTS_KEY: metric_types.PlotKey,
            constants.ATTRIBUTIONS_KEY: metric_types.AttributionsKey,
        }
        outputs = {name: results | name >> beam.Map(stock._filter_by_key_type, key) for name, key in key_types.items()}
        metrics = outputs[constants.METRICS_KEY]
        return {
            **outputs,
            constants.VALIDATIONS_KEY: metrics | "Validate" >> beam.Map(metrics_validator.validate_metrics, config),
        }


def _resampling(config: config_pb2.EvalConfig) -> Resampling:
    options = config.options
    if not options.compute_confidence_intervals.value:
        return Resampling()
    if options.confidence_intervals.method == config_pb2.ConfidenceIntervalOptions.JACKKNIFE:
        return Resampling("jackknife", _SAMPLES)
    return Resampling("bootstrap", _SAMPLES)


class _ComputeSamples(beam.CombineFn):
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


class _AddIntervals(beam.PTransform):
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
