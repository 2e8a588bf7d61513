"""What removed units put out with weights of zero moves into the biases of the layers that used it."""

from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from tfx_compression.pruning import unit_constants
from tfx_compression.pruning.dependency_graph import DependencyGraph
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.pruning.surgery import remove

from tests.support import exactness, helpers

both_keras = pytest.mark.parametrize("K", [tf_keras, keras], ids=["keras2", "keras3"])
KEPT = np.array([True, False, True, False])


def zeroed(model, units):
    """Returns the outputs' function of a model whose units have weights of zero, set by hand, by layer name."""
    for name, removed in units.items():
        for weight in model.get_layer(name).weights:
            if "moving" not in weight.name:
                values = np.array(weight.numpy())
                values[..., removed] = 0
                weight.assign(values)
    return model


def convolutions(K, activation, padding="valid"):
    """Returns a residual sum, a concatenation, pooling, a bias-free convolution, Flatten and Dense."""
    layers = K.layers
    image = K.Input((7, 7, 2), name="image")
    x = layers.Conv2D(4, 2, activation=activation, name="stem")(image)
    branch = layers.Conv2D(4, 1, activation=activation, name="branch")(x)
    x = layers.Concatenate()([layers.Add()([x, branch]), layers.MaxPooling2D(3, strides=1, padding="same")(x)])
    x = layers.Conv2D(4, 2, padding=padding, use_bias=False, name="bare")(x)
    x = layers.Activation(activation)(layers.BatchNormalization(name="norm")(x))
    x = layers.SeparableConv2D(4, 2, padding=padding, activation=activation, name="separable")(x)
    x = layers.Flatten()(layers.Conv2DTranspose(2, 1, name="transposed")(x))
    x = layers.Dense(4, activation=activation, name="hidden")(x)
    model = K.Model(image, layers.Dense(3, name="out")(x), name="network")
    return exactness.with_random_weights(model, seed=3)


@pytest.mark.slow
@both_keras
@pytest.mark.parametrize("activation", ["sigmoid", "softplus", "exponential", "hard_sigmoid"])
def test_removal_equals_the_zeroed_network_where_the_activation_of_zero_is_not_zero(K, activation):
    model = convolutions(K, activation)
    for weight in model.weights:
        weight.assign(0.3 * weight.numpy())  # keeps exponentials moderate
    dependencies = DependencyGraph(model)
    kept = {"stem": KEPT, "bare": ~KEPT, "separable": KEPT, "hidden": ~KEPT}
    before = model.get_weights()

    folding = unit_constants.fold(dependencies, kept)
    pruned = remove(dependencies, kept, folding.values)

    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))
    assert not folding.inexact
    for name, each in {"stem": KEPT, "branch": KEPT, "bare": ~KEPT, "norm": ~KEPT, "hidden": ~KEPT}.items():
        zeroed(model, {name: ~each})
    _, pointwise, bias = model.get_layer("separable").weights
    for weight in (pointwise, bias):
        weight.assign(weight.numpy() * KEPT)
    inputs = exactness.random_inputs(model)
    exactness.assert_equal(exactness.outputs(model, inputs), exactness.outputs(pruned, inputs))


@both_keras
def test_a_zero_padded_convolution_gets_the_average_and_the_record_says_so(K):
    model = exactness.with_random_weights(
        K.Sequential(
            [
                K.Input((5, 5, 1)),
                K.layers.Conv2D(4, 1, activation="sigmoid", name="first"),
                K.layers.Conv2D(2, 3, padding="same", name="second"),
            ]
        )
    )
    kernel, bias = (weight.numpy() for weight in model.get_layer("second").weights)

    pruned = prune(model, PruningPlan(technique="filter", protect=(), sparsity=0.5))

    removed = [unit for unit in range(4) if unit not in pruned.record.channels["first"]]
    summed = kernel[:, :, removed].sum(axis=2) * 0.5
    inside = np.array([4, 5, 4]) / 5  # share of the positions at which each tap of the window is inside the image
    expected = bias + np.einsum("i,j,ijc->c", inside, inside, summed)
    np.testing.assert_allclose(pruned.model.get_layer("second").weights[1].numpy(), expected, rtol=1e-5)
    (group,) = [group for group in pruned.record.groups if group.name == "first"]
    assert "'second'" in group.inexact


def sequences(K, layer):
    steps = K.Input((5, 3), name="steps")
    x = K.layers.Dense(4, activation="sigmoid", name="hidden")(steps)
    x = K.layers.GlobalAveragePooling1D()(layer(x))
    return exactness.with_random_weights(K.Model(steps, K.layers.Dense(2, name="out")(x)))


CONSUMERS = {
    "lstm": lambda K: K.layers.LSTM(3, return_sequences=True),
    "gru": lambda K: K.layers.GRU(3, return_sequences=True),
    "bidirectional": lambda K: K.layers.Bidirectional(K.layers.GRU(3, reset_after=False, return_sequences=True)),
    "einsum": lambda K: K.layers.EinsumDense("abc,cd->abd", output_shape=(None, 3), bias_axes="d"),
    "time_distributed": lambda K: K.layers.TimeDistributed(K.layers.Dense(3)),
    "convolution": lambda K: K.layers.Conv1D(3, 2, dilation_rate=2),
    "transposed": lambda K: K.layers.Conv1DTranspose(3, 1),
}


def require_exact_removal(model: Any) -> unit_constants.Folding:
    """Requires that removal from the layer `hidden` equals zero weights there, which it sets; returns the folding."""
    dependencies = DependencyGraph(model)
    folding = unit_constants.fold(dependencies, {"hidden": KEPT})
    pruned = remove(dependencies, {"hidden": KEPT}, folding.values)
    zeroed(model, {"hidden": ~KEPT})
    inputs = exactness.random_inputs(model)
    exactness.assert_equal(exactness.outputs(model, inputs), exactness.outputs(pruned, inputs))
    return folding


@pytest.mark.slow
@both_keras
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_every_layer_with_a_kernel_takes_the_constants_of_its_inputs(K, consumer):
    model = sequences(K, CONSUMERS[consumer](K))
    folding = require_exact_removal(model)
    assert not folding.inexact


@both_keras
def test_attention_takes_the_constants_in_query_key_and_value(K):
    one, other = K.Input((5, 3), name="one"), K.Input((6, 3), name="other")
    hidden = K.layers.Dense(4, activation="sigmoid", name="hidden")
    attention = K.layers.MultiHeadAttention(2, 3, output_shape=4, name="attention")
    x = attention(hidden(one), hidden(other))
    model = exactness.with_random_weights(K.Model([one, other], K.layers.Dense(2, name="out")(x)))
    require_exact_removal(model)


@both_keras
def test_data_folds_the_mean_of_what_the_units_put_out(K):
    x = K.Input((3,), name="x")
    x_hidden = K.layers.Dense(4, activation="sigmoid", name="hidden")(x)
    model = exactness.with_random_weights(K.Model(x, K.layers.Dense(2, name="out")(x_hidden)))
    rows = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    (kernel, bias), (out, out_bias) = (
        [weight.numpy() for weight in model.get_layer(name).weights] for name in ("hidden", "out")
    )

    pruned = prune(
        model,
        PruningPlan(technique="neuron", protect=(), sparsity=0.5, batch_size=8),
        helpers.batches(rows, np.zeros(20)),
    )

    removed = [unit for unit in range(4) if unit not in pruned.record.channels["hidden"]]
    means = (1 / (1 + np.exp(-(rows @ kernel + bias)))).mean(axis=0)
    expected = out_bias + means[removed] @ out[removed]
    np.testing.assert_allclose(pruned.model.get_layer("out").weights[1].numpy(), expected, rtol=1e-5)
    assert any("means on the data" in note for note in pruned.record.notes)


@both_keras
def test_the_states_of_stateful_layers_are_left_as_they_are(K):
    steps = K.Input(batch_shape=(2, 3, 2))
    lstm = K.layers.LSTM(3, stateful=True, name="lstm")
    model = K.Model(steps, K.layers.Dense(1)(K.layers.Dense(4, activation="sigmoid", name="hidden")(lstm(steps))))
    model(np.ones((2, 3, 2), np.float32))
    before = [state.numpy() for state in lstm.states]
    prune(model, PruningPlan(technique="neuron", protect=(), sparsity=0.5))
    np.testing.assert_array_equal(before, [state.numpy() for state in lstm.states])


def test_units_that_are_zero_at_zero_leave_every_bias_as_it_is():
    model = convolutions(tf_keras, "relu")
    dependencies = DependencyGraph(model)
    folding = unit_constants.fold(dependencies, {"stem": KEPT, "hidden": KEPT})
    assert folding == unit_constants.Folding()


def test_a_layer_without_a_bias_loses_the_constants_and_the_record_says_so():
    x = tf_keras.Input((3,))
    hidden = tf_keras.layers.Dense(4, activation="sigmoid", name="hidden")(x)
    model = tf_keras.Model(x, tf_keras.layers.Dense(2, use_bias=False, name="out")(hidden))
    pruned = prune(model, PruningPlan(technique="neuron", protect=(), sparsity=0.5))
    assert "'out' has no bias" in pruned.record.groups[0].inexact
    assert any("lost to out" in note for note in pruned.record.notes)


@pytest.mark.parametrize("groups", [1, 2])
def test_normalization_over_all_channels_is_noted_as_inexact(groups):
    x = keras.Input((4, 4, 2))
    hidden = keras.layers.Conv2D(4, 1, name="hidden")(x)
    normalized = keras.layers.GroupNormalization(groups, name="norm")(hidden)
    model = keras.Model(x, keras.layers.Dense(2, name="out")(keras.layers.GlobalAveragePooling2D()(normalized)))
    pruned = prune(model, PruningPlan(technique="filter", protect=(), sparsity=0.5))
    assert ("'norm' computes its statistics" in pruned.record.groups[0].inexact) == (groups == 1)


def assert_exact(model, kept, also):
    """Asserts that removal equals units with weights of zero (in `also`, too), and returns the folding."""
    dependencies = DependencyGraph(model)
    folding = unit_constants.fold(dependencies, kept)
    pruned = remove(dependencies, kept, folding.values)
    zeroed(model, {name: ~units for name, units in kept.items()} | also)
    inputs = exactness.random_inputs(model)
    exactness.assert_equal(exactness.outputs(model, inputs), exactness.outputs(pruned, inputs))
    return folding


@both_keras
@pytest.mark.parametrize("center", [True, False])
def test_behind_a_normalization_without_a_scale_units_put_out_a_constant(K, center):
    x = K.Input((4, 4, 2))
    hidden = K.layers.Conv2D(4, 2, use_bias=False, name="hidden")(x)
    normalized = K.layers.ReLU()(K.layers.BatchNormalization(scale=False, center=center, name="norm")(hidden))
    model = K.Model(x, K.layers.Conv2D(2, 2, name="out")(normalized))
    exactness.with_random_weights(model).get_layer("norm").moving_mean.assign([-1.0, -2.0, 0.5, -0.5])
    assert not assert_exact(model, {"hidden": KEPT}, also={"norm": ~KEPT}).inexact


@both_keras
def test_a_normalization_along_another_axis_takes_no_constants(K):
    x = K.Input((4, 3))
    hidden = K.layers.Dense(4, activation="sigmoid", name="hidden")(x)
    bare = K.layers.Dense(4, use_bias=False, name="bare")(hidden)
    model = K.Model(x, K.layers.Dense(2)(K.layers.Flatten()(K.layers.BatchNormalization(axis=1)(bare))))
    folding = unit_constants.fold(DependencyGraph(model), {"hidden": KEPT})
    assert not folding.values
    assert "'bare' has no bias" in folding.inexact["hidden"]


@both_keras
def test_a_shared_layer_gets_the_average_over_its_calls_and_the_record_says_so(K):
    x = K.Input((3,))
    constant = K.layers.Dense(4, activation="sigmoid", name="constant")(x)
    shared = K.layers.Dense(2, name="shared")
    outputs = [shared(constant), shared(K.layers.Dense(4, activation="relu", name="zero")(x))]
    model = exactness.with_random_weights(K.Model(x, K.layers.Dense(1)(K.layers.Add()(outputs))))
    kernel, bias = (weight.numpy() for weight in model.get_layer("shared").weights)
    dependencies = DependencyGraph(model)
    (coupled,) = [name for name, group in dependencies.groups.items() if "constant" in group.layers]
    folding = unit_constants.fold(dependencies, {coupled: KEPT})
    (value,) = folding.values.values()
    np.testing.assert_allclose(value, bias + (0.5 * kernel[~KEPT].sum(axis=0) + 0) / 2, rtol=1e-5)
    assert "calls" in folding.inexact[coupled]


@both_keras
@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_initial_state_reaches_the_recurrent_kernel_averaged_over_the_steps(K, bidirectional):
    steps = K.Input((3, 2))
    state = K.layers.Dense(4, activation="sigmoid", name="state")(K.layers.Flatten()(steps))
    layer = K.layers.SimpleRNN(4, name="rnn")
    layer = K.layers.Bidirectional(layer, name="rnn") if bidirectional else layer
    recurrent = layer(steps, initial_state=[state, state] if bidirectional else state)
    model = exactness.with_random_weights(K.Model(steps, K.layers.Dense(2)(recurrent)))
    dependencies = DependencyGraph(model)
    layer = model.get_layer("rnn")
    cells = [each.cell for each in ((layer.forward_layer, layer.backward_layer) if bidirectional else (layer,))]
    (coupled,) = [name for name, group in dependencies.groups.items() if "state" in group.layers]
    folding = unit_constants.fold(dependencies, {coupled: KEPT})
    for cell in cells:
        expected = cell.bias.numpy() + 0.5 / 3 * cell.recurrent_kernel.numpy()[~KEPT].sum(axis=0)  # at the first step
        np.testing.assert_allclose(folding.values[id(cell.bias)], expected, rtol=1e-5)
    assert folding.inexact.keys() == {coupled}


@both_keras
def test_constants_that_are_not_finite_are_lost_and_the_record_says_so(K):
    x = K.Input((3,))
    hidden = K.layers.Dense(4, name="hidden")(x) / K.layers.Dense(4, name="divisor")(x)
    model = K.Model(x, K.layers.Dense(2, name="out")(hidden))
    pruned = prune(model, PruningPlan(technique="neuron", protect=(), sparsity=0.5))
    assert all(np.isfinite(weight).all() for weight in pruned.model.get_weights())
    assert "'out' gets, are not finite" in pruned.record.groups[0].inexact
    assert any("lost to out" in note for note in pruned.record.notes)


@pytest.mark.slow
def test_repeated_pruning_with_data_logs_no_warning(caplog):
    for _ in range(6):
        x = tf_keras.Input((3,))
        hidden = tf_keras.layers.BatchNormalization()(tf_keras.layers.Dense(4, activation="sigmoid")(x))
        model = tf_keras.Model(x, tf_keras.layers.Dense(2)(hidden))
        rows = np.ones((64, 3), np.float32)
        plan = PruningPlan(technique="neuron", protect=(), sparsity=0.5)
        prune(model, plan, helpers.batches(rows, np.zeros(64)))
    assert "retracing" not in caplog.text
