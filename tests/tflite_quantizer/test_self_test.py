"""The self-test: inputs as a device stores them, and outputs that it must return."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.errors import DataError, ModelError
from tfx_compression.tflite_quantizer import self_test

from tests.support.conversions import converted_function
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models


@pytest.fixture(scope="module")
def arrays(int8_cnn, float_cnn, pictures):
    return self_test.make(int8_cnn, pictures, rows=5, float_content=float_cnn)


def test_inputs_and_outputs_are_those_of_tensorflows_interpreter(int8_cnn, arrays, pictures):
    run = tf.lite.Interpreter(
        model_content=int8_cnn, experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_REF
    ).get_signature_runner("serving_default")
    scale, zero_point = run.get_input_details()["image"]["quantization"]
    by_hand = np.clip(np.round(pictures["image"][:5].astype(np.float64) / scale) + zero_point, -128, 127)
    assert arrays["input/image"].dtype == arrays["output/probabilities"].dtype == np.int8
    assert np.abs(arrays["input/image"] - by_hand).max() <= 1  # float32 may round a tie otherwise
    outputs = run(image=arrays["input/image"])["probabilities"].astype(int)
    assert np.abs(outputs - arrays["output/probabilities"]).max() <= 1


def test_the_float_models_outputs_are_for_the_same_rows(trained_cnn, arrays, pictures):
    np.testing.assert_allclose(arrays["float/probabilities"], trained_cnn(pictures["image"][:5]), atol=1e-5)


def test_a_check_returns_the_largest_difference(int8_cnn, arrays):
    assert self_test.check(int8_cnn, arrays) == {"probabilities": 0.0}
    changed = arrays["output/probabilities"].copy()
    changed[2, 1] += 64 if changed[2, 1] < 0 else -64
    differences = self_test.check(int8_cnn, {**arrays, "output/probabilities": changed})
    assert differences == {"probabilities": pytest.approx(64 / 256)}  # softmax's scale is 1/256


def test_the_difference_from_float_is_in_real_numbers(int8_cnn, float_cnn, arrays, pictures):
    by_hand = np.abs((arrays["output/probabilities"] + 128.0) / 256 - arrays["float/probabilities"]).max()
    assert self_test.differences_from_float(int8_cnn, arrays) == {"probabilities": pytest.approx(by_hand)}
    assert 0 < by_hand < 0.1
    assert self_test.differences_from_float(int8_cnn, self_test.make(int8_cnn, pictures)) == {}
    itself = self_test.make(float_cnn, pictures, float_content=float_cnn)
    assert self_test.differences_from_float(float_cnn, itself) == {"probabilities": 0.0}


def test_a_difference_that_is_not_finite_is_none(float_cnn, pictures):
    arrays = self_test.make(float_cnn, pictures, float_content=float_cnn)
    infinite = {**arrays, "float/probabilities": np.full_like(arrays["float/probabilities"], np.inf)}
    assert self_test.differences_from_float(float_cnn, infinite) == {"probabilities": None}


def test_rows_without_data_are_always_the_same(int8_cnn, float_cnn):
    first, second = self_test.make(int8_cnn), self_test.make(int8_cnn)
    assert {name: values.shape for name, values in first.items()} == {
        "input/image": (4, 8, 8, 1),
        "output/probabilities": (4, 3),
    }
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values)
    real = self_test.make(float_cnn)["input/image"]
    assert 0 <= real.min() < 0.1 < 0.9 < real.max() < 1


def test_inputs_are_read_back_as_real_numbers(int8_cnn, arrays, pictures):
    real = self_test.real_inputs(int8_cnn, arrays)["image"]
    np.testing.assert_allclose(real, pictures["image"][:5], atol=0.01)


def test_a_written_self_test_is_read(tmp_path, arrays):
    path = str(tmp_path / self_test.FILE)
    self_test.write(path, arrays)
    read = self_test.read(path)
    assert read.keys() == arrays.keys()
    for name, values in arrays.items():
        assert read[name].dtype == values.dtype
        np.testing.assert_array_equal(read[name], values)


def test_a_fixed_batch_is_filled(trained_cnn, pictures, tmp_path):
    spec = tf.TensorSpec([3, 8, 8, 1], name="image")
    content = converted_function(
        lambda x: {"y": trained_cnn(x)}, [spec], tmp_path / "fixed", weights=trained_cnn.weights
    )
    arrays = self_test.make(content, pictures, rows=4)
    np.testing.assert_allclose(arrays["output/y"], trained_cnn(pictures["image"][:4]), atol=1e-5)
    assert self_test.check(content, arrays) == {"y": 0.0}


def test_rows_that_lack_an_input_are_refused(int8_cnn):
    with raises(DataError, code="missing-feature", match="image.*picture"):
        self_test.make(int8_cnn, {"picture": np.zeros((4, 8, 8, 1))})


def test_strings_have_no_self_test(tmp_path):
    content = converted_function(
        lambda x: {"y": tf.reshape(x, [-1])}, [tf.TensorSpec([2, 2], tf.string, "x")], tmp_path / "strings"
    )
    with raises(ModelError, code="string-input", match="x"):
        self_test.make(content)
