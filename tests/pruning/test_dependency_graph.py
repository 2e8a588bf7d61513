"""Groups of coupled channels, and the reasons why channels are left alone."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ModelError
from tfx_compression.pruning.dependency_graph import ChannelGroup, DependencyGraph
from tfx_compression.pruning.surgery import remove

from tests.support import exactness
from tests.support.errors import raises
from tests.support.graphs import GRAPHS, KERAS

both_keras = pytest.mark.parametrize("K", KERAS, ids=["keras2", "keras3"])


def _dependencies(graph, K):
    return DependencyGraph(GRAPHS[graph](K))


def _free(dependencies) -> dict[str, ChannelGroup]:
    return {name: group for name, group in dependencies.groups.items() if not group.blocked}


def _members(dependencies) -> set[tuple[frozenset[str], int, int]]:
    """Returns layers, number of units and channels per unit of each free group."""
    return {(frozenset(group.layers), group.size, group.width) for group in _free(dependencies).values()}


def _group(size, *layers, width=1):
    return frozenset(layers), size, width


@both_keras
@pytest.mark.parametrize(
    ("graph", "groups"),
    [
        ("plain_convolutions", {_group(4, "first"), _group(5, "second")}),
        ("depthwise", {_group(6, "first", "depthwise"), _group(4, "second")}),
        ("depthwise_that_multiplies", {_group(4, "first", "depthwise", "second", width=2)}),
        ("grouped", {_group(3, "first", "second", width=3), _group(4, "third", "fourth", width=2)}),
        ("residual", {_group(6, "stem", "first_out", "second_out"), _group(4, "first"), _group(4, "second")}),
        ("element_by_element", {_group(6, "a", "b", "c", "d", "e", "f")}),
        ("squeeze_excite", {_group(6, "first", "expand"), _group(2, "squeeze"), _group(4, "second")}),
        ("concatenation", {_group(4, "a", "depthwise"), _group(3, "b", "depthwise"), _group(5, "second")}),
        ("concatenation_along_positions", {_group(4, "a", "b"), _group(5, "second")}),
        ("concatenation_of_residuals", {_group(4, "a", "a2", "joined"), _group(3, "b", "b2", "joined")}),
        ("concatenations_that_overlap", {_group(2, "a", "b", width=2)}),
        ("dense_net", {_group(4, "a"), _group(4, "b"), _group(4, "c"), _group(5, "transition")}),
        ("dense_to_image", {_group(4, "first", width=4), _group(5, "second")}),
        ("channel_shuffle", {_group(3, "first", "second", width=2)}),
        ("group_normalization", {_group(3, "first", width=2), _group(4, "second"), _group(2, "third", width=4)}),
        ("one_group_normalization_twice", {_group(4, "first", "second", width=2)}),
        ("recurrent_states", {_group(6, "encoder", "decoder"), _group(4, "gru")}),
        ("bidirectional_concat", {_group(4, "both/forward_lstm", "both/backward_lstm")}),
        ("siamese", {_group(6, "first"), _group(5, "second")}),
        ("shared_nested_model", {_group(4, "first", "second"), _group(5, "tower/inner")}),
        ("one_layer_again_and_again", {_group(4, "first", "again")}),
        ("inner_tensor_as_output", {_group(4, "first"), _group(6, "third")}),
        ("several_inputs_and_outputs", {_group(6, "first"), _group(5, "hidden")}),
        ("softmax_layer_at_the_end", {_group(6, "first")}),
    ],
)
def test_coupled_channels_are_one_group(graph, groups, K):
    assert _members(_dependencies(graph, K)) == groups


@both_keras
def test_heads_and_the_width_of_a_transformer_are_groups(K):
    groups = _free(_dependencies("transformer", K))
    assert {name: (group.kind, group.size) for name, group in groups.items()} == {
        "embedding": ("neuron", 8),
        "first/heads": ("head", 2),
        "first_mlp": ("neuron", 6),
        "second/heads": ("head", 2),
        "second_mlp": ("neuron", 6),
    }
    assert groups["embedding"].layers == ("embedding", "first", "first_out", "second", "second_out")
    assert [name for name, _ in groups["embedding"].scales] == [
        *("first_norm", "first_norm2", "second_norm", "second_norm2", "norm")
    ]


@both_keras
def test_a_group_lists_the_kernels_and_scales_of_its_units(K):
    group = _dependencies("concatenation", K).groups["b"]
    kernels = {producer.kernel: (producer.axis, producer.units.tolist()) for producer in group.producers}
    assert kernels == {"b": (3, [0, 1, 2]), "depthwise": (2, [-1] * 7 + [0, 1, 2])}
    ((name, units),) = group.scales
    assert (name, units.tolist()) == ("norm", [-1] * 7 + [0, 1, 2])


@both_keras
def test_a_recurrent_unit_is_a_column_of_each_gate(K):
    group = _dependencies("repeated", K).groups["gru"]
    (producer,) = group.producers
    assert producer.units.tolist() == [0, 1, 2, 3] * 3
    assert producer.outputs.tolist() == [0, 1, 2, 3]


@both_keras
@pytest.mark.parametrize(
    ("graph", "group", "reason"),
    [
        ("plain_convolutions", "out", "is an output of the network"),
        ("inner_tensor_as_output", "second", "is an output of the network"),
        ("tied_to_the_input", "first", "is combined with values that stay"),
        ("state_from_the_input", "rnn", "is combined with values that stay"),
        ("softmax_in_the_middle", "attention", "goes through the softmax of layer 'attention'"),
        ("spatial_attention", "attention", "is one channel that is broadcast over others"),
    ],
)
def test_a_blocked_group_has_a_reason(graph, group, reason, K):
    assert _dependencies(graph, K).groups[group].blocked == reason


@both_keras
def test_first_and_last_layers(K):
    several = _dependencies("several_inputs_and_outputs", K)
    assert (sorted(several.first_layers), several.last_layers) == (["first", "hidden"], ["label", "size"])
    nested = _dependencies("nested_models", K)
    assert (nested.first_layers, nested.last_layers) == (["first"], ["out"])


def _between(K, middle, shape=(4, 4, 3)):
    """Returns a network of a convolution, the layers of `middle`, and another convolution."""
    image = K.Input(shape, name="image")
    x = K.layers.Conv2D(4, 1, activation="relu", name="before")(image)
    x = K.layers.Conv2D(5, 1, activation="relu", name="behind")(middle(x))
    return K.Model(image, K.layers.Dense(2, name="out")(K.layers.GlobalAveragePooling2D()(x)))


def _custom(K):
    class Doubled(K.layers.Layer):
        def call(self, x):
            return x * 2.0

    return Doubled(name="custom")


UNSUPPORTED = {
    "custom_layer": (_custom, "Doubled, which is not one of Keras'"),
    "lambda_layer": (lambda K: K.layers.Lambda(lambda x: x * 2.0, name="custom"), "no rule"),
    "unit_normalization": (lambda K: K.layers.UnitNormalization(name="custom"), "no rule"),
    "rescaling_by_channel": (lambda K: K.layers.Rescaling([1.0, 2.0, 3.0, 4.0], name="custom"), "by its position"),
    "normalization_of_rows": (lambda K: K.layers.LayerNormalization(axis=1, name="custom"), "along the axes"),
    "batch_normalization_of_rows": (lambda K: K.layers.BatchNormalization(axis=1, name="custom"), "along the axes"),
    "noise_of_one_shape": (lambda K: K.layers.Dropout(0.5, noise_shape=(1, 4, 4, 4), name="custom"), "noise_shape"),
    "channels_first": (lambda K: K.layers.AveragePooling2D(1, data_format="channels_first", name="custom"), "first"),
    "own_activation": (lambda K: K.layers.Activation(lambda x: x[..., ::-1], name="custom"), "all channels together"),
}


@pytest.mark.slow
@both_keras
@pytest.mark.parametrize("case", UNSUPPORTED)
def test_channels_that_an_unsupported_layer_touches_are_left_alone(case, K):
    make, reason = UNSUPPORTED[case]
    model = exactness.with_random_weights(_between(K, make(K)))
    dependencies = DependencyGraph(model)
    assert reason in dependencies.unsupported["custom"]
    assert reason in dependencies.groups["before"].blocked
    assert list(_free(dependencies)) == ["behind"]
    with raises(ModelError, field="PruningPlan.strict", code="unsupported-layer", match="'custom'"):
        dependencies.require_supported()
    kept = {"behind": np.array([True, False, True, True, False])}
    pruned = remove(dependencies, kept)
    exactness.zero(dependencies, kept)
    inputs = exactness.random_inputs(model)
    exactness.assert_equal(exactness.outputs(model, inputs), exactness.outputs(pruned, inputs))


@both_keras
def test_a_convolution_with_channels_first_is_left_alone(K):
    image = K.Input((3, 4, 4))
    x = K.layers.Conv2D(4, 1, data_format="channels_first", name="first")(image)
    dependencies = DependencyGraph(K.Model(image, K.layers.Dense(2, name="out")(K.layers.Flatten()(x))))
    assert dependencies.unsupported == {"first": "has its channels first; only channels_last is supported"}
    assert not _free(dependencies)


@both_keras
def test_a_product_with_an_array_is_left_alone(K):
    dependencies = DependencyGraph(_between(K, lambda x: x * np.array([1.0, 2.0, 3.0, 4.0], np.float32)))
    assert "array of its own" in dependencies.groups["before"].blocked
    assert list(_free(dependencies)) == ["behind"]


@both_keras
def test_the_layers_of_an_unsupported_call_are_left_alone_at_their_other_calls(K):
    """A Reshape keeps the channels apart at one call and not at the other."""
    x = K.Input((None, 4), name="x")
    reshape = K.layers.Reshape((-1, 4))
    one = reshape(K.layers.Dense(4, name="one")(x))
    other = reshape(K.layers.Dense(8, name="other")(x))
    pooled = [K.layers.GlobalAveragePooling1D()(each) for each in (one, other)]
    model = exactness.with_random_weights(K.Model(x, K.layers.Dense(2, name="out")(K.layers.Concatenate()(pooled))))
    dependencies = DependencyGraph(model)
    assert not _free(dependencies)
    assert "not fixed" in dependencies.groups["one"].blocked


@both_keras
def test_weights_that_an_unsupported_layer_shares_are_left_alone(K):
    """A custom output layer is tied to the embedding."""

    class Tied(K.layers.Layer):
        def __init__(self, embedding, **kwargs):
            super().__init__(**kwargs)
            self.embedding = embedding

        def call(self, x):
            table = self.embedding.embeddings
            return tf.matmul(x, tf.transpose(tf.convert_to_tensor(table)))

    words = K.Input((5,), dtype="int32")
    embedding = K.layers.Embedding(7, 4, name="embedding")
    x = K.layers.GlobalAveragePooling1D()(embedding(words))
    x = K.layers.Dense(6, activation="relu", name="hidden")(x)
    x = K.layers.Dense(4, name="back")(x)
    dependencies = DependencyGraph(K.Model(words, Tied(embedding, name="tied")(x)))
    assert list(_free(dependencies)) == ["hidden"]
    assert "belongs to layer 'tied'" in dependencies.groups["embedding"].blocked


@both_keras
def test_a_subclassed_model_is_rejected(K):
    class Subclassed(K.Model):
        def __init__(self):
            super().__init__()
            self.dense = K.layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    with raises(ModelError, code="no-layer-graph"):
        DependencyGraph(Subclassed())


def test_a_mask_of_each_head_blocks_the_heads():
    x, mask = tf_keras.Input((5, 4)), tf_keras.Input((2, 5, 5), dtype="bool")
    attended = tf_keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x, attention_mask=mask)
    model = tf_keras.Model([x, mask], tf_keras.layers.Dense(2, name="out")(attended))
    dependencies = DependencyGraph(model)
    assert "differs by channel or head" in dependencies.unsupported["attention"]
    assert not _free(dependencies)
