"""Pruning and training in rounds: how far each goes, what the accuracy guard accepts, where weights start from."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.pruning.plan import LayerRule, PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.sparsity_fine_tuner.config import AccuracyGuard, FineTuning
from tfx_compression.sparsity_fine_tuner.training import fine_tune

from tests.support import helpers, nets

slow = pytest.mark.slow
MSE = {"optimizer": "sgd", "loss": "mse", "learning_rate": 0.02}


def sparsity(values: np.ndarray) -> float:
    return float(np.mean(values == 0))


def iterative(kind="keras2", folder=None, rounds=3, epochs=1, rows=32, config=None, **plan):
    """A net after rounds of pruning and training; what was seen on the way."""
    model = nets.dense(kind, folder)
    plan = PruningPlan(**{**nets.DENSE, "schedule": "iterative", "iterations": rounds, "sparsity": 0.875, **plan})
    pruned = prune(model, plan, nets.points())
    model = pruned.handle
    seen = nets.seen(model)
    tuned = fine_tune(
        model,
        nets.points(rows),
        FineTuning(mode="iterative", epochs=epochs, **{**MSE, **(config or {})}),
        plan=pruned.plan,
        masks=pruned.masks,
        callbacks=[seen],
        validation_data=nets.points(32, seed=5),
    )
    return tuned, seen


@pytest.mark.parametrize("kind", nets.EVERY_KIND)
def test_each_round_removes_the_same_fraction_of_what_is_left(kind, tmp_path):
    tuned, seen = iterative(kind, tmp_path)
    assert [done.asked for done in tuned.rounds] == pytest.approx([0.5, 0.75, 0.875])
    assert [done.reached for done in tuned.rounds] == pytest.approx([0.5, 0.75, 0.875], abs=0.02)
    assert [done.steps for done in tuned.rounds] == [2, 2, 2]
    for number, wanted in ((1, 0.5), (3, 0.75), (5, 0.875)):  # the first step of each round
        for name in nets.KERNELS:
            assert sparsity(seen.kernels[number][name]) == pytest.approx(wanted, abs=0.02)
    assert len(tuned.history) == 3
    for done, logs in zip(tuned.rounds, tuned.history, strict=True):
        assert done.metrics["loss"] == pytest.approx(logs["val_loss"])
    for name, mask in tuned.masks.items():
        assert sparsity(mask) == pytest.approx(0.875, abs=0.02)
        assert not nets.kernels(tuned.model if kind != "saved_model" else tuned.trained)[name][~mask].any()


@slow
def test_what_one_round_pruned_the_next_ones_do_not_bring_back():
    _, seen = iterative()
    for before, after in nets.pairs(seen.kernels):
        for name in nets.KERNELS:
            assert not after[name][before[name] == 0].any()


def test_each_round_prunes_the_least_of_what_the_one_before_trained():
    _, seen = iterative(rounds=2, sparsity=0.75)
    for name in nets.KERNELS:
        end_of_first = seen.kernels[2][name]
        chosen = np.abs(end_of_first) >= np.sort(np.abs(end_of_first).ravel())[-end_of_first.size // 4]
        np.testing.assert_array_equal(seen.kernels[3][name] != 0, chosen)


@slow
def test_rounds_follow_the_plans_rules():
    rules = (LayerRule(layers="y", sparsity=0.25),)
    tuned, seen = iterative(rules=rules, sparsity=0.75, rounds=2)
    assert sparsity(seen.kernels[1]["y"]) == pytest.approx(0.25 / 0.75 * 0.5, abs=0.04)  # the rules' share of the first
    assert sparsity(tuned.masks["y"]) == pytest.approx(0.25, abs=0.04)
    assert sparsity(tuned.masks["hidden"]) == pytest.approx(0.75, abs=0.02)


@slow
def test_rounds_by_a_criterion_of_the_data_bring_nothing_back():
    rules = (LayerRule(layers="y", sparsity=0.25),)
    _, seen = iterative(rules=rules, sparsity=0.75, rounds=2, criterion="taylor")
    for before, after in nets.pairs(seen.kernels):
        for name in nets.KERNELS:
            assert not after[name][before[name] == 0].any()


# Rewinding.


def surviving(kind, folder, rewind):
    """The weights before the first training and those that a round starts with, seen at a rate of almost nothing."""
    model = nets.dense(kind, folder)
    plan = PruningPlan(**nets.DENSE, schedule="iterative", iterations=2, sparsity=0.75)
    pruned = prune(model, plan)
    model = pruned.handle
    start = nets.kernels(model)
    trained_first = []

    def compared(values):
        trained_first.append(values)

    seen = nets.seen(model)
    rates = iter([0.05] * 2 + [1e-30] * 2)

    class Rates(type(seen)):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.optimizer.learning_rate = next(rates)

    compared(start)
    config = FineTuning(mode="iterative", epochs=1, rewind=rewind, **MSE)
    tuned = fine_tune(
        model,
        nets.points(32),
        config,
        plan=pruned.plan,
        masks=pruned.masks,
        callbacks=[seen, Rates(model)],
    )
    return start, seen.kernels, tuned


@pytest.mark.parametrize("kind", nets.EVERY_KIND)
def test_weights_that_are_left_go_back_to_where_the_training_began(kind, tmp_path):
    start, seen, tuned = surviving(kind, tmp_path, "start")
    for name, mask in tuned.masks.items():
        assert (seen[2][name] != start[name]).any()
        np.testing.assert_allclose(seen[-1][name], start[name] * mask, rtol=1e-6)  # chosen after training, then rewound
        trained_there = np.abs(seen[2][name])
        np.testing.assert_array_equal(mask, trained_there >= np.sort(trained_there.ravel())[-mask.size // 4])


def test_without_rewinding_a_round_goes_on_from_the_last():
    _, seen, tuned = surviving("keras2", None, None)
    for name, mask in tuned.masks.items():
        np.testing.assert_allclose(seen[-1][name], seen[2][name] * mask, rtol=1e-6)


@slow
@pytest.mark.parametrize("kind", nets.KINDS[:2])
def test_weights_that_are_left_go_back_to_an_early_model(kind, tmp_path):
    early = nets.dense(kind, tmp_path, seed=8)
    path = str(tmp_path / "early.keras")
    early.model.save(path)
    _, seen, tuned = surviving(kind, tmp_path, path)
    for name, mask in tuned.masks.items():
        np.testing.assert_allclose(seen[-1][name], nets.kernels(early)[name] * mask, rtol=1e-6)


def test_an_early_model_of_other_layers_is_refused(tmp_path):
    other = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3)])
    other.save(str(tmp_path / "other.keras"))
    with pytest.raises(ConfigError, match=r"FineTuning.rewind.*other shapes.*Remedy"):
        surviving("keras2", None, str(tmp_path / "other.keras"))


def test_rewinding_is_refused_where_channels_are_removed():
    plan = PruningPlan(technique="neuron", protect=("last",), schedule="iterative", iterations=2)
    config = FineTuning(mode="iterative", rewind="start")
    with pytest.raises(ConfigError, match=r"FineTuning.rewind.*removes channels.*Remedy"):
        fine_tune(nets.dense("keras2", None), nets.points(), config, plan=plan)


# The guard.


class Scripted:
    """A guarded training whose loss on the evaluation data is what a script says of each sparsity that is asked for."""

    def __init__(self, monkeypatch, drops, start=0.3, metric="loss", teacher=True, sparsity=0.9, **guard):
        from tfx_compression.sparsity_fine_tuner.training import Session

        self.evaluated = {}
        plan = PruningPlan(**nets.DENSE, schedule="iterative", iterations=2, sparsity=sparsity)
        monkeypatch.setattr(PruningPlan, "first_step_sparsity", property(lambda _: start))
        self.model = nets.dense("keras2", None)
        self.teacher = nets.dense("keras2", None, seed=7)
        pruned = prune(self.model, plan)
        self.model = pruned.handle

        def evaluate(session, view):
            if any(view is each for each in session.teachers):
                return {"loss": 1.0, "accuracy": 0.9}
            values = nets.kernels(view)
            reached = round(float(np.mean(np.concatenate([each.ravel() for each in values.values()]) == 0)), 2)
            self.evaluated[reached] = view.network.get_weights()
            drop = drops(reached)
            return {"loss": 1.0 + drop, "accuracy": 0.9 - drop}

        monkeypatch.setattr(Session, "evaluate", evaluate)
        config = FineTuning(mode="iterative", epochs=1, guard=AccuracyGuard(metric=metric, **guard), learning_rate=0.02)
        self.tuned = fine_tune(
            self.model,
            nets.points(16),
            config,
            self.teacher if teacher else None,
            plan=plan,
            masks=pruned.masks,
            validation_data=nets.points(16),
        )

    @property
    def asked(self):
        return [round(done.asked, 4) for done in self.tuned.rounds]

    @property
    def accepted(self):
        return [done.accepted for done in self.tuned.rounds]


@pytest.mark.parametrize("metric", ["loss", pytest.param("accuracy", marks=slow)])  # less is better, more is better
def test_the_step_is_halved_where_too_much_is_lost_until_it_is_too_small(monkeypatch, metric):
    found = Scripted(
        monkeypatch,
        lambda reached: 0.0 if reached < 0.58 else 0.5,
        metric=metric,
        max_drop=0.1,
        step=0.2,
        minimum_step=0.04,
    )
    # 0.5 is kept; 0.7 fails, 0.6 too; 0.55 is kept, and goes on by the same step; 0.6 fails, half of it is too small
    assert found.asked == [0.3, 0.5, 0.7, 0.6, 0.55, 0.6]
    assert found.accepted == [True, True, False, False, True, False]
    assert all(done.drop <= 0.1 for done in found.tuned.rounds if done.accepted)
    assert all(done.drop > 0.1 for done in found.tuned.rounds if not done.accepted)
    assert "ended at a sparsity of 0.55" in found.tuned.notes[-1]
    for weight, values in zip(found.model.model.get_weights(), found.evaluated[0.55], strict=True):
        np.testing.assert_array_equal(weight, values)
    for mask in found.tuned.masks.values():
        assert sparsity(mask) == pytest.approx(0.55, abs=0.02)


@slow
def test_a_guard_that_nothing_offends_goes_to_the_plans_sparsity_and_not_beyond(monkeypatch):
    found = Scripted(monkeypatch, lambda reached: 0.0, max_drop=0.0, step=0.4)
    assert found.asked == [0.3, 0.7, 0.9]
    assert found.accepted == [True] * 3
    assert not found.tuned.notes


@slow
def test_a_drop_of_just_what_is_allowed_is_accepted(monkeypatch):
    found = Scripted(monkeypatch, lambda reached: 0.25, max_drop=0.25, step=0.6)
    assert found.accepted == [True, True]


@slow
def test_where_the_first_round_loses_too_much_smaller_ones_start_from_the_teacher(monkeypatch):
    found = Scripted(
        monkeypatch, lambda reached: 0.0 if reached < 0.2 else 0.5, max_drop=0.1, step=0.2, minimum_step=0.05
    )
    assert found.asked == [0.3, 0.15, 0.3, 0.225]
    assert found.accepted == [False, True, False, False]
    for weight, values in zip(found.model.model.get_weights(), found.evaluated[0.16], strict=True):
        np.testing.assert_array_equal(weight, values)


def test_where_nothing_can_be_pruned_the_result_is_the_teacher(monkeypatch):
    found = Scripted(monkeypatch, lambda reached: 0.5, max_drop=0.1, step=0.2, minimum_step=0.1)
    assert found.asked == [0.3, 0.15]
    assert found.accepted == [False, False]
    assert not found.tuned.masks
    for weight, values in zip(found.model.model.get_weights(), found.teacher.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, values)


def test_without_a_teacher_a_first_round_that_loses_too_much_is_an_error(monkeypatch):
    with pytest.raises(ModelError, match=r"first step.*lost 0.5 of loss.*Remedy: connect teacher_model"):
        Scripted(monkeypatch, lambda reached: 0.5, teacher=False, baseline=1.0, max_drop=0.1)


@slow
def test_the_baseline_may_be_said(monkeypatch):
    found = Scripted(monkeypatch, lambda reached: 0.5, teacher=False, baseline=1.45, max_drop=0.1, step=0.6)
    assert [done.drop for done in found.tuned.rounds] == pytest.approx([0.05, 0.05])


@slow
def test_a_guard_measures_what_it_says_on_the_evaluation_data():
    teacher, model = nets.dense("keras2", None), nets.dense("keras2", None)
    teacher.model.fit(nets.points(256), epochs=20, verbose=0)
    model.model.set_weights(teacher.model.get_weights())
    plan = PruningPlan(**nets.DENSE, schedule="iterative", iterations=3, sparsity=0.9)
    pruned = prune(model, plan)
    model = pruned.handle
    data = nets.points(64, seed=4)
    guard = AccuracyGuard(max_drop=0.3, step=0.2, minimum_step=0.05)
    config = FineTuning(mode="iterative", epochs=3, learning_rate=0.02, guard=guard)
    tuned = fine_tune(
        model,
        nets.points(256),
        config,
        teacher,
        plan=pruned.plan,
        masks=pruned.masks,
        validation_data=data,
    )
    baseline = teacher.model.evaluate(data, verbose=0)
    best = [done for done in tuned.rounds if done.accepted][-1]
    assert best.drop <= 0.3 < max(done.drop for done in tuned.rounds)
    assert best.metrics["loss"] - baseline == pytest.approx(best.drop, abs=1e-5)
    assert model.model.evaluate(data, verbose=0) == pytest.approx(best.metrics["loss"], rel=1e-5)


def test_a_guard_without_evaluation_data_is_refused():
    plan = PruningPlan(**nets.DENSE, schedule="iterative")
    config = FineTuning(mode="iterative", guard=AccuracyGuard(max_drop=0.1, baseline=1.0))
    with pytest.raises(ConfigError, match=r"guard measures on evaluation data. Remedy"):
        fine_tune(nets.dense("keras2", None), nets.points(), config, plan=plan)


def test_a_guard_without_anything_to_compare_with_is_refused():
    plan = PruningPlan(**nets.DENSE, schedule="iterative")
    config = FineTuning(mode="iterative", guard=AccuracyGuard(max_drop=0.1))
    with pytest.raises(ConfigError, match=r"compares with the dense model.*Remedy.*teacher"):
        fine_tune(nets.dense("keras2", None), nets.points(), config, plan=plan, validation_data=nets.points())


def test_a_guard_of_a_metric_that_there_is_not_is_refused_before_training():
    plan = PruningPlan(**nets.DENSE, schedule="iterative")
    guard = AccuracyGuard(max_drop=0.1, metric="accuracy")
    config = FineTuning(mode="iterative", guard=guard)
    model, steps = nets.dense("keras2", None), []
    count = tf_keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: steps.append(batch))
    with pytest.raises(ConfigError, match=r"guard.metric = 'accuracy'.*one of loss"):
        fine_tune(
            model,
            nets.points(),
            config,
            nets.dense("keras2", None),
            plan=plan,
            validation_data=nets.points(),
            callbacks=[count],
        )
    assert not steps


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


def shrunk(model, rounds, teacher=None, config=None, **plan):
    plan = PruningPlan(
        **{
            "technique": "neuron",
            "protect": ("last",),
            "schedule": "iterative",
            "iterations": rounds,
            "sparsity": 0.75,
            **plan,
        }
    )
    pruned = prune(model, plan)
    model = pruned.handle
    config = FineTuning(mode="iterative", epochs=1, learning_rate=0.01, **(config or {}))
    tuned = fine_tune(
        pruned.model,
        nets.points(32),
        config,
        teacher,
        plan=pruned.plan,
        validation_data=nets.points(32, seed=5),
    )
    return pruned, tuned


def test_channels_shrink_round_by_round():
    pruned, tuned = shrunk(wide(), 2)
    assert units(pruned.model) == {"first": 32, "second": 24, "y": 2}
    assert units(tuned.model) == {"first": 16, "second": 12, "y": 2}
    assert [done.reached for done in tuned.rounds] == pytest.approx([0.5, 0.75], abs=0.02)
    assert tuned.model(helpers.points(3)[0]).shape == (3, 2)
    assert tuned.summary.after.parameters < tuned.summary.before.parameters
    assert tuned.model.evaluate(nets.points(32, seed=5), verbose=0) == pytest.approx(
        tuned.rounds[-1].metrics["loss"], rel=1e-5
    )


@slow
@pytest.mark.parametrize("target", ["sparsity", "parameters", "macs"])
@pytest.mark.parametrize("rounds", [2, 4])
def test_rounds_of_removal_come_to_what_one_shot_does(target, rounds):
    options = {"target": target, "sparsity": 0.6}
    _, tuned = shrunk(wide(), rounds, **options)
    once = prune(wide(), PruningPlan(technique="neuron", protect=("last",), **options))
    assert tuned.rounds[-1].reached == pytest.approx(0.6, abs=0.03)
    if target == "sparsity":
        for name, wanted in units(once.model).items():
            assert abs(units(tuned.model)[name] - wanted) <= 1, name
    before, after, wanted = (each.macs for each in (once.summary.before, tuned.summary.after, once.summary.after))
    assert after / before == pytest.approx(wanted / before, abs=0.04)


@slow
def test_rules_share_in_every_round_of_removal():
    rules = (LayerRule(layers="second", sparsity=0.25),)
    pruned, tuned = shrunk(wide(), 3, rules=rules)
    once = prune(wide(), PruningPlan(technique="neuron", protect=("last",), sparsity=0.75, rules=rules))
    assert units(pruned.model)["second"] < 48
    for name, wanted in units(once.model).items():
        assert abs(units(tuned.model)[name] - wanted) <= 1, f"{name}: {units(tuned.model)}, {units(once.model)}"


@slow
def test_channels_of_a_keras_3_model_shrink_too():
    import keras

    _, tuned = shrunk(wide(keras), 2)
    assert units(tuned.model) == {"first": 16, "second": 12, "y": 2}


@slow
def test_a_guard_keeps_the_smallest_network_that_is_good_enough(monkeypatch):
    from tfx_compression.sparsity_fine_tuner.training import Session

    evaluated = []

    def evaluate(session, view):
        if any(view is each for each in session.teachers):
            return {"loss": 1.0}
        size = units(view.network)["first"]
        evaluated.append((size, view.network.get_weights()))
        return {"loss": 1.0 if size >= 20 else 9.0}

    monkeypatch.setattr(Session, "evaluate", evaluate)
    guard = AccuracyGuard(max_drop=0.1, step=0.2, minimum_step=0.05)
    _, tuned = shrunk(wide(), 2, wide(), {"guard": guard}, sparsity=0.9)
    assert [done.accepted for done in tuned.rounds][-1] is False
    kept = [weights for size, weights in evaluated if size >= 20][-1]
    assert units(tuned.model)["first"] == kept[0].shape[1] >= 20
    for one, other in zip(tuned.model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(one, other)
    assert tuned.rounds[0].asked == pytest.approx(1 - 0.1**0.5)


@slow
def test_a_first_round_of_removal_that_fails_starts_again_from_the_teacher(monkeypatch):
    from tfx_compression.sparsity_fine_tuner.training import Session

    monkeypatch.setattr(
        Session,
        "evaluate",
        lambda session, view: {
            "loss": 1.0 if any(view is each for each in session.teachers) or units(view.network)["first"] >= 40 else 9.0
        },
    )
    teacher = wide()
    before = teacher.get_weights()
    guard = AccuracyGuard(max_drop=0.1, step=0.2, minimum_step=0.05)
    _, tuned = shrunk(wide(), 2, teacher, {"guard": guard})
    assert [done.accepted for done in tuned.rounds[:2]] == [False, True]
    assert units(tuned.model)["first"] >= 40
    for one, other in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@slow
def test_rounds_of_a_convolutional_network_are_saved_and_answer(tmp_path):
    images, labels = helpers.images(96)
    data = helpers.batches(images / helpers.LARGEST, labels, size=32)
    model = helpers.small_cnn()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    plan = PruningPlan(technique="filter", sparsity=0.5, schedule="iterative", iterations=2, protect=("last",))
    pruned = prune(model, plan)
    tuned = fine_tune(
        pruned.model,
        data,
        FineTuning(mode="iterative", epochs=1),
        plan=pruned.plan,
        validation_data=data,
    )
    tuned.model.save(str(tmp_path / "model.keras"))
    loaded = tf_keras.models.load_model(str(tmp_path / "model.keras"))
    np.testing.assert_allclose(loaded(images[:4]), tuned.model(images[:4]), atol=1e-6)
    assert tuned.summary.after.macs < tuned.summary.before.macs
    assert tf.reduce_all(tf.math.is_finite(loaded(images[:4])))
