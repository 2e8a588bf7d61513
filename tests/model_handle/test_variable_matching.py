"""Matching a Keras model's weights with the variables of the SavedModel beside it."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression import model_handle
from tfx_compression.errors import ModelError

from tests.support import helpers, kinds
from tests.support.errors import raises


def test_a_keras_file_of_another_model_is_refused_on_saving(tmp_path):
    kinds.keras3_dense().export(str(tmp_path / "model"), verbose=False)
    kinds.keras3_dense(seed=2).save(tmp_path / "model" / "net.keras")
    handle = model_handle.load(str(tmp_path / "model"))
    with raises(ModelError, code="unmatched-weights", match="hidden/kernel"):
        handle.save(str(tmp_path / "pruned"))


@pytest.mark.parametrize("named", [True, False])
def test_equal_weights_are_matched_by_name_or_refused_once_they_differ(tmp_path, named):
    """Biases start as zeros, so they are equal. A Trainer's SavedModel may use any names."""
    model = kinds.keras3_dense(units=2)
    names = [weight.path if named else None for weight in model.weights]
    copies = [tf.Variable(weight.numpy(), name=name) for weight, name in zip(model.weights, names, strict=True)]
    kernel, bias, last, offset = copies

    def serve(x):
        return {"y": tf.nn.relu(x @ kernel + bias) @ last + offset}

    specs = [tf.TensorSpec([None, 4], tf.float32, name="x")]
    helpers.save_function(serve, specs, tmp_path / "model", copies=copies)
    model.save(tmp_path / "model" / "net.keras")
    handle = model_handle.load(str(tmp_path / "model"))
    handle.save(str(tmp_path / "unchanged"))
    handle.model.get_layer("hidden").bias.assign([1.0, 2.0])
    if named:
        handle.save(str(tmp_path / "changed"))
        x, _ = helpers.points(3)
        np.testing.assert_allclose(helpers.answers(str(tmp_path / "changed"), x=x)["y"], handle.network(x), atol=1e-6)
    else:
        with raises(ModelError, code="ambiguous-weights", match="'hidden/bias' and 'y/bias'"):
            handle.save(str(tmp_path / "changed"))
