"""Parsing and writing TFLite flatbuffers, and their operators."""

import numpy as np
import pytest
from tensorflow.lite.python import schema_py_generated as schema
from tfx_compression.errors import ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.interpreter import Interpreter

from tests.support import by_hand
from tests.support.by_hand import Graph, Op, Type
from tests.support.errors import raises


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04" + bytes(100)], ids=["nothing", "text", "zip"])
def test_a_file_that_is_no_tflite_model_is_refused(content):
    with raises(ModelError, code="not-tflite", match=f"{len(content)} bytes"):
        flatbuffer.parse(content)
    with raises(ModelError, code="not-tflite"):
        Interpreter(content)


def test_a_parsed_model_can_be_changed_and_written():
    model = flatbuffer.parse(by_hand.model(by_hand.one_operator(Op.FLOOR)))
    model.subgraphs[0].tensors[1].name = b"renamed"
    again = flatbuffer.parse(flatbuffer.serialize(model))
    assert [tensor.name for tensor in again.subgraphs[0].tensors] == [b"x", b"renamed"]


def test_operators_have_their_names_layers_and_tensors():
    graph = Graph()
    x, kernel = graph.tensor("x", [1, 2]), graph.constant("kernel", np.ones([3, 2], np.float32))
    y = graph.tensor("net/dense/Relu;net/dense/BiasAdd", [1, 3])
    z, last = graph.tensor("StatefulPartitionedCall:0", [1, 3]), graph.tensor("StatefulPartitionedCall:1", [1, 3])
    options, kind = schema.FullyConnectedOptionsT(), schema.BuiltinOptions.FullyConnectedOptions
    graph.apply(Op.FULLY_CONNECTED, [x, kernel, -1], [y], options, kind)
    graph.apply("FlexErf", [y], [z])
    graph.apply(Op.NEG, [z], [last])
    graph.inputs, graph.outputs = [x], [last]
    model = flatbuffer.parse(by_hand.model(graph, signatures={"serving_default": (0, {"x": x}, {"answer": last})}))
    dense, erf, negative = flatbuffer.operators(model)
    assert (dense.op, dense.layer, dense.inputs, dense.outputs) == (
        "FULLY_CONNECTED",
        "net/dense",
        (x, kernel, -1),
        (y,),
    )
    assert erf.op == "FlexErf"
    assert (negative.op, negative.layer, negative.index) == ("NEG", "answer", 2)
    assert flatbuffer.builtin_name(model, model.subgraphs[0].operators[1]) == "CUSTOM"


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("digits/conv_1/Relu;digits/conv_1/BiasAdd;digits/conv_1/Conv2D", "digits/conv_1"),
        ("StatefulPartitionedCall/digits/dense/MatMul", "digits/dense"),
        ("alone", "alone"),
    ],
)
def test_a_tensors_layer_is_its_first_names_scope(tensor, layer):
    assert flatbuffer.layer_name(tensor) == layer


def test_tensors_of_less_than_a_byte_are_named():
    graph = Graph()
    graph.inputs = graph.outputs = [graph.tensor("x", [1, 8])]
    graph.tensor("kernel", [4, 8], Type.INT4, data=bytes(16), scale=0.1)
    assert flatbuffer.sub_byte_tensors(flatbuffer.parse(by_hand.model(graph))) == ["kernel"]
