"""Loading and saving Keras 3 models."""

import keras
import numpy as np
import pytest
import tf_keras
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import keras3

from tests.support import helpers, kinds
from tests.support.errors import raises


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("library", [tf_keras, keras])
def test_a_file_tells_which_keras_wrote_it(tmp_path, library, ending):
    model = helpers.small_dense() if library is tf_keras else kinds.keras3_dense()
    model.save(tmp_path / f"model{ending}")
    assert keras3.keras_version(str(tmp_path / f"model{ending}")) == (2 if library is tf_keras else 3)


def test_a_saved_model_predicts_as_before(tmp_path):
    model = kinds.keras3_dense()
    path = str(tmp_path / "folder" / "model.keras")
    keras3.save(model, path)
    x, _ = helpers.points(5)
    np.testing.assert_array_equal(keras3.load(path)(x), model(x))


def test_code_in_a_file_is_not_run(tmp_path):
    x = keras.Input((2,))
    keras.Model(x, keras.layers.Lambda(lambda value: value * 2)(x)).save(tmp_path / "model.keras")
    with raises(ModelError, code="unreadable-model", match=r"model\.keras"):
        keras3.load(str(tmp_path / "model.keras"))
