"""The training loop: Keras' own training, epochs, early stopping, callbacks and logs."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ConfigError
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.sparsity_fine_tuner.config import EarlyStopping, FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune
from tfx_compression.sparsity_fine_tuner.training_loop import DivergedError

from tests.support import helpers, nets
from tests.support.errors import raises
from tests.support.fine_tuning import (
    LIBRARIES,
    class_batches,
    class_rows,
    evaluate,
    pruned_dense,
    require_same_training,
    softmax_classifier,
    squared_error,
    unprotected_plan,
    wide_batches,
)

slow = pytest.mark.slow
MSE = {"loss": "mse", "learning_rate": 0.02}
layers = tf_keras.layers


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=slow), "adam"])
def test_training_without_masks_equals_keras_fit(library, optimizer):
    rate = {"sgd": 0.1, "adam": 0.05}[optimizer]
    config = FineTuning(epochs=2, learning_rate=rate)
    history, fitted = require_same_training(library, optimizer, class_batches(), config)
    assert set(fitted) == set(history[0]) - {"sparsity"}
    for name, values in fitted.items():
        np.testing.assert_allclose([logs[name] for logs in history], values, rtol=1e-5)


@slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_optimizer_averages_become_the_weights_as_in_fit(library):
    require_same_training(library, "ema", class_batches(), FineTuning(epochs=1, learning_rate=0.1))


@pytest.mark.slow
def test_metrics_are_those_of_the_optimizer_averages():
    model = softmax_classifier(tf_keras.optimizers.Adam(use_ema=True, ema_momentum=0.9))
    tuned = fine_tune(
        prune(model, unprotected_plan()),
        wide_batches(),
        FineTuning(epochs=2, learning_rate=0.01),
        validation_data=wide_batches(),
    )
    assert evaluate(tuned.model)["loss"] == pytest.approx(tuned.metrics["val_loss"], rel=1e-5)


@pytest.mark.slow
def test_added_loss_is_trained():
    image = tf_keras.Input((8,))
    hidden = layers.Dense(16, activation="relu")(image)
    model = tf_keras.Model(image, layers.Dense(3, activation="softmax")(hidden))
    model.add_loss(100.0 * tf.reduce_mean(tf.square(hidden)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    pruned = prune(model, unprotected_plan())
    model = pruned.model
    before = model.evaluate(wide_batches(), verbose=0)
    tuned = fine_tune(pruned, wide_batches(), FineTuning(epochs=1, learning_rate=1e-9))
    assert before > 10
    assert tuned.history[0]["loss"] == pytest.approx(before, rel=1e-3)


# Masks.


def optimizers(library):
    """Returns optimizers that would revive pruned weights, by momentum, averages or decay."""
    return {
        "momentum": lambda: library.optimizers.SGD(momentum=0.9, nesterov=True),
        "adam": library.optimizers.Adam,
        "adamw": lambda: library.optimizers.AdamW(weight_decay=0.2),
        "decay": lambda: library.optimizers.Adam(weight_decay=0.2),
        "ema": lambda: library.optimizers.Adam(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2),
        "clipped": lambda: library.optimizers.SGD(momentum=0.9, global_clipnorm=0.5),
    }


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
def test_masks_hold_after_each_step_of_any_optimizer(kind, optimizer, tmp_path):
    library = keras if kind == "keras3" else tf_keras
    pruned = nets.pruned(nets.dense(kind, tmp_path, optimizers(library)[optimizer]()), sparsity=0.6)
    recorder = nets.recorder(pruned.handle)
    fine_tune(pruned, nets.points(80), FineTuning(epochs=1, learning_rate=0.02), callbacks=[recorder])
    assert len(recorder.kernels) == 6
    require_masks(recorder, pruned.masks)


def require_masks(recorder, masks):
    """Asserts that masks apply after each step, and the other weights train."""
    for kernels in recorder.kernels:
        for name, mask in masks.items():
            assert not kernels[name][~mask].any()
    assert all((recorder.kernels[0][name] != recorder.kernels[-1][name]).any() for name in nets.KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", *(pytest.param(each, marks=slow) for each in ("sgd", "adamw"))])
def test_masks_of_a_saved_model_hold_after_each_step(optimizer, tmp_path):
    pruned = nets.pruned(nets.dense("saved_model", tmp_path), sparsity=0.6)
    recorder = nets.recorder(pruned.handle)
    config = FineTuning(epochs=2, optimizer=optimizer, **MSE)
    fine_tune(pruned, nets.points(), config, callbacks=[recorder])
    require_masks(recorder, pruned.masks)


# Epochs.


@pytest.mark.parametrize("kind", nets.EVERY_KIND)
def test_weights_move_by_the_scheduled_learning_rate(kind, tmp_path):
    model = nets.dense(kind, tmp_path)
    recorder = nets.recorder(model)
    config = FineTuning(
        epochs=1, learning_rate=0.05, learning_rate_schedule="linear", optimizer="sgd", loss="mse", warmup_steps=1
    )
    fine_tune(model, nets.points(48), config, masks={}, callbacks=[recorder])
    hidden = [kernels["hidden"] for kernels in recorder.kernels]
    moves = [np.abs(after - before).max() for before, after in itertools.pairwise(hidden)]
    assert moves[0] > 1e-4 and moves[1] > 1e-4 and moves[2] == 0.0  # the final learning rate is 0


@pytest.mark.parametrize("repeated", [True, False])
def test_steps_per_epoch_with_repeated_and_with_finite_data(repeated):
    """A pass has 3 batches, and 4 epochs have 8 steps."""
    steps = []
    count = tf_keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: steps.append(batch))
    data = nets.points(48).repeat() if repeated else nets.points(48)
    fine_tune(
        pruned_dense(),
        data,
        FineTuning(epochs=4, steps_per_epoch=2),
        validation_data=data,
        callbacks=[count],
    )
    assert steps == [0, 1] * 4


@pytest.mark.slow
def test_steps_per_epoch_uses_every_row_before_the_next_pass():
    rows = []

    def train_step(model, batch):
        rows.append(batch[0].numpy()[:, 0])
        return model.train_step(batch)

    model = softmax_classifier()
    x, y = class_rows()
    shuffled = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(96).batch(16)
    fine_tune(model, shuffled, FineTuning(epochs=2, steps_per_epoch=3), masks={}, train_step=train_step)
    assert len(np.unique(np.concatenate(rows[-6:]))) == 96


def test_validation_data_is_evaluated_after_each_epoch():
    losses = []
    recorder = tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: losses.append(logs["val_loss"]))
    model = pruned_dense()
    x, y = helpers.points(32, seed=5)
    config = FineTuning(epochs=2, learning_rate=0.01)
    fine_tune(model, nets.points(), config, validation_data=helpers.batches(x, y), callbacks=[recorder])
    assert len(losses) == 2
    assert losses[-1] == pytest.approx(np.mean((model(x) - y) ** 2), rel=1e-4)


@pytest.mark.slow
def test_validation_data_is_evaluated_completely():
    config = FineTuning(steps_per_epoch=1, epochs=1, learning_rate=1e-9)
    tuned = fine_tune(
        prune(softmax_classifier(), unprotected_plan()),
        wide_batches(),
        config,
        validation_data=wide_batches(),
    )
    assert evaluate(tuned.model)["loss"] == pytest.approx(tuned.metrics["val_loss"], rel=1e-5)


# Divergence.


def test_diverged_training_is_an_error():
    x, y = helpers.points(64)
    y[40] = np.nan
    with raises(DivergedError, field="FineTuning.learning_rate", code="diverged"):
        fine_tune(pruned_dense(), helpers.batches(x, y), FineTuning(epochs=1))


def test_infinite_loss_with_finite_weights_is_an_error():
    def compile_fn(network):
        broken = tf.constant(np.nan)  # it has no gradient
        network.compile("sgd", lambda labels, predictions: squared_error(labels, predictions) + broken)

    with raises(DivergedError, code="diverged"):
        fine_tune(pruned_dense(), nets.points(), FineTuning(epochs=1), compile_fn=compile_fn)


# Early stopping.


def scripted(values, name="loss", **stopping):
    """Trains with the given values of a metric, one per epoch. Returns the result and the epoch of its weights."""
    model = nets.dense("keras2", None)
    epochs = iter(enumerate(values))

    def step(network, batch):
        number, value = next(epochs)
        network.get_layer("y").bias.assign([float(number)] * 2)
        return {"loss": 1.0, name: value}

    stopping = EarlyStopping(monitor=name, **stopping)
    config = FineTuning(epochs=len(values), early_stopping=stopping)
    tuned = fine_tune(model, nets.points(16), config, masks={}, train_step=step)
    return tuned, int(model.model.get_layer("y").bias[0])


@pytest.mark.parametrize(
    ("values", "options", "epochs", "best"),
    [
        ([3.0, 2.0, 2.5, 1.0], {"patience": 0}, 3, 1),
        ([3.0, 2.0, 2.5, 1.0, 5.0], {"patience": 1}, 5, 3),
        ([3.0, 2.0, 2.5, 2.0, 1.0], {"patience": 1}, 4, 1),
        ([3.0, 2.8, 2.7, 1.0], {"patience": 1, "min_delta": 0.5}, 3, 0),
        ([3.0, 2.8, 2.4, 2.3], {"patience": 1, "min_delta": 0.5}, 4, 2),
    ],
    ids=["no patience", "patience", "equal is not better", "min_delta", "small improvements add up"],
)
def test_training_stops_early_with_the_best_weights(values, options, epochs, best, eagerly):
    tuned, epoch = scripted(values, **options)
    assert len(tuned.history) == epochs
    assert epoch == best
    assert bool(tuned.notes) == (epochs < len(values))
    if tuned.notes:
        assert f"epoch {epochs} of {len(values)}: loss" in tuned.notes[0]
        assert f"epoch {best + 1}." in tuned.notes[0]


def test_without_restore_best_the_weights_are_the_last(eagerly):
    tuned, epoch = scripted([3.0, 2.0, 2.5, 1.0], patience=0, restore_best=False)
    assert len(tuned.history) == 3
    assert epoch == 2


def test_larger_accuracy_is_better(eagerly):
    tuned, epoch = scripted([0.5, 0.7, 0.6, 0.65, 0.9], name="accuracy", patience=1)
    assert len(tuned.history) == 4
    assert epoch == 1


def test_no_epoch_is_the_best_while_sparsity_rises(eagerly):
    model = nets.dense("keras2", None)
    losses = iter([0.1, 0.2, 3.0, 2.0, 2.5, 2.6])
    config = FineTuning(mode="gradual", epochs=6, early_stopping=EarlyStopping(monitor="loss", patience=1))
    plan = PruningPlan(**nets.DENSE, schedule="cubic", sparsity=0.5, frequency=1, end_step=3)
    tuned = fine_tune(
        model, nets.points(16), config, plan=plan, train_step=lambda network, batch: {"loss": next(losses)}
    )
    assert len(tuned.history) == 6
    assert "after epoch 4." in tuned.notes[0]


@pytest.mark.slow
def test_best_epoch_is_restored_with_its_masks():
    noise = helpers.batches(class_rows()[0], np.random.default_rng(3).integers(0, 3, 96))
    pruned = prune(softmax_classifier("sgd"), unprotected_plan(frequency=2))
    config = FineTuning(
        mode="dynamic",
        epochs=5,
        learning_rate=2.0,
        drop_fraction=0.9,
        early_stopping=EarlyStopping(patience=9, min_delta=9.0),
    )
    tuned = fine_tune(pruned, noise, config, validation_data=noise)
    assert tuned.metrics is tuned.history[0]  # masks changed after it
    assert tuned.model.evaluate(noise, verbose=0)[0] == pytest.approx(tuned.metrics["val_loss"], rel=1e-5)
    assert tuned.summary.after.sparsity == pytest.approx(tuned.metrics["sparsity"])


def test_unknown_monitor_is_refused():
    config = FineTuning(early_stopping=EarlyStopping(monitor="accurracy"))
    with raises(ConfigError, field="EarlyStopping.monitor", code="unknown-metric", match="'accurracy'.*loss, sparsity"):
        fine_tune(nets.dense("keras2", None), nets.points(), config)


# Callbacks and logs.


def test_callback_stops_the_training():
    model = nets.dense("keras2", None)
    stop = tf_keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(stop.model, "stop_training", True)
    )
    tuned = fine_tune(model, nets.points(), FineTuning(epochs=3), callbacks=[stop])
    assert len(tuned.history) == 1


def kind_of(library):
    return "keras2" if library is tf_keras else "keras3"


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_custom_train_step_trains_and_logs(library):
    pruned = nets.pruned(nets.dense(kind_of(library), None), sparsity=0.5)
    steps = []

    def train_step(network, batch):
        steps.append(1)
        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.abs(network(x, training=True) - y))
        gradients = tape.gradient(loss, network.trainable_variables)
        network.optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
        return {"loss": loss, "answer": tf.constant(42.0)}

    config = FineTuning(epochs=1, learning_rate=0.05)
    tuned = fine_tune(pruned, nets.points(), config, train_step=train_step)
    assert steps
    assert tuned.history[0]["answer"] == 42.0
    for name, mask in pruned.masks.items():
        assert not nets.kernels(pruned.handle)[name][~mask].any()


@pytest.mark.parametrize("library", LIBRARIES)
def test_callbacks_are_called_as_in_fit(library):
    calls = []

    class Recorder(library.callbacks.Callback):
        def on_train_begin(self, logs=None):
            calls.append(("begin", self.params["epochs"], self.params["steps"]))

        def on_epoch_begin(self, epoch, logs=None):
            calls.append(("epoch", epoch))

        def on_train_batch_end(self, batch, logs=None):
            calls.append(("batch", batch, sorted(logs)))

        def on_test_begin(self, logs=None):
            calls.append(("test",))

        def on_epoch_end(self, epoch, logs=None):
            calls.append(("end", epoch, sorted(logs)))

        def on_train_end(self, logs=None):
            calls.append(("over",))

    model = nets.dense(kind_of(library), None)
    fine_tune(model, nets.points(32), FineTuning(epochs=1), callbacks=[Recorder()], validation_data=nets.points(16))
    assert calls == [
        ("begin", 1, 2),
        ("epoch", 0),
        ("batch", 0, ["loss"]),
        ("batch", 1, ["loss"]),
        ("test",),
        ("end", 0, ["loss", "sparsity", "val_loss"]),
        ("over",),
    ]
