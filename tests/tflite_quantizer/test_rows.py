"""Rows of a dataset and of tf.Examples, in the shapes that the signatures take."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.errors import ConfigError, DataError
from tfx_compression.saved_models import feature_signatures
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.rows import first_rows, raw_features, read_examples

from tests.support import helpers
from tests.support.conversions import normal
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # loads SavedModels


@pytest.fixture(scope="module")
def signatures(tmp_path_factory):
    """Signatures of a SavedModel that takes `x`, [rows, 4, 2]."""
    specs = [tf.TensorSpec([None, 4, 2], tf.float32, name="x")]
    path = helpers.save_function(lambda x: {"y": 2.0 * x}, specs, tmp_path_factory.mktemp("rows") / "model")
    return {"serving_default": feature_signatures.feature_signature(path)}


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two signatures; both take `x`, the other one also `z`."""
    module = tf.Module()
    x, z = (tf.TensorSpec([None, 2], tf.float32, name=name) for name in "xz")
    module.one = tf.function(lambda x: {"y": x}, input_signature=[x])
    module.two = tf.function(lambda x, z: {"y": x + z}, input_signature=[x, z])
    path = str(tmp_path_factory.mktemp("several") / "model")
    tf.saved_model.save(module, path, signatures={"serving_default": module.one, "two": module.two})
    return {name: feature_signatures.feature_signature(path, name) for name in ("serving_default", "two")}


def read(signatures, data, **fields):
    return first_rows(data, Quantization(**{"calibration": {"rows": 3}, **fields}))(signatures)


def test_the_first_rows_calibrate(signatures):
    x = normal(5, 4, 2)
    rows = read(signatures, helpers.batches({"x": x}, np.arange(5), size=2))
    np.testing.assert_array_equal(rows.calibration["x"], x[:3])
    assert rows.trial == {} and rows.labels is None


def test_the_search_gets_the_next_rows_with_their_labels(signatures):
    x = normal(8, 4, 2)
    rows = read(signatures, helpers.batches({"x": x}, np.arange(8)), mode="auto", auto={"rows": 4})
    np.testing.assert_array_equal(rows.trial["x"], x[3:7])
    assert rows.labels.tolist() == [3, 4, 5, 6]
    unlabeled = tf.data.Dataset.from_tensor_slices({"x": x}).batch(2)
    agreement = read(signatures, unlabeled, mode="auto", auto={"rows": 4, "metric": "agreement"})
    assert agreement.labels is None and len(agreement.trial["x"]) == 4


def test_a_single_feature_needs_no_name_and_is_reshaped(signatures):
    rows = read(signatures, helpers.batches(normal(3, 8), np.zeros(3)))
    assert rows.calibration["x"].shape == (3, 4, 2)


def test_columns_of_several_signatures_are_joined(several):
    assert set(raw_features(several)) == {"x", "z"}
    rows = read(several, helpers.batches({"x": normal(3, 2), "z": normal(3, 2)}, np.zeros(3)))
    assert set(rows.calibration) == {"x", "z"}
    columns = read_examples(several, helpers.serialized({"x": normal(2, 2), "z": normal(2, 2)}))
    np.testing.assert_array_equal(columns["x"], normal(2, 2))


def test_signatures_that_read_a_feature_differently_are_refused(signatures, several):
    with raises(DataError, code="conflicting-features", match="'x'"):
        raw_features({**signatures, "two": several["two"]})


@pytest.mark.parametrize(
    ("data", "code", "match"),
    [
        ({"x": np.zeros((5, 8, 8), np.float32)}, "feature-shape", r"'x' of shape \(8, 8\)"),
        ({"table": np.zeros((5, 8), np.float32)}, "missing-feature", "x; .*table"),
        ((np.zeros((5, 8), np.float32), np.zeros((5, 8), np.float32)), "unnamed-features", "x"),
        ({"x": np.zeros((0, 4, 2), np.float32)}, "no-examples", None),
    ],
)
def test_datasets_that_do_not_fit_are_refused(signatures, data, code, match):
    with raises(DataError, code=code, match=match):
        read(signatures, helpers.batches(data, np.zeros(len(next(iter(tf.nest.flatten(data)))))))


def test_rows_of_several_sizes_are_refused(tmp_path):
    specs = [tf.TensorSpec([None, None], tf.float32, name="x")]
    path = helpers.save_function(lambda x: {"y": 2.0 * x}, specs, tmp_path / "model")
    signatures = {"serving_default": feature_signatures.feature_signature(path)}
    parts = [tf.data.Dataset.from_tensor_slices({"x": normal(2, size)}).batch(1) for size in (3, 4)]
    with raises(DataError, code="feature-shape", match=r"\(3,\), \(4,\)"):
        read(signatures, parts[0].concatenate(parts[1]))


def test_a_search_needs_rows_after_the_calibration_rows(signatures):
    with raises(DataError, code="too-few-rows", match="3 rows"):
        read(signatures, helpers.batches({"x": normal(3, 4, 2)}, np.arange(3)), mode="auto")


def test_a_dataset_is_not_stratified(signatures):
    data = helpers.batches({"x": normal(3, 4, 2)}, np.arange(3))
    with raises(ConfigError, field="Calibration.stratify_by", match="'label'"):
        read(signatures, data, calibration={"rows": 3, "stratify_by": "label"})
