"""TFMA's configuration is checked before anything runs, and completed for the models."""

import pytest
from google.protobuf import text_format
from tensorflow_model_analysis.proto import config_pb2
from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.compressed_evaluator.eval_config import (
    complete_config,
    require_valid_metrics,
)
from tfx_compression.errors import ConfigError

from tests.support.errors import raises

_INTERVALS = config_pb2.ConfidenceIntervalOptions
_LABEL = 'model_specs { label_key: "label" } '
_ACCURACY = 'metrics_specs { metrics { class_name: "SparseCategoricalAccuracy" } } '


def parse(text: str) -> config_pb2.EvalConfig:
    return text_format.Parse(text, config_pb2.EvalConfig())


def complete(text: str, budget: Budget | None = None, has_baseline: bool = True) -> config_pb2.EvalConfig:
    models = ["a", "b", *(["baseline"] if has_baseline else [])]
    return complete_config(models, parse(text), budget or Budget(), has_baseline=has_baseline)


def test_the_first_model_spec_is_copied_for_every_model():
    config = complete(_LABEL + _ACCURACY)
    assert [(spec.name, spec.label_key, spec.is_baseline) for spec in config.model_specs] == [
        ("a", "label", False),
        ("b", "label", False),
        ("baseline", "label", True),
    ]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (_LABEL + _ACCURACY, 1),
        (_LABEL + _ACCURACY + 'metrics_specs { metrics { class_name: "ExampleCount" } }', 1),
        ('model_specs { label_key: "label" example_weight_key: "w" } ' + _ACCURACY, 1),
    ],
    ids=["added", "there already", "unweighted"],
)
def test_the_examples_are_counted_once(text, counts):
    config = complete(text)
    specs = [spec for spec in config.metrics_specs if any(m.class_name == "ExampleCount" for m in spec.metrics)]
    assert len(specs) == counts
    assert specs[0].example_weights.unweighted == ("example_weight_key" in text)


def test_confidence_intervals_are_computed_if_drops_are_limited_with_confidence():
    limits = {"max_metric_drop": {"sparse_categorical_accuracy": 0.1}}
    plain = complete(_LABEL + _ACCURACY, Budget(**limits, confidence=None))
    assert not plain.options.compute_confidence_intervals.value
    jackknife = complete(_LABEL + _ACCURACY, Budget(**limits))
    assert jackknife.options.compute_confidence_intervals.value
    assert jackknife.options.confidence_intervals.method == _INTERVALS.JACKKNIFE
    options = (
        "options { compute_confidence_intervals { value: true } confidence_intervals { method: POISSON_BOOTSTRAP } }"
    )
    bootstrap = complete(_LABEL + _ACCURACY + options, Budget(**limits))
    assert bootstrap.options.confidence_intervals.method == _INTERVALS.POISSON_BOOTSTRAP


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (_ACCURACY, "no-label"),
        ("model_specs {} " + _ACCURACY, "no-label"),
        (_LABEL, "no-metrics"),
    ],
)
def test_a_label_and_metrics_are_required(text, code):
    with raises(ConfigError, code=code):
        complete(text)


def test_the_name_of_a_loss_has_to_say_so():
    renamed = 'metrics_specs { metrics { class_name: "SparseCategoricalCrossentropy" config: \'"name": "nll"\' } }'
    with raises(ConfigError, code="misleading-metric-name", match="'nll'.*'loss'"):
        complete(_LABEL + renamed)


@pytest.mark.parametrize(
    "metric",
    [
        'class_name: "NoSuchMetric"',
        'class_name: "SparseCategoricalAccuracy" config: \'"classes": 3\'',
        'class_name: "NoSuchMetric" module: "no_such_module"',
    ],
)
def test_a_metric_that_tfma_cannot_make_is_refused(metric):
    config = complete(_LABEL + f"metrics_specs {{ metrics {{ {metric} }} }}")
    with raises(ConfigError, field="eval_config.metrics_specs", code="invalid-metric"):
        require_valid_metrics(config, None)
    require_valid_metrics(complete(_LABEL + _ACCURACY), None)


def test_a_configuration_of_a_metric_that_is_not_json_is_refused():
    with raises(ConfigError, code="invalid-metric", match="SparseCategoricalAccuracy"):
        complete(_LABEL + 'metrics_specs { metrics { class_name: "SparseCategoricalAccuracy" config: "name" } }')


def test_a_limited_metric_has_to_be_computed():
    with raises(ConfigError, code="unknown-metric", match="'auc'.*SparseCategoricalAccuracy"):
        complete(_LABEL + _ACCURACY, Budget(max_metric_drop={"auc": 0.01}))


def test_limits_on_drops_need_a_baseline_or_a_first_release():
    limits = {"max_metric_drop": {"sparse_categorical_accuracy": 0.1}}
    with raises(ConfigError, code="no-baseline", match="allow_first"):
        complete(_LABEL + _ACCURACY, Budget(**limits), has_baseline=False)
    assert complete(_LABEL + _ACCURACY, Budget(**limits, allow_first=True), has_baseline=False)


def test_a_limit_on_slices_needs_slices():
    budget = Budget(max_slice_metric_drop={"sparse_categorical_accuracy": 0.1})
    with raises(ConfigError, code="no-slices", field="Budget.max_slice_metric_drop"):
        complete(_LABEL + _ACCURACY, budget)
    assert complete(_LABEL + _ACCURACY + 'slicing_specs { feature_keys: "group" }', budget)
