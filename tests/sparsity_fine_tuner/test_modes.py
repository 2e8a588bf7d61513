"""What every mode keeps true after each step, in every kind of model; and which modes and plans don't go together."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.holds import Clusters, Zeros
from tfx_compression.sparsity_fine_tuner.training import fine_tune

from tests.support import helpers, nets

MSE = {"loss": "mse", "learning_rate": 0.02}
slow = pytest.mark.slow


def optimizers(library):
    """What would bring weights back: momentum, averages, decay."""
    return {
        "momentum": lambda: library.optimizers.SGD(momentum=0.9, nesterov=True),
        "adam": library.optimizers.Adam,
        "adamw": lambda: library.optimizers.AdamW(weight_decay=0.2),
        "decay": lambda: library.optimizers.Adam(weight_decay=0.2),
        "ema": lambda: library.optimizers.Adam(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2),
        "clipped": lambda: library.optimizers.SGD(momentum=0.9, global_clipnorm=0.5),
    }


def libraries(kind):
    return keras if kind == "keras3" else tf_keras


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        ("keras2", "momentum"),
        ("keras2", "ema"),
        *(pytest.param("keras2", each, marks=slow) for each in ("adam", "adamw", "decay", "clipped")),
        ("keras3", "adamw"),
        *(pytest.param("keras3", each, marks=slow) for each in ("momentum", "adam", "decay", "ema", "clipped")),
    ],
)
def test_masks_hold_after_each_step_whatever_the_optimizer_does(kind, optimizer, tmp_path):
    model = nets.dense(kind, tmp_path, optimizers(libraries(kind))[optimizer]())
    pruned = nets.pruned(model, sparsity=0.6)
    model = pruned.handle
    seen = nets.seen(model)
    config = FineTuning(epochs=1, learning_rate=0.02)
    fine_tune(model, nets.points(80), config, masks=pruned.masks, callbacks=[seen])
    assert len(seen.kernels) == 6
    for each in seen.kernels:
        for name, mask in pruned.masks.items():
            assert not each[name][~mask].any()
    assert all((seen.kernels[0][name] != seen.kernels[-1][name]).any() for name in nets.KERNELS)


@pytest.mark.parametrize("optimizer", ["adam", *(pytest.param(each, marks=slow) for each in ("sgd", "adamw"))])
def test_masks_of_a_saved_model_hold_after_each_step(optimizer, tmp_path):
    model = nets.dense("saved_model", tmp_path)
    pruned = nets.pruned(model, sparsity=0.6)
    model = pruned.handle
    seen = nets.seen(model)
    config = FineTuning(epochs=2, optimizer=optimizer, **MSE)
    fine_tune(model, nets.points(), config, masks=pruned.masks, callbacks=[seen])
    for each in seen.kernels:
        for name, mask in pruned.masks.items():
            assert not each[name][~mask].any()
    assert (seen.kernels[0]["hidden"] != seen.kernels[-1]["hidden"]).any()


MODES = {
    "gradual": {"schedule": "cubic", "initial_sparsity": 0.3, "sparsity": 0.8, "frequency": 2},
    "dynamic": {"sparsity": 0.6, "frequency": 2},
    "cluster": {"sparsity": 0.5},
    "iterative": {"sparsity": 0.75, "schedule": "iterative", "iterations": 2},
}


@slow
@pytest.mark.parametrize("kind", nets.EVERY_KIND)
@pytest.mark.parametrize("mode", MODES)
def test_no_mode_lets_a_kernel_get_denser_than_its_masks(mode, kind, tmp_path):
    """The masks of a step are not to be seen from outside, but their number of zeros never falls."""
    model = nets.dense(kind, tmp_path)
    pruned = nets.pruned(model, **MODES[mode])
    model = pruned.handle
    seen = nets.seen(model)
    config = FineTuning(mode=mode, epochs=2, optimizer="adam", clusters=4, **MSE)
    plan = None if mode == "cluster" else pruned.plan
    tuned = fine_tune(
        model, nets.points(), config, plan=plan, masks=pruned.masks, callbacks=[seen], validation_data=nets.points(32)
    )
    for name in nets.KERNELS:
        used = [np.count_nonzero(each[name]) for each in seen.kernels]
        start = np.count_nonzero(pruned.masks[name])
        assert used[0] == start
        end = np.count_nonzero(tuned.masks[name])
        assert max(used) <= start and used[-1] <= end
        assert used[1] > 0.7 * start  # it is not that all became zero
        if mode in ("gradual", "iterative"):
            assert end < start
            assert all(after <= before for before, after in itertools.pairwise(used))
        assert not seen.kernels[-1][name][~tuned.masks[name]].any()


def test_of_shared_weights_the_masks_hold_wherever_they_are_used():
    x = tf_keras.Input((4,))
    shared = tf_keras.layers.Dense(4, name="shared")
    model = tf_keras.Model(x, tf_keras.layers.Dense(1, name="y")(shared(shared(x))))
    model.compile("adam", "mse", run_eagerly=True)
    pruned = nets.pruned(model, sparsity=0.5)
    model = pruned.model
    fine_tune(model, nets.points(32), FineTuning(epochs=1, learning_rate=0.1), masks=pruned.masks)
    assert np.mean(model.get_layer("shared").kernel == 0) == 0.5


# Clusters.


@pytest.mark.parametrize("kind", nets.EVERY_KIND)
@pytest.mark.parametrize("clusters", [2, 5])
def test_a_kernel_has_at_most_so_many_values_after_each_step_and_its_zeros_stay(kind, clusters, tmp_path):
    model = nets.dense(kind, tmp_path)
    pruned = nets.pruned(model, sparsity=0.5)
    model = pruned.handle
    seen = nets.seen(model)
    config = FineTuning(mode="cluster", clusters=clusters, epochs=1, optimizer="adam", **MSE)
    fine_tune(model, nets.points(), config, masks=pruned.masks, callbacks=[seen])
    for each in seen.kernels[1:]:
        for name, mask in pruned.masks.items():
            assert np.unique(each[name]).size <= clusters
            assert not each[name][~mask].any()
    assert np.unique(seen.kernels[-1]["hidden"]).size == clusters
    assert (seen.kernels[1]["hidden"] != seen.kernels[-1]["hidden"]).any()  # the values learn


def test_a_dense_model_is_clustered_too():
    model = nets.dense("keras2", None)
    config = FineTuning(mode="cluster", clusters=3, epochs=1, learning_rate=0.01)
    tuned = fine_tune(model, nets.points(32), config)
    assert not tuned.masks
    assert {np.unique(value).size for value in nets.kernels(model).values()} == {3}


def test_the_values_of_clusters_are_trained_by_the_mean_gradient_of_their_weights(tmp_path):
    """One step of SGD, by hand."""
    model = nets.dense("keras2", None)
    before = nets.kernels(model)
    x, y = helpers.points(32)
    config = FineTuning(mode="cluster", clusters=4, epochs=1, learning_rate=1e-30)
    fine_tune(model, nets.points(32, size=32), config)
    held = nets.kernels(model)
    kernel = tf.Variable(held["hidden"])
    network = model.model
    with tf.GradientTape() as tape:
        hidden = tf.nn.relu(x @ kernel + network.get_layer("hidden").bias)
        loss = tf.reduce_mean((network.get_layer("y")(hidden) - y) ** 2)
    gradient = tape.gradient(loss, kernel).numpy()
    expected = held["hidden"].copy()
    for value in np.unique(held["hidden"]):
        place = held["hidden"] == value
        assert value == pytest.approx(before["hidden"][place].mean(), rel=1e-5)
        expected[place] -= 0.1 * gradient[place].mean()
    config = FineTuning(mode="cluster", clusters=4, epochs=1, learning_rate=0.1)
    fine_tune(model, nets.points(32, size=32), config)
    np.testing.assert_allclose(nets.kernels(model)["hidden"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("clusters", [2, 3, 4])
def test_shared_weights_are_clustered_once(clusters):
    first = tf_keras.layers.Dense(4, name="first")
    second = tf_keras.layers.Dense(4, name="second")
    x = tf_keras.Input((4,))
    first.build((None, 4))
    second.build((None, 4))
    second.kernel = first.kernel
    model = tf_keras.Model(x, second(tf_keras.layers.ReLU()(first(x))))
    model.compile("adam", "mse", run_eagerly=True)
    assert model_handle.wrap(model).tied == {"second": "first"}
    pruned = nets.pruned(model, sparsity=0.5)
    model = pruned.handle
    data = helpers.batches(*2 * (helpers.points(32)[0],))
    config = FineTuning(mode="cluster", clusters=clusters, epochs=1, learning_rate=0.01)
    tuned = fine_tune(model, data, config, masks=pruned.masks)
    values = pruned.model.get_layer("first").kernel.numpy()
    np.testing.assert_array_equal(pruned.model.get_layer("second").kernel.numpy(), values)
    assert np.unique(values).size == clusters
    assert np.mean(values == 0) == 0.5
    assert set(tuned.masks) == {"first"}


# The holds themselves.


def test_masks_that_are_exchanged_hold_at_once():
    model = nets.dense("keras2", None)
    zeros = Zeros(model.kernels, {"y": np.ones((16, 2), bool)})
    mask = np.zeros((16, 2), bool)
    mask[3] = True
    zeros.on.assign(False)
    zeros.exchange({"y": mask})
    assert np.count_nonzero(model.kernels["y"].values) == 2
    assert bool(zeros.on)
    np.testing.assert_array_equal(zeros.masks["y"], mask)


def test_masks_do_not_hold_while_they_are_off():
    model = nets.dense("keras2", None)
    zeros = Zeros(model.kernels, {"y": np.zeros((16, 2), bool)})
    before = model.kernels["y"].values
    zeros.on.assign(False)
    zeros.apply()
    np.testing.assert_array_equal(model.kernels["y"].values, before)


def test_each_weight_is_the_mean_of_its_cluster():
    model = nets.dense("keras2", None)
    index = np.arange(32).reshape(16, 2) % 3
    before = model.kernels["y"].values
    Clusters(model.kernels, {"y": index}).apply()
    for number in range(3):
        mean = before[index == number].mean()
        np.testing.assert_allclose(model.kernels["y"].values[index == number], mean, rtol=1e-6)


# What doesn't go together.


@pytest.mark.parametrize("mode", ["gradual", "iterative"])
def test_modes_that_prune_further_need_a_plan(mode):
    with pytest.raises(ConfigError, match=rf"'{mode}'.*Remedy: fine_tune\(…, plan=…\)"):
        fine_tune(nets.dense("keras2", None), nets.points(), FineTuning(mode=mode))


@pytest.mark.parametrize(
    ("mode", "schedule", "remedy"),
    [
        ("fixed", "cubic", "mode 'gradual'"),
        ("fixed", "polynomial", "mode 'gradual'"),
        ("fixed", "constant", "mode 'gradual' or 'dynamic'"),
        ("fixed", "iterative", "mode 'iterative'"),
        ("gradual", "one_shot", "mode 'iterative' or 'dynamic'"),
        ("gradual", "iterative", "mode 'iterative'"),
        ("iterative", "cubic", "mode 'gradual'"),
        ("dynamic", "cubic", "mode 'gradual'"),
        ("dynamic", "iterative", "mode 'iterative'"),
        ("cluster", "cubic", "mode 'gradual'"),
        ("quantization_aware", "iterative", "mode 'iterative'"),
    ],
)
def test_a_schedule_that_the_mode_would_not_take_to_its_end_is_refused(mode, schedule, remedy):
    plan = PruningPlan(schedule=schedule, sparsity=0.7)
    with pytest.raises(ConfigError, match=rf"'{schedule}'.*{mode}.*sparsity of 0.7.*Remedy: .*{remedy}"):
        fine_tune(nets.dense("keras2", None), nets.points(), FineTuning(mode=mode), plan=plan)


def test_dynamic_training_of_a_plan_that_removes_channels_is_refused():
    plan = PruningPlan(technique="neuron")
    with pytest.raises(ConfigError, match=r"'dynamic'.*the plan removes channels.*Remedy"):
        fine_tune(nets.dense("keras2", None), nets.points(), FineTuning(mode="dynamic"), plan=plan)


def test_a_frozen_layer_is_not_pruned_gradually():
    model = helpers.small_dense()
    model.get_layer("hidden").trainable = False
    model.compile("adam", "mse", run_eagerly=True)
    plan = PruningPlan(**nets.DENSE, schedule="cubic", sparsity=0.5, frequency=2)
    before = model.get_layer("hidden").kernel.numpy()
    tuned = fine_tune(model, nets.points(), FineTuning(mode="gradual", epochs=1, learning_rate=0.01), plan=plan)
    assert set(tuned.masks) == {"y"}
    np.testing.assert_array_equal(model.get_layer("hidden").kernel.numpy(), before)


def test_a_model_without_anything_to_train_is_refused():
    model = helpers.small_dense()
    model.trainable = False
    model.compile("adam", "mse", run_eagerly=True)
    plan = PruningPlan(**nets.DENSE, schedule="cubic", sparsity=0.5, frequency=2)
    with pytest.raises(ConfigError, match=r"frozen.*Remedy.*trainable layers"):
        fine_tune(model, nets.points(), FineTuning(mode="gradual", epochs=1), plan=plan)


@pytest.mark.parametrize("mode", ["fixed", "dynamic", "cluster"])
def test_masks_of_another_model_are_refused_by_their_layer(mode):
    other = {"elsewhere": np.ones((4, 16), bool)}
    with pytest.raises(ModelError, match="'elsewhere'.*hidden, y"):
        fine_tune(nets.dense("keras2", None), nets.points(), FineTuning(mode=mode), masks=other)


def test_data_that_is_empty_is_refused():
    with pytest.raises(ModelError, match=r"data to train on is empty.*Remedy"):
        fine_tune(nets.dense("keras2", None), nets.points().take(0), FineTuning())


def test_data_that_is_empty_is_refused_with_a_number_of_steps_too():
    with pytest.raises(ModelError, match=r"data to train on is empty.*Remedy"):
        fine_tune(nets.dense("keras2", None), nets.points().take(0), FineTuning(steps_per_epoch=3))


def test_evaluation_data_that_is_empty_is_refused():
    with pytest.raises(ModelError, match=r"evaluation data is empty.*Remedy"):
        fine_tune(nets.dense("keras2", None), nets.points(), FineTuning(), validation_data=nets.points().take(0))


def test_gradual_pruning_needs_to_know_how_long_the_training_is():
    plan = PruningPlan(**nets.DENSE, schedule="cubic")
    with pytest.raises(ModelError, match=r"never ends.*Remedy: FineTuning.steps_per_epoch"):
        fine_tune(nets.dense("keras2", None), nets.points().repeat(), FineTuning(mode="gradual"), plan=plan)
    config = FineTuning(mode="gradual", steps_per_epoch=4, epochs=1, learning_rate=0.01)
    tuned = fine_tune(nets.dense("keras2", None), nets.points(32).repeat(), config, plan=plan)
    assert np.mean(tuned.masks["hidden"]) == 0.5


def test_a_subclassed_model_is_refused_with_the_remedy():
    class Own(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = tf_keras.layers.Dense(2)

        def call(self, x):
            return self.layer(x)

    model = Own()
    model.compile("sgd", "mse")
    model(helpers.points(2)[0])
    with pytest.raises(ModelError, match=r"subclassed.*Remedy"):
        fine_tune(model, nets.points(), FineTuning(), masks={})


@slow
def test_iterative_rounds_and_prune_start_from_the_same_record():
    """What the masks of the record say is what every mode starts with."""
    model = nets.dense("keras2", None)
    plan = PruningPlan(**nets.DENSE, **MODES["iterative"])
    pruned = prune(model, plan)
    model = pruned.handle
    seen = nets.seen(model)
    fine_tune(model, nets.points(), FineTuning(mode="iterative", epochs=1, **MSE), plan=plan, callbacks=[seen])
    for name, mask in pruned.masks.items():
        np.testing.assert_array_equal(seen.kernels[1][name] != 0, mask)
