"""TFMA's evaluation of batches: its computations, derived metrics, intervals, validation and files.

The stock Evaluator makes an element of every row for every slice. Here a batch is sliced, sampled and accumulated as
arrays (see `combiners`), so that a row costs little more than running the model on it.
"""

import apache_beam as beam
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis import constants
from tensorflow_model_analysis.evaluators import evaluator, metrics_validator
from tensorflow_model_analysis.evaluators import metrics_plots_and_validations_evaluator as stock
from tensorflow_model_analysis.metrics import metric_specs, metric_types
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.utils import model_util

from tfx_compression.compressed_evaluator.batches import SliceBatches
from tfx_compression.compressed_evaluator.resampling import AddIntervals, ComputeSamples, Resampling


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
        resampling = Resampling.from_config(config)
        computed = (
            extracts
            | "Slice" >> beam.ParDo(SliceBatches(config, computations.non_derived_computations))
            | "Compute" >> beam.CombinePerKey(ComputeSamples(computations.non_derived_computations, resampling))
        )
        if config.options.min_slice_size.value > 1:
            computed |= "LargeSlices" >> beam.Filter(lambda item: item[1][0] >= config.options.min_slice_size.value)
        results = (
            computed
            | AddIntervals(
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
