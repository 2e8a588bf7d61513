"""What data tells of models of Keras 2 and Keras 3, against loops over rows and analytic gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ModelError
from tfx_compression.kernels import find_kernels
from tfx_compression.pruning import criteria, importance
from tfx_compression.pruning.keras_statistics import KerasStatistics
from tfx_compression.pruning.plan import PruningPlan

from tests.support import helpers

BOTH = pytest.mark.parametrize("library", [tf_keras, keras], ids=["keras2", "keras3"])
ROWS = 24


@pytest.fixture(autouse=True)
def seeded():
    tf_keras.utils.set_random_seed(0)
    keras.utils.set_random_seed(0)


def probe(model, data, **plan):
    return KerasStatistics(model, data, find_kernels(model), **{"rows": 1024, "batch_size": 5, **plan})


def rows(shape, outputs, seed=0):
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(ROWS, *shape)).astype(np.float32),
        generator.normal(size=(ROWS, outputs)).astype(np.float32),
    )


def data_of(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(7)


def scored(model, data, criterion, technique="filter", **plan):
    plan = PruningPlan(criterion=criterion, technique=technique, batch_size=5, **plan)
    kernels = find_kernels(model)
    return importance.score(
        kernels,
        list(kernels),
        plan,
        criteria.lookup(plan.criterion),
        KerasStatistics(model, data, kernels, plan.sample_rows, plan.batch_size),
    )


def linear(library, units=2):
    model = library.Sequential([library.layers.Input((3,)), library.layers.Dense(units, use_bias=False, name="y")])
    model.compile(loss="mse", metrics=["mae"])
    return model


@BOTH
def test_fisher_of_a_linear_model_is_the_analytic_one(library):
    (x, y), model = rows((3,), 2), linear(library)
    w = find_kernels(model)["y"].values
    gradients = np.einsum("ni,no->nio", x, x @ w - y)  # of mean over two outputs of (xw - y)^2, row by row
    expected = 0.5 * w**2 * (gradients**2).mean(axis=0)
    np.testing.assert_allclose(scored(model, data_of(x, y), "fisher", "weight")["y"], expected, rtol=1e-4)
    expected = 0.5 * ((gradients * w).sum(axis=1) ** 2).mean(axis=0)
    np.testing.assert_allclose(scored(model, data_of(x, y), "fisher")["y"], expected, rtol=1e-4)


@BOTH
def test_fisher_of_a_logistic_model_is_the_analytic_one(library):
    (x, y), layers = rows((3,), 1), library.layers
    model = library.Sequential([layers.Input((3,)), layers.Dense(1, activation="sigmoid", name="y")])
    model.compile(loss="binary_crossentropy")
    labels = (y > 0).astype(np.float32)
    w = find_kernels(model)["y"].values
    residuals = 1 / (1 + np.exp(-x @ w)) - labels
    expected = 0.5 * w**2 * np.square(x * residuals).mean(axis=0)[:, None]
    np.testing.assert_allclose(scored(model, data_of(x, labels), "fisher", "weight")["y"], expected, rtol=1e-3)


@BOTH
def test_gradients_count_the_rows_by_their_weights(library):
    (x, y), model = rows((3,), 2), linear(library)
    weights = np.arange(ROWS, dtype=np.float32)
    w = find_kernels(model)["y"].values
    made = probe(model, data_of(x, y, weights), batch_size=ROWS)
    (batch,) = made.batches()
    expected = (np.einsum("ni,no->nio", x, x @ w - y) * weights[:, None, None]).mean(axis=0)
    np.testing.assert_allclose(made.gradients(batch, ["y"])["y"], expected, rtol=1e-4)


@BOTH
def test_taylor_foretells_the_loss_without_a_channel(library):
    """Of small weights: the first-order change is then nearly all of it."""
    (x, y), layers = rows((6, 6, 2), 1), library.layers
    model = library.Sequential(
        [
            layers.Input((6, 6, 2)),
            layers.Conv2D(4, 3, use_bias=False, activation="tanh", name="conv"),
            layers.Flatten(),
            layers.Dense(1, name="y"),
        ]
    )
    model.compile(loss="mse")
    kernel = find_kernels(model)["conv"]
    whole = kernel.values * 1e-2
    kernel.variable.assign(whole)
    loss = lambda: float(np.mean((model(x).numpy() - y) ** 2, dtype=np.float64))  # noqa: E731
    changes = []
    for channel in range(4):
        without = whole.copy()
        without[..., channel] = 0
        base = loss()
        kernel.variable.assign(without)
        changes.append(loss() - base)
        kernel.variable.assign(whole)
    plan = PruningPlan(criterion="taylor", technique="filter", batch_size=ROWS)
    kernels = find_kernels(model)
    found = importance.score(
        kernels,
        ["conv"],
        plan,
        criteria.lookup(plan.criterion),
        KerasStatistics(model, data_of(x, y), kernels, plan.sample_rows, plan.batch_size),
    )["conv"]
    np.testing.assert_allclose(np.sqrt(found), np.abs(changes), atol=0.1 * np.abs(changes).max())


@BOTH
def test_taylor_foretells_the_loss_without_a_channel_that_is_normalised(library):
    """Whose shift goes too: weights of zero alone would leave it."""
    (x, y), layers = rows((6, 6, 2), 1), library.layers
    image = library.Input((6, 6, 2))
    out = layers.BatchNormalization(name="normalisation")(layers.Conv2D(4, 3, name="conv")(image))
    model = library.Model(image, layers.Dense(1, name="y")(layers.Flatten()(layers.Activation("tanh")(out))))
    model.compile(loss="mse")
    generator, normalisation = np.random.default_rng(0), model.get_layer("normalisation")
    for name in ("gamma", "beta", "moving_mean"):
        getattr(normalisation, name).assign(1e-2 * generator.normal(size=4))
    loss = lambda: float(np.mean((model(x).numpy() - y) ** 2, dtype=np.float64))  # noqa: E731
    base, changes = loss(), []
    for channel in range(4):
        before = [np.array(weight.numpy()) for weight in (normalisation.gamma, normalisation.beta)]
        for weight, values in zip((normalisation.gamma, normalisation.beta), before, strict=True):
            weight.assign(np.where(np.arange(4) == channel, 0, values))
        changes.append(loss() - base)
        for weight, values in zip((normalisation.gamma, normalisation.beta), before, strict=True):
            weight.assign(values)
    plan = PruningPlan(criterion="taylor", technique="filter", batch_size=ROWS)
    kernels = find_kernels(model)
    found = importance.score(
        kernels,
        ["conv"],
        plan,
        criteria.lookup(plan.criterion),
        KerasStatistics(model, data_of(x, y), kernels, plan.sample_rows, plan.batch_size),
    )["conv"]
    np.testing.assert_allclose(np.sqrt(found), np.abs(changes), atol=0.1 * np.abs(changes).max())


@BOTH
def test_activations_are_what_the_next_layer_sees(library):
    (x, y), layers = rows((6, 6, 2), 1), library.layers
    image = library.Input((6, 6, 2))
    conv = layers.Conv2D(3, 3, name="conv")
    normalised = layers.BatchNormalization(name="normalisation")(conv(image))
    seen = layers.ReLU()(normalised)
    branches = layers.Concatenate()([layers.Conv2D(2, 1, name="left")(seen), layers.Conv2D(2, 1, name="right")(seen)])
    model = library.Model(image, layers.Dense(1, name="y")(layers.Flatten()(branches)))
    model.compile(loss="mse")
    model.get_layer("normalisation").gamma.assign([0.5, -1.0, 2.0])
    values = library.Model(image, seen)(x).numpy().reshape(-1, 3)
    found = scored(model, data_of(x, y), "activation_mean")
    np.testing.assert_allclose(found["conv"], values.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(scored(model, data_of(x, y), "apoz")["conv"], (values > 0).mean(axis=0), rtol=1e-4)
    assert set(found) == {"conv", "left", "right", "y"}
    scales = scored(model, None, "bn_scale")
    np.testing.assert_array_equal(scales.pop("conv"), [0.5, 1.0, 2.0])
    assert scales == {}


@BOTH
def test_an_activation_that_another_layer_bypasses_is_not_what_is_seen(library):
    (x, y), layers = rows((4,), 3), library.layers
    entry = library.Input((4,))
    hidden = layers.Dense(3, name="hidden")(entry)
    model = library.Model(entry, layers.Add()([hidden, layers.ReLU()(hidden)]))
    model.compile(loss="mse")
    expected = np.abs(library.Model(entry, hidden)(x).numpy()).mean(axis=0)
    np.testing.assert_allclose(scored(model, data_of(x, y), "activation_mean")["hidden"], expected, rtol=1e-4)


@BOTH
def test_layers_inside_a_nested_model_are_seen(library):
    (x, y), layers = rows((4,), 1), library.layers
    inside = library.Input((5,))
    block = library.Model(inside, layers.ReLU()(layers.Dense(3, name="inner")(inside)), name="block")
    entry = library.Input((4,))
    outer = layers.Dense(5, activation="relu", name="outer")(entry)
    middle = block(outer)
    model = library.Model(entry, layers.Dense(1, name="y")(middle))
    model.compile(loss="mse")
    expected = library.Model(entry, middle)(x).numpy()
    found = scored(model, data_of(x, y), "activation_mean")
    np.testing.assert_allclose(found["block/inner"], expected.mean(axis=0), rtol=1e-4)


@BOTH
def test_a_shared_layer_shows_all_of_its_calls(library):
    layers = library.layers
    left, right = library.Input((4,), name="left"), library.Input((4,), name="right")
    shared = layers.Dense(3, activation="relu", name="shared")
    model = library.Model(
        {"left": left, "right": right}, layers.Dense(1, name="y")(layers.Concatenate()([shared(left), shared(right)]))
    )
    model.compile(loss="mse")
    (x, y), (z, _) = rows((4,), 1), rows((4,), 1, seed=1)
    data = tf.data.Dataset.from_tensor_slices(({"left": x, "right": z}, y)).batch(7)
    weights = find_kernels(model)["shared"].values
    expected = np.maximum(np.concatenate([x, z]) @ weights, 0).mean(axis=0)
    np.testing.assert_allclose(scored(model, data, "activation_mean")["shared"], expected, rtol=1e-4)


@BOTH
def test_a_recurrent_layer_shows_its_units_once_for_each_gate(library):
    (x, y), layers = rows((5, 3), 1), library.layers
    model = library.Sequential([layers.Input((5, 3)), layers.LSTM(4, name="lstm"), layers.Dense(1, name="y")])
    model.compile(loss="mse")
    expected = np.abs(model.get_layer("lstm")(x).numpy()).mean(axis=0)
    found = scored(model, data_of(x, y), "activation_mean")
    np.testing.assert_allclose(found["lstm/lstm_cell/kernel"], np.tile(expected, 4), rtol=1e-4)


@BOTH
def test_a_separable_convolution_shows_its_filters(library):
    (x, y), layers = rows((5, 5, 3), 1), library.layers
    model = library.Sequential(
        [layers.Input((5, 5, 3)), layers.SeparableConv2D(4, 3, name="s"), layers.Flatten(), layers.Dense(1, name="y")]
    )
    model.compile(loss="mse")
    found = scored(model, data_of(x, y), "apoz")
    assert found["s/pointwise_kernel"].shape == (4,)
    assert "s/depthwise_kernel" not in found


@BOTH
def test_an_embedding_has_gradients(library):
    layers = library.layers
    model = library.Sequential(
        [layers.Input((2,)), layers.Embedding(9, 3, name="e"), layers.Flatten(), layers.Dense(1)]
    )
    model.compile(loss="mse")
    x = np.random.default_rng(0).integers(0, 8, (ROWS, 2))
    found = scored(model, data_of(x, np.ones((ROWS, 1), np.float32)), "taylor", "weight")["e"]
    assert found.shape == (9, 3)
    assert (found[8] == 0).all() and (found[:8] > 0).any()


@BOTH
def test_metrics_are_those_of_the_weights_of_now(library):
    (x, y), model = rows((3,), 2), linear(library)
    made = probe(model, data_of(x, y))
    first = made.metrics()
    assert first["mae"] == pytest.approx(np.abs(model(x).numpy() - y).mean(), rel=1e-5)
    find_kernels(model)["y"].variable.assign(np.zeros((3, 2)))
    assert made.metrics()["loss"] == pytest.approx((y**2).mean(), rel=1e-5)


@BOTH
def test_only_the_samples_rows_are_looked_at(library):
    (x, y), model = rows((3,), 2), linear(library)
    made = probe(model, data_of(x, y).repeat(), rows=12)
    assert [len(batch[0]) for batch in made.batches()] == [5, 5, 2]
    assert len(list(made.rows())) == 12
    expected = np.abs(model(x[:12]).numpy() - y[:12]).mean()
    assert made.metrics()["mae"] == pytest.approx(expected, rel=1e-5)


def test_shuffled_data_gives_the_same_rows_each_time():
    x, y = rows((3,), 2)
    made = probe(linear(tf_keras), tf.data.Dataset.from_tensor_slices((x, y)).shuffle(ROWS).batch(4), rows=8)
    first, second = ([batch[0].numpy() for batch in made.batches()] for _ in range(2))
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))


@BOTH
def test_a_model_without_a_loss_is_told(library):
    layers = library.layers
    model = library.Sequential([layers.Input((3,)), layers.Dense(2, name="y")])
    made = probe(model, data_of(*rows((3,), 2)))
    for look in (made.metrics, lambda: made.gradients(next(iter(made.batches())), ["y"])):
        with pytest.raises(ModelError, match=r"without its loss.*Remedy.*compile_fn\(model\)"):
            look()
    assert scored(model, data_of(*rows((3,), 2)), "apoz")["y"].shape == (2,)


def test_data_without_labels_or_rows_is_told():
    x, y = rows((3,), 2)
    made = probe(linear(tf_keras), tf.data.Dataset.from_tensor_slices(x).batch(4))
    with pytest.raises(ModelError, match="needs labels, and the data has none.*Remedy"):
        made.gradients(next(iter(made.batches())), ["y"])
    with pytest.raises(ModelError, match="no rows"):
        scored(linear(tf_keras), data_of(x[:0], y[:0]), "taylor")


@BOTH
def test_a_subclassed_model_has_gradients_but_shows_no_layers(library):
    class Subclassed(library.Model):
        def __init__(self):
            super().__init__()
            self.y = library.layers.Dense(2, name="y")

        def call(self, x):
            return self.y(x)

    model, data = Subclassed(), data_of(*rows((3,), 2))
    model(np.ones((1, 3), np.float32))
    model.compile(loss="mse")
    assert scored(model, data, "taylor")["y"].shape == (2,)
    for criterion in ("apoz", "bn_scale"):
        with pytest.raises(ModelError, match="subclassed.*Remedy"):
            scored(model, data, criterion)


def test_every_criterion_scores_the_small_cnn():
    model = helpers.small_cnn()
    model.compile(loss="sparse_categorical_crossentropy")
    x, y = helpers.images(20)
    for criterion in criteria.NAMES[:-1]:
        found = scored(model, helpers.batches(x / helpers.LARGEST, y), criterion)
        assert found["conv"].shape == (8,)
        assert (found["conv"] >= 0).all()


def test_a_diverged_model_is_told():
    (x, y), model = rows((3,), 2), linear(tf_keras)
    model.get_layer("y").kernel.assign(np.full((3, 2), np.nan, np.float32))
    with pytest.raises(ModelError, match="gradients of 'y' are not finite"):
        scored(model, data_of(x, y), "taylor", "weight")
