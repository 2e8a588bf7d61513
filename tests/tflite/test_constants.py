"""Constants: values are stored and read alike."""

import types

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tfx_compression.tflite.constants import packed_values, stored_values


@pytest.mark.parametrize(("dtype", "bits"), [("INT2", 2), ("INT4", 4), ("INT8", 8)])
def test_packed_values_are_read_back(dtype, bits):
    values = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 7)).astype(np.int8)
    tensor = types.SimpleNamespace(type=getattr(schema.TensorType, dtype), shape=values.shape, sparsity=None)
    data = packed_values(values, tensor)
    assert len(data) == -(-values.size * bits // 8)
    np.testing.assert_array_equal(stored_values(data, tensor), values)
