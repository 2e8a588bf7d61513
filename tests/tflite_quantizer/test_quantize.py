"""The public conversion: models of several kinds, modes, and errors before the worker starts."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression as tfc
from tfx_compression.errors import DataError, ModelError
from tfx_compression.tflite.contents import read_contents
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer.quantize import quantize
from tfx_compression.tflite_quantizer.rows import Rows

from tests.support import helpers
from tests.support.conversions import CALIBRATION_ROWS, in_this_process, normal, predictions, quantized
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models


@pytest.fixture(scope="module")
def int8(trained_cnn):
    """The trained network in int8, calibrated on a dataset's first rows. The worker has a process of its own."""
    images = helpers.images(CALIBRATION_ROWS + 20)[0] / helpers.LARGEST
    images[CALIBRATION_ROWS:] *= 100  # rows after those that calibrate
    data = helpers.batches({"image": images}, np.zeros(len(images)))
    config = tfc.Quantization(mode="int8", calibration=tfc.Calibration(rows=CALIBRATION_ROWS))
    return quantize(trained_cnn, config, data).content


def test_a_keras_model_is_converted_from_its_own_inputs(trained_cnn, int8):
    raw, labels = helpers.images(200, seed=7)
    images = raw / helpers.LARGEST
    expected, values = trained_cnn(images).numpy(), predictions(int8, {"image": images})
    assert np.mean(expected.argmax(1) == labels) > 0.9
    assert np.abs(values - expected).max() < 0.1


def test_int8_inputs_are_scaled_by_the_calibration_rows(int8):
    image = Interpreter(int8).inputs["image"]
    highest = helpers.images(CALIBRATION_ROWS + 20)[0][:CALIBRATION_ROWS].max() / helpers.LARGEST
    assert image.dtype == np.int8
    assert image.scale == pytest.approx(highest / 255, rel=1e-3)
    assert image.zero_point == -128


def test_an_int8_model_computes_on_integers_only(int8):
    assert read_contents(int8).float_ops == {}
    probabilities = Interpreter(int8).outputs["probabilities"]
    assert (probabilities.dtype, probabilities.scale, probabilities.zero_point) == (np.int8, 1 / 256, -128)


def wide_dense():
    x = tf_keras.Input((8,), name="x")
    return tf_keras.Model(x, tf_keras.layers.Dense(3, name="y")(tf_keras.layers.Dense(6, "relu")(x)))


def test_arrays_give_the_model_that_a_dataset_gives(tmp_path):
    model, rows = wide_dense(), normal(20, 8)
    config = tfc.Quantization(mode="int8", io="float32")
    with in_this_process():
        one = quantize(model, config, (rows.astype(np.float64), np.zeros(20)))
        other = quantize(model, config, helpers.batches({"x": rows}, np.zeros(20)))
    assert bytes(one) == one.content == other.content
    assert "y" in one.summary and "y" in repr(one) and len(repr(one)) < 500
    one.save(tmp_path / "folder" / "model.tflite")
    assert (tmp_path / "folder" / "model.tflite").read_bytes() == one.content


def test_warnings_reach_the_caller_once():
    with in_this_process(), pytest.warns(tfc.CompressionWarning) as caught:
        result = quantize(wide_dense(), tfc.Quantization(mode="int8"), np.zeros((4, 8), np.float32))
    (warning,) = (each for each in caught if each.category is tfc.CompressionWarning)
    assert warning.filename == __file__
    assert str(warning.message) == "\n".join(result.warnings) and "'x'" in str(warning.message)


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_custom_classes_of_a_file_are_passed(tmp_path, ending):
    class Doubled(tf_keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    x = tf_keras.Input((4,), name="x")
    model = tf_keras.Model(x, Doubled(name="y")(x))
    model.save(tmp_path / f"model.{ending}")
    with in_this_process():
        result = quantize(
            tmp_path / f"model.{ending}", tfc.Quantization(mode="float32"), custom_objects={"Doubled": Doubled}
        )
    np.testing.assert_allclose(predictions(result.content, {"x": np.ones((2, 4), np.float32)}), 2.0)


@pytest.fixture(scope="module")
def inverse(tmp_path_factory):
    """A SavedModel that is quick to write, with an operator that TFLite doesn't have."""
    specs = [tf.TensorSpec([None, 4, 4], tf.float32, name="matrix")]
    path = tmp_path_factory.mktemp("signature") / "model"
    return helpers.save_function(lambda matrix: {"inverse": tf.linalg.inv(matrix)}, specs, path)


def test_int8_without_data_is_refused(inverse):
    with raises(DataError, code="missing-data", match="'int8'.*'dynamic' or 'float16'"):
        quantize(inverse, tfc.Quantization(mode="int8"))


def test_an_operator_that_the_converter_refuses_is_named(inverse):
    with in_this_process(), raises(ModelError, code="missing-operators", match=r"(?s)'float16'.*MatrixInverse"):
        quantize(inverse, tfc.Quantization(mode="float16"))


def test_strings_are_not_calibrated_on(tmp_path):
    def function(word, x):
        return {"y": x * tf.cast(tf.equal(word, "one"), tf.float32)[:, None]}

    specs = [tf.TensorSpec([None], tf.string, "word"), tf.TensorSpec([None, 2], tf.float32, "x")]
    path = helpers.save_function(function, specs, tmp_path / "words")
    with raises(ModelError, code="string-input", match="word"):
        quantized(path, {"word": np.array([b"one"] * 3, object), "x": normal(3, 2)}, mode="int8")


def test_labels_that_are_strings_are_refused(saved_cnn):
    labels = np.array([b"cat", b"dog"] * 30, object)
    with raises(DataError, code="string-labels", match="b'cat'"):
        quantized(saved_cnn, {"image": helpers.images(60)[0]}, labels, mode="auto")


def test_a_row_that_is_not_finite_is_refused_before_the_conversion(saved_cnn):
    images = helpers.images(60)[0]
    images[7, 3, 0, 0] = np.nan
    with raises(DataError, code="not-finite", match="'image'.* 1 of 40 .*row 7"):
        quantized(saved_cnn, {"image": images}, mode="int8")


def test_loops_are_not_calibrated(tmp_path):
    """TensorFlow's calibrator crashes on the loop of a recurrent layer, so the worker has a process of its own."""
    x = tf_keras.Input((5, 3), name="x")
    model = tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(tf_keras.layers.LSTM(4)(x)))
    data = helpers.batches({"x": normal(5, 5, 3)}, np.zeros(5))
    with raises(ModelError, code="loops", match="unroll=True"):
        quantize(model, tfc.Quantization(mode="int8", batch_size=1, calibration={"rows": 5}), data)


@pytest.mark.parametrize("library", ["tf_keras", "keras"])
def test_activations_with_custom_gradients_are_converted(library):
    module = pytest.importorskip(library)
    x = module.Input((8,), name="x")
    y = module.layers.Dense(3, name="y")(module.layers.Dense(4, activation="swish")(x))
    model, rows = module.Model(x, y), normal(5, 8)
    with in_this_process():
        content = tfc.quantize(model, tfc.Quantization(mode="float32")).content
    np.testing.assert_allclose(Interpreter(content).predict({"x": rows})["y"], model(rows), rtol=1e-4, atol=1e-5)


def test_rows_are_read_for_the_signatures(saved_cnn):
    """Modes that aren't calibrated use the rows too, to compare layers."""
    from tfx_compression.tflite_quantizer.quantize import quantize_saved_model

    images = helpers.images(20)[0]
    with in_this_process():
        result = quantize_saved_model(
            saved_cnn,
            tfc.Quantization(mode="dynamic"),
            lambda signatures: Rows({"image": images}, notes=(", ".join(signatures),)),
        )
    assert "serving_default" in result.record.notes
    np.testing.assert_array_equal(result.self_test["input/image"], images[:4])
    assert result.calibration_rows == 0


def test_an_error_of_a_layer_arrives_as_the_layer_raised_it():
    class Failing(tf_keras.Model):
        traced = False

        def call(self, inputs):
            if self.traced:
                raise LookupError("no value")
            return inputs

    model = Failing()
    model(np.zeros([1, 4], np.float32))
    model.traced = True
    with pytest.raises(LookupError, match=r"^no value$"):
        quantize(model, tfc.Quantization(mode="dynamic"))


def test_an_error_names_the_model_and_not_its_copy(tmp_path):
    x = tf_keras.Input((4, 4), name="x")
    model = tf_keras.Model(x, tf_keras.layers.Lambda(tf.linalg.inv, name="y")(x), name="inverse")
    config = tfc.Quantization(mode="dynamic")
    model.save(tmp_path / "inverse.h5")
    with in_this_process():
        with raises(ModelError, code="missing-operators", match="^The model 'inverse' can't") as caught:
            quantize(model, config)
        assert "/model" not in str(caught.value)
        with raises(ModelError, code="missing-operators", match=f"^The model in {tmp_path}/inverse.h5 can't"):
            quantize(tmp_path / "inverse.h5", config)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with in_this_process():
        result = quantize(wide_dense(), tfc.Quantization(mode="float32"))
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "model.tflite"):
        with raises(ModelError, code="unwritable-folder", match=str(path)):
            result.save(path)


def test_free_sizes_that_the_quantizer_cannot_prepare_are_named():
    x = tf_keras.Input((None, 4), name="steps")
    model = tf_keras.Model(x, tf_keras.layers.Conv1D(8, 3, activation="relu", name="y")(x))
    with in_this_process(), raises(ModelError, code="free-size", match=r"'steps' \[-1, -1, 4\]"):
        quantize(model, tfc.Quantization(mode="int4"), normal(20, 30, 4))
