"""The rows that go along with a model: what a device puts in and gets."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.errors import ModelError
from tfx_compression.tflite_quantizer import self_test

from tests.support import helpers

pytestmark = pytest.mark.slow  # converts models


@pytest.fixture(scope="module")
def model():
    return helpers.small_cnn()


@pytest.fixture(scope="module")
def images():
    return {"image": helpers.images(40)[0] / helpers.LARGEST}


@pytest.fixture(scope="module")
def int8(model, images):
    return helpers.to_tflite(model, "int8", images["image"])


@pytest.fixture(scope="module")
def float32(model):
    return helpers.to_tflite(model, "float32")


@pytest.fixture(scope="module")
def arrays(int8, float32, images):
    return self_test.make(int8, images, rows=5, float_content=float32)


def test_inputs_and_outputs_are_what_tensorflows_interpreter_takes_and_returns(int8, arrays, images):
    run = tf.lite.Interpreter(
        model_content=int8, experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_REF
    ).get_signature_runner("serving_default")
    scale, zero_point = run.get_input_details()["image"]["quantization"]
    by_hand = np.clip(np.round(images["image"][:5].astype(np.float64) / scale) + zero_point, -128, 127)
    assert arrays["input/image"].dtype == arrays["output/probabilities"].dtype == np.int8
    assert np.abs(arrays["input/image"] - by_hand).max() <= 1  # float32 may round a tie otherwise
    outputs = run(image=arrays["input/image"])["probabilities"].astype(int)
    assert np.abs(outputs - arrays["output/probabilities"]).max() <= 1  # of 256


def test_the_float_models_outputs_are_of_the_same_rows(model, arrays, images):
    np.testing.assert_allclose(arrays["float/probabilities"], model(images["image"][:5]), atol=1e-5)


def test_a_check_finds_nothing_and_then_what_was_changed(int8, arrays):
    assert self_test.check(int8, arrays) == {"probabilities": 0.0}
    changed = arrays["output/probabilities"].copy()
    changed[2, 1] += 64 if changed[2, 1] < 0 else -64
    found = self_test.check(int8, {**arrays, "output/probabilities": changed})
    assert found == {"probabilities": pytest.approx(64 / 256)}  # softmax's scale is 1/256


def test_the_difference_from_float_is_in_real_numbers(int8, float32, arrays, images):
    by_hand = np.abs((arrays["output/probabilities"] + 128.0) / 256 - arrays["float/probabilities"]).max()
    assert self_test.against_float(int8, arrays) == {"probabilities": pytest.approx(by_hand)}
    assert 0 < by_hand < 0.05
    assert self_test.against_float(int8, self_test.make(int8, images)) == {}
    assert self_test.against_float(float32, self_test.make(float32, images, float_content=float32)) == {
        "probabilities": 0.0
    }


def test_without_data_rows_are_made_always_the_same(int8, float32):
    made, again = self_test.make(int8), self_test.make(int8)
    assert {name: values.shape for name, values in made.items()} == {
        "input/image": (4, 8, 8, 1),
        "output/probabilities": (4, 3),
    }
    for name, values in made.items():
        np.testing.assert_array_equal(again[name], values)
    real = self_test.make(float32)["input/image"]
    assert 0 <= real.min() < 0.1 < 0.9 < real.max() < 1


def test_a_file_holds_the_same(tmp_path, arrays):
    path = str(tmp_path / self_test.FILE)
    self_test.write(path, arrays)
    read = self_test.read(path)
    assert read.keys() == arrays.keys()
    for name, values in arrays.items():
        assert read[name].dtype == values.dtype
        np.testing.assert_array_equal(read[name], values)


def test_a_fixed_batch_is_filled(model, images, tmp_path):
    helpers.save_function(
        lambda x: {"y": model(x)}, [tf.TensorSpec([3, 8, 8, 1], name="image")], tmp_path, weights=model.weights
    )
    content = bytes(tf.lite.TFLiteConverter.from_saved_model(str(tmp_path)).convert())
    arrays = self_test.make(content, images, rows=4)
    np.testing.assert_allclose(arrays["output/y"], model(images["image"][:4]), atol=1e-5)
    assert self_test.check(content, arrays) == {"y": 0.0}


def test_rows_that_lack_an_input_are_refused(int8):
    with pytest.raises(ModelError, match="lack the input image; they have: picture"):
        self_test.make(int8, {"picture": np.zeros((4, 8, 8, 1))})


def test_strings_have_no_self_test(tmp_path):
    path = helpers.save_function(
        lambda x: {"y": tf.reshape(x, [-1])}, [tf.TensorSpec([2, 2], tf.string, "x")], tmp_path
    )
    content = bytes(tf.lite.TFLiteConverter.from_saved_model(path).convert())
    with pytest.raises(ModelError, match="strings, which x is"):
        self_test.make(content)
