"""Training after pruning: the zeros stay, the rest learns."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import keras2, model_size
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.saved_models import saved_model
from tfx_compression.sparsity_fine_tuner import trainee
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.training import fine_tune

from tests.support import helpers

KERNELS = ("hidden", "y")


def squared_error(labels, predictions):
    """A loss that Keras doesn't know."""
    return tf.reduce_mean(tf.square(labels - predictions), axis=-1)


def pruned_dense(optimizer="adam", loss="mse", dropout: float = 0.0, run_eagerly: bool = True) -> tf_keras.Model:
    """A compiled model of which half is pruned; it runs eagerly, as tracing takes longer than so little training."""
    model = helpers.small_dense(dropout=dropout)
    model.compile(optimizer, loss, run_eagerly=run_eagerly)
    return prune(model, PruningPlan(protect=(), sparsity=0.5)).model


def points(rows: int = 64) -> tf.data.Dataset:
    return helpers.batches(*helpers.points(rows))


def zeros(model: tf_keras.Model) -> dict[str, np.ndarray]:
    return {name: model.get_layer(name).kernel.numpy() == 0 for name in KERNELS}


@pytest.mark.parametrize(
    "optimizer",
    [
        tf_keras.optimizers.SGD(momentum=0.9, nesterov=True),
        tf_keras.optimizers.Adam(),
        tf_keras.optimizers.AdamW(weight_decay=0.1),
    ],
    ids=["momentum", "Adam", "weight decay"],
)
def test_what_was_pruned_stays_zero_and_the_other_weights_learn(optimizer):
    model = pruned_dense(optimizer, run_eagerly=False)
    pruned, before = zeros(model), {name: model.get_layer(name).kernel.numpy() for name in KERNELS}
    fine_tune(model, points(), FineTuning(epochs=3, learning_rate=0.01))
    for name in KERNELS:
        after = model.get_layer(name).kernel.numpy()
        np.testing.assert_array_equal(after == 0, pruned[name])
        # all but those of neurons that pruning cut off
        assert np.mean(after[~pruned[name]] != before[name][~pruned[name]]) > 0.7


def test_without_masks_the_zeros_would_not_stay():
    """What the tests above rely on: this training moves every weight that it may move."""
    model = pruned_dense(tf_keras.optimizers.SGD(momentum=0.9, nesterov=True), run_eagerly=False)
    fine_tune(model, points(), FineTuning(epochs=3, learning_rate=0.01), masks={})
    assert not any(found.any() for found in zeros(model).values())


def test_the_masks_are_the_zeros_where_none_are_given():
    model = helpers.small_dense()
    model.compile("adam", "mse")
    keep = helpers.zero_smallest(model, "hidden", 0.7)
    tuned = fine_tune(model, points(), FineTuning(epochs=1, learning_rate=0.01))
    assert set(tuned.masks) == {"hidden"}
    np.testing.assert_array_equal(tuned.masks["hidden"], keep)
    np.testing.assert_array_equal(model.get_layer("hidden").kernel.numpy() != 0, keep)


def test_masks_that_are_given_hold_also_where_other_weights_are_zero_by_chance():
    model = pruned_dense()
    masks = {"hidden": model.get_layer("hidden").kernel.numpy() != 0}
    tuned = fine_tune(model, points(), FineTuning(epochs=2, learning_rate=0.01), masks=masks)
    assert set(tuned.masks) == {"hidden"}
    np.testing.assert_array_equal(zeros(model)["hidden"], ~masks["hidden"])
    assert not zeros(model)["y"].any()


@pytest.mark.slow
def test_a_pruned_network_learns_an_easy_problem_again():
    images, labels = helpers.images(600)
    data = helpers.batches(images / helpers.LARGEST, labels, size=32)
    model = helpers.small_cnn()
    model.compile(tf_keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy", ["accuracy"])
    compressed = prune(model, PruningPlan(protect=(), sparsity=0.8))
    before = model.evaluate(data, verbose=0, return_dict=True)
    tuned = fine_tune(model, data, FineTuning(epochs=4, learning_rate=0.005), masks=compressed.masks)
    after = model.evaluate(data, verbose=0, return_dict=True)
    assert before["accuracy"] < 0.6
    assert after["accuracy"] > 0.9
    assert after["loss"] < 0.5 * before["loss"]
    assert tuned.model is model
    assert tuned.summary.before.sparsity == tuned.summary.after.sparsity == model_size.measure(model).sparsity


@pytest.mark.slow
def test_a_pruned_model_is_tuned_by_its_path_and_saved_again_answers_its_examples(tmp_path):
    model = pruned_dense()
    path = helpers.save_with_examples_signature(model, tmp_path / "pruned", "x", (4,))
    tuned = fine_tune(path, points(), FineTuning(epochs=1, learning_rate=0.01))
    tuned.save(str(tmp_path / "tuned"))
    x, _ = helpers.points(7)
    answer = helpers.answers(str(tmp_path / "tuned"), examples=helpers.serialized({"x": x}))["probabilities"]
    np.testing.assert_allclose(answer, tuned.model(x / helpers.LARGEST), atol=1e-6)
    reloaded = keras2.load(str(tmp_path / "tuned"))
    for name, pruned in zeros(model).items():
        np.testing.assert_array_equal(zeros(reloaded)[name], pruned)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"no_such_layer": np.ones([4, 16], bool)}, r"no layer 'no_such_layer'.*hidden, y"),
        ({"hidden": np.ones([4, 8], bool)}, r"'hidden' has a kernel of \(4, 16\), its mask is \(4, 8\)"),
        ({"hidden": np.zeros([4, 16], bool)}, r"32 weights of layer 'hidden' that were pruned are not zero"),
    ],
    ids=["another layer", "another shape", "weights that are not zero"],
)
def test_masks_that_do_not_fit_are_refused_by_layer(masks, message):
    with pytest.raises(ModelError, match=message):
        fine_tune(pruned_dense(), points(), FineTuning(), masks=masks)


@pytest.mark.parametrize("compile_fn", [None, lambda network: None], ids=["none", "one that does not compile"])
def test_a_model_that_was_never_compiled_is_refused_with_the_remedy(compile_fn):
    with pytest.raises(ModelError, match=r"Remedy: a compile_fn\(model\)"):
        fine_tune(helpers.small_dense(), points(), FineTuning(), compile_fn=compile_fn)


def test_the_compile_fn_compiles_and_the_configuration_sets_the_learning_rate():
    model = prune(helpers.small_dense(), PruningPlan(protect=(), sparsity=0.5)).model
    pruned, compiled = zeros(model), []

    def compile_fn(network):
        network.compile(tf_keras.optimizers.Adam(123.0), squared_error)
        compiled.append(network)

    x, y = helpers.points(128)
    before = np.mean((model(x) - y) ** 2)
    fine_tune(model, points(), FineTuning(epochs=5, learning_rate=0.02), compile_fn=compile_fn)
    assert compiled == [model]
    assert np.mean((model(x) - y) ** 2) < 0.7 * before
    for name, found in zeros(model).items():
        np.testing.assert_array_equal(found, pruned[name])


def test_a_model_trained_by_a_learning_rate_schedule_is_tuned_at_the_configurations():
    schedule = tf_keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=100, decay_rate=0.9)
    model = pruned_dense(tf_keras.optimizers.SGD(schedule))
    before = model.get_weights()
    fine_tune(model, points(16), FineTuning(epochs=1, learning_rate=1e-30))
    for weight, values in zip(model.get_weights(), before, strict=True):
        np.testing.assert_allclose(weight, values, atol=1e-12)


def test_a_model_compiled_with_the_users_own_loss_is_tuned_by_it():
    model = pruned_dense(loss=squared_error)
    x, y = helpers.points(128)
    before = np.mean((model(x) - y) ** 2)
    fine_tune(model, points(), FineTuning(epochs=5, learning_rate=0.02))
    assert np.mean((model(x) - y) ** 2) < 0.7 * before


def test_a_loss_that_is_not_a_number_is_an_error_with_the_remedy():
    x, y = helpers.points(64)
    y[40] = np.nan
    with pytest.raises(ModelError, match=r"diverged.*FineTuning.learning_rate"):
        fine_tune(pruned_dense(), helpers.batches(x, y), FineTuning(epochs=1))


def test_a_loss_that_is_not_a_number_is_an_error_though_the_weights_still_are():
    def compile_fn(network):
        broken = tf.constant(np.nan)  # no gradient comes from it
        network.compile("sgd", lambda labels, predictions: squared_error(labels, predictions) + broken)

    with pytest.raises(ModelError, match="loss"):
        fine_tune(pruned_dense(), points(), FineTuning(epochs=1), compile_fn=compile_fn)


@pytest.mark.parametrize("endless", ["data", "validation_data"])
def test_data_that_never_ends_needs_steps_per_epoch(endless):
    data = {"data": points(), "validation_data": points()}
    data[endless] = data[endless].repeat()
    with pytest.raises(ModelError, match=r"Remedy: FineTuning.steps_per_epoch"):
        fine_tune(pruned_dense(), config=FineTuning(epochs=1), **data)


@pytest.mark.parametrize("repeated", [True, False])
def test_every_epoch_has_its_steps_whether_the_data_repeats_or_ends(repeated):
    """48 rows are 3 batches of 16: 4 epochs of 2 steps need more."""
    steps = []
    count = tf_keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: steps.append(batch))
    data = points(48).repeat() if repeated else points(48)
    fine_tune(pruned_dense(), data, FineTuning(epochs=4, steps_per_epoch=2), validation_data=data, callbacks=[count])
    assert steps == [0, 1] * 4


def test_validation_data_is_evaluated_after_each_epoch():
    losses = []
    keep = tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: losses.append(logs["val_loss"]))
    model = pruned_dense()
    x, y = helpers.points(32, seed=5)
    config = FineTuning(epochs=2, learning_rate=0.01)
    fine_tune(model, points(), config, validation_data=helpers.batches(x, y), callbacks=[keep])
    assert len(losses) == 2
    assert losses[-1] == pytest.approx(np.mean((model(x) - y) ** 2), rel=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    def tuned(seed):
        model = pruned_dense(dropout=0.5)
        fine_tune(model, points(), FineTuning(epochs=2, learning_rate=0.01, seed=seed))
        return model.get_weights()

    first, again, other = tuned(1), tuned(1), tuned(2)
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("softmax", [True, False])
def test_a_cross_entropy_by_name_sees_whether_a_saved_model_answers_logits(softmax, tmp_path):
    weights = tf.Variable(tf.random.stateless_normal([4, 3], [1, 2]))

    def serve(x):
        logits = tf.identity(tf.reshape(x @ weights, [-1, 3]))
        return {"y": tf.nn.softmax(logits) if softmax else logits}

    path = helpers.save_function(
        serve, [tf.TensorSpec([None, 4], tf.float32, name="x")], tmp_path / "m", weights=weights
    )
    model = trainee.of_signature(saved_model.load(path), FineTuning(loss="sparse_categorical_crossentropy"))
    x, _ = helpers.points(32)
    labels = np.arange(32) % 3
    expected = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, x @ weights)
    found = model.evaluate(helpers.batches({"x": x}, labels, size=32), verbose=0, return_dict=True)["loss"]
    assert found == pytest.approx(float(expected), rel=1e-4)
