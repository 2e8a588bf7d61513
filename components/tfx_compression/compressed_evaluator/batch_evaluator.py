"""TFMA's evaluation of batches: its computations, derived metrics, intervals, validation and files, without its rows.

The stock Evaluator makes an element of every row for every slice. Here a batch stays one: sliced, sampled and
accumulated as arrays (see `combiners`), so that a row costs little more than running the model on it.
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
from tfx_compression.compressed_evaluator.batches import Rows, Samples, Slice

_INTERVALS = config_pb2.ConfidenceIntervalOptions
_SAMPLES = 20  # TFMA's number


def needs_rows(eval_config: config_pb2.EvalConfig) -> bool:
    """Whether the configuration asks for what only TFMA's own evaluator does: queries of several rows, SQL slices."""
    return any(spec.query_key for spec in eval_config.metrics_specs) or any(
        spec.slice_keys_sql for spec in eval_config.slicing_specs
    )


def batch_evaluator(
    eval_config: config_pb2.EvalConfig, schema: schema_pb2.Schema | None, run_after: str
) -> evaluator.Evaluator:
    """An Evaluator for `tfma.ExtractEvaluateAndWriteResults` that takes batched extracts."""
    return evaluator.Evaluator(
        stage_name="EvaluateBatches", run_after=run_after, ptransform=_Evaluate(eval_config, schema)
    )


class _Evaluate(beam.PTransform):
    """From batched extracts to TFMA's dict of metrics, plots, attributions and validations."""

    def __init__(self, eval_config: config_pb2.EvalConfig, schema: schema_pb2.Schema | None):
        super().__init__()
        self._config = eval_config
        self._schema = schema

    def expand(self, extracts: beam.PCollection) -> evaluator.Evaluation:
        """As TFMA's `_ComputeMetricsAndPlots` and `_EvaluateMetricsPlotsAndValidations` do together."""
        config = self._config
        specs = list(config.metrics_specs)
        parts = stock._filter_and_separate_computations(
            metric_specs.to_computations(specs, eval_config=config, schema=self._schema)
        )
        baseline = model_util.get_baseline_model_spec(config)
        derived = stock._AddDerivedCrossSliceAndDiffMetrics(
            parts.derived_computations,
            parts.cross_slice_computations,
            list(config.cross_slicing_specs),
            baseline.name if baseline else None,
        )
        samples = _samples(config)
        computed = (
            extracts
            | "Slice" >> beam.ParDo(Slice(config, parts.non_derived_computations))
            | "Compute" >> beam.CombinePerKey(_Compute(parts.non_derived_computations, samples))
        )
        if config.options.min_slice_size.value > 1:
            computed |= "LargeSlices" >> beam.Filter(lambda item: item[1][0] >= config.options.min_slice_size.value)
        results = (
            computed
            | _Intervals(
                samples,
                derived,
                metric_specs.metric_keys_to_skip_for_confidence_intervals(specs, config),
                keep_private=bool(parts.ci_derived_computations),
            )
            | "Intervals" >> beam.Map(stock._add_ci_derived_metrics, parts.ci_derived_computations)
            | "Public" >> beam.MapTuple(stock._remove_private_metrics)
        )
        kinds = {
            constants.METRICS_KEY: metric_types.MetricKey,
            constants.PLOTS_KEY: metric_types.PlotKey,
            constants.ATTRIBUTIONS_KEY: metric_types.AttributionsKey,
        }
        found = {name: results | name >> beam.Map(stock._filter_by_key_type, kind) for name, kind in kinds.items()}
        metrics = found[constants.METRICS_KEY]
        return {
            **found,
            constants.VALIDATIONS_KEY: metrics | "Validate" >> beam.Map(metrics_validator.validate_metrics, config),
        }


def _samples(config: config_pb2.EvalConfig) -> Samples:
    options = config.options
    if not options.compute_confidence_intervals.value:
        return Samples()
    if options.confidence_intervals.method == _INTERVALS.JACKKNIFE:
        return Samples("jackknife", _SAMPLES)
    return Samples("bootstrap", _SAMPLES)


class _Compute(beam.CombineFn):
    """(number of rows, by sample the metrics) of a slice; the first sample is that of all rows."""

    def __init__(self, computations: Sequence[metric_types.MetricComputation], samples: Samples):
        self._combiners = [combiners.wrap(number, each) for number, each in enumerate(computations)]
        self._samples = samples

    def setup(self) -> None:
        for each in self._combiners:
            each.combiner.setup()

    def teardown(self) -> None:
        for each in self._combiners:
            each.combiner.teardown()

    def create_accumulator(self) -> list[Any]:
        parts = range(self._samples.parts)
        return [0, *(self._empty() for _ in parts)]

    def add_input(self, accumulator: list[Any], rows: Rows) -> list[Any]:
        accumulator[0] += len(rows.index)
        for number, part in self._samples.split(rows):
            held = accumulator[1 + number]
            for place, combiner in enumerate(self._combiners):
                held[place] = combiner.add_rows(held[place], part)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[list[Any]]) -> list[Any]:
        counts, *parts = zip(*accumulators, strict=True)
        return [sum(counts), *(self._merged(part) for part in parts)]

    def compact(self, accumulator: list[Any]) -> list[Any]:
        count, *parts = accumulator
        return [count, *([c.compact(held) for c, held in zip(self._combiners, part, strict=True)] for part in parts)]

    def extract_output(self, accumulator: list[Any]) -> tuple[int, list[metric_types.MetricsDict]]:
        count, *parts = accumulator
        if self._samples.method == "jackknife":
            parts = self._left_out(parts)
        return count, [self._result(part) for part in parts]

    def _left_out(self, parts: Sequence[list[Any]]) -> list[list[Any]]:
        """All parts merged, then all but the first, all but the second, …: from what is before and behind each."""
        before, behind = [self._empty()], [self._empty()]
        for front, back in zip(parts, reversed(parts), strict=True):
            before.append(self._merged(copy.deepcopy([before[-1], front])))
            behind.append(self._merged(copy.deepcopy([back, behind[-1]])))
        return [
            before[-1],
            *(self._merged(copy.deepcopy([before[n], behind[len(parts) - 1 - n]])) for n in range(len(parts))),
        ]

    def _empty(self) -> list[Any]:
        return [combiner.create_accumulator() for combiner in self._combiners]

    def _merged(self, parts: Iterable[list[Any]]) -> list[Any]:
        return [
            combiner.merge_accumulators(held)
            for combiner, held in zip(self._combiners, zip(*parts, strict=True), strict=True)
        ]

    def _result(self, part: list[Any]) -> metric_types.MetricsDict:
        found: metric_types.MetricsDict = {}
        for combiner, held in zip(self._combiners, part, strict=True):
            found.update(combiner.extract_output(held))
        return found


class _Intervals(beam.PTransform):
    """Derived metrics and differences of each sample, and from all of them the confidence intervals.

    Of private metrics, histograms of 10,000 buckets among them, there are intervals only where others derive from them.
    """

    def __init__(self, samples: Samples, derived: beam.PTransform, skipped: Any, keep_private: bool):
        super().__init__()
        self._keep_private = keep_private
        self._samples = samples
        self._derived = derived
        self._skipped = skipped

    def expand(self, computed: beam.PCollection) -> beam.PCollection:
        """See the class."""

        def sample(number: int) -> beam.PCollection:
            # Sample 0 is that of all rows, which TFMA's combiners call -1.
            derived = (
                computed
                | f"Sample{number}" >> beam.Map(lambda item: (item[0], item[1][1][number]))
                | f"Derived{number}" >> self._derived
            )
            if self._keep_private:
                return derived
            return derived | f"Public{number}" >> beam.MapTuple(stock._remove_private_metrics)

        if self._samples.method is None:
            return sample(0)
        combine = {
            "jackknife": jackknife._JackknifeSampleCombineFn,
            "bootstrap": poisson_bootstrap._BootstrapSampleCombineFn,
        }[self._samples.method]
        return (
            [
                sample(number) | f"Number{number}" >> beam.MapTuple(jackknife._add_sample_id, sample_id=number - 1)
                for number in range(self._samples.count + 1)
            ]
            | "Samples" >> beam.Flatten()
            | "Combine" >> beam.CombinePerKey(combine(self._samples.count, self._skipped))
        )
