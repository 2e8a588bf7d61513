"""What fine-tuning says of a model is true of the model that it returns, and that is saved."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ModelError
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.sparsity_fine_tuner.config import EarlyStopping, FineTuning
from tfx_compression.sparsity_fine_tuner.training import fine_tune

from tests.support import helpers

layers = tf_keras.layers
pytestmark = pytest.mark.slow


def rows() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(96, 8)).astype(np.float32)
    return x, (x[:, :3].argmax(axis=1)).astype(np.int64)


def data(size: int = 16) -> tf.data.Dataset:
    return helpers.batches(*rows(), size=size)


def classes(optimizer="adam", metrics=("accuracy",)) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(1)
    stack = [layers.Dense(16, activation="relu"), layers.Dense(3, activation="softmax")]
    model = tf_keras.Sequential([tf_keras.Input((8,)), *stack])
    model.compile(optimizer, "sparse_categorical_crossentropy", list(metrics))
    return model


def plan(**fields) -> PruningPlan:
    return PruningPlan(protect=(), **fields)


def evaluated(model) -> dict[str, float]:
    return model.evaluate(data(), verbose=0, return_dict=True)


@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize("technique", ["weight", "neuron"])
def test_accuracy_means_the_same_in_a_model_that_was_saved_and_loaded(fitted, technique, tmp_path):
    model = classes()
    if fitted:
        model.fit(data(), epochs=5, verbose=0)
    prune(model, plan(technique=technique, sparsity=0.3)).save(str(tmp_path / "pruned"))
    tuned = fine_tune(str(tmp_path / "pruned"), data(), FineTuning(epochs=1), validation_data=data())
    tuned.save(str(tmp_path / "tuned"))
    truth = np.mean(tuned.model.predict(rows()[0], verbose=0).argmax(axis=1) == rows()[1])
    assert tuned.metrics["val_accuracy"] == pytest.approx(truth)
    loaded = tf_keras.models.load_model(tmp_path / "tuned")
    assert evaluated(loaded)["accuracy"] == pytest.approx(truth)


def test_accuracy_of_a_compile_fn_is_saved_as_what_it_is(tmp_path):
    def compile_fn(model):
        model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])

    tuned = fine_tune(classes(), data(), FineTuning(epochs=1), validation_data=data(), compile_fn=compile_fn)
    tuned.save(str(tmp_path / "tuned"))
    loaded = tf_keras.models.load_model(tmp_path / "tuned")
    assert evaluated(loaded)["accuracy"] == pytest.approx(tuned.metrics["val_accuracy"])


def test_metrics_of_one_of_several_outputs_survive_saving_and_loading(tmp_path):
    number = tf_keras.Input((8,), name="number")
    outputs = {
        "a": layers.Dense(3, activation="softmax", name="a")(number),
        "b": layers.Dense(1, name="b")(number),
    }
    model = tf_keras.Model({"number": number}, outputs)
    model.compile("adam", {"a": "categorical_crossentropy", "b": "mse"}, metrics={"a": ["accuracy"]})
    x, y = rows()
    labels = {"a": tf.one_hot(y, 3), "b": np.ones([96, 1], np.float32)}
    both = tf.data.Dataset.from_tensor_slices(({"number": x}, labels)).batch(16)
    model.fit(both, verbose=0)
    model.save(tmp_path / "m", save_format="tf")
    tuned = fine_tune(str(tmp_path / "m"), both, FineTuning(epochs=1), validation_data=both)
    tuned.save(str(tmp_path / "tuned"))
    found = tf_keras.models.load_model(tmp_path / "tuned").evaluate(both, verbose=0, return_dict=True)
    assert found["a_accuracy"] == pytest.approx(tuned.metrics["val_a_accuracy"])


def test_a_loss_of_a_tensor_inside_the_network_is_trained_too():
    image = tf_keras.Input((8,))
    hidden = layers.Dense(16, activation="relu")(image)
    model = tf_keras.Model(image, layers.Dense(3, activation="softmax")(hidden))
    model.add_loss(100.0 * tf.reduce_mean(tf.square(hidden)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    pruned = prune(model, plan())
    model = pruned.model
    before = model.evaluate(data(), verbose=0)
    tuned = fine_tune(pruned, data(), FineTuning(epochs=1, learning_rate=1e-9))
    assert before > 10
    assert tuned.history[0]["loss"] == pytest.approx(before, rel=1e-3)


def test_a_class_that_trains_in_its_own_way_is_refused_but_for_a_train_step():
    class Mine(tf_keras.Model):
        def train_step(self, data):
            return {**super().train_step(data), "mine": tf.constant(7.0)}

    image = tf_keras.Input((8,))
    model = Mine(image, layers.Dense(3, activation="softmax")(image))
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ModelError, match=r"Mine, whose train_step .*Remedy: train_step\(model, batch\)"):
        fine_tune(model, data(), FineTuning(epochs=1))
    fine_tune(model, data(), FineTuning(epochs=1), train_step=lambda model, batch: model.train_step(batch))


def test_the_best_epoch_of_dynamic_training_comes_back_with_its_own_masks():
    noise = helpers.batches(rows()[0], np.random.default_rng(3).integers(0, 3, 96))
    pruned = prune(classes("sgd"), plan(frequency=2))
    how = FineTuning(
        mode="dynamic",
        epochs=5,
        learning_rate=2.0,
        drop_fraction=0.9,
        early_stopping=EarlyStopping(patience=9, min_delta=9.0),
    )
    tuned = fine_tune(pruned, noise, how, validation_data=noise)
    assert tuned.metrics is tuned.history[0]  # masks moved after it
    assert tuned.model.evaluate(noise, verbose=0)[0] == pytest.approx(tuned.metrics["val_loss"], rel=1e-5)
    assert tuned.summary.after.sparsity == pytest.approx(tuned.metrics["sparsity"])


def test_metrics_are_those_of_the_optimizers_averages_where_they_are_the_result():
    model = classes(tf_keras.optimizers.Adam(use_ema=True, ema_momentum=0.9))
    tuned = fine_tune(prune(model, plan()), data(), FineTuning(epochs=2, learning_rate=0.01), validation_data=data())
    assert evaluated(tuned.model)["loss"] == pytest.approx(tuned.metrics["val_loss"], rel=1e-5)


def test_evaluation_data_that_ends_is_evaluated_whole_whatever_the_steps():
    how = FineTuning(steps_per_epoch=1, epochs=1, learning_rate=1e-9)
    tuned = fine_tune(prune(classes(), plan()), data(), how, validation_data=data())
    assert evaluated(tuned.model)["loss"] == pytest.approx(tuned.metrics["val_loss"], rel=1e-5)


def test_epochs_of_some_steps_go_through_shuffled_data_once_before_they_begin_again():
    seen = []

    def train_step(model, batch):
        seen.append(batch[0].numpy()[:, 0])
        return model.train_step(batch)

    model = classes()
    model.run_eagerly = True
    x, y = rows()
    shuffled = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(96).batch(16)
    fine_tune(model, shuffled, FineTuning(epochs=2, steps_per_epoch=3), masks={}, train_step=train_step)
    assert len(np.unique(np.concatenate(seen[-6:]))) == 96


def test_variables_that_decay_not_in_the_trainer_do_not_here():
    optimizer = tf_keras.optimizers.AdamW(weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "kernel"])
    model = classes(optimizer)
    before = [weight.copy() for weight in model.get_weights()]
    nothing = data().map(lambda x, y: (x, y, tf.zeros(tf.shape(y))))
    fine_tune(model, nothing, FineTuning(epochs=2, learning_rate=0.1), masks={})
    for weight, values in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, values)


def _signature(path, answer) -> str:
    weights = tf.Variable(3 * tf.random.stateless_normal([8, 3], [1, 2]))

    def serve(x):
        return {"y": answer(x @ weights)}

    return helpers.save_function(serve, [tf.TensorSpec([None, 8], tf.float32, name="x")], path, weights=weights)


def _clipped(logits):
    return tf.clip_by_value(tf.cast(tf.cast(logits, tf.float64), tf.float32), -90, 90)


def _shifted(logits):
    return tf.concat([logits - tf.reduce_mean(logits, -1, keepdims=True)], -1)


def _probabilities(logits):
    return tf.nn.softmax(logits) + 1e-9


@pytest.mark.parametrize("answer", [_clipped, _shifted, _probabilities])
def test_logits_are_told_from_probabilities_behind_what_scales_and_shifts_them(answer, tmp_path):
    path = _signature(tmp_path / "m", answer)
    x, y = rows()
    logits = tf.saved_model.load(path).signatures["serving_default"](x=tf.constant(x))["y"]
    expected = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=answer is not _probabilities)(y, logits)
    named = tf.data.Dataset.from_tensor_slices(({"x": x}, y)).batch(96)
    how = FineTuning(epochs=1, learning_rate=1e-9, loss="sparse_categorical_crossentropy")
    assert fine_tune(path, named, how, masks={}).history[0]["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_what_may_be_logits_or_probabilities_is_refused(tmp_path):
    path = _signature(tmp_path / "m", lambda logits: tf.exp(logits) / tf.reduce_sum(tf.exp(logits), -1, keepdims=True))
    how = FineTuning(epochs=1, loss="sparse_categorical_crossentropy")
    with pytest.raises(ModelError, match=r"logits or probabilities can't be told: Exp .*Remedy: a loss_fn"):
        fine_tune(path, data(), how, masks={})


def test_a_loss_of_the_whole_batch_takes_no_weights_of_rows(tmp_path):
    path = _signature(tmp_path / "m", tf.identity)
    weighted = data().map(lambda x, y: ({"x": x}, y, tf.ones(tf.shape(y))))
    with pytest.raises(Exception, match="ConfigError.*one number for the batch"):  # AutoGraph wraps it
        fine_tune(
            path, weighted, FineTuning(epochs=1), masks={}, loss_fn=lambda y, outputs: tf.reduce_mean(outputs["y"])
        )
