"""`prune` from end to end: what is pruned, what is protected and why, and what is rejected."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression as tfc
from tfx_compression import model_handle
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.keras_models import model_size
from tfx_compression.pruning import criteria
from tfx_compression.pruning.plan import LayerRule, PruningPlan
from tfx_compression.pruning.prune import prune, prune_step
from tfx_compression.pruning.sensitivity import SensitivityOptions

from tests.support import helpers
from tests.support.errors import raises
from tests.support.residual import data, residual_net, widths


@pytest.fixture(scope="module")
def model():
    """A network that no pruning may change."""
    model = residual_net()
    before = model.get_weights()
    yield model
    for weight, values in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, values)


def groups(pruned) -> dict:
    return {group.name: group for group in pruned.record.groups}


# What is pruned


def test_protecting_the_stem_protects_the_residual_trunk(model):
    pruned = prune(model, PruningPlan(technique="filter", sparsity=0.5, protect=("first", "last")))
    assert widths(pruned.model) == {"stem": 16, "inner": 4, "outer": 16, "wide": 12, "hidden": 12, "logits": 3}
    assert groups(pruned)["stem"].layers == ("stem", "outer")
    assert groups(pruned)["stem"].protected == "first layer (stem), protected by the plan"
    assert any("coupled" in note and "outer" in note for note in pruned.record.notes)


def test_an_unprotected_trunk_is_pruned_with_its_stem(model):
    pruned = prune(model, PruningPlan(technique="filter", sparsity=0.5, protect=("last",)))
    assert widths(pruned.model) == {"stem": 8, "inner": 4, "outer": 8, "wide": 12, "hidden": 12, "logits": 3}
    assert pruned.summary.after.parameters == model_size.measure(pruned.model).parameters
    assert pruned.record.channels["stem"] == pruned.record.channels["outer"]
    assert len(pruned.record.channels["wide"]) == 12


def test_neurons_are_dense_units(model):
    pruned = prune(model, PruningPlan(technique="neuron", sparsity=0.5))
    assert widths(pruned.model)["hidden"] == 6
    assert widths(pruned.model)["wide"] == 24


@pytest.mark.parametrize("technique", ["weight", "filter"])
def test_the_model_is_left_as_it_is_and_the_pruned_one_has_its_inputs_outputs_and_compilation(technique):
    model = residual_net()
    before = model.get_weights()
    pruned = prune(model, PruningPlan(technique=technique, sparsity=0.5))
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert pruned.model is not model
    assert (pruned.model.input_names, pruned.model.input_shape) == (["image"], (None, *helpers.IMAGE))
    assert (pruned.model.output_names, pruned.model.output_shape) == (["logits"], (None, 3))
    assert set(pruned.model.evaluate(data(), return_dict=True, verbose=0)) == {"loss", "accuracy"}


@pytest.mark.parametrize("target", ["parameters", "macs", "bytes"])
@pytest.mark.parametrize("technique", ["weight", "filter"])
@pytest.mark.parametrize(
    "allocation",
    ["global", *(pytest.param(name, marks=pytest.mark.slow) for name in ("uniform", "erdos_renyi", "lamp"))],
)
def test_a_target_is_reached_and_hardly_exceeded(model, technique, allocation, target):
    plan = PruningPlan(technique=technique, allocation=allocation, target=target, sparsity=0.4, protect=())
    pruned = prune(model, plan)
    before, after = pruned.summary.before, pruned.summary.after
    if technique == "weight":
        zeros = {layer.name: layer.zeros for layer in after.layers}
        macs = sum((layer.macs or 0) * layer.sparsity for layer in after.layers)
        kernels = sum(layer.zeros / layer.sparsity for layer in after.layers if layer.zeros)
        removed = {
            "parameters": sum(zeros.values()) / before.parameters,
            "macs": macs / before.macs,
            "bytes": (4 * sum(zeros.values()) - kernels / 8) / before.bytes,
        }[target]
    else:
        removed = 1 - getattr(after, target) / getattr(before, target)
    assert removed == pytest.approx(pruned.record.achieved_sparsity, abs=0.002)
    assert 0.4 - 1e-3 <= pruned.record.achieved_sparsity < 0.52


def test_an_unreachable_sparsity_is_rejected_with_the_highest(model):
    plan = PruningPlan(
        **{"technique": "filter", "target": "parameters", "sparsity": 0.9, "protect": ("first",)},
        rules=(LayerRule(layers="wide", sparsity=0),),
    )
    with raises(
        ConfigError, field="PruningPlan.sparsity", code="unreachable-sparsity", match=r"0\.9.*parameters.* 0\.\d"
    ):
        prune(model, plan)


def test_layers_keep_a_multiple_of_round_to(model):
    plan = PruningPlan(technique="filter", sparsity=0.9, protect=(), round_to=8)
    assert widths(prune(model, plan).model)["inner"] == 8
    pruned = prune(model, PruningPlan(technique="filter", sparsity=0.6, protect=(), round_to=4, allocation="global"))
    assert all(width % 4 == 0 for name, width in widths(pruned.model).items() if name not in ("hidden", "logits"))


def test_each_group_keeps_at_least_one_channel(model):
    pruned = prune(model, PruningPlan(technique="filter", sparsity=0.999, protect=()))
    assert {widths(pruned.model)[name] for name in ("stem", "inner", "outer", "wide")} == {1}
    assert pruned.model(np.zeros((2, *helpers.IMAGE))).shape == (2, 3)


def test_weights_that_tie_are_kept_and_noted():
    model = residual_net()
    model.get_layer("wide").kernel.assign(tf.ones_like(model.get_layer("wide").kernel))
    pruned = prune(model, PruningPlan(sparsity=0.5))
    wide = groups(pruned)["wide"]
    assert wide.kept == wide.elements
    zeros = {name: np.mean(mask == 0) * mask.size for name, mask in pruned.masks.items()}
    free = sum(group.elements for group in pruned.record.groups if not group.protected)
    assert pruned.record.achieved_sparsity == pytest.approx(sum(zeros.values()) / free)
    achieved = f"{pruned.record.achieved_sparsity:.3g}"
    assert any(achieved in note and "tie" in note for note in pruned.record.notes)


@pytest.mark.parametrize(
    "plan",
    [
        PruningPlan(technique="filter", round_to=64, protect=()),
        PruningPlan(rules=tuple(LayerRule(layers=name, sparsity=0) for name in ("inner", "outer", "wide"))),
    ],
)
def test_a_plan_that_would_prune_nothing_is_rejected(plan):
    model = residual_net()
    model.get_layer("hidden").kernel.assign(tf.ones_like(model.get_layer("hidden").kernel))
    with raises(ConfigError, code="unreachable-sparsity"):
        prune(model, plan)


def test_a_shortfall_by_rounding_is_noted(model):
    pruned = prune(model, PruningPlan(technique="filter", round_to=12, protect=()))
    assert any("0.5" in note and "0.333" in note and "round_to" in note for note in pruned.record.notes)


def test_unknown_multiply_accumulates_can_not_be_a_target():
    text = tf_keras.Input((None,), dtype="int64")
    x = tf_keras.layers.Dense(8, name="b")(tf_keras.layers.Dense(8, name="a")(tf_keras.layers.Embedding(9, 4)(text)))
    model = tf_keras.Model(text, tf_keras.layers.Dense(2, name="c")(tf_keras.layers.GlobalMaxPooling1D()(x)))
    with raises(ConfigError, field="PruningPlan.target", code="unknown-macs"):
        prune(model, PruningPlan(target="macs", sparsity=0.1, protect=()))


# Rules and protection


def test_a_rule_names_a_group_by_any_of_its_layers_and_overrides_protection(model):
    plan = PruningPlan(technique="filter", sparsity=0.5, rules=(LayerRule(layers="outer", sparsity=0.25),))
    assert widths(prune(model, plan).model)["stem"] == 12


def test_first_and_last_kernels_are_protected_unless_a_rule_names_them(model):
    pruned = prune(model, PruningPlan(sparsity=0.5))
    assert groups(pruned)["stem"].protected.startswith("first layer")
    assert groups(pruned)["logits"].protected.startswith("last layer")
    assert set(pruned.masks) == {"inner", "outer", "wide", "hidden"}
    named = prune(model, PruningPlan(sparsity=0.5, rules=(LayerRule(layers="logits", sparsity=0.25),)))
    assert np.mean(named.masks["logits"] == 0) == 0.25


def test_every_output_has_a_last_kernel():
    image = tf_keras.Input((4,))
    hidden = tf_keras.layers.Dense(8, name="one")(image)
    hidden = tf_keras.layers.Dense(8, name="two")(hidden)
    heads = [tf_keras.layers.ReLU()(tf_keras.layers.Dense(2, name=name)(hidden)) for name in ("left", "right")]
    pruned = prune(tf_keras.Model(image, heads), PruningPlan(protect=("first", "last")))
    assert set(pruned.masks) == {"two"}


@pytest.mark.parametrize("K", [tf_keras, keras], ids=["keras2", "keras3"])
def test_every_output_of_a_subclassed_network_has_a_last_kernel(K):
    class Heads(K.Model):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.heads = [K.layers.Dense(2, name=f"head{place}") for place in range(3)]
            self.second = K.layers.Dense(8, name="second")
            self.first = K.layers.Dense(8, name="first")

        def call(self, x, training=False):
            return [head(self.second(self.first(x))) for head in self.heads]

        def get_config(self):
            return {}

    model = Heads()
    model(np.zeros((2, 4), np.float32))
    pruned = prune_step(model_handle.wrap(model), PruningPlan(protect=("first", "last")))
    assert set(pruned.masks) == {"second"}


@pytest.mark.parametrize("technique", ["weight", "neuron"])
def test_ends_are_protected_by_default_while_they_hold_a_tenth_of_the_weights(technique):
    layers = [tf_keras.layers.Dense(units, name=f"d{place}") for place, units in enumerate((4, 40, 20, 2))]
    model = tf_keras.Sequential([tf_keras.Input((10,)), *layers])  # 40, 160, 800 and 40 weights of 1040
    protected = {
        name: group.protected for name, group in groups(prune(model, PruningPlan(technique=technique))).items()
    }
    assert "protected by default" in protected["d0"]
    assert not protected["d1"]
    pruned = prune(tf_keras.Sequential([tf_keras.Input((30,)), *layers_like(layers)]), PruningPlan(technique=technique))
    assert not groups(pruned)["d0"].protected  # 120 weights of 1120
    (note,) = [note for note in pruned.record.notes if "'d0'" in note]
    assert "10%" in note
    assert "protect=('first', 'last')" in note


def layers_like(layers):
    return [type(layer).from_config(layer.get_config()) for layer in layers]


@pytest.mark.parametrize("technique", ["weight", "neuron"])
def test_a_model_that_is_less_sparse_than_the_plan_says_so_wherever_the_user_looks(technique):
    model = tf_keras.Sequential(
        [tf_keras.Input((8,)), *(tf_keras.layers.Dense(8, name=name) for name in ("one", "two", "three"))]
    )
    plan = PruningPlan(technique=technique, sparsity=0.5, protect=("first", "last"))
    with pytest.warns(UserWarning, match="whole model") as caught:
        pruned = prune(model, plan)
    (warning,) = pruned.summary.warnings
    (raised,) = [each for each in caught if "whole model" in str(each.message)]
    assert str(raised.message) == pruned.record.notes[0] == warning
    assert raised.filename == __file__
    elements, left = (3, 2) if technique == "weight" else (2, 1)  # the network's outputs are no units
    assert pruned.record.model_sparsity == pytest.approx(0.5 * (elements - left) / elements)
    assert f"one ({1 / elements:.1%}: first layer" in warning
    assert "protect=()" in warning
    rules = (LayerRule(layers="one", sparsity=0),)
    assert not prune(model, PruningPlan(technique=technique, protect=(), rules=rules)).summary.warnings


@pytest.mark.parametrize("technique", ["weight", "filter"])
def test_a_frozen_layer_is_protected(technique):
    model = residual_net()
    model.get_layer("inner").trainable = False
    pruned = prune(model, PruningPlan(technique=technique, sparsity=0.5))
    assert groups(pruned)["inner"].kept == groups(pruned)["inner"].elements
    assert "frozen" in groups(pruned)["inner"].protected


def test_a_model_with_nothing_to_prune_is_rejected_with_the_reasons():
    model = residual_net()
    model.trainable = False
    with raises(ConfigError, code="nothing-to-prune", match=r"'residual_net'.*'inner': frozen"):
        prune(model, PruningPlan())


def test_tied_weights_are_pruned_once_and_their_channels_are_not_removed():
    layers = tf_keras.layers
    image = tf_keras.Input((6,))
    first, second = layers.Dense(6, use_bias=False, name="a"), layers.Dense(6, use_bias=False, name="b")
    model = tf_keras.Model(image, layers.Dense(2, name="out")(second(layers.ReLU()(first(image)))))
    second.kernel = first.kernel
    pruned = prune(model, PruningPlan(protect=(), sparsity=0.5))
    assert groups(pruned)["b"].protected == "shares its weights with 'a'"
    kernels = [pruned.model.get_layer(name).kernel for name in "ab"]
    assert kernels[0] is kernels[1] and np.mean(kernels[0].numpy() == 0) == 0.5
    with raises(ConfigError, code="nothing-to-prune", match="shares"):
        prune(model, PruningPlan(technique="neuron", protect=()))


def test_an_unsupported_layer_is_an_error_only_if_the_plan_is_strict():
    image = tf_keras.Input(helpers.IMAGE)
    x = tf_keras.layers.Conv2D(8, 3, name="a")(image)
    x = tf_keras.layers.Lambda(lambda value: value * 2, name="mine")(x)
    x = tf_keras.layers.Conv2D(8, 3, name="b")(x)
    model = tf_keras.Model(image, tf_keras.layers.GlobalMaxPooling2D()(tf_keras.layers.Conv2D(2, 1, name="c")(x)))
    with raises(ModelError, code="unsupported-layer", match="'mine'.*Lambda"):
        prune(model, PruningPlan(technique="filter", protect=(), strict=True))
    pruned = prune(model, PruningPlan(technique="filter", protect=()))
    assert widths(pruned.model) == {"a": 8, "b": 4, "c": 2}
    assert any("'a'" in note and "'mine'" in note for note in pruned.record.notes)


def test_an_unsupported_layer_is_noted():
    words = tf_keras.Input((5,), dtype="int64")
    x = tf_keras.layers.Embedding(9, 6)(words)
    x = tf_keras.layers.RNN(tf_keras.layers.LSTMCell(6), name="loop")(x)
    x = tf_keras.layers.Dense(6, activation="relu", name="dense")(x)
    model = tf_keras.Model(words, tf_keras.layers.Dense(2, name="out")(x))
    pruned = prune(model, PruningPlan(technique="neuron", protect=()))
    assert any("'loop'" in note and "RNN" in note for note in pruned.record.notes)


def test_channels_of_a_model_with_an_added_loss_are_not_removed():
    model = residual_net()
    model.add_loss(tf.reduce_mean(model.get_layer("hidden").output))
    with raises(ModelError, code="added-loss", match="residual_net"):
        prune(model, PruningPlan(technique="filter"))


def test_a_sparse_input_stays_sparse():
    given = tf_keras.Input((6,), sparse=True, name="given")
    hidden = tf_keras.layers.Dense(8, name="hidden")(given)
    model = tf_keras.Model(given, tf_keras.layers.Dense(2)(hidden))
    narrow = prune(model, PruningPlan(technique="neuron", protect=())).model
    assert isinstance(narrow.inputs[0].type_spec, tf.SparseTensorSpec)
    assert narrow(tf.sparse.from_dense(np.eye(6, dtype=np.float32))).shape == (6, 2)


@pytest.mark.parametrize("given", [np.zeros((3, 8)), tf.data.Dataset.from_tensors(np.zeros(3))])
def test_data_that_is_not_batches_is_rejected(model, given):
    with raises(ConfigError, field="data", code="not-batches"):
        prune(model, PruningPlan(criterion="taylor"), given)


@pytest.mark.parametrize("technique", ["weight", "filter"])
def test_a_state_that_is_not_finite_is_rejected(technique):
    model = residual_net()
    model.get_layer("stem_norm").moving_variance.assign([np.inf] * 16)
    with raises(ModelError, code="not-finite", match="'stem_norm/moving_variance:0'"):
        prune(model, PruningPlan(technique=technique))


@pytest.mark.parametrize("technique", ["weight", "filter", "neuron"])
def test_a_weight_that_is_not_finite_is_rejected(technique):
    model = residual_net()
    kernel = model.get_layer("wide").kernel
    kernel.assign(tf.tensor_scatter_nd_update(kernel, [[0, 0, 0, 0]], [np.nan]))
    with raises(ModelError, code="not-finite", match="'wide/kernel:0'"):
        prune(model, PruningPlan(technique=technique))


def test_channels_of_a_saved_model_without_layers_can_not_be_removed(tmp_path):
    path = helpers.save_function(
        lambda x: {"y": x @ path_weights},
        [tf.TensorSpec([None, 4])],
        tmp_path / "m",
        w=(path_weights := tf.Variable(tf.ones([4, 3]))),
    )
    with raises(ModelError, code="no-layer-graph", match=re.escape(path)):
        prune(path, PruningPlan(technique="filter"))


# Patterns


def test_patterns_of_dense_and_convolution_kernels(model):
    pruned = prune(model, PruningPlan(pattern="2:4"))
    for name, mask in pruned.masks.items():
        runs = np.moveaxis(mask, -2, -1).reshape(-1, 4)
        assert (runs.sum(-1) == 2).all(), name
    blocks = prune(model, PruningPlan(pattern="4x1", sparsity=0.5)).masks["wide"]
    runs = blocks.reshape(-1, 24).reshape(-1, 4, 24)
    assert ((runs.sum(1) == 0) | (runs.sum(1) == 4)).all()


def test_a_kernel_too_small_for_the_pattern_is_left_dense(model):
    pruned = prune(model, PruningPlan(pattern="2:4", protect=()))
    assert "stem" not in pruned.masks  # one input channel
    assert any("2:4" in note and "stem" in note for note in pruned.record.notes)
    with raises(ConfigError, field="PruningPlan.rules", code="kernel-too-small", match="'stem'"):
        prune(model, PruningPlan(pattern="2:4", rules=(LayerRule(layers="stem", sparsity=0.5),)))


# Data


@pytest.mark.parametrize("criterion", [name for name in criteria.NAMES if name != "scores"])
@pytest.mark.parametrize(
    "technique", ["filter", *(pytest.param(name, marks=pytest.mark.slow) for name in ("weight", "neuron"))]
)
def test_every_criterion_prunes_or_is_rejected(model, technique, criterion):
    if technique == "weight" and criteria.lookup(criterion).weights is None:
        with raises(ConfigError, code="criterion-of-channels"):
            PruningPlan(technique=technique, criterion=criterion)
        return
    plan = PruningPlan(technique=technique, criterion=criterion, sparsity=0.5, protect=())
    if criterion == "bn_scale" and technique in ("filter", "neuron"):
        with raises(ConfigError, code="unscored-layer"):
            prune(model, plan)
    else:
        pruned = prune(model, plan, data())
        assert pruned.record.achieved_sparsity == pytest.approx(0.5, abs=0.01)


def test_the_scale_of_a_normalization_ranks_a_group_without_data():
    model = residual_net()
    model.get_layer("stem_norm").gamma.assign(np.arange(1.0, 17.0))
    rules = tuple(LayerRule(layers=name, sparsity=0) for name in ("inner", "wide"))
    pruned = prune(model, PruningPlan(technique="filter", criterion="bn_scale", protect=(), rules=rules))
    assert pruned.record.channels["stem"] == tuple(range(8, 16))


@pytest.mark.parametrize(
    "plan",
    [{"criterion": "taylor"}, {"allocation": "sensitivity"}, {"criterion": "bn_scale", "allocation": "sensitivity"}],
)
def test_a_plan_that_requires_data_is_rejected_without(model, plan):
    with raises(ConfigError, code="plan-without-data"):
        prune(model, PruningPlan(technique="filter", **plan))


def test_stored_scores_choose_the_masks(model, tmp_path):
    scores = {name: np.random.default_rng(0).random(model.get_layer(name).kernel.shape) for name in ("inner", "outer")}
    np.savez(tmp_path / "scores.npz", **scores)
    rules = tuple(LayerRule(layers=name, sparsity=0) for name in ("wide", "hidden"))
    pruned = prune(model, PruningPlan(criterion="scores", scores=str(tmp_path / "scores.npz"), rules=rules))
    for name, values in scores.items():
        np.testing.assert_array_equal(pruned.masks[name], values >= np.sort(values, axis=None)[values.size // 2])


@pytest.mark.slow
def test_sensitivity_spares_the_layer_that_the_metric_depends_on_and_resumes(tmp_path):
    model = residual_net()
    model.get_layer("hidden").kernel.assign(model.get_layer("hidden").kernel * 30)  # the loss depends on this one
    seen = []
    options = SensitivityOptions(str(tmp_path / "s.json"), "key", lambda done, total, name: seen.append((done, total)))
    plan = PruningPlan(allocation="sensitivity", sparsity=0.4, sensitivity_levels=(0.5, 0.9))
    pruned = prune(model, plan, data(), sensitivity_options=options)
    assert {curve.name for curve in pruned.record.sensitivity} == {"inner", "outer", "wide", "hidden"}
    assert seen[-1] == (9, 9)
    assert pruned.record.metric == "loss"
    assert 0.4 - 1e-3 <= pruned.record.achieved_sparsity < 0.45
    losses = {curve.name: curve.values[-1] - curve.values[0] for curve in pruned.record.sensitivity}
    sparsity = {name: 1 - group.kept / group.elements for name, group in groups(pruned).items() if name in losses}
    assert sparsity[max(losses, key=losses.get)] < 0.4
    again = prune(residual_net(), plan, data(), sensitivity_options=options)  # values come from the file
    assert again.record.sensitivity == pruned.record.sensitivity


@pytest.mark.slow
def test_the_sensitivity_of_filters_is_that_of_their_removal(model):
    plan = PruningPlan(
        technique="filter", allocation="sensitivity", sparsity=0.5, sensitivity_levels=(0.5,), target="macs", protect=()
    )
    pruned = prune(model, plan, data())
    (curve,) = [curve for curve in pruned.record.sensitivity if curve.name == "wide"]
    rules = tuple(LayerRule(layers=name, sparsity=0) for name in ("stem", "inner"))
    alone = prune(model, PruningPlan(technique="filter", sparsity=0.5, protect=(), rules=rules))
    assert widths(alone.model)["wide"] == 12
    assert alone.model.evaluate(data(), verbose=0)[0] == pytest.approx(curve.values[1], rel=1e-5)


def test_an_unknown_sensitivity_metric_is_rejected_with_the_known_ones(model):
    plan = PruningPlan(allocation="sensitivity", sensitivity_metric="auc")
    with raises(
        ConfigError, field="PruningPlan.sensitivity_metric", code="unknown-metric", match="'auc'.*loss, accuracy"
    ):
        prune(model, plan, data())


# Schedules


@pytest.mark.parametrize("technique", ["weight", "filter"])
def test_the_first_step_of_an_iterative_schedule(model, technique):
    plan = PruningPlan(technique=technique, schedule="iterative", iterations=2, sparsity=0.75, protect=())
    pruned = prune(model, plan)
    assert groups(pruned)["wide"].kept / groups(pruned)["wide"].elements == pytest.approx(0.5)
    assert groups(pruned)["wide"].target_sparsity == pytest.approx(0.75)
    assert pruned.record.step_sparsity == 0.5
    assert any("0.5 of 0.75" in note for note in pruned.record.notes)


def test_a_gradual_schedule_from_zero_prunes_nothing_yet(model):
    pruned = prune(model, PruningPlan(schedule="cubic", sparsity=0.8))
    assert pruned.masks == {}
    assert groups(pruned)["wide"].target_sparsity == 0.8
    assert pruned.target_sparsity == dict.fromkeys(("inner", "outer", "wide", "hidden"), 0.8)


# Steps


def test_a_step_of_weight_pruning_changes_the_model_itself():
    handle = model_handle.wrap(residual_net())
    pruned = prune_step(handle, PruningPlan(sparsity=0.5, protect=()), step_sparsity=0.25)
    assert pruned.model is handle.model
    assert np.mean(handle.model.get_layer("wide").kernel.numpy() == 0) == 0.25
    assert groups(pruned)["wide"].target_sparsity == 0.5


def test_steps_of_channel_pruning_count_from_the_first_model(model):
    plan = PruningPlan(technique="filter", sparsity=0.75, protect=())
    first = prune_step(model_handle.wrap(model), plan, step_sparsity=0.25)
    second = prune_step(model_handle.wrap(first.model), plan, step_sparsity=0.5, current_sparsity=0.25)
    assert [widths(each)["wide"] for each in (model, first.model, second.model)] == [24, 18, 12]


def test_a_model_that_is_given_as_a_path_is_not_copied(tmp_path, monkeypatch):
    residual_net().save(tmp_path / "model.keras")
    monkeypatch.setattr("tfx_compression.pruning.prune.copy_model", None)
    assert prune(str(tmp_path / "model.keras"), PruningPlan()).masks


# The record


def test_the_record_round_trips_through_json(model):
    pruned = prune(model, PruningPlan(technique="filter", allocation="global", protect=()))
    assert type(pruned.record).model_validate_json(pruned.record.model_dump_json()) == pruned.record
    assert tfc.prune is prune


def test_an_error_of_a_loss_arrives_as_the_loss_raised_it():
    class LabelError(Exception):
        pass

    def loss(labels, outputs):
        raise LabelError("no label")

    model = helpers.small_dense()
    model.compile("sgd", loss)
    with pytest.raises(LabelError, match=r"^no label$"):
        prune(model, PruningPlan(allocation="sensitivity", protect=()), helpers.batches(*helpers.points(16)))


def test_arrays_are_data():
    model = helpers.small_dense()
    model.compile("sgd", "mse")
    x, y = helpers.points(40)
    plan = PruningPlan(criterion="taylor", sparsity=0.5, protect=(), batch_size=16)
    given = [prune(model, plan, each) for each in ((x, y), helpers.batches(x, y), [(x[:30], y[:30]), (x[30:], y[30:])])]
    for name, mask in given[0].masks.items():
        np.testing.assert_array_equal(given[1].masks[name], mask)
        np.testing.assert_array_equal(given[2].masks[name], mask)


def test_a_network_without_what_a_technique_prunes_is_refused():
    network = tf_keras.Sequential([tf_keras.layers.Dense(4, input_shape=(8,))])
    with raises(ConfigError, field="PruningPlan.technique", code="nothing-to-prune", match="no layers"):
        prune(network, PruningPlan(technique="filter", sparsity=0.5))
