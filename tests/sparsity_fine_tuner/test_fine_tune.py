"""fine_tune: which weights train, how models are compiled, and what is returned and saved."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.keras_models import keras2, model_size
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.sparsity_fine_tuner.config import Distillation, EarlyStopping, FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import helpers, kinds, nets
from tests.support.errors import raises
from tests.support.fine_tuning import (
    LIBRARIES,
    class_batches,
    class_rows,
    classifier,
    evaluate,
    pruned_dense,
    softmax_classifier,
    squared_error,
    unprotected_plan,
    wide_batches,
)

slow = pytest.mark.slow
KERNELS = ("hidden", "y")
layers = tf_keras.layers


def zeros_of(model: tf_keras.Model) -> dict[str, np.ndarray]:
    return {name: model.get_layer(name).kernel.numpy() == 0 for name in KERNELS}


@pytest.mark.slow
def test_pruned_weights_stay_zero_and_the_others_train():
    """Each step runs as a graph here; `test_training_loop` has other optimizers."""
    model = pruned_dense(tf_keras.optimizers.AdamW(weight_decay=0.1), run_eagerly=False)
    pruned, before = zeros_of(model), {name: model.get_layer(name).kernel.numpy() for name in KERNELS}
    fine_tune(model, nets.points(), FineTuning(epochs=3, learning_rate=0.01))
    for name in KERNELS:
        after = model.get_layer(name).kernel.numpy()
        np.testing.assert_array_equal(after == 0, pruned[name])
        # Neurons without a connection don't train.
        assert np.mean(after[~pruned[name]] != before[name][~pruned[name]]) > 0.7


def test_without_masks_zeros_do_not_stay():
    """Shows that masks are needed: this training moves every weight."""
    model = pruned_dense(tf_keras.optimizers.SGD(momentum=0.9, nesterov=True))
    fine_tune(model, nets.points(), FineTuning(epochs=3, learning_rate=0.01), masks={})
    assert not any(zeros.any() for zeros in zeros_of(model).values())


def test_masks_default_to_the_zeros():
    model = helpers.small_dense()
    model.compile("adam", "mse", run_eagerly=True)
    keep = helpers.zero_smallest(model, "hidden", 0.7)
    tuned = fine_tune(model, nets.points(), FineTuning(epochs=1, learning_rate=0.01))
    assert set(tuned.masks) == {"hidden"}
    np.testing.assert_array_equal(tuned.masks["hidden"], keep)
    np.testing.assert_array_equal(model.get_layer("hidden").kernel.numpy() != 0, keep)


def test_given_masks_replace_the_zeros():
    model = pruned_dense()
    masks = {"hidden": model.get_layer("hidden").kernel.numpy() != 0}
    tuned = fine_tune(model, nets.points(), FineTuning(epochs=2, learning_rate=0.01), masks=masks)
    assert set(tuned.masks) == {"hidden"}
    np.testing.assert_array_equal(zeros_of(model)["hidden"], ~masks["hidden"])
    assert not zeros_of(model)["y"].any()


@pytest.mark.parametrize(
    ("masks", "code", "message"),
    [
        ({"no_such_layer": np.ones([4, 16], bool)}, "mask-mismatch", "'no_such_layer'.*hidden, y"),
        ({"hidden": np.ones([4, 8], bool)}, "mask-mismatch", r"'hidden'.*\(4, 16\).*\(4, 8\)"),
        ({"hidden": np.zeros([4, 16], bool)}, "revived-weights", "32.*'hidden'"),
    ],
    ids=["another layer", "another shape", "weights that are not zero"],
)
def test_masks_that_do_not_fit_are_refused(masks, code, message):
    with raises(ModelError, code=code, match=message):
        fine_tune(pruned_dense(), nets.points(), FineTuning(), masks=masks)


@pytest.mark.parametrize("mode", ["fixed", "dynamic", "cluster"])
def test_masks_of_another_model_are_refused_in_every_mode(mode):
    other = {"elsewhere": np.ones((4, 16), bool)}
    with raises(ModelError, code="mask-mismatch", match="'elsewhere'.*hidden, y"):
        fine_tune(nets.dense("keras2", None), nets.points(), FineTuning(mode=mode), masks=other)


def test_masks_apply_to_shared_weights():
    x = tf_keras.Input((4,))
    shared = tf_keras.layers.Dense(4, name="shared")
    model = tf_keras.Model(x, tf_keras.layers.Dense(1, name="y")(shared(shared(x))))
    model.compile("adam", "mse", run_eagerly=True)
    pruned = nets.pruned(model, sparsity=0.5)
    fine_tune(pruned, nets.points(32), FineTuning(epochs=1, learning_rate=0.1))
    assert np.mean(pruned.model.get_layer("shared").kernel == 0) == 0.5


@pytest.mark.slow
def test_pruned_network_recovers_its_accuracy():
    images, labels = helpers.images(600)
    data = helpers.batches(images / helpers.LARGEST, labels, size=32)
    model = helpers.small_cnn()
    model.compile(tf_keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy", ["accuracy"])
    pruned = prune(model, PruningPlan(protect=(), sparsity=0.8))
    before = pruned.model.evaluate(data, verbose=0, return_dict=True)
    tuned = fine_tune(pruned, data, FineTuning(epochs=3, learning_rate=0.005))
    after = tuned.model.evaluate(data, verbose=0, return_dict=True)
    assert before["accuracy"] < 0.6
    assert after["accuracy"] > 0.9
    assert after["loss"] < 0.5 * before["loss"]
    assert tuned.model is pruned.model
    assert tuned.summary.before.sparsity == tuned.summary.after.sparsity == model_size.measure(tuned.model).sparsity


@pytest.mark.slow
def test_model_is_loaded_by_path_and_saved_with_its_signature(tmp_path):
    model = pruned_dense()
    path = helpers.save_with_examples_signature(model, tmp_path / "pruned", "x", (4,))
    tuned = fine_tune(path, nets.points(), FineTuning(epochs=1, learning_rate=0.01))
    tuned.save(str(tmp_path / "tuned"))
    x, _ = helpers.points(7)
    answer = helpers.answers(str(tmp_path / "tuned"), examples=helpers.serialized({"x": x}))["probabilities"]
    np.testing.assert_allclose(answer, tuned.model(x / helpers.LARGEST), atol=1e-6)
    reloaded = keras2.load(str(tmp_path / "tuned"))
    for name, pruned in zeros_of(model).items():
        np.testing.assert_array_equal(zeros_of(reloaded)[name], pruned)


@slow
def test_transform_layer_survives(tmp_path):
    model = kinds.two_features(tf_keras)
    model.compile("adam", "mse")
    transform = kinds.transform_graph(tmp_path / "transform")
    path = kinds.penguin(tmp_path / "model", model, transform)
    loaded = model_handle.load(path)
    pruned = prune(loaded, PruningPlan(protect=(), sparsity=0.5))
    x, y = helpers.points(64)
    data = helpers.batches({"a": x[:, :1], "b": x[:, 1:2]}, y)
    tuned = fine_tune(pruned, data, FineTuning(epochs=2, learning_rate=0.02))
    tuned.save(str(tmp_path / "tuned"))
    examples = kinds.examples()
    before = helpers.answers(path, examples=examples)["outputs"]
    after = helpers.answers(str(tmp_path / "tuned"), examples=examples)["outputs"]
    assert after.shape == before.shape and (after != before).any()
    for name, mask in pruned.masks.items():
        assert not model_handle.load(str(tmp_path / "tuned")).kernels[name].values[~mask].any()


# Compilation.


@pytest.mark.parametrize("compile_fn", [None, lambda network: None], ids=["none", "one that does not compile"])
def test_uncompiled_model_is_refused(compile_fn):
    with raises(ModelError, field="FineTuning.loss", code="loss-missing"):
        fine_tune(helpers.small_dense(), nets.points(), FineTuning(), compile_fn=compile_fn)


@pytest.mark.slow
def test_compile_fn_compiles_and_the_configuration_sets_the_learning_rate():
    model = prune(helpers.small_dense(), PruningPlan(protect=(), sparsity=0.5)).model
    pruned, compiled = zeros_of(model), []

    def compile_fn(network):
        network.compile(tf_keras.optimizers.Adam(123.0), squared_error)
        compiled.append(network)

    x, y = helpers.points(128)
    before = np.mean((model(x) - y) ** 2)
    fine_tune(model, nets.points(), FineTuning(epochs=5, learning_rate=0.02), compile_fn=compile_fn)
    assert compiled == [model]
    assert np.mean((model(x) - y) ** 2) < 0.7 * before
    for name, zeros in zeros_of(model).items():
        np.testing.assert_array_equal(zeros, pruned[name])


def test_custom_loss_trains():
    model = pruned_dense(loss=squared_error)
    x, y = helpers.points(128)
    before = np.mean((model(x) - y) ** 2)
    fine_tune(model, nets.points(), FineTuning(epochs=5, learning_rate=0.02))
    assert np.mean((model(x) - y) ** 2) < 0.7 * before


def test_errors_of_a_traced_loss_arrive_as_raised():
    def loss(labels, predictions):
        raise KeyError("no weight for these labels")

    with pytest.raises(KeyError, match="^'no weight for these labels'$"):
        fine_tune(pruned_dense(loss=loss, run_eagerly=False), nets.points(), FineTuning(epochs=1))


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["accuracy", *(pytest.param(name, marks=slow) for name in ("acc", "AUC"))])
@pytest.mark.parametrize("library", LIBRARIES)
def test_loss_and_metrics_by_name_compile_a_model(library, metric):
    library.utils.set_random_seed(1)
    model = library.Sequential([library.Input((4,)), library.layers.Dense(1, activation="sigmoid")])
    data = helpers.batches(helpers.points(32)[0], (helpers.points(32)[1][:, :1] > 0).astype(np.float32))
    config = FineTuning(epochs=1, loss="binary_crossentropy", metrics=(metric,), learning_rate=0.01)
    tuned = fine_tune(model, data, config, validation_data=data)
    (name,) = set(tuned.history[0]) - {"loss", "val_loss", "sparsity"} - {f"val_{metric}", "val_auc"}
    assert name.lower().startswith(metric.lower()[:3])
    assert 0.0 <= tuned.history[0][f"val_{name}"] <= 1.0


def test_metrics_without_a_loss_are_refused():
    with raises(ConfigError, field="FineTuning.metrics", code="metrics-without-loss"):
        fine_tune(nets.dense("keras2", None), nets.points(), FineTuning(metrics=("mae",)))


@pytest.mark.slow
def test_overridden_train_step_is_refused_without_a_train_step_argument():
    class Custom(tf_keras.Model):
        def train_step(self, data):
            return {**super().train_step(data), "mine": tf.constant(7.0)}

    image = tf_keras.Input((8,))
    model = Custom(image, layers.Dense(3, activation="softmax")(image))
    model.compile("sgd", "sparse_categorical_crossentropy")
    with raises(ModelError, code="own-train-step", match="Custom.*train_step"):
        fine_tune(model, wide_batches(), FineTuning(epochs=1))
    fine_tune(model, wide_batches(), FineTuning(epochs=1), train_step=lambda model, batch: model.train_step(batch))


def test_subclassed_model_is_refused():
    class Subclassed(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = tf_keras.layers.Dense(2)

        def call(self, x):
            return self.layer(x)

    model = Subclassed()
    model.compile("sgd", "mse")
    model(helpers.points(2)[0])
    with raises(ModelError, code="subclassed-model"):
        fine_tune(model, nets.points(), FineTuning(), masks={})


# Results.


@pytest.mark.slow
def test_the_seed_determines_the_weights():
    def tuned(seed):
        model = pruned_dense(dropout=0.5)
        fine_tune(model, nets.points(), FineTuning(epochs=2, learning_rate=0.01, seed=seed))
        return model.get_weights()

    first, again, other = tuned(1), tuned(1), tuned(2)
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("batches", [0, 60])
def test_training_starts_from_new_normalization_statistics_where_channels_were_removed(batches):
    x = tf_keras.Input((4,), name="x")
    hidden = tf_keras.layers.Dense(8, activation="relu", name="hidden")(x)
    norm = tf_keras.layers.BatchNormalization(name="norm")(tf_keras.layers.Dense(6, name="second")(hidden))
    model = tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(norm))
    model.compile("sgd", "mse")
    pruned = prune(model, unprotected_plan(technique="neuron", recalibrate_batches=batches))
    rows, labels = helpers.points(128)

    tuned = fine_tune(pruned, helpers.batches(rows, labels, 64), FineTuning(epochs=1, learning_rate=1e-9))

    network = tf_keras.Model(pruned.model.inputs, tuned.model.get_layer("second").output)
    deviation = tuned.model.get_layer("norm").moving_variance.numpy() / network(rows).numpy().var(axis=0)
    assert (np.abs(deviation - 1) < 0.05).all() == (batches > 0)
    assert any("computed anew on 128 rows" in note for note in tuned.notes) == (batches > 0)


@pytest.mark.slow
@pytest.mark.parametrize(("technique", "fitted"), [("weight", True), ("neuron", False)])
def test_accuracy_is_the_same_after_saving_and_loading(fitted, technique, tmp_path):
    model = softmax_classifier()
    if fitted:
        model.fit(wide_batches(), epochs=5, verbose=0)
    prune(model, unprotected_plan(technique=technique, sparsity=0.3)).save(str(tmp_path / "pruned"))
    tuned = fine_tune(
        str(tmp_path / "pruned"),
        wide_batches(),
        FineTuning(epochs=1),
        validation_data=wide_batches(),
    )
    tuned.save(str(tmp_path / "tuned"))
    truth = np.mean(tuned.model.predict(class_rows()[0], verbose=0).argmax(axis=1) == class_rows()[1])
    assert tuned.metrics["val_accuracy"] == pytest.approx(truth)
    loaded = tf_keras.models.load_model(tmp_path / "tuned")
    assert evaluate(loaded)["accuracy"] == pytest.approx(truth)


@pytest.mark.slow
def test_accuracy_of_a_compile_fn_is_saved(tmp_path):
    def compile_fn(model):
        model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])

    tuned = fine_tune(
        softmax_classifier(),
        wide_batches(),
        FineTuning(epochs=1),
        validation_data=wide_batches(),
        compile_fn=compile_fn,
    )
    tuned.save(str(tmp_path / "tuned"))
    loaded = tf_keras.models.load_model(tmp_path / "tuned")
    assert evaluate(loaded)["accuracy"] == pytest.approx(tuned.metrics["val_accuracy"])


@pytest.mark.slow
def test_metrics_of_one_of_several_outputs_survive_saving(tmp_path):
    number = tf_keras.Input((8,), name="number")
    outputs = {
        "a": layers.Dense(3, activation="softmax", name="a")(number),
        "b": layers.Dense(1, name="b")(number),
    }
    model = tf_keras.Model({"number": number}, outputs)
    model.compile("adam", {"a": "categorical_crossentropy", "b": "mse"}, metrics={"a": ["accuracy"]})
    x, y = class_rows()
    labels = {"a": tf.one_hot(y, 3), "b": np.ones([96, 1], np.float32)}
    both = tf.data.Dataset.from_tensor_slices(({"number": x}, labels)).batch(16)
    model.fit(both, verbose=0)
    model.save(tmp_path / "m", save_format="tf")
    tuned = fine_tune(str(tmp_path / "m"), both, FineTuning(epochs=1), validation_data=both)
    tuned.save(str(tmp_path / "tuned"))
    metrics = tf_keras.models.load_model(tmp_path / "tuned").evaluate(both, verbose=0, return_dict=True)
    assert metrics["a_accuracy"] == pytest.approx(tuned.metrics["val_a_accuracy"])


@slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_model_of_several_inputs_and_outputs_learns_from_dicts(library):
    library.utils.set_random_seed(1)
    a, b = library.Input((2,), name="a"), library.Input((2,), name="b")
    hidden = library.layers.Dense(16, activation="relu", name="hidden")(library.layers.Concatenate()([a, b]))
    outputs = {
        "first": library.layers.Dense(1, name="first")(hidden),
        "second": library.layers.Dense(1, name="second")(hidden),
    }
    model = library.Model({"a": a, "b": b}, outputs)
    model.compile(
        optimizer="adam",
        loss={"first": "mse", "second": "mae"},
        loss_weights={"first": 1.0, "second": 2.0},
        run_eagerly=True,
    )
    x, y = helpers.points(64)
    labels = {"first": y[:, :1], "second": y[:, 1:]}
    data = tf.data.Dataset.from_tensor_slices(({"a": x[:, :2], "b": x[:, 2:]}, labels)).batch(16)
    pruned = nets.pruned(model, sparsity=0.5)
    model = pruned.model
    config = FineTuning(epochs=8, learning_rate=0.02)
    tuned = fine_tune(pruned, data, config, validation_data=data)
    first, last = tuned.history[0], tuned.history[-1]
    assert last["val_loss"] < 0.5 * first["val_loss"]
    answer = model({"a": x[:, :2], "b": x[:, 2:]})
    expected = np.mean((answer["first"] - labels["first"]) ** 2) + 2 * np.mean(
        np.abs(answer["second"] - labels["second"])
    )
    assert last["val_loss"] == pytest.approx(expected, rel=1e-4)
    for name, mask in pruned.masks.items():
        assert not nets.kernels(pruned.model)[name][~mask].any()


@pytest.mark.slow
def test_options_work_together(tmp_path):
    """Trains with a teacher, class weights, a learning rate decay, evaluation, checkpoints, logs and early stopping."""
    teacher = classifier(tf_keras, seed=9)
    pruned = nets.pruned(classifier(tf_keras), sparsity=0.5)
    config = FineTuning(
        epochs=2,
        learning_rate=0.05,
        learning_rate_schedule="cosine",
        warmup_steps=2,
        class_weights={0: 2.0},
        distillation=Distillation(),
        early_stopping=EarlyStopping(patience=0),
    )
    tuned = fine_tune(
        pruned,
        class_batches(),
        config,
        teacher,
        validation_data=class_batches(32),
        checkpoints=str(tmp_path / "checkpoints"),
        log_dir=str(tmp_path / "logs"),
    )
    assert tuned.history[-1]["val_loss"] < classifier(tf_keras).evaluate(class_batches(32), verbose=0)[0] * 1.5
    for name, mask in pruned.masks.items():
        assert not nets.kernels(pruned.model)[name][~mask].any()
