"""Plans carried out whole: what goes, what is left alone and why, and what can't be done."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression as tfc
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.keras_models import model_size
from tfx_compression.pruning import criteria
from tfx_compression.pruning.plan import LayerRule, PruningPlan
from tfx_compression.pruning.prune import SensitivityOptions, prune

from tests.support import helpers


def residual_net(seed: int = 0) -> tf_keras.Model:
    """Images to three probabilities: a stem whose channels a residual block adds to, then a wider convolution."""
    tf_keras.utils.set_random_seed(seed)
    layers = tf_keras.layers
    image = tf_keras.Input(helpers.IMAGE, name="image")
    x = layers.Conv2D(16, 3, padding="same", name="stem")(image)
    x = layers.BatchNormalization(name="stem_norm")(x)
    x = stem = layers.ReLU(name="stem_relu")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="inner")(x)
    x = layers.Conv2D(16, 3, padding="same", name="outer")(x)
    x = layers.Add(name="sum")([stem, x])
    x = layers.Conv2D(24, 3, activation="relu", name="wide")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(12, activation="relu", name="hidden")(x)
    model = tf_keras.Model(image, layers.Dense(3, activation="softmax", name="logits")(x), name="residual_net")
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data(rows: int = 64) -> tf.data.Dataset:
    images, labels = helpers.images(rows)
    return helpers.batches({"image": images / helpers.LARGEST}, labels)


def parts(pruned) -> dict:
    return {part.name: part for part in pruned.record.parts}


def widths(model: tf_keras.Model) -> dict[str, int]:
    return {layer.name: layer.kernel.shape[-1] for layer in model.layers if hasattr(layer, "kernel")}


# What goes


def test_filters_are_removed_and_the_residual_trunk_with_its_stem_is_protected_by_default():
    pruned = prune(residual_net(), PruningPlan(technique="filter", sparsity=0.5))
    assert widths(pruned.model) == {"stem": 16, "inner": 4, "outer": 16, "wide": 12, "hidden": 12, "logits": 3}
    assert parts(pruned)["stem"].layers == ("stem", "outer")
    assert parts(pruned)["stem"].protected == "first layer (stem), protected by default"
    assert any("locks what is coupled" in note and "outer" in note for note in pruned.record.notes)


def test_without_protection_of_the_first_layer_the_trunk_goes_too():
    pruned = prune(residual_net(), PruningPlan(technique="filter", sparsity=0.5, protect=("last",)))
    assert widths(pruned.model) == {"stem": 8, "inner": 4, "outer": 8, "wide": 12, "hidden": 12, "logits": 3}
    assert pruned.summary.after.parameters == model_size.measure(pruned.model).parameters
    assert pruned.record.channels["stem"] == pruned.record.channels["outer"]
    assert len(pruned.record.channels["wide"]) == 12


def test_neurons_are_dense_units():
    pruned = prune(residual_net(), PruningPlan(technique="neuron", sparsity=0.5))
    assert widths(pruned.model)["hidden"] == 6
    assert widths(pruned.model)["wide"] == 24


def test_removal_leaves_the_original_as_it_was_and_keeps_inputs_outputs_and_compilation():
    model = residual_net()
    before = model.get_weights()
    pruned = prune(model, PruningPlan(technique="filter", sparsity=0.5))
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
def test_a_target_is_reached_and_not_by_far_exceeded(technique, allocation, target):
    plan = PruningPlan(technique=technique, allocation=allocation, target=target, sparsity=0.4, protect=())
    pruned = prune(residual_net(), plan)
    before, after = pruned.summary.before, pruned.summary.after
    if technique == "weight":
        zeros = {layer.name: layer.zeros for layer in after.layers}
        macs = sum((layer.macs or 0) * layer.sparsity for layer in after.layers)
        kernels = sum(layer.zeros / layer.sparsity for layer in after.layers if layer.zeros)
        gone = {
            "parameters": sum(zeros.values()) / before.parameters,
            "macs": macs / before.macs,
            "bytes": (4 * sum(zeros.values()) - kernels / 8) / before.bytes,
        }[target]
    else:
        gone = 1 - getattr(after, target) / getattr(before, target)
    assert gone == pytest.approx(pruned.record.reached, abs=0.002)
    assert 0.4 - 1e-3 <= pruned.record.reached < 0.52


def test_a_target_that_can_not_be_met_is_refused_with_the_highest_that_can():
    plan = PruningPlan(
        technique="filter", target="parameters", sparsity=0.9, rules=(LayerRule(layers="wide", sparsity=0),)
    )
    with pytest.raises(ConfigError, match=r"0\.9 of the parameters can't be reached .* the highest is 0\.\d+\. Remedy"):
        prune(residual_net(), plan)


def test_what_is_left_is_a_multiple_of_round_to_and_never_less():
    plan = PruningPlan(technique="filter", sparsity=0.9, protect=(), round_to=8)
    assert widths(prune(residual_net(), plan).model)["inner"] == 8
    pruned = prune(
        residual_net(), PruningPlan(technique="filter", sparsity=0.6, protect=(), round_to=4, allocation="global")
    )
    assert all(width % 4 == 0 for name, width in widths(pruned.model).items() if name not in ("hidden", "logits"))


def test_one_channel_at_least_stays_of_each_group():
    pruned = prune(residual_net(), PruningPlan(technique="filter", sparsity=0.999, protect=()))
    assert {widths(pruned.model)[name] for name in ("stem", "inner", "outer", "wide")} == {1}
    assert pruned.model(np.zeros((2, *helpers.IMAGE))).shape == (2, 3)


def test_what_ties_leave_undone_is_counted_and_noted():
    model = residual_net()
    model.get_layer("wide").kernel.assign(tf.ones_like(model.get_layer("wide").kernel))
    pruned = prune(model, PruningPlan(sparsity=0.5))
    part = parts(pruned)["wide"]
    assert part.kept == part.elements
    zeros = {name: np.mean(mask == 0) * mask.size for name, mask in pruned.masks.items()}
    free = sum(part.elements for part in pruned.record.parts if not part.protected)
    assert pruned.record.reached == pytest.approx(sum(zeros.values()) / free)
    assert any(f"reached {pruned.record.reached:.3g}: weights that tie" in note for note in pruned.record.notes)


@pytest.mark.parametrize(
    "plan",
    [
        PruningPlan(technique="filter", round_to=64, protect=()),
        PruningPlan(rules=tuple(LayerRule(layers=name, sparsity=0) for name in ("inner", "outer", "wide"))),
    ],
)
def test_a_plan_by_which_nothing_would_go_is_refused(plan):
    model = residual_net()
    model.get_layer("hidden").kernel.assign(tf.ones_like(model.get_layer("hidden").kernel))
    with pytest.raises(ConfigError, match="the highest is 0"):
        prune(model, plan)


def test_a_shortfall_by_rounding_is_noted():
    pruned = prune(residual_net(), PruningPlan(technique="filter", round_to=12, protect=()))
    assert any("Asked for 0.5, reached 0.333" in note and "round_to" in note for note in pruned.record.notes)


def test_unknown_multiply_accumulates_are_no_target():
    text = tf_keras.Input((None,), dtype="int64")
    x = tf_keras.layers.Dense(8, name="b")(tf_keras.layers.Dense(8, name="a")(tf_keras.layers.Embedding(9, 4)(text)))
    model = tf_keras.Model(text, tf_keras.layers.Dense(2, name="c")(tf_keras.layers.GlobalMaxPooling1D()(x)))
    with pytest.raises(ConfigError, match=r"target = 'macs': the multiply-accumulates of this model are not known"):
        prune(model, PruningPlan(target="macs", sparsity=0.1, protect=()))


# Rules, protection and what is left alone


def test_a_rule_names_a_group_by_any_of_its_layers_and_beats_protection():
    plan = PruningPlan(technique="filter", sparsity=0.5, rules=(LayerRule(layers="outer", sparsity=0.25),))
    assert widths(prune(residual_net(), plan).model)["stem"] == 12


def test_first_and_last_kernels_are_protected_by_default_unless_a_rule_names_them():
    pruned = prune(residual_net(), PruningPlan(sparsity=0.5))
    assert parts(pruned)["stem"].protected.startswith("first layer")
    assert parts(pruned)["logits"].protected.startswith("last layer")
    assert set(pruned.masks) == {"inner", "outer", "wide", "hidden"}
    named = prune(residual_net(), PruningPlan(sparsity=0.5, rules=(LayerRule(layers="logits", sparsity=0.25),)))
    assert np.mean(named.masks["logits"] == 0) == 0.25


def test_every_head_of_a_network_is_last():
    image = tf_keras.Input((4,))
    hidden = tf_keras.layers.Dense(8, name="one")(image)
    hidden = tf_keras.layers.Dense(8, name="two")(hidden)
    heads = [tf_keras.layers.ReLU()(tf_keras.layers.Dense(2, name=name)(hidden)) for name in ("left", "right")]
    pruned = prune(tf_keras.Model(image, heads), PruningPlan())
    assert set(pruned.masks) == {"two"}


@pytest.mark.parametrize("technique", ["weight", "filter"])
def test_a_frozen_layer_is_left_alone_and_reported(technique):
    model = residual_net()
    model.get_layer("inner").trainable = False
    pruned = prune(model, PruningPlan(technique=technique, sparsity=0.5))
    assert parts(pruned)["inner"].kept == parts(pruned)["inner"].elements
    assert "frozen" in parts(pruned)["inner"].protected


def test_nothing_left_to_prune_is_an_error_that_says_why():
    model = residual_net()
    model.trainable = False
    with pytest.raises(ConfigError, match=r"nothing of 'residual_net' to prune.*'inner': frozen.*Remedy"):
        prune(model, PruningPlan())


def test_tied_weights_are_pruned_once_and_never_removed():
    layers = tf_keras.layers
    image = tf_keras.Input((6,))
    first, second = layers.Dense(6, use_bias=False, name="a"), layers.Dense(6, use_bias=False, name="b")
    model = tf_keras.Model(image, layers.Dense(2, name="out")(second(layers.ReLU()(first(image)))))
    second.kernel = first.kernel
    pruned = prune(model, PruningPlan(protect=(), sparsity=0.5))
    assert parts(pruned)["b"].protected == "shares its weights with 'a'"
    assert np.mean(first.kernel.numpy() == 0) == 0.5
    with pytest.raises(ConfigError, match="shares the weights"):
        prune(model, PruningPlan(technique="neuron", protect=()))


def test_a_strict_plan_refuses_a_layer_without_a_rule_and_any_other_leaves_it_alone():
    image = tf_keras.Input(helpers.IMAGE)
    x = tf_keras.layers.Conv2D(8, 3, name="a")(image)
    x = tf_keras.layers.Lambda(lambda value: value * 2, name="mine")(x)
    x = tf_keras.layers.Conv2D(8, 3, name="b")(x)
    model = tf_keras.Model(image, tf_keras.layers.GlobalMaxPooling2D()(tf_keras.layers.Conv2D(2, 1, name="c")(x)))
    with pytest.raises(ModelError, match="strict, and layer 'mine' is of the class Lambda"):
        prune(model, PruningPlan(technique="filter", protect=(), strict=True))
    pruned = prune(model, PruningPlan(technique="filter", protect=()))
    assert widths(pruned.model) == {"a": 8, "b": 4, "c": 2}
    assert any("'a' are left alone" in note and "'mine'" in note for note in pruned.record.notes)


def test_every_layer_without_a_rule_is_noted():
    words = tf_keras.Input((5,), dtype="int64")
    x = tf_keras.layers.Embedding(9, 6)(words)
    x = tf_keras.layers.RNN(tf_keras.layers.LSTMCell(6), name="loop")(x)
    x = tf_keras.layers.Dense(6, activation="relu", name="dense")(x)
    model = tf_keras.Model(words, tf_keras.layers.Dense(2, name="out")(x))
    pruned = prune(model, PruningPlan(technique="neuron", protect=()))
    assert any(note.startswith("Left as it is: layer 'loop' is of the class RNN") for note in pruned.record.notes)


def test_a_loss_inside_the_network_would_be_lost():
    model = residual_net()
    model.add_loss(tf.reduce_mean(model.get_layer("hidden").output))
    with pytest.raises(ModelError, match=r"a loss of its own \(add_loss on a tensor\).*Remedy"):
        prune(model, PruningPlan(technique="filter"))


def test_a_sparse_input_stays_sparse():
    given = tf_keras.Input((6,), sparse=True, name="given")
    hidden = tf_keras.layers.Dense(8, name="hidden")(given)
    model = tf_keras.Model(given, tf_keras.layers.Dense(2)(hidden))
    narrow = prune(model, PruningPlan(technique="neuron", protect=())).model
    assert isinstance(narrow.inputs[0].type_spec, tf.SparseTensorSpec)
    assert narrow(tf.sparse.from_dense(np.eye(6, dtype=np.float32))).shape == (6, 2)


@pytest.mark.parametrize("data", [(np.zeros(3), np.zeros(3)), tf.data.Dataset.from_tensors(np.zeros(3))])
def test_data_that_is_no_batches_is_refused(data):
    with pytest.raises(ConfigError, match=r"is no batches of \(features, labels\)\. Remedy"):
        prune(residual_net(), PruningPlan(criterion="taylor"), data)


@pytest.mark.parametrize("technique", ["weight", "filter"])
def test_a_bias_that_is_no_number_is_refused_too(technique):
    model = residual_net()
    model.get_layer("stem_norm").moving_variance.assign([np.inf] * 16)
    with pytest.raises(ModelError, match="'stem_norm/moving_variance:0' is not finite"):
        prune(model, PruningPlan(technique=technique))


@pytest.mark.parametrize("technique", ["weight", "filter", "neuron"])
def test_a_weight_that_is_no_number_is_refused(technique):
    model = residual_net()
    kernel = model.get_layer("wide").kernel
    kernel.assign(tf.tensor_scatter_nd_update(kernel, [[0, 0, 0, 0]], [np.nan]))
    with pytest.raises(ModelError, match="'wide/kernel:0' is not finite"):
        prune(model, PruningPlan(technique=technique))


def test_a_saved_model_without_layers_can_not_lose_channels(tmp_path):
    path = helpers.save_function(
        lambda x: {"y": x @ path_weights},
        [tf.TensorSpec([None, 4])],
        tmp_path / "m",
        w=(path_weights := tf.Variable(tf.ones([4, 3]))),
    )
    with pytest.raises(ModelError, match=r"SavedModel without one\. Remedy: in Trainer's run_fn, save"):
        prune(path, PruningPlan(technique="filter"))


# Patterns


def test_two_of_four_and_blocks_are_carried_out_on_dense_and_convolution_kernels():
    pruned = prune(residual_net(), PruningPlan(pattern="2:4"))
    for name, mask in pruned.masks.items():
        runs = np.moveaxis(mask, -2, -1).reshape(-1, 4)
        assert (runs.sum(-1) == 2).all(), name
    blocks = prune(residual_net(), PruningPlan(pattern="4x1", sparsity=0.5)).masks["wide"]
    runs = blocks.reshape(-1, 24).reshape(-1, 4, 24)
    assert ((runs.sum(1) == 0) | (runs.sum(1) == 4)).all()


def test_a_kernel_too_small_for_the_pattern_stays_dense_with_a_note_and_a_rule_for_it_is_refused():
    pruned = prune(residual_net(), PruningPlan(pattern="2:4", protect=()))
    assert "stem" not in pruned.masks  # one input channel
    assert any("Too small for the pattern 2:4" in note and "stem" in note for note in pruned.record.notes)
    with pytest.raises(ConfigError, match="'stem', whose kernel of shape"):
        prune(residual_net(), PruningPlan(pattern="2:4", rules=(LayerRule(layers="stem", sparsity=0.5),)))


# Data


@pytest.mark.parametrize("criterion", [name for name in criteria.NAMES if name != "scores"])
@pytest.mark.parametrize(
    "technique", ["filter", *(pytest.param(name, marks=pytest.mark.slow) for name in ("weight", "neuron"))]
)
def test_every_criterion_prunes_or_says_why_not(technique, criterion):
    plan = PruningPlan(technique=technique, criterion=criterion, sparsity=0.5, protect=())
    known = criteria.get(criterion)
    if technique == "weight" and known.weights is None:
        with pytest.raises(ConfigError, match="Remedy: technique='filter' or 'neuron'"):
            prune(residual_net(), plan, data())
    elif criterion == "bn_scale" and technique in ("filter", "neuron"):
        with pytest.raises(ConfigError, match="no normalisation with a scale follows it"):
            prune(residual_net(), plan)
    else:
        pruned = prune(residual_net(), plan, data())
        assert pruned.record.reached == pytest.approx(0.5, abs=0.01)


def test_the_scale_of_a_normalisation_ranks_a_group_without_data():
    model = residual_net()
    model.get_layer("stem_norm").gamma.assign(np.arange(1.0, 17.0))
    rules = tuple(LayerRule(layers=name, sparsity=0) for name in ("inner", "wide"))
    pruned = prune(model, PruningPlan(technique="filter", criterion="bn_scale", protect=(), rules=rules))
    assert pruned.record.channels["stem"] == tuple(range(8, 16))


def test_a_criterion_that_looks_at_data_needs_some():
    with pytest.raises(ConfigError, match="looks at data, and there is none"):
        prune(residual_net(), PruningPlan(criterion="taylor"))


def test_given_scores_decide(tmp_path):
    model = residual_net()
    scores = {name: np.random.default_rng(0).random(model.get_layer(name).kernel.shape) for name in ("inner", "outer")}
    np.savez(tmp_path / "scores.npz", **scores)
    rules = tuple(LayerRule(layers=name, sparsity=0) for name in ("wide", "hidden"))
    pruned = prune(model, PruningPlan(criterion="scores", scores=str(tmp_path / "scores.npz"), rules=rules))
    for name, values in scores.items():
        np.testing.assert_array_equal(pruned.masks[name], values >= np.sort(values, axis=None)[values.size // 2])


def test_sensitivity_spares_the_layer_that_the_metric_depends_on_and_is_resumed(tmp_path):
    model = residual_net()
    model.get_layer("hidden").kernel.assign(model.get_layer("hidden").kernel * 30)  # the loss hangs on this one
    seen = []
    how = SensitivityOptions(str(tmp_path / "s.json"), "key", lambda done, total, name: seen.append((done, total)))
    plan = PruningPlan(allocation="sensitivity", sparsity=0.4, sensitivity_levels=(0.5, 0.9))
    pruned = prune(model, plan, data(), sensitivity_options=how)
    assert {curve.name for curve in pruned.record.sensitivity} == {"inner", "outer", "wide", "hidden"}
    assert seen[-1] == (9, 9)
    assert pruned.record.metric == "loss"
    assert 0.4 - 1e-3 <= pruned.record.reached < 0.45
    losses = {curve.name: curve.values[-1] - curve.values[0] for curve in pruned.record.sensitivity}
    sparsity = {name: 1 - part.kept / part.elements for name, part in parts(pruned).items() if name in losses}
    assert sparsity[max(losses, key=losses.get)] < 0.4
    again = prune(residual_net(), plan, data(), sensitivity_options=how)  # values come from the file
    assert again.record.sensitivity == pruned.record.sensitivity


def test_sensitivity_of_filters_measures_what_removal_does():
    model = residual_net()
    plan = PruningPlan(
        technique="filter", allocation="sensitivity", sparsity=0.5, sensitivity_levels=(0.5,), target="macs", protect=()
    )
    pruned = prune(model, plan, data())
    (curve,) = [curve for curve in pruned.record.sensitivity if curve.name == "wide"]
    rules = tuple(LayerRule(layers=name, sparsity=0) for name in ("stem", "inner"))
    alone = prune(model, PruningPlan(technique="filter", sparsity=0.5, protect=(), rules=rules))
    assert widths(alone.model)["wide"] == 12
    assert alone.model.evaluate(data(), verbose=0)[0] == pytest.approx(curve.values[1], rel=1e-5)


def test_an_unknown_sensitivity_metric_is_refused_with_those_there_are():
    plan = PruningPlan(allocation="sensitivity", sensitivity_metric="auc")
    with pytest.raises(ConfigError, match=r"sensitivity_metric = 'auc'.*loss, accuracy"):
        prune(residual_net(), plan, data())


# Schedules


@pytest.mark.parametrize("technique", ["weight", "filter"])
def test_the_first_step_of_an_iterative_schedule_is_taken_and_the_target_noted(technique):
    plan = PruningPlan(technique=technique, schedule="iterative", iterations=2, sparsity=0.75, protect=())
    pruned = prune(residual_net(), plan)
    assert parts(pruned)["wide"].kept / parts(pruned)["wide"].elements == pytest.approx(0.5)
    assert parts(pruned)["wide"].target == pytest.approx(0.75)
    assert any("first step, to 0.5 of 0.75" in note for note in pruned.record.notes)


def test_a_gradual_schedule_that_starts_at_nothing_prunes_nothing_yet():
    pruned = prune(residual_net(), PruningPlan(schedule="cubic", sparsity=0.8))
    assert pruned.masks == {}
    assert parts(pruned)["wide"].target == 0.8


# The record


def test_the_record_round_trips_through_json():
    pruned = prune(residual_net(), PruningPlan(technique="filter", allocation="global", protect=()))
    assert type(pruned.record).model_validate_json(pruned.record.model_dump_json()) == pruned.record
    assert tfc.prune is prune
