"""Models that the tests of the quantizer share; each is trained and converted once."""

import numpy as np
import pytest
import tf_keras
from tfx_compression.tflite_quantizer.calibration import measure_ranges
from tfx_compression.tflite_quantizer.config import Calibration

from tests.support import helpers

TRAINED_ROWS = 400


@pytest.fixture(scope="session")
def pictures() -> dict[str, np.ndarray]:
    """60 images in 0..1, by input name."""
    return {"image": helpers.images(60)[0] / helpers.LARGEST}


@pytest.fixture(scope="session")
def trained_cnn() -> tf_keras.Model:
    """A network that tells the classes of `helpers.images` apart."""
    images, labels = helpers.images(TRAINED_ROWS)
    model = helpers.small_cnn()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images / helpers.LARGEST, labels, 32, epochs=4, verbose=0)
    return model


@pytest.fixture(scope="session")
def saved_cnn(trained_cnn, tmp_path_factory) -> str:
    """The path of the trained network with a signature that takes serialized tf.Examples of raw images."""
    path = tmp_path_factory.mktemp("trainer") / "Format-Serving"
    return helpers.save_with_examples_signature(trained_cnn, path)


@pytest.fixture(scope="session")
def float_cnn(trained_cnn) -> bytes:
    """The trained network as a float32 TFLite model, by TensorFlow's own converter."""
    return helpers.to_tflite(trained_cnn, "float32")


@pytest.fixture(scope="session")
def int8_cnn(trained_cnn, pictures) -> bytes:
    """The trained network as an int8 TFLite model, by TensorFlow's own converter."""
    return helpers.to_tflite(trained_cnn, "int8", pictures["image"])


@pytest.fixture(scope="session")
def cnn_ranges(float_cnn, pictures) -> dict[str, tuple[float, float]]:
    """Ranges of the float model's tensors."""
    return measure_ranges(float_cnn, pictures, Calibration()).tensors
