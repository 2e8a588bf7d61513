"""Warnings of a record, each with the values that it is about."""

import numpy as np
import pytest
import tf_keras
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.quantize import quantize
from tfx_compression.tflite_quantizer.record import AutoRecord, CalibrationRecord, InputRange, LayerError, OutputError
from tfx_compression.tflite_quantizer.result_warnings import find_row_warnings, find_warnings

INT8 = Quantization()
_IO = ("integer", "float32")


def seen(share: float | None) -> CalibrationRecord:
    inputs = (InputRange(input="image", minimum=0.0, maximum=1.0, range=(0.0, 1.0), outside=share),)
    return CalibrationRecord(rows=10, method="min_max", inputs=inputs)


def searched(drop: float) -> AutoRecord:
    return AutoRecord(
        metric="accuracy", baseline=0.9, value=0.9 - drop, drop=drop, rows=10, equalized=False, precisions={}, trials=()
    )


def layer(name: str, snr_db: float | None) -> LayerError:
    return LayerError(layer=name, op="CONV_2D", snr_db=snr_db, max_error=0.0, cosine=1.0)


def test_a_model_without_findings_has_no_warning():
    layers = [layer("conv", 40.0), layer("flatten", None)]
    floats = {"DEQUANTIZE": 1}
    assert find_warnings(INT8, seen(0.005), searched(0.005), floats, layers) == ()
    assert find_warnings(INT8, seen(None), None, {}, ()) == ()
    assert find_warnings(INT8, None, None, {}, ()) == ()


def test_values_outside_the_range_are_a_warning():
    (warning,) = find_warnings(INT8, seen(0.125), None, {}, ())
    assert "12.5%" in warning and "'image'" in warning and "'eval'" in warning and "Remedy" in warning


def test_a_search_beyond_its_limit_is_a_warning():
    (warning,) = find_warnings(Quantization(mode="auto"), None, searched(0.05), {}, ())
    assert "accuracy" in warning and "0.01" in warning and "0.05" in warning


def test_floats_in_an_integer_mode_are_a_warning():
    (warning,) = find_warnings(INT8, None, None, {"QUANTIZE": 1, "SOFTMAX": 2}, ())
    assert "2 SOFTMAX" in warning
    assert find_warnings(Quantization(mode="int4"), None, None, {"SOFTMAX": 2}, ()) == ()


def test_noisy_layers_are_a_warning():
    layers = [layer("conv", 9.0), layer("dense", 3.5), layer("out", 30.0)]
    (warning,) = find_warnings(INT8, None, None, {}, layers)
    assert "2 of 3" in warning and "'dense'" in warning and "3.5 dB" in warning


@pytest.mark.parametrize(("cosine", "count"), [(0.85, 1), (0.95, 0), (None, 0)])
def test_outputs_far_from_float_are_a_warning(cosine, count):
    output = OutputError(output="logits", rows=7, cosine=cosine, max_error=1.0)
    warnings = find_warnings(INT8, None, None, {}, (), (output,))
    assert len(warnings) == count
    assert all("'logits'" in warning and "0.850" in warning for warning in warnings)


def test_an_output_that_lost_its_variation_is_a_warning():
    fields = {"output": "kelvin", "rows": 7, "cosine": 1.0, "max_error": 0.3}
    similar = OutputError(**fields, centered_cosine=0.95)
    different = OutputError(**fields, centered_cosine=0.4)
    constant = OutputError(**fields, centered_cosine=0.0, constant=True)
    texts = [find_warnings(INT8, None, None, {}, (), (output,)) for output in (similar, different, constant)]
    assert [len(each) for each in texts] == [0, 1, 1]
    assert "0.400" in texts[1][0] and "all 7 rows" in texts[2][0]


def test_the_remedy_of_a_far_output_has_more_bits():
    far = (OutputError(output="y", rows=7, cosine=0.5, max_error=1.0),)
    for mode, others in {"int4": ["'int8'"], "int8": ["'int16x8'", "'dynamic'"], "float16": ["'float32'"]}.items():
        (warning,) = find_warnings(Quantization(mode=mode), None, None, {}, (), far)
        assert all(other in warning for other in others) and f"'{mode}'" not in warning


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_input_is_a_warning(value):
    columns = {"flag": np.full((9, 2), value, np.float32), "x": np.arange(18, dtype=np.float32).reshape(9, 2)}
    (warning,) = find_row_warnings(columns)
    assert "'flag'" in warning and f"{value:g}" in warning


def test_rows_that_are_all_the_same_are_a_warning():
    row = np.arange(4, dtype=np.float32)
    (warning,) = find_row_warnings({"x": np.stack([row] * 3), "id": np.zeros((3, 1), np.int32)})
    assert "3" in warning
    assert find_row_warnings({"x": np.stack([row] * 9), "id": np.arange(9)}) == ()
    assert find_row_warnings({}) == ()


@pytest.mark.parametrize("rows", [1, 7, 8])
def test_few_rows_are_a_warning(rows):
    warnings = find_row_warnings({"x": np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)})
    assert [f"on {rows} row" in warning for warning in warnings] == [True] * (rows < 8)


@pytest.mark.slow
def test_ids_that_are_rounded_are_a_warning():
    network = tf_keras.Sequential([tf_keras.layers.Embedding(178, 4, input_shape=(8,)), tf_keras.layers.Flatten()])
    rows = np.random.default_rng(0).integers(0, 178, (40, 8)).astype(np.float32)
    warnings = {io: quantize(network, Quantization(io=io, min_output_cosine=None), rows).warnings for io in _IO}
    assert [io for io, each in warnings.items() if any("whole numbers" in text for text in each)] == ["integer"]


def test_one_noisy_layer_is_singular():
    (warning,) = find_warnings(INT8, None, None, {}, [layer("dense", 3.5)])
    assert "1 of 1 layers has" in warning
