"""Mode iterative: rounds of pruning and training, the accuracy guard, and rewinding."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.pruning.plan import LayerRule, PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.sparsity_fine_tuner.config import AccuracyGuard, FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune
from tfx_compression.sparsity_fine_tuner.session import Session

from tests.support import helpers, nets
from tests.support.errors import raises

slow = pytest.mark.slow
MSE = {"optimizer": "sgd", "loss": "mse", "learning_rate": 0.02}


def iterative(kind="keras2", folder=None, rounds=3, **plan):
    """Returns a net after Pruner and after rounds of two steps, and a recorder of them."""
    plan = {"schedule": "iterative", "iterations": rounds, "sparsity": 0.875, **plan}
    pruned = nets.pruned(nets.dense(kind, folder), nets.points(), **plan)
    recorder = nets.recorder(pruned.handle)
    config = FineTuning(mode="iterative", epochs=1, **MSE)
    tuned = fine_tune(pruned, nets.points(32), config, callbacks=[recorder], validation_data=nets.points(32, seed=5))
    return pruned, tuned, recorder.kernels


@pytest.mark.slow
@pytest.mark.parametrize("kind", nets.EVERY_KIND)
def test_each_round_removes_the_same_fraction_of_the_rest(kind, tmp_path):
    pruned, tuned, kernels = iterative(kind, tmp_path)
    assert [each.step_sparsity for each in tuned.rounds] == pytest.approx([0.5, 0.75, 0.875])
    assert [each.achieved_sparsity for each in tuned.rounds] == pytest.approx([0.5, 0.75, 0.875], abs=0.02)
    assert [each.steps for each in tuned.rounds] == [2, 2, 2]
    for step, expected in ((1, 0.5), (3, 0.75), (5, 0.875)):  # the first step of each round
        for name in nets.KERNELS:
            assert nets.sparsity(kernels[step][name]) == pytest.approx(expected, abs=0.02)
    assert len(tuned.history) == 3
    for each, logs in zip(tuned.rounds, tuned.history, strict=True):
        assert each.metrics["loss"] == pytest.approx(logs["val_loss"])
    for name, mask in tuned.masks.items():
        assert nets.sparsity(mask) == pytest.approx(0.875, abs=0.02)
        assert not nets.kernels(tuned.model)[name][~mask].any()
        np.testing.assert_array_equal(kernels[1][name] != 0, pruned.masks[name])
    require_nothing_revived(kernels)


def require_nothing_revived(kernels):
    for before, after in itertools.pairwise(kernels):
        for name in nets.KERNELS:
            assert not after[name][before[name] == 0].any()


@pytest.mark.slow
def test_each_round_prunes_the_least_weights_of_the_previous_round():
    _, _, kernels = iterative(rounds=2, sparsity=0.75)
    for name in nets.KERNELS:
        magnitudes = np.abs(kernels[2][name])  # at the end of the first round
        chosen = magnitudes >= np.sort(magnitudes.ravel())[-magnitudes.size // 4]
        np.testing.assert_array_equal(kernels[3][name] != 0, chosen)


@slow
@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_rounds_follow_the_rules_and_revive_no_weights(criterion):
    rules = (LayerRule(layers="y", sparsity=0.25),)
    _, tuned, kernels = iterative(rules=rules, sparsity=0.75, rounds=2, criterion=criterion)
    if criterion == "magnitude":  # with others, scores tie
        assert nets.sparsity(kernels[1]["y"]) == pytest.approx(0.25 / 0.75 * 0.5, abs=0.04)
        assert nets.sparsity(tuned.masks["y"]) == pytest.approx(0.25, abs=0.04)
        assert nets.sparsity(tuned.masks["hidden"]) == pytest.approx(0.75, abs=0.02)
    require_nothing_revived(kernels)


# Rewinding.


def rewound(kind, folder, rewind):
    """Returns the kernels before the first of two rounds and after each step, and the result.

    The learning rate of the second round is almost zero, so that the last kernels are those that it started with.
    """
    pruned = nets.pruned(nets.dense(kind, folder), schedule="iterative", iterations=2, sparsity=0.75)
    model = pruned.handle
    initial = nets.kernels(model)
    recorder = nets.recorder(model)
    rates = iter([0.05] * 2 + [1e-30] * 2)

    class Rates(type(recorder)):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.optimizer.learning_rate = next(rates)

    config = FineTuning(mode="iterative", epochs=1, rewind=rewind, **MSE)
    tuned = fine_tune(pruned, nets.points(32), config, callbacks=[recorder, Rates(model)])
    return initial, recorder.kernels, tuned


@pytest.mark.parametrize("kind", nets.EVERY_KIND)
def test_rewinding_to_the_start_of_the_training(kind, tmp_path):
    initial, kernels, tuned = rewound(kind, tmp_path, "start")
    for name, mask in tuned.masks.items():
        assert (kernels[2][name] != initial[name]).any()
        np.testing.assert_allclose(kernels[-1][name], initial[name] * mask, rtol=1e-6)
        magnitudes = np.abs(kernels[2][name])  # masks are chosen before rewinding
        np.testing.assert_array_equal(mask, magnitudes >= np.sort(magnitudes.ravel())[-mask.size // 4])


def test_without_rewinding_weights_continue_from_the_last_round():
    _, kernels, tuned = rewound("keras2", None, None)
    for name, mask in tuned.masks.items():
        np.testing.assert_allclose(kernels[-1][name], kernels[2][name] * mask, rtol=1e-6)


@slow
@pytest.mark.parametrize("kind", nets.KINDS[:2])
def test_rewinding_to_an_early_model(kind, tmp_path):
    early = nets.dense(kind, tmp_path, seed=8)
    path = str(tmp_path / "early.keras")
    early.model.save(path)
    _, kernels, tuned = rewound(kind, tmp_path, path)
    for name, mask in tuned.masks.items():
        np.testing.assert_allclose(kernels[-1][name], nets.kernels(early)[name] * mask, rtol=1e-6)


def test_early_model_of_other_layers_is_refused(tmp_path):
    other = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3)])
    other.save(str(tmp_path / "other.keras"))
    with raises(ConfigError, field="FineTuning.rewind", code="rewind-weights-mismatch"):
        rewound("keras2", None, str(tmp_path / "other.keras"))


# The guard.


class Guarded:
    """A guarded training whose metrics on the evaluation data are scripted.

    Args:
      monkeypatch: Replaces the evaluation.
      drop: Function from the sparsity of a model to how much worse than the teacher it is.
      start: Sparsity of the first round.
      metric: Metric of the guard.
      teacher: Whether there is a teacher.
      sparsity: Sparsity of the plan.
      guard: Fields of the guard.
    """

    def __init__(self, monkeypatch, drop, start=0.3, metric="loss", teacher=True, sparsity=0.9, **guard):
        self.weights = {}  # by sparsity
        monkeypatch.setattr(PruningPlan, "first_step_sparsity", property(lambda _: start))
        self.teacher = nets.dense("keras2", None, seed=7)
        pruned = nets.pruned(nets.dense("keras2", None), schedule="iterative", iterations=2, sparsity=sparsity)
        self.model = pruned.handle

        def evaluate(session, handle):
            if any(handle is each for each in session.teachers):
                return {"loss": 1.0, "accuracy": 0.9}
            values = [kernel.ravel() for kernel in nets.kernels(handle).values()]
            achieved = round(nets.sparsity(np.concatenate(values)), 2)
            self.weights[achieved] = handle.network.get_weights()
            return {"loss": 1.0 + drop(achieved), "accuracy": 0.9 - drop(achieved)}

        monkeypatch.setattr(Session, "evaluate", evaluate)
        config = FineTuning(mode="iterative", epochs=1, guard=AccuracyGuard(metric=metric, **guard), learning_rate=0.02)
        teachers = self.teacher if teacher else None
        self.tuned = fine_tune(pruned, nets.points(16), config, teachers, validation_data=nets.points(16))

    @property
    def steps(self):
        return [round(each.step_sparsity, 4) for each in self.tuned.rounds]

    @property
    def accepted(self):
        return [each.accepted for each in self.tuned.rounds]


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["loss", pytest.param("accuracy", marks=slow)])  # smaller and larger is better
def test_rejected_rounds_halve_the_step(monkeypatch, metric):
    guarded = Guarded(
        monkeypatch,
        lambda achieved: 0.0 if achieved < 0.58 else 0.5,
        metric=metric,
        max_drop=0.1,
        step=0.2,
        minimum_step=0.04,
    )
    # 0.5 is accepted, 0.7 and 0.6 are not. 0.55 is accepted with the same step. 0.6 is not, half a step is too small.
    assert guarded.steps == [0.3, 0.5, 0.7, 0.6, 0.55, 0.6]
    assert guarded.accepted == [True, True, False, False, True, False]
    assert all((each.drop <= 0.1) == each.accepted for each in guarded.tuned.rounds)
    assert "0.55" in guarded.tuned.notes[-1]
    for weight, values in zip(guarded.model.model.get_weights(), guarded.weights[0.55], strict=True):
        np.testing.assert_array_equal(weight, values)
    for mask in guarded.tuned.masks.values():
        assert nets.sparsity(mask) == pytest.approx(0.55, abs=0.02)


@slow
def test_guard_without_a_drop_ends_at_the_plans_sparsity(monkeypatch):
    guarded = Guarded(monkeypatch, lambda achieved: 0.0, max_drop=0.0, step=0.4)
    assert guarded.steps == [0.3, 0.7, 0.9]
    assert guarded.accepted == [True] * 3
    assert not guarded.tuned.notes


@slow
def test_drop_equal_to_the_limit_is_accepted(monkeypatch):
    guarded = Guarded(monkeypatch, lambda achieved: 0.25, max_drop=0.25, step=0.6)
    assert guarded.accepted == [True, True]


@slow
def test_rejected_first_round_starts_again_from_the_teacher(monkeypatch):
    guarded = Guarded(
        monkeypatch, lambda achieved: 0.0 if achieved < 0.2 else 0.5, max_drop=0.1, step=0.2, minimum_step=0.05
    )
    assert guarded.steps == [0.3, 0.15, 0.3, 0.225]
    assert guarded.accepted == [False, True, False, False]
    for weight, values in zip(guarded.model.model.get_weights(), guarded.weights[0.16], strict=True):
        np.testing.assert_array_equal(weight, values)


@pytest.mark.slow
def test_result_is_the_teacher_if_every_round_is_rejected(monkeypatch):
    guarded = Guarded(monkeypatch, lambda achieved: 0.5, max_drop=0.1, step=0.2, minimum_step=0.1)
    assert guarded.steps == [0.3, 0.15]
    assert guarded.accepted == [False, False]
    assert not guarded.tuned.masks
    for weight, values in zip(guarded.model.model.get_weights(), guarded.teacher.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, values)


def test_rejected_first_round_without_a_teacher_is_an_error(monkeypatch):
    with raises(ModelError, field="AccuracyGuard.max_drop", code="first-round-rejected", match=r"0\.5 of loss"):
        Guarded(monkeypatch, lambda achieved: 0.5, teacher=False, baseline=1.0, max_drop=0.1)


@slow
def test_baseline_of_the_configuration(monkeypatch):
    guarded = Guarded(monkeypatch, lambda achieved: 0.5, teacher=False, baseline=1.45, max_drop=0.1, step=0.6)
    assert [each.drop for each in guarded.tuned.rounds] == pytest.approx([0.05, 0.05])


# Channels.


def wide(library=tf_keras, seed=2):
    library.utils.set_random_seed(seed)
    x = library.Input((4,), name="x")
    first = library.layers.Dense(64, activation="relu", name="first")(x)
    second = library.layers.Dense(48, activation="relu", name="second")(first)
    model = library.Model(x, library.layers.Dense(2, name="y")(second))
    model.compile(optimizer="sgd", loss="mse", run_eagerly=True)
    return model


def units(model):
    return {name: kernel.shape[-1] for name, kernel in model_handle.wrap(model).kernels.items()}


def shrunk(model, rounds, teacher=None, guard=None, **plan):
    """Returns a model after Pruner and after rounds that remove units."""
    plan = {"technique": "neuron", "protect": ("last",), "schedule": "iterative", "iterations": rounds, **plan}
    pruned = nets.pruned(model, **{"sparsity": 0.75, **plan})
    config = FineTuning(mode="iterative", epochs=1, learning_rate=0.01, guard=guard)
    tuned = fine_tune(pruned, nets.points(32), config, teacher, validation_data=nets.points(32, seed=5))
    return pruned, tuned


@pytest.mark.slow
def test_channels_shrink_in_each_round():
    pruned, tuned = shrunk(wide(), 2)
    assert units(pruned.model) == {"first": 32, "second": 24, "y": 2}
    assert units(tuned.model) == {"first": 16, "second": 12, "y": 2}
    assert [each.achieved_sparsity for each in tuned.rounds] == pytest.approx([0.5, 0.75], abs=0.02)
    assert tuned.model(helpers.points(3)[0]).shape == (3, 2)
    assert tuned.summary.after.parameters < tuned.summary.before.parameters
    assert tuned.model.evaluate(nets.points(32, seed=5), verbose=0) == pytest.approx(
        tuned.rounds[-1].metrics["loss"], rel=1e-5
    )


@slow
@pytest.mark.parametrize("target", ["sparsity", "parameters", "macs"])
@pytest.mark.parametrize("rounds", [2, 4])
def test_rounds_of_channel_pruning_equal_one_shot(target, rounds):
    options = {"target": target, "sparsity": 0.6}
    _, tuned = shrunk(wide(), rounds, **options)
    one_shot = prune(wide(), PruningPlan(technique="neuron", protect=("last",), **options))
    assert tuned.rounds[-1].achieved_sparsity == pytest.approx(0.6, abs=0.03)
    if target == "sparsity":
        for name, expected in units(one_shot.model).items():
            assert abs(units(tuned.model)[name] - expected) <= 1, name
    before, after, expected = (
        each.macs for each in (one_shot.summary.before, tuned.summary.after, one_shot.summary.after)
    )
    assert after / before == pytest.approx(expected / before, abs=0.04)


@slow
def test_rules_apply_in_every_round_of_channel_pruning():
    rules = (LayerRule(layers="second", sparsity=0.25),)
    pruned, tuned = shrunk(wide(), 3, rules=rules)
    one_shot = prune(wide(), PruningPlan(technique="neuron", protect=("last",), sparsity=0.75, rules=rules))
    assert units(pruned.model)["second"] < 48
    for name, expected in units(one_shot.model).items():
        assert abs(units(tuned.model)[name] - expected) <= 1, f"{name}: {units(tuned.model)}, {units(one_shot.model)}"


@slow
def test_channels_of_a_keras_3_model_shrink():
    _, tuned = shrunk(wide(keras), 2)
    assert units(tuned.model) == {"first": 16, "second": 12, "y": 2}


@slow
def test_guard_returns_the_smallest_accepted_network(monkeypatch):
    evaluated = []

    def evaluate(session, handle):
        if any(handle is each for each in session.teachers):
            return {"loss": 1.0}
        size = units(handle.network)["first"]
        evaluated.append((size, handle.network.get_weights()))
        return {"loss": 1.0 if size >= 20 else 9.0}

    monkeypatch.setattr(Session, "evaluate", evaluate)
    guard = AccuracyGuard(max_drop=0.1, step=0.2, minimum_step=0.05)
    _, tuned = shrunk(wide(), 2, wide(), guard, sparsity=0.9)
    assert [each.accepted for each in tuned.rounds][-1] is False
    kept = [weights for size, weights in evaluated if size >= 20][-1]
    assert units(tuned.model)["first"] == kept[0].shape[1] >= 20
    for one, other in zip(tuned.model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(one, other)
    assert tuned.rounds[0].step_sparsity == pytest.approx(1 - 0.1**0.5)


@slow
def test_rejected_first_round_of_channel_pruning_starts_from_the_teacher(monkeypatch):
    def evaluate(session, handle):
        dense = any(handle is each for each in session.teachers)
        return {"loss": 1.0 if dense or units(handle.network)["first"] >= 40 else 9.0}

    monkeypatch.setattr(Session, "evaluate", evaluate)
    teacher = wide()
    before = teacher.get_weights()
    guard = AccuracyGuard(max_drop=0.1, step=0.2, minimum_step=0.05)
    _, tuned = shrunk(wide(), 2, teacher, guard)
    assert [each.accepted for each in tuned.rounds[:2]] == [False, True]
    assert units(tuned.model)["first"] >= 40
    for one, other in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@slow
def test_convolutional_network_is_saved_after_rounds(tmp_path, eagerly):
    images, labels = helpers.images(96)
    data = helpers.batches(images / helpers.LARGEST, labels, size=32)
    model = helpers.small_cnn()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    plan = PruningPlan(technique="filter", sparsity=0.5, schedule="iterative", iterations=2, protect=("last",))
    tuned = fine_tune(prune(model, plan), data, FineTuning(mode="iterative", epochs=1), validation_data=data)
    tuned.model.save(str(tmp_path / "model.keras"))
    loaded = tf_keras.models.load_model(str(tmp_path / "model.keras"))
    np.testing.assert_allclose(loaded(images[:4]), tuned.model(images[:4]), atol=1e-6)
    assert tuned.summary.after.macs < tuned.summary.before.macs
    assert tf.reduce_all(tf.math.is_finite(loaded(images[:4])))
