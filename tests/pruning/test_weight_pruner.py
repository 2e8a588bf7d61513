"""Magnitude pruning of models' weights, compared with NumPy."""

import keras
import numpy as np
import pytest
import tf_keras
from tfx_compression import model_handle
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.keras_models import keras2
from tfx_compression.pruning.plan import LayerRule, PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.pruning.weight_pruner import WeightPruner

from tests.support import helpers
from tests.support.errors import raises

both_keras = pytest.mark.parametrize("K", [tf_keras, keras], ids=["keras2", "keras3"])

# Kernels of small_cnn and their sizes; the depthwise kernel of a separable convolution is not pruned.
PRUNABLE = {
    "conv": 3 * 3 * 1 * 8,
    "separable/pointwise_kernel": 8 * 16,
    "dense": 256 * 32,
    "probabilities": 32 * 3,
}


def everywhere(**fields) -> PruningPlan:
    """Returns a plan that protects no layer."""
    return PruningPlan(protect=(), **fields)


def kernel(model: tf_keras.Model, name: str) -> np.ndarray:
    layer, _, attribute = name.partition("/")
    return getattr(model.get_layer(layer), attribute or "kernel").numpy()


def largest(values: np.ndarray, sparsity: float) -> np.ndarray:
    """Returns where the largest absolute values are, and those that tie with the smallest of them."""
    keep = max(1, round(values.size * (1 - sparsity)))
    threshold = np.sort(np.abs(values), axis=None)[values.size - keep]
    return np.abs(values) >= threshold


@pytest.mark.parametrize("sparsity", [0.1, 0.25, 0.5, 0.8, 0.95, 0.999])
def test_the_largest_weights_of_each_kernel_are_kept_and_the_others_are_zero(sparsity):
    model = helpers.small_cnn()
    before = {name: kernel(model, name) for name in PRUNABLE}
    compressed = prune(model, everywhere(sparsity=sparsity))
    assert set(compressed.masks) == set(PRUNABLE)
    for name, values in before.items():
        expected = largest(values, sparsity)
        np.testing.assert_array_equal(compressed.masks[name], expected)
        np.testing.assert_array_equal(kernel(compressed.model, name), np.where(expected, values, 0))
        np.testing.assert_array_equal(kernel(model, name), values)
        assert expected.sum() == max(1, round(PRUNABLE[name] * (1 - sparsity)))


def test_weights_of_equal_magnitude_are_kept_or_pruned_together():
    """As in tfmot, the result depends on no order; if many weights tie, fewer are zero than requested."""
    model = helpers.small_dense()
    values = np.array([[3, -3, 2, -2, 2, 2, 1, -1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]] * 4, np.float32)
    model.get_layer("hidden").kernel.assign(values)
    compressed = prune(model, everywhere(sparsity=0.8))
    np.testing.assert_array_equal(compressed.masks["hidden"], np.abs(values) >= 2)


def test_the_summary_counts_the_zeros_of_each_layer_before_and_after():
    compressed = prune(helpers.small_cnn(), everywhere(sparsity=0.75))
    after = {layer.name: layer for layer in compressed.summary.after.layers}
    assert not any(layer.zeros for layer in compressed.summary.before.layers)
    assert {name: after[name].zeros for name in PRUNABLE} == {name: 0.75 * size for name, size in PRUNABLE.items()}
    assert after["separable/depthwise_kernel"].zeros == 0
    assert compressed.summary.after.parameters == compressed.summary.before.parameters
    assert compressed.summary.after.macs == compressed.summary.before.macs
    assert compressed.summary.after.bytes_gzip < 0.6 * compressed.summary.before.bytes_gzip


def test_the_last_matching_rule_wins():
    model = helpers.small_cnn()
    rules = (LayerRule(layers=".*", sparsity=0.75), LayerRule(layers="conv|probabilities", sparsity=0.0))
    before = {name: kernel(model, name) for name in PRUNABLE}
    compressed = prune(model, everywhere(sparsity=0.5, rules=rules))
    assert set(compressed.masks) == {"separable/pointwise_kernel", "dense"}
    for name in PRUNABLE:
        if name in compressed.masks:
            assert np.mean(kernel(compressed.model, name) == 0) == 0.75
        else:
            np.testing.assert_array_equal(kernel(compressed.model, name), before[name])


def test_biases_normalization_and_depthwise_kernels_are_unchanged():
    model = helpers.small_cnn()
    for name in ("dense", "probabilities", "separable"):
        bias = model.get_layer(name).bias
        bias.assign(np.random.default_rng(0).normal(size=bias.shape))
    pruned = [f"{name}{'' if '/' in name else '/kernel'}:0" for name in PRUNABLE]
    before = {weight.name: weight.numpy() for weight in model.weights}
    compressed = prune(model, everywhere(sparsity=0.9))
    assert set(pruned) < set(before)
    for weight in compressed.model.weights:
        if weight.name in pruned:
            assert not np.array_equal(weight.numpy(), before[weight.name])
        else:
            np.testing.assert_array_equal(weight.numpy(), before[weight.name])


def test_transposed_and_dense_kernels_are_pruned_and_depthwise_ones_are_not():
    model = helpers.small_convolutions()
    compressed = prune(model, everywhere(sparsity=0.5))
    assert set(compressed.masks) == {"separable/pointwise_kernel", "transposed", "y"}
    assert np.count_nonzero(compressed.model.get_layer("depthwise").depthwise_kernel.numpy()) == 3 * 3 * 4


def test_kernels_without_a_sparsity_keep_all_weights():
    pruner = WeightPruner(model_handle.wrap(helpers.small_cnn()), everywhere())
    pruner.score(None)
    assert list(pruner.select({"dense": 0.5, "conv": 0.0})) == ["dense"]


def test_a_sparsity_of_zero_changes_nothing():
    model = helpers.small_cnn()
    compressed = prune(model, everywhere(sparsity=0.0))
    assert compressed.masks == {}
    for weight, values in zip(compressed.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, values)


def test_a_layer_that_is_called_with_inputs_of_two_shapes_is_pruned():
    shared = tf_keras.layers.Conv2D(4, 3, name="shared")
    inputs = [tf_keras.Input((8, 8, 1)), tf_keras.Input((5, 5, 1))]
    pooled = [tf_keras.layers.GlobalMaxPooling2D()(shared(image)) for image in inputs]
    model = tf_keras.Model(inputs, tf_keras.layers.Add()(pooled))
    pruned = prune(model, everywhere(sparsity=0.5)).model
    assert np.mean(pruned.get_layer("shared").kernel.numpy() == 0) == 0.5


def test_layers_of_the_same_name_in_two_inner_models_are_both_pruned():
    inner = [
        tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(4, name="same")], name=name)
        for name in ("one", "two")
    ]
    pruned = prune(tf_keras.Sequential([tf_keras.Input((4,)), *inner]), everywhere(sparsity=0.5)).model
    kernels = [pruned.get_layer(name).get_layer("same").kernel.numpy() for name in ("one", "two")]
    assert [np.mean(values == 0) for values in kernels] == [0.5, 0.5]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_rejected(value):
    model = helpers.small_cnn()
    values = kernel(model, "dense")
    values[3, 5] = value
    model.get_layer("dense").kernel.assign(values)
    with raises(ModelError, code="not-finite", match="'dense/kernel:0'"):
        prune(model, everywhere(sparsity=0.5))


def test_a_model_without_a_prunable_layer_is_rejected():
    image = tf_keras.Input((8, 8, 1))
    model = tf_keras.Model(image, tf_keras.layers.DepthwiseConv2D(3)(image), name="depthwise_only")
    with raises(ConfigError, code="nothing-to-prune", match="'depthwise_only'"):
        prune(model, everywhere(sparsity=0.5))


@pytest.mark.parametrize("pattern", ["no_such_layer", "den", "normalization"])
def test_a_rule_that_matches_no_layer_is_rejected_with_the_layers(pattern):
    model = helpers.small_cnn()
    before = model.get_weights()
    with raises(ConfigError, code="unmatched-rule", match=rf"'{pattern}'.*{', '.join(PRUNABLE)}"):
        prune(model, everywhere(sparsity=0.5, rules=(LayerRule(layers=pattern, sparsity=0.1),)))
    for weight, values in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, values)


@pytest.mark.slow
def test_a_saved_model_is_pruned_by_its_path_and_answers_examples_when_saved(tmp_path):
    trained = helpers.save_with_examples_signature(helpers.small_dense(), tmp_path / "trained", "x", (4,))
    compressed = prune(trained, everywhere(sparsity=0.75))
    compressed.save(str(tmp_path / "pruned"))
    x, _ = helpers.points(7)
    examples = helpers.serialized({"x": x})
    answer = helpers.answers(str(tmp_path / "pruned"), examples=examples)["probabilities"]
    np.testing.assert_allclose(answer, compressed.model(x / helpers.LARGEST), atol=1e-6)
    assert np.abs(answer - helpers.answers(trained, examples=examples)["probabilities"]).max() > 1e-3
    reloaded = keras2.load(str(tmp_path / "pruned"))
    assert np.mean(reloaded.get_layer("hidden").kernel.numpy() == 0) == 0.75


def test_a_model_and_its_path_give_the_same_result(tmp_path):
    model = helpers.small_dense()
    model.save(tmp_path / "model.keras")
    by_path = prune(str(tmp_path / "model.keras"), everywhere(sparsity=0.6))
    by_model = prune(model, everywhere(sparsity=0.6))
    assert by_path.summary == by_model.summary
    for one, other in zip(by_path.model.get_weights(), by_model.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def two_outputs(K):
    """Returns a subclassed model, not yet called, whose call returns a dict of two outputs."""

    class TwoOutputs(K.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.hidden = K.layers.Dense(40, activation="relu", name="hidden")
            self.middle = K.layers.Dense(60, activation="relu", name="middle")
            self.heads = [K.layers.Dense(1, name="u"), K.layers.Dense(1, name="v")]

        def call(self, x):
            x = self.middle(self.hidden(x))
            return {layer.name: layer(x) for layer in self.heads}

    return TwoOutputs()


@both_keras
def test_both_last_layers_of_a_subclassed_model_in_memory_are_protected(K):
    model = two_outputs(K)
    model(np.ones((2, 3), np.float32))
    pruned = prune(model, PruningPlan(sparsity=0.5))
    protected = [group.name.split("/")[-1] for group in pruned.record.groups if "last" in group.protected]
    assert protected == ["u", "v"]


@both_keras
@pytest.mark.parametrize("technique", ["weight", "neuron"])
def test_a_model_that_was_never_called_is_refused(K, technique):
    for model in (two_outputs(K), K.Sequential([K.layers.Dense(3), K.layers.Dense(2)])):
        with raises(ModelError, code="not-built"):
            prune(model, PruningPlan(technique=technique, sparsity=0.5))
