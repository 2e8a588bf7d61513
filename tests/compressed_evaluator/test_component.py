"""CompressedEvaluator when a pipeline is built: its inputs, and wrong wiring."""

import json
from typing import Any

import pytest
import tfx_compression as tfc
from tensorflow_model_analysis.proto import config_pb2
from tfx.types import standard_artifacts
from tfx_compression.errors import ConfigError

from tests.support.artifacts import channel, model_channels
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # imports TFX

METRICS = [config_pb2.MetricsSpec(metrics=[config_pb2.MetricConfig(class_name="SparseCategoricalAccuracy")])]
LABEL = [config_pb2.ModelSpec(label_key="label")]


def evaluator(**arguments: Any) -> tfc.CompressedEvaluator:
    defaults = {
        "candidates": model_channels("int8"),
        "baseline_model": channel(standard_artifacts.Model),
        "examples": channel(standard_artifacts.Examples),
        "eval_config": config_pb2.EvalConfig(model_specs=LABEL, metrics_specs=METRICS),
        "budget": tfc.Budget(max_bytes=1000),
    }
    return tfc.CompressedEvaluator(**defaults | arguments)


def test_each_evaluator_has_an_input_for_each_of_its_candidates():
    edge = evaluator(candidates=model_channels("int8", "float16"))
    serving = evaluator(candidates=model_channels("pruned"))
    assert {name for name in edge.inputs if name.startswith("candidate_")} == {"candidate_int8", "candidate_float16"}
    assert {name for name in serving.inputs if name.startswith("candidate_")} == {"candidate_pruned"}
    assert json.loads(edge.exec_properties["candidates"]) == ["float16", "int8"]


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ({"eval_config": config_pb2.EvalConfig(metrics_specs=METRICS)}, "no-label", "label"),
        ({"eval_config": config_pb2.EvalConfig(model_specs=LABEL)}, "no-metrics", "metrics"),
        ({"budget": tfc.Budget(max_metric_drop={"auc": 0.1})}, "unknown-metric", "'auc'"),
        ({"max_metric_drop": 0.1}, "no-drops", "max_metric_drop"),
        ({"candidates": {}}, "no-candidates", "candidate"),
        ({"candidates": model_channels("int-8")}, "invalid-name", "int-8"),
        ({"baseline_model": None}, "no-baseline", "allow_first=True"),
        ({"budget": tfc.Budget(min_slice_rows=5)}, "no-limits", "accept_anything"),
        ({"budget": None}, "no-limits", "accept_anything"),
    ],
)
def test_an_evaluator_that_cannot_decide_is_refused(arguments, code, named):
    with raises(ConfigError, code=code, match=named):
        evaluator(**arguments)


def test_a_first_release_needs_no_baseline():
    assert (
        "baseline_model" not in evaluator(baseline_model=None, budget=tfc.Budget(allow_first=True, max_bytes=1)).inputs
    )


def test_thresholds_or_a_word_of_the_user_replace_limits():
    threshold = config_pb2.MetricThreshold(value_threshold=config_pb2.GenericValueThreshold(lower_bound={"value": 0.5}))
    metric = config_pb2.MetricConfig(class_name="SparseCategoricalAccuracy", threshold=threshold)
    config = config_pb2.EvalConfig(model_specs=LABEL, metrics_specs=[config_pb2.MetricsSpec(metrics=[metric])])
    assert evaluator(budget=None, eval_config=config).exec_properties["budget"]
    assert evaluator(budget=tfc.Budget(accept_anything=True))
