"""The search for each layer's precision: within the limit, and no larger than a uniform model."""

import numpy as np
import pytest
import tf_keras
from tfx_compression.errors import ModelError
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer import sources
from tfx_compression.tflite_quantizer.auto_search import search
from tfx_compression.tflite_quantizer.calibration import measure_ranges
from tfx_compression.tflite_quantizer.config import AutoPrecision, Calibration, Quantization
from tfx_compression.tflite_quantizer.devices.judge import judge
from tfx_compression.tflite_quantizer.layer_quantizer import quantize_layers
from tfx_compression.tflite_quantizer.precision_choice import choose_uniform
from tfx_compression.tflite_quantizer.precision_graph import PrecisionGraph

from tests.support import helpers
from tests.support.conversions import normal, predictions, quantized
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models

ROWS = 200


@pytest.fixture(scope="module")
def data():
    """Images in 0..1 and labels, some of which are wrong: no model is always right."""
    images, labels = helpers.images(ROWS + 60, seed=3)
    wrong = np.random.default_rng(0).random(len(labels)) < 0.05
    return {"image": images / helpers.LARGEST}, np.where(wrong, (labels + 1) % helpers.CLASSES, labels)


@pytest.fixture(scope="module")
def hard_cnn(trained_cnn):
    """The same function with channels whose ranges differ by up to 2^10, across a ReLU."""
    hard = tf_keras.models.clone_model(trained_cnn)
    hard.set_weights(trained_cnn.get_weights())
    scale = 2.0 ** np.random.default_rng(1).uniform(-5, 5, 8)
    normalization, separable = hard.get_layer("normalization"), hard.get_layer("separable")
    normalization.gamma.assign(normalization.gamma * scale)
    normalization.beta.assign(normalization.beta * scale)
    separable.depthwise_kernel.assign(separable.depthwise_kernel / scale[None, None, :, None])
    return helpers.to_tflite(hard, "float32")


def searched(content, data, labels=True, equalize=False, target="cpu", **settings):
    columns, truth = data
    trial = {name: values[:ROWS] for name, values in columns.items()}
    config = Quantization(mode="auto", equalize=equalize, target=target, auto=AutoPrecision(**settings))
    calibration = {name: values[ROWS:] for name, values in columns.items()}
    return search(content, config, calibration, trial, truth[:ROWS] if labels else None)


def outputs(content, data):
    return predictions(content, {"image": data[0]["image"][:ROWS]})


def accuracy(content, data):
    return np.mean(outputs(content, data).argmax(axis=1) == data[1][:ROWS])


def test_the_result_is_within_the_limit_and_no_larger_than_a_uniform_model(float_cnn, data):
    result = searched(float_cnn, data, max_drop=0.02)
    record = result.record
    assert record.metric == "accuracy"
    assert record.baseline == pytest.approx(accuracy(float_cnn, data))
    assert record.value == pytest.approx(accuracy(result.content, data))
    assert record.baseline - record.value <= 0.02
    assert not record.equalized and result.pairs == ()
    ranges = measure_ranges(float_cnn, {"image": data[0]["image"][ROWS:]}, Calibration()).tensors
    for precision in AutoPrecision().precisions:
        uniform = quantize_layers(float_cnn, choose_uniform(float_cnn, precision), ranges)
        if accuracy(float_cnn, data) - accuracy(uniform, data) <= 0.02:
            assert len(result.content) <= len(uniform)
    assert len(record.precisions) == len(PrecisionGraph(float_cnn).kernels)
    assert any(trial.accepted and trial.bytes == len(result.content) for trial in record.trials)


def test_a_tighter_limit_makes_a_larger_file(float_cnn, data):
    """The labels are the float model's own outputs, so that any rounding makes the metric worse."""
    exact = data[0], np.concatenate([outputs(float_cnn, data), np.zeros((60, helpers.CLASSES), np.float32)])
    sizes = []
    for limit in (1e-3, 1e-6, 0.0):
        result = searched(
            float_cnn,
            exact,
            metric="mean_squared_error",
            max_drop=limit,
            precisions=("int4_weight_only", "int8_weight_only", "float16", "float32"),
        )
        assert result.record.value - result.record.baseline <= limit
        sizes.append(len(result.content))
    assert sizes[0] < sizes[1] < sizes[2] == len(float_cnn)


def test_float32_is_the_last_resort(float_cnn, data):
    result = searched(float_cnn, data, False, metric="agreement", max_drop=0.0, precisions=("float32",))
    assert result.content == float_cnn
    assert (result.record.value, result.record.baseline) == (1.0, 1.0)
    assert set(result.record.precisions.values()) == {"float32"}


def test_layers_have_permitted_precisions_only(float_cnn, data):
    precisions = ("int8_weight_only", "float16")
    result = searched(float_cnn, data, False, metric="agreement", max_drop=0.05, precisions=precisions)
    assert set(result.record.precisions.values()) <= {*precisions, "float32"}
    agreement = np.mean(outputs(result.content, data).argmax(axis=1) == outputs(float_cnn, data).argmax(axis=1))
    assert result.record.value == pytest.approx(agreement) and agreement >= 0.95


def test_a_microcontroller_gets_precisions_that_it_has_kernels_for(float_cnn, data):
    settings = {"metric": "agreement", "max_drop": 0.05, "precisions": ("int8", "int8_dynamic", "float32")}
    result = searched(float_cnn, data, False, target="microcontroller", **settings)
    assert judge(result.content, "microcontroller").runs
    assert set(result.record.precisions.values()) <= {"int8", "float32"}
    assert not any(trial.accepted for trial in result.record.trials if trial.step.startswith("int8_dynamic"))
    anywhere = searched(float_cnn, data, False, **settings)
    assert not judge(anywhere.content, "microcontroller").runs


def test_equalization_is_used_where_it_pays(hard_cnn, float_cnn, data):
    np.testing.assert_allclose(outputs(hard_cnn, data), outputs(float_cnn, data), atol=1e-4)
    one_hot = data[0], np.eye(helpers.CLASSES, dtype=np.float32)[data[1]]
    settings = {"max_drop": 0.002, "metric": "mean_squared_error", "precisions": ("int8", "float32")}
    plain = searched(hard_cnn, one_hot, equalize=False, **settings)
    result = searched(hard_cnn, one_hot, equalize="auto", **settings)
    assert result.record.equalized and result.pairs
    assert len(result.content) < len(plain.content)
    assert result.record.value - result.record.baseline <= 0.002
    always = searched(hard_cnn, one_hot, equalize=True, **settings).record
    assert always.equalized and all(trial.step.startswith("equalized") for trial in always.trials)


def test_weights_beyond_float16_are_a_failed_trial(tmp_path):
    x = tf_keras.Input((8,), name="x")
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, name="y", use_bias=False)(x))
    model.layers[1].kernel.assign(1e5 * normal(8, 3))
    path = sources.as_saved_model(model, str(tmp_path / "large"))
    rows = {"x": normal(90, 8, seed=1)}
    settings = {"metric": "mean_squared_error", "max_drop": 1e9, "precisions": ("float16", "int8_weight_only")}
    auto = quantized(path, rows, model.predict(rows["x"], verbose=0), mode="auto", auto=settings).record.auto
    (failed,) = (trial for trial in auto.trials if trial.step.startswith("float16"))
    assert failed.metric is None and not failed.accepted
    assert set(auto.precisions.values()) <= {"int8_weight_only", "float32"}


def test_outputs_that_the_metric_ignores_are_kept(tmp_path):
    layers, x = tf_keras.layers, tf_keras.Input((20,), name="x")
    trunk = layers.Dense(64, activation="relu")(x)
    a = layers.Dense(3, activation="softmax", name="a")(layers.Dense(32, activation="relu")(trunk))
    b = layers.Dense(1, name="b")(layers.Dense(64, activation="relu")(trunk))
    path = sources.as_saved_model(tf_keras.Model(x, {"a": a, "b": b}), str(tmp_path / "two"))
    rows = {"x": normal(240, 20)}
    result = quantized(path, rows, mode="auto", auto={"metric": "agreement", "max_drop": 0.1, "output": "a"})
    expected = helpers.answers(path, x=rows["x"])["b"]
    noise = Interpreter(result.content).predict(rows)["b"] - expected
    assert 10 * np.log10(np.sum(expected[40:] ** 2) / np.sum(noise[40:] ** 2)) >= 20
    assert result.record.bytes < 0.5 * quantized(path, rows, mode="float32").record.bytes


def test_the_result_is_an_accepted_trial_even_if_no_layer_seems_to_matter(tmp_path):
    """Single layers are measured on zeros, on which no rounding shows."""
    layers, x = tf_keras.layers, tf_keras.Input((20,), name="x")
    y = layers.Dense(3, activation="softmax", name="y")(layers.Dense(64, activation="relu")(x))
    path = sources.as_saved_model(tf_keras.Model(x, y), str(tmp_path / "alike"))
    rows = {"x": normal(700, 20)}
    rows["x"][40:300] = 0
    settings = {"metric": "agreement", "max_drop": 0.001, "precisions": ("int2_dynamic",)}
    record = quantized(path, rows, mode="auto", auto=settings).record
    assert record.auto.drop <= 0.001
    assert any(trial.accepted and trial.bytes == record.bytes for trial in record.auto.trials)


def test_a_model_that_never_runs_on_the_target_is_refused(float_cnn, data):
    config = Quantization(mode="auto", max_arena_bytes=10, auto={"metric": "agreement", "precisions": ("int8",)})
    with raises(ModelError, code="unsupported-by-target", match="max_arena_bytes=10"):
        search(float_cnn, config, data[0], data[0], None)


def test_the_arena_limit_can_cost_bytes(float_cnn, data):
    auto = {"metric": "agreement", "max_drop": 0.5}
    calibration, trial = ({"image": data[0]["image"][part]} for part in (slice(40), slice(40, 90)))
    anywhere = search(float_cnn, Quantization(mode="auto", auto=auto), calibration, trial, None)
    ranges = measure_ranges(float_cnn, calibration, Calibration()).tensors
    limit = judge(quantize_layers(float_cnn, choose_uniform(float_cnn, "int8"), ranges), "cpu").arena_bytes
    assert judge(anywhere.content, "cpu").arena_bytes > limit
    config = Quantization(mode="auto", auto=auto, max_arena_bytes=limit)
    limited = search(float_cnn, config, calibration, trial, None)
    assert judge(limited.content, "cpu").arena_bytes <= limit
    assert len(limited.content) >= len(anywhere.content)


def test_a_precision_that_the_quantizer_cannot_make_is_not_chosen(tmp_path):
    """litert-quantizer fails where only one of two calls of a layer has floats made of fewer bits."""
    layer, inputs = tf_keras.layers.Dense(8), tf_keras.Input((8,), name="input_1")
    network = tf_keras.Model(inputs, layer(tf_keras.layers.ReLU()(layer(inputs))))
    path = sources.as_saved_model(network, str(tmp_path / "shared"))
    auto = {"metric": "agreement", "max_drop": 0.1, "precisions": ("float16", "int8_weight_only")}
    assert quantized(path, {"input_1": normal(90, 8)}, mode="auto", auto=auto).record.auto.drop <= 0.1
