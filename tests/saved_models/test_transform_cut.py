"""The outputs of a Transform layer in the graph of a signature."""

import pytest
import tensorflow as tf
from tfx_compression.errors import ModelError
from tfx_compression.saved_models import transform_cut
from tfx_compression.tf_graphs import inlining

from tests.support.errors import raises
from tests.support.signatures import open_signature, save_on_examples, transform_layer

NUMBER = tf.TensorSpec([None, 1], tf.float32)
SPEC = {name: tf.io.FixedLenFeature([1], tf.float32) for name in ("a", "b")}


def scale(features):
    return {name: (value - 1.0) / 4.0 for name, value in features.items()}


def tensor_ops(tensors) -> dict[str, list[str]]:
    return {name: [place[0].op.type for place in places] for name, places in tensors.items()}


def test_outputs_of_the_layer_are_found_by_what_they_compute(tmp_path):
    layer = transform_layer(scale, a=NUMBER, b=NUMBER)

    def function(parsed):
        scaled = layer(parsed)
        return {"y": scaled["a"] * 2 + (parsed["b"] - 1.0) / 5.0}

    graph = open_signature(save_on_examples(tmp_path / "model", SPEC, function, tft_layer=layer))
    tensors = transform_cut.transformed_tensors(graph)
    assert tensor_ops(tensors) == {"a": ["RealDiv"]}
    ((place,),) = tensors["a"]
    (divisor,) = tf.get_static_value(place.op.inputs[1]).ravel()[:1]
    assert divisor == 4
    (subtracted,) = transform_cut.transform_operations(graph) & {place.op.inputs[0].op.name}
    assert graph.frozen.graph.get_operation_by_name(subtracted).type == "Sub"


def test_a_signature_of_transform_alone_counts_as_a_layer(tmp_path):
    module = tf.Module()
    rows = tf.TensorSpec([None], tf.string, name="examples")
    module.transform = tf.function(lambda examples: scale(tf.io.parse_example(examples, SPEC)), input_signature=[rows])
    module.serve = tf.function(
        lambda examples: {"y": scale(tf.io.parse_example(examples, SPEC))["b"] + 1}, input_signature=[rows]
    )
    signatures = {"serving_default": module.serve, "transform_features": module.transform}
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=signatures)
    tensors = transform_cut.transformed_tensors(open_signature(str(tmp_path / "model")))
    assert tensor_ops(tensors) == {"b": ["RealDiv"]}


def test_of_several_layers_the_one_with_the_fewest_features_behind_it_counts(tmp_path):
    first = transform_layer(lambda features: {"a": features["a"] + 1.0}, a=NUMBER, b=NUMBER)
    second = transform_layer(scale, a=NUMBER, b=NUMBER)

    def function(parsed):
        return {"y": first(parsed)["a"] + second(parsed)["a"] * second(parsed)["b"]}

    path = save_on_examples(tmp_path / "model", SPEC, function, tft_layer=first, tft_layer_eval=second)
    tensors = transform_cut.transformed_tensors(open_signature(path))
    assert set(tensors) == {"a", "b"}


def test_a_model_without_a_layer_is_rejected(tmp_path):
    graph = open_signature(save_on_examples(tmp_path / "model", SPEC, lambda parsed: {"y": parsed["a"]}))
    with raises(ModelError, code="no-transform-layer", match="serving_default"):
        transform_cut.transformed_tensors(graph)
    assert transform_cut.transform_operations(graph) == set()


def test_a_layer_that_the_signature_does_not_use_is_rejected(tmp_path):
    layer = transform_layer(scale, a=NUMBER, b=NUMBER)
    path = save_on_examples(tmp_path / "model", SPEC, lambda parsed: {"y": parsed["a"] * 2}, tft_layer=layer)
    with raises(ModelError, code="unused-transform-layer"):
        transform_cut.transformed_tensors(open_signature(path))


def output_digest(function, captured=None) -> str:
    traced = tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec([None, 2], tf.float32))
    frozen = inlining.freeze(traced)
    return transform_cut.digests(frozen, {"x": [frozen.inputs]})[frozen.outputs[0].name]


TABLES = [tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1.0]), -1.0) for _ in range(2)]


def looked_up(table):
    return lambda x: table.lookup(tf.strings.as_string(x))


def looped(step):
    return lambda x: tf.while_loop(lambda y: tf.norm(y) < 9, lambda y: y * step, [x])[0]


@pytest.mark.parametrize(
    ("function", "other"),
    [
        (lambda x: x * 2.0, lambda x: x * 3.0),
        (lambda x: x - 2.0, lambda x: 2.0 - x),
        (lambda x: tf.reduce_sum(x, 0), lambda x: tf.reduce_sum(x, 1)),
        (looked_up(TABLES[0]), looked_up(TABLES[1])),
        (looped(2.0), looped(3.0)),
    ],
    ids=["constant", "order", "attribute", "table", "loop"],
)
def test_digests_tell_computations_apart(function, other):
    digests = [output_digest(each) for each in (function, lambda x: tf.identity(function(x)), other)]
    assert digests[0] == digests[1] != digests[2]
