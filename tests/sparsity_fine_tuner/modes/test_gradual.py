"""Mode gradual: at which steps kernels are pruned, how far, by which scores and patterns."""

import functools
import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.pruning.masks import check_pattern
from tfx_compression.pruning.plan import LayerRule, PruningPlan
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import helpers, nets
from tests.support.errors import raises
from tests.support.fine_tuning import dense_gradients

SGD = {"optimizer": "sgd", "loss": "mse", "learning_rate": 0.05}


def gradual(kind, folder, data=None, epochs=4, optimizer="sgd", **plan):
    """Returns a net that is pruned gradually, in 16 steps, and a recorder of it."""
    pruned = nets.pruned(nets.dense(kind, folder), **{"schedule": "cubic", "sparsity": 0.8, "frequency": 3, **plan})
    recorder = nets.recorder(pruned.handle)
    config = FineTuning(mode="gradual", epochs=epochs, **{**SGD, "optimizer": optimizer})
    tuned = fine_tune(pruned, nets.points() if data is None else data, config, callbacks=[recorder])
    return tuned, recorder


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_gradual_pruning_equals_tfmot_bit_by_bit(optimizer):
    """tfmot counts steps that begin, and this package steps that end, so tfmot's schedule is one step behind.

    Here, both update masks at the same numbers of steps. There is one epoch, as tfmot masks again after each.
    """
    import tensorflow_model_optimization as tfmot

    data = nets.points(256)
    _, recorder = gradual("keras2", None, data, epochs=1, optimizer=optimizer, end_step=12)

    model = helpers.small_dense()
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.8, 1, 13, power=3, frequency=3)
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
    optimizers = {"sgd": tf_keras.optimizers.SGD, "adam": tf_keras.optimizers.Adam}
    wrapped.compile(optimizers[optimizer](SGD["learning_rate"]), "mse", run_eagerly=True)
    layers = [layer for layer in wrapped.layers if hasattr(layer, "pruning_vars")]
    masks, values = [], []

    def keep(batch, logs):
        masks.append([layer.pruning_vars[0][1].numpy() != 0 for layer in layers])
        values.append([layer.pruning_vars[0][0].numpy() for layer in layers])

    watch = tf_keras.callbacks.LambdaCallback(on_train_batch_end=keep)
    wrapped.fit(data, epochs=1, verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep(), watch])
    assert sorted(recorder.updates) == [3, 6, 9, 12]
    for step in range(1, 16):  # tfmot has the masks of this step in the next one
        for name, mask in zip(nets.KERNELS, masks[step], strict=True):
            np.testing.assert_array_equal(recorder.kernels[step][name] != 0, mask, err_msg=f"{name} after {step} steps")
    for name, value, mask in zip(nets.KERNELS, values[15], masks[15], strict=True):
        np.testing.assert_array_equal(recorder.kernels[16][name], value * mask)
        assert np.mean(mask) == pytest.approx(0.2, abs=0.02)


@functools.cache
def masks_of_keras_2() -> Mapping[str, np.ndarray]:
    return gradual("keras2", None)[0].masks


@pytest.mark.slow
@pytest.mark.parametrize("kind", nets.EVERY_KIND)
def test_every_kind_of_model_follows_the_schedule_and_gets_the_same_masks(kind, tmp_path):
    tuned, recorder = gradual(kind, tmp_path)
    assert sorted(recorder.updates) == [3, 6, 9, 12]
    for step, total in recorder.updates.items():
        kernels = recorder.kernels[step]
        for name in nets.KERNELS:
            expected = 0.8 * (1 - (1 - step / 12) ** 3)
            assert nets.sparsity(kernels[name]) == pytest.approx(expected, abs=1.01 / kernels[name].size)
        assert total == pytest.approx(nets.sparsity(np.concatenate([kernel.ravel() for kernel in kernels.values()])))
    for name, mask in tuned.masks.items():
        used = [np.count_nonzero(kernels[name]) for kernels in recorder.kernels]
        assert all(after <= before for before, after in itertools.pairwise(used))
        np.testing.assert_array_equal(recorder.kernels[-1][name] != 0, mask)
        np.testing.assert_array_equal(mask, masks_of_keras_2()[name])


def test_end_step_is_due_whatever_the_frequency():
    _, recorder = gradual("keras2", None, frequency=5, end_step=13)
    assert sorted(recorder.updates) == [5, 10, 13]
    assert nets.sparsity(recorder.kernels[13]["hidden"]) == pytest.approx(0.8, abs=0.01)


@pytest.mark.slow
def test_pruned_weights_may_come_back_at_an_update():
    """As in tfmot, the optimizer moves pruned weights in the step before an update."""
    _, recorder = gradual("keras2", None, epochs=8, schedule="constant", sparsity=0.5, frequency=2)
    revived = [
        np.any((before[name] == 0) & (after[name] != 0))
        for before, after in zip(recorder.kernels[:-1], recorder.kernels[1:], strict=True)
        for name in nets.KERNELS
    ]
    assert any(revived)
    assert all(nets.sparsity(each["hidden"]) == 0.5 for each in recorder.kernels)


@pytest.mark.parametrize("criterion", ["taylor", pytest.param("fisher", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", nets.EVERY_KIND)
def test_criteria_that_use_data(kind, criterion, tmp_path):
    model = nets.dense(kind, tmp_path)
    plan = PruningPlan(
        **nets.DENSE, schedule="polynomial", sparsity=0.6, criterion=criterion, frequency=2, sample_rows=16
    )
    recorder = nets.recorder(model)
    fine_tune(model, nets.points(), FineTuning(mode="gradual", epochs=1, **SGD), plan=plan, callbacks=[recorder])
    assert sorted(recorder.updates) == [2, 3]
    assert all(nets.sparsity(value) == pytest.approx(0.6, abs=0.02) for value in recorder.kernels[-1].values())


def test_criterion_that_uses_data_chooses_the_masks(eagerly):
    model = nets.dense("keras2", None)
    plan = PruningPlan(**nets.DENSE, schedule="constant", sparsity=0.5, criterion="taylor", end_step=2, sample_rows=32)
    step, unconstrained = nets.unconstrained_steps(model)
    tuned = fine_tune(
        model, nets.points(32), FineTuning(mode="gradual", epochs=1, **SGD), plan=plan, train_step=step, masks={}
    )
    x, y = helpers.points(32)
    gradients = dense_gradients(unconstrained[1], model.model, x, y)
    for name, mask in tuned.masks.items():
        scores = np.abs(gradients[name] * unconstrained[1][name])
        largest = np.sort(scores.ravel())[-scores.size // 2 :]
        np.testing.assert_array_equal(mask, scores >= largest[0])


def test_each_layer_reaches_its_target_sparsity_on_the_same_schedule():
    tuned, recorder = gradual("keras2", None, rules=(LayerRule(layers="y", sparsity=0.25),))
    assert nets.sparsity(recorder.kernels[-1]["y"]) == nets.sparsity(tuned.masks["y"]) == 0.25
    assert nets.sparsity(recorder.kernels[-1]["hidden"]) == pytest.approx(0.8, abs=0.01)
    assert nets.sparsity(recorder.kernels[6]["y"]) == pytest.approx(0.25 * (1 - 0.5**3), abs=0.04)


def test_layer_excluded_by_a_rule_stays_dense():
    _, recorder = gradual("keras2", None, rules=(LayerRule(layers="y", sparsity=0.0),))
    assert nets.sparsity(recorder.kernels[-1]["y"]) == 0.0
    assert nets.sparsity(recorder.kernels[-1]["hidden"]) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("given", [True, False], ids=["targets of Pruner", "targets of the kernels"])
@pytest.mark.parametrize(
    "allocation", ["global", *(pytest.param(each, marks=pytest.mark.slow) for each in ("erdos_renyi", "lamp"))]
)
def test_sparsity_is_allocated_as_pruner_does(allocation, given):
    pruned = nets.pruned(nets.dense("keras2", None), schedule="cubic", sparsity=0.3, frequency=2, allocation=allocation)
    tuned = fine_tune(
        pruned.handle,
        nets.points(),
        FineTuning(mode="gradual", epochs=2, **SGD),
        plan=pruned.plan,
        target_sparsity=pruned.target_sparsity if given else None,
        masks=pruned.masks,
    )
    for name, values in nets.kernels(tuned.model).items():
        assert nets.sparsity(values) == pytest.approx(pruned.target_sparsity[name], abs=1.01 / values.size)


@pytest.mark.slow
def test_n_of_m_patterns_change_and_stay_complete():
    _, recorder = gradual("keras2", None, epochs=8, schedule="constant", pattern="2:4", sparsity=0.5)
    kernels = model_handle.wrap(helpers.small_dense()).kernels
    plan = PruningPlan(pattern="2:4", sparsity=0.5)
    for each in recorder.kernels:
        for name, value in each.items():
            assert check_pattern(kernels[name], value, plan) and nets.sparsity(value) == 0.5
    assert any(
        (recorder.kernels[0][name] != 0).tolist() != (recorder.kernels[-1][name] != 0).tolist() for name in nets.KERNELS
    )


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["4x1", "2x2", "3x2"])  # 3x2 is cut off at the edge
def test_blocks_are_complete_at_every_update(pattern):
    _, recorder = gradual("keras2", None, pattern=pattern)
    kernels, plan = model_handle.wrap(helpers.small_dense()).kernels, PruningPlan(pattern=pattern)
    for step in recorder.updates:
        for name, value in recorder.kernels[step].items():
            assert check_pattern(kernels[name], value, plan)
    assert nets.sparsity(recorder.kernels[-1]["hidden"]) > 0.7


@pytest.mark.parametrize("mode", ["gradual", "dynamic"])
def test_logged_loss_excludes_statistics(mode, eagerly):
    schedule = {"schedule": "constant", "criterion": "taylor"} if mode == "gradual" else {}
    plan = {"sparsity": 0.5, "frequency": 1, "end_step": 3, **schedule}
    pruned = nets.pruned(nets.dense("keras2", None), nets.points(), **plan)
    losses = []

    def step(network, batch):
        losses.append(float(tf.reduce_mean((network(batch[0]) - batch[1]) ** 2)))
        return network.train_step(batch)

    tuned = fine_tune(pruned, nets.points(), FineTuning(mode=mode, epochs=1, **SGD), train_step=step)
    assert len(losses) == 4
    assert tuned.history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_infinite_gradients_are_an_error():
    x, y = helpers.points(64)
    y[60] = np.inf  # the criterion reads it before a step does
    model = nets.dense("keras2", None)
    plan = PruningPlan(**nets.DENSE, schedule="constant", criterion="taylor", frequency=1, end_step=2)
    with raises(ModelError, code="not-finite"):
        fine_tune(model, helpers.batches(x, y), FineTuning(mode="gradual", epochs=1, **SGD), plan=plan, masks={})


def test_frozen_layer_is_not_pruned():
    model = helpers.small_dense()
    model.get_layer("hidden").trainable = False
    model.compile("adam", "mse", run_eagerly=True)
    plan = PruningPlan(**nets.DENSE, schedule="cubic", sparsity=0.5, frequency=2)
    before = model.get_layer("hidden").kernel.numpy()
    tuned = fine_tune(model, nets.points(), FineTuning(mode="gradual", epochs=1, learning_rate=0.01), plan=plan)
    assert set(tuned.masks) == {"y"}
    np.testing.assert_array_equal(model.get_layer("hidden").kernel.numpy(), before)


def test_frozen_model_is_refused():
    model = helpers.small_dense()
    model.trainable = False
    model.compile("adam", "mse", run_eagerly=True)
    plan = PruningPlan(**nets.DENSE, schedule="cubic", sparsity=0.5, frequency=2)
    with raises(ConfigError, code="nothing-to-prune", match="frozen"):
        fine_tune(model, nets.points(), FineTuning(mode="gradual", epochs=1), plan=plan)


def test_infinite_data_requires_steps_per_epoch():
    plan = PruningPlan(**nets.DENSE, schedule="cubic")
    with raises(ModelError, field="FineTuning.steps_per_epoch", code="training-data-infinite"):
        fine_tune(nets.dense("keras2", None), nets.points().repeat(), FineTuning(mode="gradual"), plan=plan)
    config = FineTuning(mode="gradual", steps_per_epoch=4, epochs=1, learning_rate=0.01)
    tuned = fine_tune(nets.dense("keras2", None), nets.points(32).repeat(), config, plan=plan)
    assert np.mean(tuned.masks["hidden"]) == 0.5
