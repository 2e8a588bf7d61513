"""Detection of probabilities, logits and values by last layer, loss and configuration."""

import keras
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.sparsity_fine_tuner.config import Distillation
from tfx_compression.sparsity_fine_tuner.output_forms import output_forms

from tests.support.distillation_nets import LIBRARIES, net, signature, two_outputs


def endings(library):
    """Returns functions that end a model, with the form of its outputs if there is no loss."""
    layers = library.layers
    soft = library.activations.softmax if library is keras else tf.nn.softmax
    inner = library.Sequential([library.Input((5,)), layers.Dense(3), layers.Softmax()])
    return {
        "a Softmax layer": (lambda x: layers.Softmax()(layers.Dense(3)(x)), "softmax probabilities"),
        "an Activation": (lambda x: layers.Activation("sigmoid")(layers.Dense(3)(x)), "sigmoid probabilities"),
        "a function": (lambda x: soft(layers.Dense(3)(x)), "softmax probabilities"),
        "another dtype": (
            lambda x: layers.Activation("linear")(layers.Dense(3, "softmax")(x)),
            "softmax probabilities",
        ),
        "a model": (inner, "softmax probabilities"),
        "log_softmax": (layers.Dense(3, activation="log_softmax"), "softmax logits"),
        "linear": (layers.Dense(3), "values"),
        "relu": (layers.Dense(3, activation="relu"), "values"),
    }


@LIBRARIES
@pytest.mark.parametrize("ending", endings(tf_keras))
def test_form_by_last_layer(library, ending):
    last, form = endings(library)[ending]
    x = library.Input((5,))
    model = model_handle.wrap(library.Model(x, last(x)))
    assert output_forms(Distillation(), model, model.network) == [form]


@LIBRARIES
def test_form_by_loss(library):
    losses = library.losses
    cases_by_form = {
        "values": ["mse", losses.Huber(), lambda labels, predicted: predicted, "categorical_crossentropy"],
        "softmax logits": [losses.CategoricalCrossentropy(from_logits=True)],
        "sigmoid logits": [
            losses.BinaryCrossentropy(from_logits=True),
            losses.BinaryFocalCrossentropy(from_logits=True),
        ],
    }
    for form, cases in cases_by_form.items():
        for loss in cases:
            model = model_handle.wrap(net(library, "linear", loss))
            assert output_forms(Distillation(), model, model.network) == [form], loss


@pytest.mark.parametrize(
    ("loss", "form"),
    [("binary_crossentropy", "sigmoid probabilities"), ("mse", "values"), ("bce", "sigmoid probabilities")],
)
def test_loss_decides_without_an_activation(loss, form):
    x = tf_keras.Input((4,))
    model = tf_keras.Model(x, tf_keras.layers.Reshape((2, 2))(tf_keras.layers.Dense(4, activation="sigmoid")(x)))
    model.compile("sgd", loss)
    model = model_handle.wrap(model)
    assert output_forms(Distillation(), model, model.network) == [form]


@pytest.mark.parametrize(
    ("units", "given", "form"),
    [
        (1, "probabilities", "sigmoid probabilities"),
        (3, "probabilities", "softmax probabilities"),
        (1, "logits", "sigmoid logits"),
        (3, "logits", "softmax logits"),
        (1, "values", "values"),
    ],
)
def test_configured_outputs_take_precedence(units, given, form, tmp_path):
    layered = model_handle.wrap(net(activation="linear", units=units))
    saved = signature(net(activation="linear", units=units), tmp_path / "saved")
    assert output_forms(Distillation(outputs=given), layered, layered.network) == [form]
    assert output_forms(Distillation(outputs=given), saved, None) == [form]


@LIBRARIES
def test_losses_of_several_outputs_are_distinguished(library):
    logits = library.losses.BinaryCrossentropy(from_logits=True)
    for loss in ({"p": "categorical_crossentropy", "v": logits}, ["categorical_crossentropy", logits]):
        model = model_handle.wrap(two_outputs(library, "list", loss=loss))
        assert output_forms(Distillation(), model, model.network) == ["softmax probabilities", "sigmoid logits"]
