"""Statistics of Keras 2 and Keras 3 models, compared with loops over rows and analytic gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.errors import DataError, ModelError
from tfx_compression.pruning import criteria, importance
from tfx_compression.pruning.keras_statistics import KerasStatistics
from tfx_compression.pruning.plan import PruningPlan

from tests.support import helpers
from tests.support.errors import raises

BOTH = pytest.mark.parametrize("library", [tf_keras, keras], ids=["keras2", "keras3"])
ROWS = 24


@pytest.fixture(autouse=True)
def seeded():
    tf_keras.utils.set_random_seed(0)
    keras.utils.set_random_seed(0)


def statistics(model, data, rows=1024, batch_size=5):
    return KerasStatistics(model, data, model_handle.wrap(model).kernels, rows, batch_size)


def rows(shape, outputs, seed=0):
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(ROWS, *shape)).astype(np.float32),
        generator.normal(size=(ROWS, outputs)).astype(np.float32),
    )


def data_of(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(7)


def scores(model, data, criterion, technique="filter", batch_size=5):
    plan, kernels = PruningPlan(criterion=criterion, technique=technique), model_handle.wrap(model).kernels
    measured = KerasStatistics(model, data, kernels, plan.sample_rows, batch_size)
    return importance.score(kernels, list(kernels), plan, criteria.lookup(criterion), measured)


def linear(library, units=2):
    model = library.Sequential([library.layers.Input((3,)), library.layers.Dense(units, use_bias=False, name="y")])
    model.compile(loss="mse", metrics=["mae"])
    return model


@pytest.mark.slow
@BOTH
def test_fisher_of_a_linear_model_equals_the_analytic_value(library):
    (x, y), model = rows((3,), 2), linear(library)
    w = model_handle.wrap(model).kernels["y"].values
    gradients = np.einsum("ni,no->nio", x, x @ w - y)  # of the mean of (xw - y)^2 over two outputs, by row
    expected = 0.5 * w**2 * (gradients**2).mean(axis=0)
    np.testing.assert_allclose(scores(model, data_of(x, y), "fisher", "weight")["y"], expected, rtol=1e-4)
    expected = 0.5 * ((gradients * w).sum(axis=1) ** 2).mean(axis=0)
    np.testing.assert_allclose(scores(model, data_of(x, y), "fisher")["y"], expected, rtol=1e-4)


@BOTH
def test_fisher_of_a_logistic_model_equals_the_analytic_value(library):
    (x, y), layers = rows((3,), 1), library.layers
    model = library.Sequential([layers.Input((3,)), layers.Dense(1, activation="sigmoid", name="y")])
    model.compile(loss="binary_crossentropy")
    labels = (y > 0).astype(np.float32)
    w = model_handle.wrap(model).kernels["y"].values
    residuals = 1 / (1 + np.exp(-x @ w)) - labels
    expected = 0.5 * w**2 * np.square(x * residuals).mean(axis=0)[:, None]
    np.testing.assert_allclose(scores(model, data_of(x, labels), "fisher", "weight")["y"], expected, rtol=1e-3)


@BOTH
def test_gradients_use_sample_weights(library):
    (x, y), model = rows((3,), 2), linear(library)
    weights = np.arange(ROWS, dtype=np.float32)
    w = model_handle.wrap(model).kernels["y"].values
    measured = statistics(model, data_of(x, y, weights), batch_size=ROWS)
    (batch,) = measured.batches()
    expected = (np.einsum("ni,no->nio", x, x @ w - y) * weights[:, None, None]).mean(axis=0)
    np.testing.assert_allclose(measured.gradients(batch, ["y"])["y"], expected, rtol=1e-4)


@BOTH
def test_taylor_predicts_the_loss_without_a_channel(library):
    """The weights are small, so that the first-order change is nearly the whole change."""
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
    kernel = model_handle.wrap(model).kernels["conv"]
    values = kernel.values * 1e-2
    kernel.variable.assign(values)
    loss = lambda: float(np.mean((model(x).numpy() - y) ** 2, dtype=np.float64))  # noqa: E731
    changes = []
    for channel in range(4):
        without = values.copy()
        without[..., channel] = 0
        base = loss()
        kernel.variable.assign(without)
        changes.append(loss() - base)
        kernel.variable.assign(values)
    actual = scores(model, data_of(x, y), "taylor", batch_size=ROWS)["conv"]
    np.testing.assert_allclose(np.sqrt(actual), np.abs(changes), atol=0.1 * np.abs(changes).max())


@BOTH
def test_taylor_predicts_the_loss_without_a_normalized_channel(library):
    """The shift of the normalization is removed too; zero weights alone would leave it."""
    (x, y), layers = rows((6, 6, 2), 1), library.layers
    image = library.Input((6, 6, 2))
    out = layers.BatchNormalization(name="normalization")(layers.Conv2D(4, 3, name="conv")(image))
    model = library.Model(image, layers.Dense(1, name="y")(layers.Flatten()(layers.Activation("tanh")(out))))
    model.compile(loss="mse")
    generator, normalization = np.random.default_rng(0), model.get_layer("normalization")
    for name in ("gamma", "beta", "moving_mean"):
        getattr(normalization, name).assign(1e-2 * generator.normal(size=4))
    loss = lambda: float(np.mean((model(x).numpy() - y) ** 2, dtype=np.float64))  # noqa: E731
    base, changes = loss(), []
    for channel in range(4):
        before = [np.array(weight.numpy()) for weight in (normalization.gamma, normalization.beta)]
        for weight, values in zip((normalization.gamma, normalization.beta), before, strict=True):
            weight.assign(np.where(np.arange(4) == channel, 0, values))
        changes.append(loss() - base)
        for weight, values in zip((normalization.gamma, normalization.beta), before, strict=True):
            weight.assign(values)
    actual = scores(model, data_of(x, y), "taylor", batch_size=ROWS)["conv"]
    np.testing.assert_allclose(np.sqrt(actual), np.abs(changes), atol=0.1 * np.abs(changes).max())


@BOTH
def test_activations_are_the_inputs_of_the_next_layer(library):
    (x, y), layers = rows((6, 6, 2), 1), library.layers
    image = library.Input((6, 6, 2))
    conv = layers.Conv2D(3, 3, name="conv")
    normalized = layers.BatchNormalization(name="normalization")(conv(image))
    activation = layers.ReLU()(normalized)
    branches = layers.Concatenate()([layers.Conv2D(2, 1, name=name)(activation) for name in ("left", "right")])
    model = library.Model(image, layers.Dense(1, name="y")(layers.Flatten()(branches)))
    model.compile(loss="mse")
    model.get_layer("normalization").gamma.assign([0.5, -1.0, 2.0])
    values = library.Model(image, activation)(x).numpy().reshape(-1, 3)
    actual = scores(model, data_of(x, y), "activation_mean")
    np.testing.assert_allclose(actual["conv"], values.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(scores(model, data_of(x, y), "apoz")["conv"], (values > 0).mean(axis=0), rtol=1e-4)
    assert set(actual) == {"conv", "left", "right", "y"}
    scales = scores(model, None, "bn_scale")
    np.testing.assert_array_equal(scales.pop("conv"), [0.5, 1.0, 2.0])
    assert scales == {}


@BOTH
def test_an_activation_that_another_layer_bypasses_is_ignored(library):
    (x, y), layers = rows((4,), 3), library.layers
    entry = library.Input((4,))
    hidden = layers.Dense(3, name="hidden")(entry)
    model = library.Model(entry, layers.Add()([hidden, layers.ReLU()(hidden)]))
    model.compile(loss="mse")
    expected = np.abs(library.Model(entry, hidden)(x).numpy()).mean(axis=0)
    np.testing.assert_allclose(scores(model, data_of(x, y), "activation_mean")["hidden"], expected, rtol=1e-4)


@BOTH
def test_layers_inside_a_nested_model_have_activations(library):
    (x, y), layers = rows((4,), 1), library.layers
    inside = library.Input((5,))
    block = library.Model(inside, layers.ReLU()(layers.Dense(3, name="inner")(inside)), name="block")
    entry = library.Input((4,))
    outer = layers.Dense(5, activation="relu", name="outer")(entry)
    middle = block(outer)
    model = library.Model(entry, layers.Dense(1, name="y")(middle))
    model.compile(loss="mse")
    expected = library.Model(entry, middle)(x).numpy()
    actual = scores(model, data_of(x, y), "activation_mean")
    np.testing.assert_allclose(actual["block/inner"], expected.mean(axis=0), rtol=1e-4)


@BOTH
def test_the_activations_of_all_calls_of_a_shared_layer_are_joined(library):
    layers = library.layers
    left, right = library.Input((4,), name="left"), library.Input((4,), name="right")
    shared = layers.Dense(3, activation="relu", name="shared")
    model = library.Model(
        {"left": left, "right": right}, layers.Dense(1, name="y")(layers.Concatenate()([shared(left), shared(right)]))
    )
    model.compile(loss="mse")
    (x, y), (z, _) = rows((4,), 1), rows((4,), 1, seed=1)
    data = tf.data.Dataset.from_tensor_slices(({"left": x, "right": z}, y)).batch(7)
    weights = model_handle.wrap(model).kernels["shared"].values
    expected = np.maximum(np.concatenate([x, z]) @ weights, 0).mean(axis=0)
    np.testing.assert_allclose(scores(model, data, "activation_mean")["shared"], expected, rtol=1e-4)


@pytest.mark.slow
@BOTH
def test_the_gates_of_a_recurrent_layer_are_those_of_its_kernel_and_all_rows_of_its_bias(library):
    (x, y), layers = rows((4, 3), 1), library.layers
    model = library.Sequential([layers.Input((4, 3)), layers.GRU(2, name="gru"), layers.Dense(1, name="y")])
    model.compile(loss="mse")
    cell = model.get_layer("gru").cell
    cell.bias.assign(np.random.default_rng(1).normal(size=(2, 6)))
    kernel, bias = cell.kernel.numpy(), cell.bias.numpy()

    def loss(column, factor):
        scale = np.where(np.arange(6) == column, factor, 1.0)
        cell.kernel.assign(kernel * scale)
        cell.bias.assign(bias * scale)
        return float(np.square(np.asarray(model(x)) - y).mean())

    expected = [(loss(column, 1.01) - loss(column, 0.99)) / 0.02 for column in range(6)]
    loss(0, 1.0)
    name = "gru/gru_cell/kernel"
    measured = statistics(model, data_of(x, y), batch_size=ROWS)
    (batch,) = measured.batches()
    np.testing.assert_allclose(measured.gates(batch, [name])[name], expected, rtol=0.02, atol=1e-4)
    assert scores(model, data_of(x, y), "taylor", "neuron")[name].shape == (6,)


@BOTH
def test_the_units_of_a_recurrent_layer_are_repeated_for_each_gate(library):
    (x, y), layers = rows((5, 3), 1), library.layers
    model = library.Sequential([layers.Input((5, 3)), layers.LSTM(4, name="lstm"), layers.Dense(1, name="y")])
    model.compile(loss="mse")
    expected = np.abs(model.get_layer("lstm")(x).numpy()).mean(axis=0)
    actual = scores(model, data_of(x, y), "activation_mean")
    np.testing.assert_allclose(actual["lstm/lstm_cell/kernel"], np.tile(expected, 4), rtol=1e-4)


@BOTH
def test_the_activations_of_a_separable_convolution_are_its_filters(library):
    (x, y), layers = rows((5, 5, 3), 1), library.layers
    model = library.Sequential(
        [layers.Input((5, 5, 3)), layers.SeparableConv2D(4, 3, name="s"), layers.Flatten(), layers.Dense(1, name="y")]
    )
    model.compile(loss="mse")
    actual = scores(model, data_of(x, y), "apoz")
    assert actual["s/pointwise_kernel"].shape == (4,)
    assert "s/depthwise_kernel" not in actual


@BOTH
def test_an_embedding_has_gradients(library):
    layers = library.layers
    model = library.Sequential(
        [layers.Input((2,)), layers.Embedding(9, 3, name="e"), layers.Flatten(), layers.Dense(1)]
    )
    model.compile(loss="mse")
    x = np.random.default_rng(0).integers(0, 8, (ROWS, 2))
    actual = scores(model, data_of(x, np.ones((ROWS, 1), np.float32)), "taylor", "weight")["e"]
    assert actual.shape == (9, 3)
    assert (actual[8] == 0).all() and (actual[:8] > 0).any()


@BOTH
def test_metrics_use_the_current_weights(library):
    (x, y), model = rows((3,), 2), linear(library)
    measured = statistics(model, data_of(x, y))
    first = measured.metrics()
    assert first["mae"] == pytest.approx(np.abs(model(x).numpy() - y).mean(), rel=1e-5)
    model_handle.wrap(model).kernels["y"].variable.assign(np.zeros((3, 2)))
    assert measured.metrics()["loss"] == pytest.approx((y**2).mean(), rel=1e-5)


@BOTH
def test_only_the_rows_of_the_sample_are_used(library):
    (x, y), model = rows((3,), 2), linear(library)
    measured = statistics(model, data_of(x, y).repeat(), rows=12)
    assert [len(batch[0]) for batch in measured.batches()] == [5, 5, 2]
    assert len(list(measured.rows())) == 12
    expected = np.abs(model(x[:12]).numpy() - y[:12]).mean()
    assert measured.metrics()["mae"] == pytest.approx(expected, rel=1e-5)


def test_shuffled_data_gives_the_same_rows_each_time():
    x, y = rows((3,), 2)
    measured = statistics(linear(tf_keras), tf.data.Dataset.from_tensor_slices((x, y)).shuffle(ROWS).batch(4), rows=8)
    first, second = ([batch[0].numpy() for batch in measured.batches()] for _ in range(2))
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))


@BOTH
def test_gradients_and_metrics_require_a_loss(library):
    layers = library.layers
    model = library.Sequential([layers.Input((3,)), layers.Dense(2, name="y")])
    measured = statistics(model, data_of(*rows((3,), 2)))
    for measure in (measured.metrics, lambda: measured.gradients(next(iter(measured.batches())), ["y"])):
        with raises(ModelError, code="model-without-loss"):
            measure()
    assert scores(model, data_of(*rows((3,), 2)), "apoz")["y"].shape == (2,)


def test_data_without_labels_or_rows_is_rejected():
    x, y = rows((3,), 2)
    measured = statistics(linear(tf_keras), tf.data.Dataset.from_tensor_slices(x).batch(4))
    with raises(DataError, field="PruningPlan.label_key", code="no-labels"):
        measured.gradients(next(iter(measured.batches())), ["y"])
    with raises(DataError, code="no-rows"):
        scores(linear(tf_keras), data_of(x[:0], y[:0]), "taylor")


@BOTH
def test_a_subclassed_model_has_gradients_but_no_activations(library):
    class Subclassed(library.Model):
        def __init__(self):
            super().__init__()
            self.y = library.layers.Dense(2, name="y")

        def call(self, x):
            return self.y(x)

    model, data = Subclassed(), data_of(*rows((3,), 2))
    model(np.ones((1, 3), np.float32))
    model.compile(loss="mse")
    assert scores(model, data, "taylor")["y"].shape == (2,)
    for criterion in ("apoz", "bn_scale"):
        with raises(ModelError, code="no-layer-graph"):
            scores(model, data, criterion)


@pytest.mark.slow
def test_every_criterion_scores_the_small_cnn():
    model = helpers.small_cnn()
    model.compile(loss="sparse_categorical_crossentropy")
    x, y = helpers.images(20)
    for criterion in criteria.NAMES[:-1]:
        actual = scores(model, helpers.batches(x / helpers.LARGEST, y), criterion)
        assert actual["conv"].shape == (8,)
        assert (actual["conv"] >= 0).all()


def test_a_diverged_model_is_rejected():
    (x, y), model = rows((3,), 2), linear(tf_keras)
    model.get_layer("y").kernel.assign(np.full((3, 2), np.nan, np.float32))
    with raises(ModelError, code="not-finite", match="gradients of 'y'"):
        scores(model, data_of(x, y), "taylor", "weight")
