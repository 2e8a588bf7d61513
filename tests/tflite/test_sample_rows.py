"""Rows for inputs of every type, where there is no data."""

import numpy as np
from tfx_compression.tflite.interpreter import TensorDetails
from tfx_compression.tflite.sample_rows import random_rows, zero_rows

INPUTS = {
    name: TensorDetails(name, 0, np.dtype(dtype), shape, scale, 0)
    for name, dtype, shape, scale in (
        ("float", np.float32, (-1, -1, 3), 0.0),
        ("quantized", np.int8, (4, 2), 0.1),
        ("integer", np.int32, (-1, 2), 0.0),
        ("word", object, (-1,), 0.0),
    )
}


def test_zeros_have_the_type_and_shape_of_the_input():
    rows = zero_rows(INPUTS, rows=2)
    assert {name: values.shape for name, values in rows.items()} == {
        "float": (2, 1, 3),
        "quantized": (2, 2),
        "integer": (2, 2),
        "word": (2,),
    }
    assert all(rows[name].dtype == INPUTS[name].dtype for name in INPUTS)
    assert not any(values.any() for values in rows.values())


def test_random_rows_are_real_numbers_between_0_and_1():
    rows = random_rows(INPUTS, rows=5, free_size=7)
    assert rows["float"].shape == (5, 7, 3)
    for name in ("float", "quantized"):
        assert rows[name].dtype == np.float32 and 0 <= rows[name].min() < rows[name].max() <= 1
    assert not rows["integer"].any() and rows["integer"].dtype == np.int32
    assert rows["word"].tolist() == [b""] * 5
    np.testing.assert_array_equal(random_rows(INPUTS, rows=5, free_size=7)["float"], rows["float"])
