"""TFMA's EvalConfig: checks it against the budget, and completes it for the models of an evaluation."""

import json
from collections.abc import Sequence

import tensorflow_model_analysis as tfma
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis.metrics import metric_specs
from tensorflow_model_analysis.proto import config_pb2  # tfma 0.52 has these at its top level only once TFX is imported

from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.errors import ConfigError
from tfx_compression.keras_models.metric_names import smaller_is_better

# Name of the baseline among the models of an evaluation.
BASELINE = "baseline"


def complete_config(
    models: Sequence[str], eval_config: config_pb2.EvalConfig, budget: Budget, *, has_baseline: bool
) -> config_pb2.EvalConfig:
    """Returns `eval_config` for the models of an evaluation.

    Its first ModelSpec is copied for each model. The number of examples is counted, and confidence intervals are
    computed if the budget needs them.

    Args:
      models: Names of the models; the baseline is called `BASELINE`.
      eval_config: The user's configuration.
      budget: Limits and objective.
      has_baseline: Whether there is a baseline.

    Raises:
      ConfigError: The configuration has no label, no metrics, or not what the budget limits.
    """
    _require_label(eval_config)
    _require_metrics(eval_config, budget)
    _require_comparisons(eval_config, budget, has_baseline)
    config = config_pb2.EvalConfig()
    config.CopyFrom(eval_config)
    template = eval_config.model_specs[0]
    del config.model_specs[:]
    for name in models:
        spec = config.model_specs.add()
        spec.CopyFrom(template)
        spec.name = name
        spec.model_type = "tf_generic"
        spec.is_baseline = has_baseline and name == BASELINE
    _count_examples(config, weighted=bool(template.example_weight_key or template.example_weight_keys))
    if has_baseline and budget.needs_intervals:
        options = config.options
        if not options.compute_confidence_intervals.value:
            options.confidence_intervals.method = config_pb2.ConfidenceIntervalOptions.JACKKNIFE
        options.compute_confidence_intervals.value = True
    return tfma.utils.update_eval_config_with_defaults(config, has_baseline=has_baseline, rubber_stamp=not has_baseline)


def check_config(
    models: Sequence[str],
    eval_config: config_pb2.EvalConfig,
    schema: schema_pb2.Schema | None,
    budget: Budget,
    *,
    has_baseline: bool,
) -> None:
    """Checks that TFMA and the budget can use a configuration. See `complete_config` and `require_valid_metrics`."""
    require_valid_metrics(complete_config(models, eval_config, budget, has_baseline=has_baseline), schema)


def require_valid_metrics(config: config_pb2.EvalConfig, schema: schema_pb2.Schema | None) -> None:
    """Checks that TFMA can make every metric of a complete configuration.

    Raises:
      ConfigError: A metric's class is unknown, or doesn't have its configuration (code "invalid-metric").
    """
    for spec in config.metrics_specs:
        try:
            metric_specs.to_computations([spec], eval_config=config, schema=schema)
        except (AttributeError, ImportError, KeyError, NotImplementedError, TypeError, ValueError) as error:
            names = ", ".join(metric.class_name for metric in spec.metrics)
            raise ConfigError(
                f"TFMA can't make the metrics {names} of the eval_config: {error}",
                field="eval_config.metrics_specs",
                code="invalid-metric",
            ) from error


def has_thresholds(eval_config: config_pb2.EvalConfig) -> bool:
    """Returns whether a configuration has a threshold that a candidate could miss."""
    return any(
        spec.thresholds
        or spec.per_slice_thresholds
        or spec.cross_slice_thresholds
        or any(
            metric.HasField("threshold") or metric.per_slice_thresholds or metric.cross_slice_thresholds
            for metric in spec.metrics
        )
        for spec in eval_config.metrics_specs
    )


def _require_label(eval_config: config_pb2.EvalConfig) -> None:
    spec = eval_config.model_specs[0] if eval_config.model_specs else config_pb2.ModelSpec()
    if not spec.label_key and not spec.label_keys:
        raise ConfigError(
            "The eval_config names no label. Remedy: eval_config=tfma.EvalConfig(model_specs=["
            "tfma.ModelSpec(label_key='…')], …).",
            field="eval_config.model_specs",
            code="no-label",
        )


def _require_metrics(eval_config: config_pb2.EvalConfig, budget: Budget) -> None:
    """Raises a ConfigError unless the metrics' names tell their direction and the budget's are among them."""
    names = _metric_names(eval_config)
    if not names:
        raise ConfigError(
            "The eval_config has no metrics. Remedy: add metrics_specs.",
            field="eval_config.metrics_specs",
            code="no-metrics",
        )
    for class_name, name in names:
        if smaller_is_better(name) != smaller_is_better(class_name):
            better, ending = ("smaller", "loss") if smaller_is_better(class_name) else ("larger", "accuracy")
            raise ConfigError(
                f"The {class_name} is called {name!r}, which doesn't say that it is better when {better}. "
                f"Remedy: remove the name, or use one that ends in {ending!r}.",
                field="eval_config.metrics_specs",
                code="misleading-metric-name",
            )
    # Before anything has run, only the metric in `output/metric@sub-key` is known.
    plain = {metric.split("/")[-1].split("@")[0]: 0.0 for metric in budget.limited_metrics}
    Budget(max_metric_drop=plain).for_metrics(name for _, name in names)


def _require_comparisons(eval_config: config_pb2.EvalConfig, budget: Budget, has_baseline: bool) -> None:
    """Raises a ConfigError unless there are the baseline and the slices that the budget's limits need."""
    if budget.limited_metrics and not has_baseline and not budget.allow_first:
        raise ConfigError(
            "The budget limits drops of metrics, which compare with a baseline, and there is no baseline. "
            "Remedy: baseline_model=…, or Budget(allow_first=True) for the first release.",
            field="baseline_model",
            code="no-baseline",
        )
    has_slices = any(
        spec.feature_keys or spec.feature_values or spec.slice_keys_sql for spec in eval_config.slicing_specs
    )
    for field, limit in budget.set_limits.items():
        if limit.needs_slices and not has_slices:
            raise ConfigError(
                f"Budget.{field} limits the worst slice, and the eval_config has no slices. "
                "Remedy: add slicing_specs with feature_keys or feature_values.",
                field=f"Budget.{field}",
                code="no-slices",
            )


def _count_examples(config: config_pb2.EvalConfig, weighted: bool) -> None:
    """Adds the number of examples to the metrics. With weights, TFMA's own count is their sum."""
    counted = any(metric.class_name == "ExampleCount" for spec in config.metrics_specs for metric in spec.metrics)
    if weighted or not counted:
        count = config.metrics_specs.add(metrics=[config_pb2.MetricConfig(class_name="ExampleCount")])
        if weighted:
            count.example_weights.unweighted = True


def _metric_names(eval_config: config_pb2.EvalConfig) -> list[tuple[str, str]]:
    """Returns the class and the name of each metric. TFMA accepts a metric's JSON configuration without braces."""
    names = []
    for spec in eval_config.metrics_specs:
        for metric in spec.metrics:
            config = metric.config if metric.config.strip().startswith("{") else f"{{{metric.config}}}"
            try:
                fields = json.loads(config)
            except ValueError as error:
                raise ConfigError(
                    f"The configuration of {metric.class_name} in the eval_config is not JSON: {error}: {config}",
                    field="eval_config.metrics_specs",
                    code="invalid-metric",
                ) from error
            names.append((metric.class_name, str(fields.get("name", metric.class_name))))
    return names
