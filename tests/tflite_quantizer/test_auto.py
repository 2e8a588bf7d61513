"""The search for each layer's precision: within the limit, no larger than a uniform model; what can't be measured."""

import numpy as np
import pytest
from tfx_compression.errors import ModelError
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer import auto, recipes
from tfx_compression.tflite_quantizer.calibration import observe
from tfx_compression.tflite_quantizer.config import AutoPrecision, Calibration, Quantization
from tfx_compression.tflite_quantizer.devices.judge import judge

from tests.support import helpers

pytestmark = pytest.mark.slow  # trains and converts models

ROWS = 300


@pytest.fixture(scope="module")
def data():
    """Images in 0..1 and labels, of which a few are wrong: nobody is always right."""
    images, labels = helpers.images(2 * ROWS, seed=3)
    wrong = np.random.default_rng(0).random(len(labels)) < 0.05
    return {"image": images / helpers.LARGEST}, np.where(wrong, (labels + 1) % helpers.CLASSES, labels)


@pytest.fixture(scope="module")
def trained(data):
    """A network that tells the classes apart."""
    model = helpers.small_cnn()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(data[0]["image"][ROWS:], data[1][ROWS:], 32, epochs=4, verbose=0)
    return model


@pytest.fixture(scope="module")
def content(trained):
    return helpers.to_tflite(trained, "float32")


@pytest.fixture(scope="module")
def hard(trained):
    """The same function, ranges of channels apart by up to 2^10 (the ReLU is in between)."""
    return helpers.to_tflite(spread(trained), "float32")


def spread(model):
    """`harden` for the one depthwise kernel of a SeparableConv2D."""
    import tf_keras

    hard = tf_keras.models.clone_model(model)
    hard.set_weights(model.get_weights())
    scale = 2.0 ** np.random.default_rng(1).uniform(-5, 5, 8)
    normalization, separable = hard.get_layer("normalization"), hard.get_layer("separable")
    normalization.gamma.assign(normalization.gamma * scale)
    normalization.beta.assign(normalization.beta * scale)
    separable.depthwise_kernel.assign(separable.depthwise_kernel / scale[None, None, :, None])
    return hard


def searched(content, data, labels=True, equalize=False, target="cpu", **settings):
    columns, truth = data
    trial = {name: values[:ROWS] for name, values in columns.items()}
    config = Quantization(mode="auto", equalize=equalize, target=target, auto=AutoPrecision(**settings))
    calibration = {name: values[ROWS : ROWS + 60] for name, values in columns.items()}
    found = auto.search(content, config, calibration, trial, truth[:ROWS] if labels else None)
    return found.content, found.record, found.pairs


def predictions(content, data):
    (answers,) = Interpreter(content).predict({"image": data[0]["image"][:ROWS]}).values()
    return answers


def accuracy(content, data):
    return np.mean(predictions(content, data).argmax(axis=1) == data[1][:ROWS])


def test_result_is_within_the_limit_and_no_larger_than_a_uniform_model(content, data):
    found, record, pairs = searched(content, data, max_drop=0.02)
    assert record.metric == "accuracy"
    assert record.baseline == pytest.approx(accuracy(content, data))
    assert record.value == pytest.approx(accuracy(found, data))
    assert record.baseline - record.value <= 0.02
    assert not record.equalized and pairs == ()
    ranges = observe(content, {"image": data[0]["image"][ROWS : ROWS + 60]}, Calibration()).tensors
    for precision in AutoPrecision().precisions:
        uniform = recipes.quantize_layers(content, recipes.uniform(content, precision), ranges)
        if accuracy(content, data) - accuracy(uniform, data) <= 0.02:
            assert len(found) <= len(uniform)
    assert len(record.precisions) == len(recipes.Graph(content).kernels)
    assert any(trial.accepted and trial.bytes == len(found) for trial in record.trials)


def test_a_tight_limit_mixes_precisions_or_leaves_floats(content, data):
    own = data[0], np.tile(predictions(content, data), (2, 1))  # any rounding makes these labels worse
    sizes = []
    for limit in (1e-3, 1e-6, 1e-8, 0.0):
        found, record, _ = searched(content, own, metric="mean_squared_error", max_drop=limit)
        assert record.value - record.baseline <= limit
        sizes.append(len(found))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3] == len(content)


def one_hot(data):
    return data[0], np.eye(helpers.CLASSES, dtype=np.float32)[data[1]]


def test_float32_is_the_way_out(content, data):
    found, record, _ = searched(content, data, False, metric="agreement", max_drop=0.0, precisions=("float32",))
    assert found == content
    assert (record.value, record.baseline) == (1.0, 1.0)
    assert set(record.precisions.values()) == {"float32"}


def test_layers_have_allowed_precisions_only(content, data):
    found, record, _ = searched(
        content, data, False, metric="agreement", max_drop=0.05, precisions=("int8_weight_only", "float16")
    )
    assert set(record.precisions.values()) <= {"int8_weight_only", "float16", "float32"}
    agreement = np.mean(predictions(found, data).argmax(axis=1) == predictions(content, data).argmax(axis=1))
    assert record.value == pytest.approx(agreement) and agreement >= 0.95


def test_a_microcontroller_gets_what_it_has_kernels_of(content, data):
    settings = {"metric": "agreement", "max_drop": 0.05}
    found, record, _ = searched(content, data, False, target="microcontroller", **settings)
    anywhere, _, _ = searched(content, data, False, **settings)
    assert judge(found, "microcontroller").runs and not judge(anywhere, "microcontroller").runs
    assert set(record.precisions.values()) <= {"int8", "int4", "float32"}
    assert not any(trial.accepted for trial in record.trials if trial.step.startswith("int8_dynamic"))


def test_equalization_is_taken_where_it_pays(hard, content, data):
    np.testing.assert_allclose(predictions(hard, data), predictions(content, data), atol=1e-4)
    settings = {"max_drop": 0.002, "metric": "mean_squared_error", "precisions": ("int8", "float32")}
    without, _, _ = searched(hard, one_hot(data), equalize=False, **settings)
    found, record, pairs = searched(hard, one_hot(data), equalize="auto", **settings)
    assert record.equalized and pairs
    assert len(found) < len(without)
    assert record.value - record.baseline <= 0.002
    _, always, _ = searched(hard, one_hot(data), equalize=True, **settings)
    assert always.equalized and all(trial.step.startswith("equalized") for trial in always.trials)


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({"metric": "acuracy"}, None, "acuracy.*by name, or 'agreement'"),
        ({"output": "logits"}, None, "'logits'; the model's outputs are: probabilities"),
        ({"metric": "mean_squared_error"}, None, r"\(300,\).*\(300, 3\)"),
        ({"metric": "accuracy"}, np.zeros((ROWS, 2)), r"\(300, 2\)"),
    ],
)
def test_what_can_not_be_measured_is_said(content, data, settings, labels, message):
    columns = data[0]
    truth = data[1] if labels is None else np.concatenate([labels, labels])
    with pytest.raises(ModelError, match=message):
        searched(content, (columns, truth), **settings)


def test_labels_are_needed_but_for_agreement(content, data):
    with pytest.raises(ModelError, match="'accuracy' needs labels.*agreement"):
        searched(content, data, labels=False)
