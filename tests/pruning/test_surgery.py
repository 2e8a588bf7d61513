"""The removal of channels is exact for every shape of graph, in Keras 2 and Keras 3."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import kernels
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import keras2
from tfx_compression.pruning.dependency_graph import DependencyGraph
from tfx_compression.pruning.surgery import channels_left, remove

from tests.support import exactness
from tests.support.errors import raises
from tests.support.graphs import GRAPHS, KERAS

both_keras = pytest.mark.parametrize("K", KERAS, ids=["keras2", "keras3"])
many_graphs = pytest.mark.slow  # every graph takes a fraction of a second
every_graph = pytest.mark.parametrize("graph", GRAPHS)

# Networks in which a channel is zero wherever it is used if the weights that produce it are zero.
SILENT = [
    *("plain_convolutions", "convolutions_over_time", "batch_normalization", "depthwise_that_multiplies", "separable"),
    *("transposed", "grouped", "residual", "element_by_element", "squeeze_excite", "concatenation", "dense_net"),
    *("concatenation_of_residuals", "flattened", "positions", "dense_to_image", "channel_shuffle", "parametric_relu"),
    *("group_normalization", "nested_models", "siamese", "several_inputs_and_outputs", "positions_of_any_number"),
]
# Networks whose configurations differ: sizes, shapes, groups, inner layers, nested models.
SAVED = [
    *("grouped", "group_normalization", "dense_to_image", "parametric_relu", "bidirectional_sum", "cross_attention"),
    *("time_distributed", "nested_model_of_several", "shared_nested_model", "sequential", "operators", "preprocessing"),
]
# Networks from which every single unit is removed in turn.
SMALL = ["residual", "grouped", "concatenations_that_overlap", "channel_shuffle", "self_attention", "recurrent_states"]


def _halved(dependencies: DependencyGraph) -> dict[str, np.ndarray]:
    groups = dependencies.groups.items()
    return {name: np.arange(group.size) % 2 == 0 for name, group in groups if not group.blocked}


@pytest.mark.slow
@pytest.mark.parametrize(
    "K", [pytest.param(tf_keras, marks=many_graphs, id="keras2"), pytest.param(keras, id="keras3")]
)
@every_graph
def test_a_network_without_channels_equals_one_with_their_weights_zero(graph, K):
    model = exactness.with_random_weights(GRAPHS[graph](K))
    dependencies = DependencyGraph(model)
    dependencies.require_supported()
    kept = exactness.random_units(dependencies, np.random.default_rng(len(graph)))
    inputs = exactness.random_inputs(model)
    before = exactness.outputs(model, inputs)

    pruned = remove(dependencies, kept)

    exactness.assert_equal(exactness.outputs(model, inputs), before)  # the original is unchanged
    exactness.zero(dependencies, kept)
    tolerance = 2e-2 if graph == "mixed_precision" else 1e-5
    expected = exactness.outputs(model, inputs)
    exactness.assert_equal(expected, exactness.outputs(pruned, inputs), tolerance)
    _assert_same_interface(model, pruned)


def _assert_same_interface(model, pruned):
    assert pruned.name == model.name
    assert [(tensor.name, tuple(tensor.shape)) for tensor in pruned.inputs] == [
        (tensor.name, tuple(tensor.shape)) for tensor in model.inputs
    ]
    assert [tuple(tensor.shape) for tensor in pruned.outputs] == [tuple(tensor.shape) for tensor in model.outputs]
    if hasattr(model, "output_names"):  # Keras 3's Sequential has none
        assert pruned.output_names == model.output_names
    names = {layer.name for layer in model.layers}
    assert {layer.name for layer in pruned.layers} - names <= {tensor.name for tensor in model.inputs}


@many_graphs
@both_keras
@pytest.mark.parametrize("graph", SILENT)
def test_removing_channels_whose_producing_weights_are_zero_changes_nothing(graph, K):
    model = exactness.with_random_weights(GRAPHS[graph](K), seed=1)
    dependencies = DependencyGraph(model)
    kept = exactness.random_units(dependencies, np.random.default_rng(len(graph)))
    pruned = remove(dependencies, kept)
    inputs = exactness.random_inputs(model)
    exactness.zero(dependencies, kept, producers_only=True)
    exactness.assert_equal(exactness.outputs(model, inputs), exactness.outputs(pruned, inputs))


@many_graphs
@pytest.mark.parametrize("graph", SMALL)
def test_each_unit_can_be_removed_alone(graph):
    model = exactness.with_random_weights(GRAPHS[graph](keras))
    dependencies = DependencyGraph(model)
    inputs = exactness.random_inputs(model)
    weights = model.get_weights()
    for name, group in dependencies.groups.items():
        for unit in range(0 if group.blocked or group.size == 1 else group.size):
            kept = {name: np.arange(group.size) != unit}
            pruned = remove(dependencies, kept)
            assert pruned.count_params() < model.count_params()
            exactness.zero(dependencies, kept)
            exactness.assert_equal(exactness.outputs(model, inputs), exactness.outputs(pruned, inputs))
            model.set_weights(weights)


@many_graphs
@every_graph
def test_every_group_can_shrink_to_one_unit(graph):
    dependencies = DependencyGraph(GRAPHS[graph](keras))
    kept = {name: np.arange(group.size) == 0 for name, group in dependencies.groups.items() if not group.blocked}
    pruned = remove(dependencies, kept)
    assert pruned.count_params() <= dependencies.model.count_params()
    exactness.outputs(pruned, exactness.random_inputs(pruned))


@both_keras
def test_layer_normalization_computes_its_statistics_over_kept_channels(K):
    x = K.Input((4,))
    hidden = K.layers.Dense(6, activation="relu", name="hidden")(x)
    norm = K.layers.LayerNormalization(epsilon=0.01, name="norm")
    plain = K.layers.LayerNormalization(epsilon=0.01, center=False, scale=False)
    model = exactness.with_random_weights(K.Model(x, K.layers.Dense(2, name="out")(plain(norm(hidden)))))
    dependencies = DependencyGraph(model)
    stays = np.array([True, False, True, True, False, True])

    pruned = remove(dependencies, {"hidden": stays})

    rows = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    (kernel, bias), (gamma, beta), (out, out_bias) = (
        [weight.numpy() for weight in model.get_layer(name).weights] for name in ("hidden", "norm", "out")
    )

    def normalized(values: np.ndarray) -> np.ndarray:
        return (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 0.01)

    values = normalized(np.maximum(rows @ kernel + bias, 0)[:, stays]) * gamma[stays] + beta[stays]
    np.testing.assert_allclose(pruned(rows), normalized(values) @ out[stays] + out_bias, atol=1e-5)


@many_graphs
@both_keras
@pytest.mark.parametrize("graph", SAVED)
def test_a_pruned_model_is_saved_as_a_keras_file(graph, K, tmp_path):
    model = exactness.with_random_weights(GRAPHS[graph](K))
    dependencies = DependencyGraph(model)
    pruned = remove(dependencies, _halved(dependencies))
    pruned.save(tmp_path / "model.keras")
    loaded = K.models.load_model(tmp_path / "model.keras")
    inputs = exactness.random_inputs(model)
    exactness.assert_equal(exactness.outputs(pruned, inputs), exactness.outputs(loaded, inputs))
    assert loaded.count_params() == pruned.count_params() < model.count_params()


@many_graphs
@pytest.mark.parametrize("graph", ["nested_models", "repeated", "dictionaries"])
def test_a_pruned_keras_2_model_is_saved_as_a_saved_model(graph, tmp_path):
    model = exactness.with_random_weights(GRAPHS[graph](tf_keras))
    dependencies = DependencyGraph(model)
    pruned = remove(dependencies, _halved(dependencies))
    keras2.save(pruned, str(tmp_path / "model"))
    loaded = keras2.load(str(tmp_path / "model"))
    inputs = exactness.random_inputs(model)
    exactness.assert_equal(exactness.outputs(pruned, inputs), exactness.outputs(loaded, inputs))
    assert loaded.count_params() == pruned.count_params() < model.count_params()


@both_keras
def test_frozen_layers_stay_frozen(K):
    dependencies = DependencyGraph(GRAPHS["frozen"](K))
    pruned = remove(dependencies, _halved(dependencies))
    assert [len(each.trainable_weights) for each in dependencies.model.layers] == [
        len(each.trainable_weights) for each in pruned.layers
    ]
    leaves = kernels.leaf_layers(pruned)
    frozen = ["first", "nested/inner", "both/forward_lstm/lstm_cell", "attention/query"]
    trained = ["both/backward_lstm/lstm_cell", "attention/key", "out"]
    assert [leaves[name].trainable for name in frozen + trained] == [False] * 4 + [True] * 3


@both_keras
def test_a_vocabulary_is_kept(K):
    words = K.Input((4,), dtype="string", name="words")
    lookup = K.layers.StringLookup(output_mode="multi_hot", name="lookup")
    lookup.adapt(np.array(["red", "green", "blue"]))
    hidden = K.layers.Dense(4, activation="relu", name="hidden")(lookup(words))
    model = exactness.with_random_weights(K.Model(words, K.layers.Dense(2, name="out")(hidden)))
    dependencies = DependencyGraph(model)
    kept = {"hidden": np.array([True, False, True, True])}
    pruned = remove(dependencies, kept)
    exactness.zero(dependencies, kept)
    rows = tf.constant([["red", "red", "blue", "pink"], ["green", "red", "blue", "blue"]])
    np.testing.assert_allclose(pruned(rows), model(rows), atol=1e-5)


@both_keras
def test_custom_functions_and_lambdas_are_kept(K):
    image = K.Input((4, 4, 3), name="image")
    scale = 2.0
    x = K.layers.Lambda(lambda pixels: np.pi * pixels / scale, output_shape=(4, 4, 3), name="scaled")(image)
    x = K.layers.Conv2D(4, 3, activation=_cubed, name="cubed")(x)
    x = K.layers.Conv2D(5, 2, activation="relu", name="second")(x)
    model = exactness.with_random_weights(K.Model(image, K.layers.Dense(2, name="out")(K.layers.Flatten()(x))))
    dependencies = DependencyGraph(model)
    kept = _halved(dependencies)
    assert list(kept) == ["second"]
    pruned = remove(dependencies, kept)
    exactness.zero(dependencies, kept)
    inputs = exactness.random_inputs(model)
    exactness.assert_equal(exactness.outputs(model, inputs), exactness.outputs(pruned, inputs))


def _cubed(x):
    return x * x * x


@both_keras
def test_the_scale_of_a_convnext_block_is_narrowed(K):
    scale = importlib.import_module(f"{K.__name__}.src.applications.convnext").LayerScale(0.1, 4, name="scale")
    x = K.Input((3,))
    hidden = K.layers.Dense(4, activation="relu", name="hidden")(x)
    model = exactness.with_random_weights(K.Model(x, K.layers.Dense(2, name="out")(scale(hidden))))
    dependencies = DependencyGraph(model)
    dependencies.require_supported()
    pruned = remove(dependencies, _halved(dependencies))
    assert pruned.get_layer("scale").gamma.shape == (2,)
    exactness.zero(dependencies, _halved(dependencies))
    inputs = exactness.random_inputs(model)
    exactness.assert_equal(exactness.outputs(model, inputs), exactness.outputs(pruned, inputs))


@both_keras
def test_the_pruned_model_shares_no_weight_with_the_original(K):
    model = GRAPHS["residual"](K)
    dependencies = DependencyGraph(model)
    pruned = remove(dependencies, _halved(dependencies))
    before = [weight.numpy() for weight in model.weights]
    for weight in pruned.weights:
        weight.assign(np.zeros(weight.shape))
    for values, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(values, weight.numpy())


@both_keras
def test_channels_left_by_layer(K):
    dependencies = DependencyGraph(GRAPHS["self_attention"](K))
    kept = {"embedding": np.array([True, True, False, False, True, True]), "second/heads": np.array([False, True])}
    left = channels_left(dependencies, kept)
    assert left == {"embedding": (0, 1, 4, 5), "attention": (0, 1, 4, 5), "second": (0, 1, 4, 5), "second/heads": (1,)}


@both_keras
def test_channels_of_a_blocked_group_can_not_be_removed(K):
    dependencies = DependencyGraph(GRAPHS["tied_to_the_input"](K))
    with raises(ModelError, code="blocked-channels", match="'first'"):
        remove(dependencies, {"first": np.array([True, False, True])})
    assert remove(dependencies, {"first": np.ones(3, bool)}).count_params() == dependencies.model.count_params()


@both_keras
def test_a_group_keeps_at_least_one_channel(K):
    dependencies = DependencyGraph(GRAPHS["residual"](K))
    with raises(ModelError, code="no-channels-left", match="'stem'"):
        remove(dependencies, {"stem": np.zeros(6, bool)})


@both_keras
def test_a_layer_without_a_configuration_is_rejected(K):
    class Secret(K.layers.Layer):
        def __init__(self, key, **kwargs):
            super().__init__(**kwargs)
            self.hidden_key = key

        def call(self, x):
            return x + 1.0

        def get_config(self):
            return {"name": self.name}

    x = K.Input((3,))
    hidden = K.layers.Dense(4, name="hidden")(Secret(object(), name="secret")(x))
    dependencies = DependencyGraph(K.Model(x, K.layers.Dense(2, name="out")(hidden)))
    with raises(ModelError, code="layer-not-clonable", match="'secret'.*Secret"):
        remove(dependencies, _halved(dependencies))
