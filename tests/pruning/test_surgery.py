"""Removal is exact, for every shape of graph, with Keras 2 and Keras 3."""

import importlib
import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import keras
import numpy as np
import pytest
import tf_keras
from tfx_compression import kernels
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import keras2
from tfx_compression.pruning.dependency_graph import DependencyGraph
from tfx_compression.pruning.surgery import channels_left, remove

from tests.support import exactness
from tests.support.graphs import GRAPHS, KERAS

both_keras = pytest.mark.parametrize("K", KERAS, ids=["keras2", "keras3"])
many_graphs = pytest.mark.slow  # every graph takes a fraction of a second, there are many
every_graph = pytest.mark.parametrize("graph", GRAPHS)

# Networks where a channel whose own weights are zero is zero wherever it is used.
SILENT = [
    *("plain_convolutions", "convolutions_over_time", "batch_normalisation", "depthwise_that_multiplies", "separable"),
    *("transposed", "grouped", "residual", "element_by_element", "squeeze_excite", "concatenation", "dense_net"),
    *("concatenation_of_residuals", "flattened", "places", "dense_to_image", "channel_shuffle", "parametric_relu"),
    *("group_normalisation", "nested_models", "siamese", "several_inputs_and_outputs", "places_of_any_number"),
]
# What a configuration tells differently: sizes, shapes, groups, inner layers, models in models.
SAVED = [
    *("grouped", "group_normalisation", "dense_to_image", "parametric_relu", "bidirectional_sum", "cross_attention"),
    *("time_distributed", "nested_model_of_several", "shared_nested_model", "sequential", "operators", "preprocessing"),
]
# One after the other every unit of these is removed.
SMALL = ["residual", "grouped", "concatenations_that_overlap", "channel_shuffle", "self_attention", "recurrent_states"]


def _halved(structure: DependencyGraph) -> dict[str, np.ndarray]:
    groups = structure.groups.items()
    return {name: np.arange(group.size) % 2 == 0 for name, group in groups if not group.blocked}


@pytest.mark.parametrize(
    "K", [pytest.param(tf_keras, marks=many_graphs, id="keras2"), pytest.param(keras, id="keras3")]
)
@every_graph
def test_the_network_without_channels_answers_as_with_their_weights_zero(graph, K):
    model = exactness.trained(GRAPHS[graph](K))
    structure = DependencyGraph(model)
    structure.require_supported()
    choices = exactness.random_choices(structure, np.random.default_rng(len(graph)))
    inputs = exactness.inputs_of(model)
    before = exactness.answers(model, inputs)

    pruned = remove(structure, choices)

    exactness.assert_same(exactness.answers(model, inputs), before)  # the original is left as it is
    exactness.zero(structure, choices)
    tolerance = 2e-2 if graph == "mixed_precision" else 1e-5
    expected = exactness.answers(model, inputs)
    exactness.assert_same(expected, exactness.answers(pruned, inputs), tolerance)
    _assert_same_surface(model, pruned)


def _assert_same_surface(model, pruned):
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
def test_channels_that_are_silent_are_not_missed(graph, K):
    """The stronger form: the layers behind keep their weights, and get zeros."""
    model = exactness.trained(GRAPHS[graph](K), seed=1)
    structure = DependencyGraph(model)
    choices = exactness.random_choices(structure, np.random.default_rng(len(graph)))
    pruned = remove(structure, choices)
    inputs = exactness.inputs_of(model)
    exactness.zero(structure, choices, own=True)
    exactness.assert_same(exactness.answers(model, inputs), exactness.answers(pruned, inputs))


@many_graphs
@pytest.mark.parametrize("graph", SMALL)
def test_each_unit_can_go_alone(graph):
    model = exactness.trained(GRAPHS[graph](keras))
    structure = DependencyGraph(model)
    inputs = exactness.inputs_of(model)
    weights = model.get_weights()
    for name, group in structure.groups.items():
        for unit in range(0 if group.blocked or group.size == 1 else group.size):
            choices = {name: np.arange(group.size) != unit}
            pruned = remove(structure, choices)
            assert pruned.count_params() < model.count_params()
            exactness.zero(structure, choices)
            exactness.assert_same(exactness.answers(model, inputs), exactness.answers(pruned, inputs))
            model.set_weights(weights)


@many_graphs
@every_graph
def test_a_network_of_one_unit_in_each_group_can_be_built(graph):
    structure = DependencyGraph(GRAPHS[graph](keras))
    choices = {name: np.arange(group.size) == 0 for name, group in structure.groups.items() if not group.blocked}
    pruned = remove(structure, choices)
    assert pruned.count_params() <= structure.model.count_params()
    exactness.answers(pruned, exactness.inputs_of(pruned))


@both_keras
def test_layer_normalisation_takes_its_statistics_over_the_channels_that_stay(K):
    x = K.Input((4,))
    hidden = K.layers.Dense(6, activation="relu", name="hidden")(x)
    norm = K.layers.LayerNormalization(epsilon=0.01, name="norm")
    plain = K.layers.LayerNormalization(epsilon=0.01, center=False, scale=False)
    model = exactness.trained(K.Model(x, K.layers.Dense(2, name="out")(plain(norm(hidden)))))
    structure = DependencyGraph(model)
    stays = np.array([True, False, True, True, False, True])

    pruned = remove(structure, {"hidden": stays})

    rows = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    (kernel, bias), (gamma, beta), (out, out_bias) = (
        [weight.numpy() for weight in model.get_layer(name).weights] for name in ("hidden", "norm", "out")
    )

    def normalised(values: np.ndarray) -> np.ndarray:
        return (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 0.01)

    values = normalised(np.maximum(rows @ kernel + bias, 0)[:, stays]) * gamma[stays] + beta[stays]
    np.testing.assert_allclose(pruned(rows), normalised(values) @ out[stays] + out_bias, atol=1e-5)


@many_graphs
@both_keras
@pytest.mark.parametrize("graph", SAVED)
def test_a_pruned_model_survives_as_a_keras_file(graph, K, tmp_path):
    model = exactness.trained(GRAPHS[graph](K))
    structure = DependencyGraph(model)
    pruned = remove(structure, _halved(structure))
    pruned.save(tmp_path / "model.keras")
    loaded = K.models.load_model(tmp_path / "model.keras")
    inputs = exactness.inputs_of(model)
    exactness.assert_same(exactness.answers(pruned, inputs), exactness.answers(loaded, inputs))
    assert loaded.count_params() == pruned.count_params() < model.count_params()


@many_graphs
@pytest.mark.parametrize("graph", ["nested_models", "repeated", "dictionaries"])
def test_a_pruned_keras_2_model_survives_as_a_saved_model(graph, tmp_path):
    model = exactness.trained(GRAPHS[graph](tf_keras))
    structure = DependencyGraph(model)
    pruned = remove(structure, _halved(structure))
    keras2.save(pruned, str(tmp_path / "model"))
    loaded = keras2.load(str(tmp_path / "model"))
    inputs = exactness.inputs_of(model)
    exactness.assert_same(exactness.answers(pruned, inputs), exactness.answers(loaded, inputs))
    assert loaded.count_params() == pruned.count_params() < model.count_params()


@both_keras
def test_what_is_frozen_stays_frozen(K):
    structure = DependencyGraph(GRAPHS["frozen"](K))
    pruned = remove(structure, _halved(structure))
    assert [len(each.trainable_weights) for each in structure.model.layers] == [
        len(each.trainable_weights) for each in pruned.layers
    ]
    leaves = kernels.leaf_layers(pruned)
    frozen = ["first", "nested/inner", "both/forward_lstm/lstm_cell", "attention/query"]
    trained = ["both/backward_lstm/lstm_cell", "attention/key", "out"]
    assert [leaves[name].trainable for name in frozen + trained] == [False] * 4 + [True] * 3


@both_keras
def test_a_vocabulary_stays(K):
    words = K.Input((4,), dtype="string", name="words")
    lookup = K.layers.StringLookup(output_mode="multi_hot", name="lookup")
    lookup.adapt(np.array(["red", "green", "blue"]))
    hidden = K.layers.Dense(4, activation="relu", name="hidden")(lookup(words))
    model = exactness.trained(K.Model(words, K.layers.Dense(2, name="out")(hidden)))
    structure = DependencyGraph(model)
    choices = {"hidden": np.array([True, False, True, True])}
    pruned = remove(structure, choices)
    exactness.zero(structure, choices)
    import tensorflow as tf

    rows = tf.constant([["red", "red", "blue", "pink"], ["green", "red", "blue", "blue"]])
    np.testing.assert_allclose(pruned(rows), model(rows), atol=1e-5)


@both_keras
def test_functions_and_lambdas_of_the_users_own_go_along(K):
    image = K.Input((4, 4, 3), name="image")
    scale = 2.0
    x = K.layers.Lambda(lambda pixels: np.pi * pixels / scale, output_shape=(4, 4, 3), name="scaled")(image)
    x = K.layers.Conv2D(4, 3, activation=_cubed, name="cubed")(x)
    x = K.layers.Conv2D(5, 2, activation="relu", name="second")(x)
    model = exactness.trained(K.Model(image, K.layers.Dense(2, name="out")(K.layers.Flatten()(x))))
    structure = DependencyGraph(model)
    choices = _halved(structure)
    assert list(choices) == ["second"]
    pruned = remove(structure, choices)
    exactness.zero(structure, choices)
    inputs = exactness.inputs_of(model)
    exactness.assert_same(exactness.answers(model, inputs), exactness.answers(pruned, inputs))


def _cubed(x):
    return x * x * x


@both_keras
def test_the_scale_of_a_convnext_block_is_cut(K):
    scale = importlib.import_module(f"{K.__name__}.src.applications.convnext").LayerScale(0.1, 4, name="scale")
    x = K.Input((3,))
    hidden = K.layers.Dense(4, activation="relu", name="hidden")(x)
    model = exactness.trained(K.Model(x, K.layers.Dense(2, name="out")(scale(hidden))))
    structure = DependencyGraph(model)
    structure.require_supported()
    pruned = remove(structure, _halved(structure))
    assert pruned.get_layer("scale").gamma.shape == (2,)
    exactness.zero(structure, _halved(structure))
    inputs = exactness.inputs_of(model)
    exactness.assert_same(exactness.answers(model, inputs), exactness.answers(pruned, inputs))


@both_keras
def test_the_pruned_model_is_one_of_its_own(K):
    model = GRAPHS["residual"](K)
    structure = DependencyGraph(model)
    pruned = remove(structure, _halved(structure))
    before = [weight.numpy() for weight in model.weights]
    for weight in pruned.weights:
        weight.assign(np.zeros(weight.shape))
    for values, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(values, weight.numpy())


@both_keras
def test_channels_left_are_told_by_layer(K):
    structure = DependencyGraph(GRAPHS["self_attention"](K))
    choices = {"embedding": np.array([True, True, False, False, True, True]), "second/heads": np.array([False, True])}
    left = channels_left(structure, choices)
    assert left == {"embedding": (0, 1, 4, 5), "attention": (0, 1, 4, 5), "second": (0, 1, 4, 5), "second/heads": (1,)}


@both_keras
def test_a_blocked_group_can_not_be_cut(K):
    structure = DependencyGraph(GRAPHS["tied_to_the_input"](K))
    with pytest.raises(ModelError, match="'first' can be removed.*values that stay"):
        remove(structure, {"first": np.array([True, False, True])})
    assert remove(structure, {"first": np.ones(3, bool)}).count_params() == structure.model.count_params()


@both_keras
def test_a_group_is_never_left_without_channels(K):
    structure = DependencyGraph(GRAPHS["residual"](K))
    with pytest.raises(ModelError, match="Not one of the channels of 'stem' would be left"):
        remove(structure, {"stem": np.zeros(6, bool)})


@both_keras
def test_a_layer_without_a_configuration_is_named(K):
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
    structure = DependencyGraph(K.Model(x, K.layers.Dense(2, name="out")(hidden)))
    with pytest.raises(ModelError, match="Layer 'secret' of the class Secret can't be built"):
        remove(structure, _halved(structure))
