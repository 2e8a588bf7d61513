"""One network, converted once per session in each mode that a test needs."""

import functools
from collections.abc import Callable

import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.tflite.conversion import ConversionOptions, to_tflite

from tests.support import helpers


@pytest.fixture(scope="session")
def cnn() -> tf_keras.Model:
    """A network with zeros in every kernel that pruning takes."""
    model = helpers.small_cnn()
    for layer in ("conv", "dense", "probabilities"):
        helpers.zero_smallest(model, layer, 0.6)
    return model


@pytest.fixture(scope="session")
def saved_cnn(cnn, tmp_path_factory) -> str:
    """Path of a SavedModel of `cnn`."""
    spec = tf.TensorSpec([None, *helpers.IMAGE], tf.float32, name="image")
    path = tmp_path_factory.mktemp("cnn") / "model"
    return helpers.save_function(lambda x: {"probabilities": cnn(x)}, [spec], path, weights=cnn.weights)


@pytest.fixture(scope="session")
def images():
    """Rows for calibration."""
    return helpers.images(32)[0] / helpers.LARGEST


@pytest.fixture(scope="session")
def converted(saved_cnn, images) -> Callable[..., bytes]:
    """Function of a mode and its `io` that returns the TFLite model of `cnn`."""

    @functools.cache
    def convert(mode: str, io: str = "float32") -> bytes:
        return to_tflite(saved_cnn, ConversionOptions(mode, io), {"image": images})

    return convert
