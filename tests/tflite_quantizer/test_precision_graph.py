"""The operators of a float model as the choice of precisions looks at them."""

import pytest
import tensorflow as tf
from tfx_compression.tflite_quantizer.precision_graph import PrecisionGraph

from tests.support.conversions import converted_function, normal

pytestmark = pytest.mark.slow  # converts models


def test_operators_with_weights_have_a_kernel(float_cnn):
    graph = PrecisionGraph(float_cnn)
    assert [graph.operators[index].op for index in graph.kernels] == [
        *("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "FULLY_CONNECTED", "FULLY_CONNECTED"),
    ]
    assert all(graph.is_constant(kernel) and graph.is_float(kernel) for kernel in graph.kernels.values())
    assert all(graph.kind(index) == graph.operators[index].op for index in graph.kernels)


def test_activations_are_computed_floats(float_cnn):
    graph = PrecisionGraph(float_cnn)
    first = graph.operators[0]
    assert graph.activations(first.inputs) == graph.inputs
    assert graph.activations(first.outputs) == list(first.outputs)


def test_lookups_and_unused_outputs_are_recognized(tmp_path):
    table = normal(8, 6)

    def function(x):
        first, _ = tf.split(tf.gather(table, x), 2, axis=1)
        return {"y": first}

    content = converted_function(function, [tf.TensorSpec([None], tf.int32, "x")], tmp_path / "lookup")
    graph = PrecisionGraph(content)
    lookup, split = (next(each for each in graph.operators if each.op == op) for op in ("GATHER", "SPLIT"))
    assert graph.is_table_lookup(lookup) and not graph.is_table_lookup(split)
    assert [graph.is_used(output) for output in split.outputs] == [True, False]
    assert graph.inputs == [] and len(graph.outputs) == 1
