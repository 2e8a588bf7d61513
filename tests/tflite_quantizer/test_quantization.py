"""Conversion to TFLite in all modes: outputs, sizes, calibration, and what the converter can't do."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.models import conversion, examples, serving, tflite
from tfx_compression.models.errors import ModelError
from tfx_compression.models.interpreter import Interpreter
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.quantization import quantize, quantize_signature

from tests import helpers

pytestmark = pytest.mark.slow  # converts models, in a process of its own each

CALIBRATION_ROWS = 60


@pytest.fixture(scope="module")
def model():
    """A network that tells the three classes apart."""
    images, labels = helpers.images(600)
    trained = helpers.small_cnn()
    trained.compile("adam", "sparse_categorical_crossentropy")
    trained.fit(helpers.batches(images / helpers.LARGEST, labels, size=32), epochs=4, verbose=0)
    return trained


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The path of the same network on serialized tf.Examples of raw images."""
    return helpers.save_with_examples_signature(model, tmp_path_factory.mktemp("trainer") / "Format-Serving")


@pytest.fixture(scope="module")
def converted(model, saved, tmp_path_factory):
    """By mode, the SavedModel, which takes raw images; `int8` takes and returns floats here, calibrated on a file."""
    file = helpers.write_examples(tmp_path_factory.mktemp("examples") / "data.gz", {"image": helpers.images(200)[0]})
    signature = serving.feature_signature(saved)
    rows = examples.sample([file], signature.features, CALIBRATION_ROWS, seed=0)
    found = {mode: quantize_signature(signature, Quantization(mode=mode)) for mode in ("float16", "dynamic")}
    return {**found, "int8": quantize_signature(signature, Quantization(mode="int8", io="float32"), rows)}


@pytest.fixture(scope="module")
def float32(saved):
    """The SavedModel by its path, in a mode that needs no data."""
    return quantize(saved, Quantization(mode="float32"))


@pytest.fixture(scope="module")
def int8(model):
    """The Keras model, which takes images in 0..1, with integers in and out, calibrated on a dataset's first rows."""
    images = helpers.images(CALIBRATION_ROWS + 20)[0] / helpers.LARGEST
    images[CALIBRATION_ROWS:] *= 100  # rows that calibration must not come to
    data = helpers.batches({"image": images}, np.zeros(len(images)))
    return quantize(model, Quantization(mode="int8", calibration_rows=CALIBRATION_ROWS), data)


def predictions(content: bytes, images: np.ndarray) -> np.ndarray:
    return Interpreter(content).predict({"image": images})["probabilities"]


def assert_predicts_as(model, images: np.ndarray, labels: np.ndarray, found: np.ndarray, tolerance: float) -> None:
    expected = model(images).numpy()
    assert np.mean(expected.argmax(1) == labels) > 0.9
    assert np.abs(found - expected).max() < tolerance
    assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.97


@pytest.mark.parametrize(("mode", "tolerance"), [("float16", 0.005), ("dynamic", 0.03), ("int8", 0.1)])
def test_a_converted_saved_model_predicts_as_before_within_the_modes_precision(model, converted, mode, tolerance):
    raw, labels = helpers.images(200, seed=7)
    found = predictions(converted[mode].content, raw)
    assert_predicts_as(model, raw / helpers.LARGEST, labels, found, tolerance)


def test_a_float32_model_predicts_as_the_saved_model_with_the_preprocessing_that_it_serves(model, float32):
    raw, labels = helpers.images(200, seed=7)
    assert_predicts_as(model, raw / helpers.LARGEST, labels, predictions(float32, raw), 1e-5)


def test_a_keras_model_is_converted_by_its_own_inputs(model, int8):
    raw, labels = helpers.images(200, seed=7)
    images = raw / helpers.LARGEST
    assert_predicts_as(model, images, labels, predictions(int8, images), 0.1)


def test_an_int8_file_is_less_than_half_of_a_float32_one(float32, int8):
    assert len(int8) < 0.5 * len(float32)


def test_fewer_bits_make_a_smaller_file(converted, float32, int8):
    float16, dynamic = (len(converted[mode].content) for mode in ("float16", "dynamic"))
    assert len(int8) < float16 < 0.8 * len(float32)
    assert dynamic < float16


def test_int8_inputs_are_scaled_by_the_range_of_the_rows_that_it_is_calibrated_on(int8):
    image = Interpreter(int8).inputs["image"]
    highest = helpers.images(CALIBRATION_ROWS + 20)[0][:CALIBRATION_ROWS].max() / helpers.LARGEST
    assert image.dtype == np.int8
    assert image.scale == pytest.approx(highest / 255, rel=1e-3)
    assert image.zero_point == -128


def test_an_int8_model_computes_on_integers_only(int8):
    assert tflite.contents(int8).float_ops == {}
    probabilities = Interpreter(int8).outputs["probabilities"]
    assert (probabilities.dtype, probabilities.scale, probabilities.zero_point) == (np.int8, 1 / 256, -128)


def test_an_int8_model_that_takes_floats_has_its_quantization_inside(converted):
    found = converted["int8"]
    assert found.inputs["image"].dtype == found.outputs["probabilities"].dtype == np.float32
    assert found.calibration_rows == CALIBRATION_ROWS
    assert found.contents.ops["QUANTIZE"] == 1
    assert found.contents.float_ops == {"DEQUANTIZE": 1}


@pytest.fixture(scope="module")
def signature(tmp_path_factory):
    """A signature that is quick to make, for what fails before the converter runs, or in it."""
    specs = [tf.TensorSpec([None, 4, 4], tf.float32, name="matrix")]
    path = tmp_path_factory.mktemp("signature") / "model"
    return serving.feature_signature(
        helpers.save_function(lambda matrix: {"inverse": tf.linalg.inv(matrix)}, specs, path)
    )


def test_int8_without_data_is_refused_with_the_modes_that_need_none(signature):
    with pytest.raises(ModelError, match=r"'int8'.*got none\. Remedy.*'dynamic' or 'float16'"):
        quantize_signature(signature, Quantization(mode="int8"))


def test_data_without_a_row_is_refused(signature):
    data = tf.data.Dataset.from_tensor_slices({"matrix": np.zeros([0, 4, 4], np.float32)}).batch(2)
    with pytest.raises(ModelError, match="empty"):
        quantize_signature(signature, Quantization(mode="int8"), data)


def test_data_without_a_feature_that_the_model_takes_is_refused_by_its_name(signature):
    data = helpers.batches({"table": np.zeros([3, 4, 4], np.float32)}, np.zeros(3))
    with pytest.raises(ModelError, match="lacks matrix; it has: table"):
        quantize_signature(signature, Quantization(mode="int8"), data)


def test_what_the_converter_refuses_is_an_error_that_names_the_mode_and_the_operation(signature):
    with pytest.raises(ModelError, match=r"(?s)'float16'.*MatrixInverse"):
        quantize_signature(signature, Quantization(mode="float16"))


def test_a_crash_of_the_converting_process_is_an_error_that_names_the_signal(signature, tmp_path, monkeypatch):
    """The process that crashes is a stand-in: what crashes TensorFlow's converter differs from version to version."""
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\necho 'its last words' >&2\nkill -SEGV $$\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    with pytest.raises(ModelError, match=r"crashed in mode 'dynamic' \(SIGSEGV\).*its last words"):
        quantize_signature(signature, Quantization(mode="dynamic"))


def test_a_converting_process_that_hangs_is_ended(signature, tmp_path, monkeypatch):
    """The process that hangs is a stand-in too."""
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\nexec sleep 600\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    monkeypatch.setattr(conversion, "_TIMEOUT_SECONDS", 0.5)
    with pytest.raises(ModelError, match="hung in mode 'dynamic'"):
        quantize_signature(signature, Quantization(mode="dynamic"))
