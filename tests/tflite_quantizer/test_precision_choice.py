"""Precisions by rules and uniform ones, and what an operator doesn't support."""

import pytest
import tensorflow as tf
from tfx_compression.errors import ConfigError
from tfx_compression.tflite.contents import read_contents
from tfx_compression.tflite_quantizer.config import PrecisionRule
from tfx_compression.tflite_quantizer.layer_quantizer import quantize_layers
from tfx_compression.tflite_quantizer.precision_choice import allowed_precisions, choose_by_rules, choose_uniform
from tfx_compression.tflite_quantizer.precision_graph import PrecisionGraph
from tfx_compression.tflite_quantizer.recipe import PrecisionChoice

from tests.support.conversions import converted_function, normal
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models

DEPTHWISE, POINTWISE = "separable_conv2d$", "separable$"


def test_the_last_matching_rule_wins(float_cnn, cnn_ranges):
    rules = [
        PrecisionRule(layers=".*", precision="int8"),
        PrecisionRule(layers="dense", precision="int4"),
        PrecisionRule(layers="probabilities", precision="float32"),
    ]
    choices = choose_by_rules(float_cnn, rules)
    by_layer = {
        operator.layer.split("/")[-1]: choices[operator.index].precision
        for operator in PrecisionGraph(float_cnn).operators
    }
    assert by_layer["dense"] == "int4"
    assert by_layer["probabilities"] == "float32"
    assert by_layer["pool"] == by_layer["separable"] == "int8"
    content = quantize_layers(float_cnn, choices, cnn_ranges)
    assert read_contents(content).float_ops.keys() >= {"FULLY_CONNECTED"}


def test_a_rule_without_a_match_lists_the_layers(float_cnn):
    with raises(ConfigError, code="no-matching-layer", match="small_cnn/dense"):
        choose_by_rules(float_cnn, [PrecisionRule(layers="convolution_9", precision="int8")])


@pytest.mark.parametrize(
    ("rule", "code", "match"),
    [
        (
            PrecisionRule(layers=DEPTHWISE, precision="int4"),
            "unsupported-precision",
            r"DEPTHWISE_CONV_2D.*int8, int8_dynamic",
        ),
        (PrecisionRule(layers=POINTWISE, precision="int2_dynamic"), "unsupported-precision", r"CONV_2D"),
        (
            PrecisionRule(layers=POINTWISE, precision="int4_dynamic", block_size=32),
            "unsupported-block-size",
            "block_size=32",
        ),
        (
            PrecisionRule(layers="probabilities", precision="int4_dynamic", block_size=64),
            "indivisible-block-size",
            "32 inputs",
        ),
    ],
)
def test_an_unsupported_rule_names_the_layer(float_cnn, rule, code, match):
    with raises(ConfigError, code=code, match=match):
        choose_by_rules(float_cnn, [rule])


def test_a_lookup_table_supports_precisions_of_operators_without_weights(tmp_path):
    table = normal(16, 8)
    content = converted_function(
        lambda x: {"y": tf.gather(table, x)}, [tf.TensorSpec([None], tf.int32, "x")], tmp_path / "table"
    )
    with raises(ConfigError, code="unsupported-precision", match="GATHER"):
        choose_by_rules(content, [PrecisionRule(layers=".", precision="int4_dynamic")])
    assert choose_by_rules(content, [PrecisionRule(layers=".", precision="int8")])


def test_a_uniform_precision_has_fallbacks(float_cnn):
    graph = PrecisionGraph(float_cnn)
    precisions = {
        graph.operators[index].op: choice.precision
        for index, choice in choose_uniform(float_cnn, "int2_dynamic").items()
        if index in graph.kernels
    }
    assert precisions == {
        "CONV_2D": "int4_dynamic",
        "DEPTHWISE_CONV_2D": "int8_dynamic",
        "FULLY_CONNECTED": "int2_dynamic",
    }


def test_a_block_size_that_does_not_divide_the_inputs_is_left_out(float_cnn):
    graph = PrecisionGraph(float_cnn)
    choices = choose_uniform(float_cnn, "int4_dynamic", block_size=64)
    sizes = {
        graph.input_size(index): choices[index] for index in graph.kernels if "dense" in graph.operators[index].layer
    }
    assert sizes == {256: PrecisionChoice("int4_dynamic", 64)}
    last = max(graph.kernels)
    assert choices[last] == PrecisionChoice("int4_dynamic")


def test_allowed_precisions_of_a_depthwise_convolution(float_cnn):
    graph = PrecisionGraph(float_cnn)
    (index,) = (operator.index for operator in graph.operators if operator.op == "DEPTHWISE_CONV_2D")
    allowed = allowed_precisions(graph, index)
    assert set(allowed) == {"int8", "int8_dynamic", "int8_weight_only", "float16", "float32", "int16x8"}
