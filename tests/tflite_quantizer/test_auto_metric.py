"""The metric of the search against a computation by hand, and what can't be measured."""

import numpy as np
import pytest
from tfx_compression.errors import ConfigError, DataError, ModelError
from tfx_compression.tflite_quantizer.auto_metric import SearchMetric
from tfx_compression.tflite_quantizer.config import AutoPrecision

from tests.support import helpers
from tests.support.conversions import predictions
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models

ROWS = 300


@pytest.fixture(scope="module")
def trial():
    """Images in 0..1 and labels, some of which are wrong."""
    images, labels = helpers.images(ROWS, seed=3)
    wrong = np.random.default_rng(0).random(ROWS) < 0.05
    return {"image": images / helpers.LARGEST}, np.where(wrong, (labels + 1) % helpers.CLASSES, labels)


def test_accuracy_is_the_share_of_correct_rows(float_cnn, int8_cnn, trial):
    columns, labels = trial
    metric = SearchMetric(float_cnn, AutoPrecision(), columns, labels)
    assert metric.rows == ROWS
    assert metric.baseline == pytest.approx(np.mean(predictions(float_cnn, columns).argmax(1) == labels))
    value, drop = metric.measure(int8_cnn)
    assert value == pytest.approx(np.mean(predictions(int8_cnn, columns).argmax(1) == labels))
    assert drop == pytest.approx(metric.baseline - value)


def test_a_larger_error_is_a_drop(float_cnn, int8_cnn, trial):
    columns, labels = trial
    one_hot = np.eye(helpers.CLASSES, dtype=np.float32)[labels]
    metric = SearchMetric(float_cnn, AutoPrecision(metric="mean_squared_error"), columns, one_hot)
    value, drop = metric.measure(int8_cnn)
    assert drop == pytest.approx(value - metric.baseline)


def test_agreement_compares_with_the_float_model(float_cnn, int8_cnn, trial):
    columns, _ = trial
    metric = SearchMetric(float_cnn, AutoPrecision(metric="agreement"), columns, None)
    agreement = np.mean(predictions(int8_cnn, columns).argmax(1) == predictions(float_cnn, columns).argmax(1))
    assert metric.baseline == 1.0
    assert metric.measure(int8_cnn) == (pytest.approx(agreement), pytest.approx(1 - agreement))


def test_the_output_error_is_relative_to_the_variance(float_cnn, int8_cnn, trial):
    columns = {"image": trial[0]["image"][:200]}
    metric = SearchMetric(float_cnn, AutoPrecision(metric="agreement"), trial[0], None)
    floats, integers = predictions(float_cnn, columns), predictions(int8_cnn, columns)
    assert metric.output_error(int8_cnn) == pytest.approx(np.mean((integers - floats) ** 2) / np.var(floats), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "labels", "error", "code", "match"),
    [
        ({"metric": "acuracy"}, np.zeros(ROWS), ConfigError, "unknown-metric", "acuracy"),
        ({"output": "logits"}, np.zeros(ROWS), ConfigError, "unknown-output", "probabilities"),
        ({"metric": "mean_squared_error"}, np.zeros(ROWS), DataError, "label-shape", r"\(300, 3\)"),
        ({"metric": "accuracy"}, np.zeros((ROWS, 2)), DataError, "label-shape", r"\(300, 2\)"),
        ({"metric": "accuracy"}, None, DataError, "missing-labels", "'accuracy'"),
        ({"metric": "mean_squared_error"}, np.full((ROWS, 3), np.nan), ModelError, "metric-not-finite", "nan"),
        (
            {"metric": "sparse_categorical_crossentropy"},
            np.full(ROWS, 7),  # there are three classes
            ConfigError,
            "metric-not-computable",
            "'sparse_categorical_crossentropy'",
        ),
    ],
)
def test_what_can_not_be_measured_is_refused(float_cnn, trial, settings, labels, error, code, match):
    with raises(error, code=code, match=match):
        SearchMetric(float_cnn, AutoPrecision(**settings), trial[0], labels)


def test_agreement_needs_several_classes():
    content = helpers.to_tflite(one_number(), "float32")
    with raises(ConfigError, code="no-classes"):
        SearchMetric(content, AutoPrecision(metric="agreement"), {"x": helpers.points(5)[0]}, None)


def one_number():
    import tf_keras

    x = tf_keras.Input((4,), name="x")
    return tf_keras.Model(x, tf_keras.layers.Dense(1, name="y")(x))
