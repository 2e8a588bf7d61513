"""Custom properties of artifacts."""

import pytest
from tfx.types import standard_artifacts
from tfx_compression.tfx_support import artifacts

from tests.support.artifacts import artifact

pytestmark = pytest.mark.slow  # imports TFX


def test_properties_keep_their_types_and_none_is_left_out():
    model = artifact(standard_artifacts.Model, "/model")
    artifacts.set_properties(model, mode="int8", rows=3, sparsity=0.5, metric=None, passed=True)
    assert artifacts.custom_properties(model) == {"mode": "int8", "rows": 3, "sparsity": 0.5, "passed": 1}


def test_a_model_is_described_with_its_size_and_parent(tmp_path):
    model = artifact(standard_artifacts.Model, tmp_path / "model")
    (tmp_path / "model/Format-Serving").mkdir(parents=True)
    (tmp_path / "model/Format-Serving/tflite").write_bytes(bytes(1000))
    artifacts.describe_model(model, artifact(standard_artifacts.Model, "/parent"), mode="int8")
    properties = artifacts.custom_properties(model)
    assert properties.pop("bytes_gzip") < 1000
    assert properties == {"mode": "int8", "parent_uri": "/parent", "bytes": 1000}


def test_an_optional_input_is_none_without_artifacts():
    model = artifact(standard_artifacts.Model, "/model")
    assert artifacts.optional({"model": [model]}, "model") is model
    assert artifacts.optional({"model": []}, "model") is None
    assert artifacts.optional({}, "model") is None
