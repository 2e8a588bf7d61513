"""Conversion to TFLite in all modes: outputs, sizes, calibration, proof, and what the converter can't do."""

import io
import sys
import tempfile
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tfx_compression as tfc
from tfx_compression.errors import ModelError, WorkerError
from tfx_compression.tflite.contents import read_contents
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer import self_test, sources, tflite_metadata
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.quantize import quantize, quantize_saved_model, rows_of

from tests.support import helpers
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models, in a process of its own each

CALIBRATION_ROWS = 60
_CALIBRATION = tfc.Calibration(rows=CALIBRATION_ROWS)


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
def converted(saved):
    """By mode, the SavedModel, which takes raw images; calibrated ones take and return floats here."""
    images, labels = helpers.images(300, seed=3)
    data = helpers.batches({"image": images}, labels)
    made = {}

    def convert(mode, **fields):
        key = (mode, *sorted(fields))
        if key not in made:
            config = Quantization(
                mode=mode,
                io="float32",
                calibration={"rows": CALIBRATION_ROWS, **fields.pop("calibration", {})},
                **fields,
            )
            made[key] = quantize_saved_model(saved, config, rows_of(data, config))
        return made[key]

    return convert


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
    return quantize(model, Quantization(mode="int8", calibration=_CALIBRATION), data)


def predictions(content: bytes, images: np.ndarray) -> np.ndarray:
    return Interpreter(content).predict({"image": images})["probabilities"]


def assert_predicts_as(model, images: np.ndarray, labels: np.ndarray, found: np.ndarray, tolerance: float) -> None:
    expected = model(images).numpy()
    assert np.mean(expected.argmax(1) == labels) > 0.9
    assert np.abs(found - expected).max() < tolerance
    assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.97


@pytest.mark.parametrize(
    ("mode", "tolerance"),
    [
        ("float16", 0.005),
        ("dynamic", 0.03),
        ("int8", 0.1),
        ("int16x8", 0.03),
        ("int4", 0.35),
        ("int4_dynamic", 0.35),
        ("int4_weight_only", 0.35),
    ],
)
def test_a_converted_saved_model_predicts_as_before_within_the_modes_precision(model, converted, mode, tolerance):
    raw, labels = helpers.images(200, seed=7)
    found = predictions(converted(mode).content, raw)
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
    float16, dynamic = (len(converted(mode).content) for mode in ("float16", "dynamic"))
    assert len(int8) < float16 < 0.8 * len(float32)
    assert dynamic < float16


def test_int8_inputs_are_scaled_by_the_range_of_the_rows_that_it_is_calibrated_on(int8):
    image = Interpreter(int8).inputs["image"]
    highest = helpers.images(CALIBRATION_ROWS + 20)[0][:CALIBRATION_ROWS].max() / helpers.LARGEST
    assert image.dtype == np.int8
    assert image.scale == pytest.approx(highest / 255, rel=1e-3)
    assert image.zero_point == -128


def test_an_int8_model_computes_on_integers_only(int8):
    assert read_contents(int8).float_ops == {}
    probabilities = Interpreter(int8).outputs["probabilities"]
    assert (probabilities.dtype, probabilities.scale, probabilities.zero_point) == (np.int8, 1 / 256, -128)


def test_an_int8_model_that_takes_floats_has_its_quantization_inside(converted):
    found = converted("int8")
    assert found.inputs["image"].dtype == found.outputs["probabilities"].dtype == np.float32
    assert found.calibration_rows == CALIBRATION_ROWS
    assert found.contents.ops["QUANTIZE"] == 1
    assert found.contents.float_ops == {"DEQUANTIZE": 1}


@pytest.fixture(scope="module")
def inverse(tmp_path_factory):
    """A SavedModel that is quick to make, for what fails before the converter runs, or in it."""
    specs = [tf.TensorSpec([None, 4, 4], tf.float32, name="matrix")]
    path = tmp_path_factory.mktemp("signature") / "model"
    return helpers.save_function(lambda matrix: {"inverse": tf.linalg.inv(matrix)}, specs, path)


def test_int8_without_data_is_refused_with_the_modes_that_need_none(inverse):
    with pytest.raises(ModelError, match=r"'int8'.*got none\. Remedy.*'dynamic' or 'float16'"):
        quantize(inverse, Quantization(mode="int8"))


def test_data_without_a_row_is_refused(inverse):
    data = tf.data.Dataset.from_tensor_slices({"matrix": np.zeros([0, 4, 4], np.float32)}).batch(2)
    with pytest.raises(ModelError, match="empty"):
        quantize(inverse, Quantization(mode="int8"), data)


def test_data_without_a_feature_that_the_model_takes_is_refused_by_its_name(inverse):
    data = helpers.batches({"table": np.zeros([3, 4, 4], np.float32)}, np.zeros(3))
    with pytest.raises(ModelError, match="lacks matrix; it has: table"):
        quantize(inverse, Quantization(mode="int8"), data)


def test_what_the_converter_refuses_is_an_error_that_names_the_mode_and_the_operation(inverse):
    with pytest.raises(ModelError, match=r"(?s)'float16'.*MatrixInverse"):
        quantize(inverse, Quantization(mode="float16"))


def test_a_conversion_that_takes_too_long_is_ended(inverse):
    with raises(WorkerError, code="hung", match="'dynamic'"):
        quantize(inverse, Quantization(mode="dynamic", timeout_seconds=0.5))


def test_a_conversion_that_takes_too_much_memory_is_ended(inverse):
    with raises(WorkerError, code="out-of-memory", match="50 MB"):
        quantize(inverse, Quantization(mode="dynamic", max_memory_bytes=50 * 2**20))


def test_a_crash_of_the_converting_process_is_an_error_that_names_the_signal(inverse, tmp_path, monkeypatch):
    """The process that crashes is a stand-in: what crashes TensorFlow's converter differs from version to version."""
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\necho 'its last words' >&2\nkill -SEGV $$\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    with raises(WorkerError, code="crashed", match=r"'dynamic'.*SIGSEGV.*its last words"):
        quantize(inverse, Quantization(mode="dynamic"))


def test_the_record_says_how_the_file_was_made_and_what_is_in_it(converted):
    found = converted("int8")
    record = found.record
    assert record.bytes == len(found.content) > record.bytes_gzip > 0 < record.bytes_zstd
    assert record.ops == found.contents.ops
    assert record.versions["tensorflow"] == tf.__version__
    assert record.signatures[0].name == "serving_default"
    assert [tensor.name for tensor in record.signatures[0].inputs] == ["image"]
    assert record.calibration.rows == CALIBRATION_ROWS
    (image,) = record.calibration.inputs
    images = helpers.images(300, seed=3)[0][:CALIBRATION_ROWS]
    assert (image.minimum, image.maximum) == (images.min(), images.max())
    assert {"cut", "convert", "finish", "prove"} == set(record.seconds)
    assert record.layers
    assert all(layer.snr_db is None or layer.snr_db > 10 for layer in record.layers)


def test_the_self_test_in_the_record_gives_the_same_outputs_again(converted):
    found = converted("int8")
    assert self_test.check(found.content, found.self_test) == {"probabilities": 0.0}
    assert 0 < found.record.self_test["probabilities"] < 0.1


@pytest.mark.parametrize("ranges", ["percentile", "mse"])
def test_other_ranges_predict_as_well(model, saved, ranges):
    raw, labels = helpers.images(200, seed=7)
    config = Quantization(mode="int8", io="float32", calibration={"rows": CALIBRATION_ROWS, "ranges": ranges})
    data = helpers.batches({"image": helpers.images(100, seed=3)[0]}, np.zeros(100))
    found = quantize_saved_model(saved, config, rows_of(data, config))
    assert found.record.calibration.method == ranges
    assert_predicts_as(model, raw / helpers.LARGEST, labels, predictions(found.content, raw), 0.1)


def test_an_equalized_model_predicts_as_well_and_names_its_pairs(model, saved):
    raw, labels = helpers.images(200, seed=7)
    config = Quantization(mode="int8", io="float32", equalize=True, calibration=_CALIBRATION)
    data = helpers.batches({"image": helpers.images(100, seed=3)[0]}, np.zeros(100))
    found = quantize_saved_model(saved, config, rows_of(data, config))
    assert_predicts_as(model, raw / helpers.LARGEST, labels, predictions(found.content, raw), 0.1)
    assert all(layer.snr_db is None or layer.snr_db > 10 for layer in found.record.layers)


def test_rules_give_layers_their_precision_and_the_others_stay_float(saved):
    rules = [tfc.PrecisionRule(layers="conv", precision="int8_weight_only")]
    content = quantize(saved, Quantization(mode="mixed", rules=rules))
    kinds = {name: weight.dtype for name, weight in read_contents(content).weights.items()}
    assert np.dtype(np.int8) in kinds.values()
    assert np.dtype(np.float32) in kinds.values()


def test_metadata_and_labels_are_in_the_file(model):
    metadata = {"name": "shapes", "labels": {"probabilities": ("a", "b", "c")}}
    content = quantize(model, Quantization(mode="float32", metadata=metadata))
    assert tflite_metadata.read(content).name == "shapes"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert [archive.read(name) for name in archive.namelist()] == [b"a\nb\nc"]


def test_a_float_model_for_a_target_of_integers_is_refused_when_it_is_configured():
    with pytest.raises(ValueError, match="'edge_tpu' needs mode='int8' and a batch_size"):
        Quantization(mode="float16", target="edge_tpu")


def test_an_int8_model_of_one_row_maps_to_the_edge_tpu(model):
    images = helpers.images(CALIBRATION_ROWS)[0] / helpers.LARGEST
    config = Quantization(mode="int8", target="edge_tpu", batch_size=1, calibration=_CALIBRATION)
    read = rows_of(helpers.batches({"image": images}, np.zeros(len(images))), config)
    with tempfile.TemporaryDirectory() as folder:
        found = quantize_saved_model(sources.saved_model_of(model, folder), config, read)
    (delegate,) = found.record.verdict.delegates
    assert delegate.mapped == len(delegate.ops)
    assert found.inputs["image"].shape[0] == 1


def test_a_model_that_does_not_fit_the_target_is_an_error_with_the_figure(model):
    with pytest.raises(ModelError, match="doesn't run on target 'microcontroller'.*arena"):
        quantize(model, Quantization(mode="float32", target="microcontroller", batch_size=1, max_arena_bytes=64))
