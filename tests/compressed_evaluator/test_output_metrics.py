"""Metrics fit the outputs of the models, or say which configuration would."""

import ast
import re

import pytest
import tensorflow_model_analysis as tfma
from google.protobuf import text_format
from tensorflow_model_analysis.proto import config_pb2
from tfx_compression.compressed_evaluator.output_metrics import (
    outputs_of_classes,
    require_output_names,
    with_default_metrics,
)
from tfx_compression.errors import ConfigError

from tests.support.errors import raises

TWO = {"digit": (10,), "color": (3,)}


def parse(text: str) -> config_pb2.EvalConfig:
    return text_format.Parse(text, config_pb2.EvalConfig())


def accuracies(config: config_pb2.EvalConfig) -> dict[str, str]:
    """Returns the metric of each output."""
    return {name: spec.metrics[0].class_name for spec in config.metrics_specs for name in (spec.output_names or [""])}


def test_one_output_gets_the_accuracy_of_a_classifier():
    config = with_default_metrics(parse('model_specs { label_key: "label" }'), {"out": (3,)}, ["label"])
    assert accuracies(config) == {"": "SparseCategoricalAccuracy"}
    assert config.model_specs[0].label_key == "label"


def test_each_of_several_outputs_is_compared_with_the_feature_of_its_name():
    config = with_default_metrics(parse(""), TWO, ["x", "digit", "color"])
    assert accuracies(config) == dict.fromkeys(TWO, "SparseCategoricalAccuracy")
    assert dict(config.model_specs[0].label_keys) == {"digit": "digit", "color": "color"}


def test_outputs_without_a_label_of_their_own_are_left_out():
    config = parse('model_specs { label_keys { key: "color" value: "paint" } }')
    config = with_default_metrics(config, TWO, ["x", "paint"])
    assert accuracies(config) == {"color": "SparseCategoricalAccuracy"}
    assert dict(config.model_specs[0].label_keys) == {"color": "paint"}


@pytest.mark.parametrize(
    ("config", "outputs", "features"),
    [
        ('model_specs { label_key: "digit" }', TWO, ["digit", "color"]),
        ("", TWO, ["digit"]),
        ("", {"digit": (10,), "age": (1,)}, ["digit", "age"]),
    ],
    ids=["one label", "no feature for a label", "an output of one value"],
)
def test_outputs_whose_labels_are_unknown_are_refused_with_a_configuration_that_works(config, outputs, features):
    with raises(ConfigError, code="several-outputs", field="eval_config.metrics_specs") as caught:
        with_default_metrics(parse(config), outputs, features)
    shown = re.search(r"tfma\.EvalConfig\(.*\)", str(caught.value))[0]
    ast.parse(shown)
    remedy = eval(shown, {"tfma": tfma})
    assert set(accuracies(remedy)) == set(remedy.model_specs[0].label_keys) == set(outputs)
    require_output_names(remedy, outputs)
    outputs_of_classes(remedy, {"model": outputs})


def test_metrics_of_several_outputs_name_theirs():
    with raises(ConfigError, code="several-outputs"):
        require_output_names(parse('metrics_specs { metrics { class_name: "AUC" } }'), TWO)
    with raises(ConfigError, code="unknown-output", match="'colour'.*digit, color"):
        require_output_names(parse('metrics_specs { output_names: "colour" metrics { class_name: "AUC" } }'), TWO)
    require_output_names(parse('metrics_specs { metrics { class_name: "ExampleCount" } }'), TWO)
    require_output_names(parse('metrics_specs { metrics { class_name: "AUC" } }'), {"out": (1,)})


@pytest.mark.parametrize("shape", [(1,), ()])
def test_metrics_of_classes_need_an_output_per_class(shape):
    """The argmax of one output is always 0, so every model would be equally good."""
    config = parse('metrics_specs { metrics { class_name: "SparseCategoricalAccuracy" } }')
    with raises(ConfigError, code="one-output", match="SparseCategoricalAccuracy.*'a'.*BinaryAccuracy"):
        outputs_of_classes(config, {"b": {"out": (3,)}, "a": {"out": shape}})
    config.metrics_specs[0].output_names.append("age")
    with raises(ConfigError, code="one-output", match="'age'"):
        outputs_of_classes(config, {"a": {"age": shape, "digit": (10,)}})


def test_labels_are_classes_only_for_metrics_of_classes():
    sparse = parse('metrics_specs { metrics { class_name: "SparseCategoricalAccuracy" } }')
    assert outputs_of_classes(sparse, {"a": {"out": (3,)}}) == ("",)
    sparse.metrics_specs[0].output_names.append("digit")
    assert outputs_of_classes(sparse, {"a": TWO}) == ("digit",)
    binary = parse('metrics_specs { metrics { class_name: "BinaryAccuracy" } }')
    assert outputs_of_classes(binary, {"a": {"out": (1,)}}) == ()
