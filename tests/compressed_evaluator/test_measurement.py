"""Measurements of models: the noise of kernels, and the baseline as float TFLite."""

import math

import numpy as np
import pytest
from tfx_compression.compressed_evaluator import measurement
from tfx_compression.errors import ModelError
from tfx_compression.tflite import conversion

from tests.support import by_hand
from tests.support.by_hand import Op, one_operator


@pytest.mark.parametrize(
    ("reference", "kernel", "decibels"),
    [
        ([10.0, 0.0], [10.0, 1.0], 20.0),  # an energy of 100 over an energy of 1
        ([3.0, 4.0], [3.0, 4.5], 20.0),
        ([1.0, 2.0], [1.0, 2.0], math.inf),
        ([0.0, 0.0], [0.0, 1.0], -math.inf),
        ([1.0, 2.0], [1.0], None),
        (None, [1.0], None),
    ],
    ids=["20 dB", "half of a fifth", "equal", "no signal", "another shape", "no reference"],
)
def test_the_noise_of_a_kernel_is_measured_in_decibels(reference, kernel, decibels):
    signal = None if reference is None else np.array(reference, np.float32)
    assert measurement._snr_db(signal, np.array(kernel, np.float32)) == (
        None if decibels is None else pytest.approx(decibels)
    )


def test_a_tflite_model_or_none_needs_no_conversion(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"TFLite")
    for model in (None, str(path)):
        with measurement.float_tflite(model) as converted:
            assert converted() is None


def test_the_baseline_is_converted_in_the_background(tmp_path, monkeypatch):
    content = by_hand.model(one_operator(Op.FLOOR))
    monkeypatch.setattr(conversion, "convert_in_worker", lambda path, mode: content)
    with measurement.float_tflite(str(tmp_path)) as converted:
        model = converted()
        assert (model.predictor.kind, model.contents.ops) == ("tflite", {"FLOOR": 1})


def test_a_baseline_that_can_not_be_converted_is_none(tmp_path, monkeypatch):
    def fail(path: str, mode: str) -> bytes:
        raise ModelError("unsupported")

    monkeypatch.setattr(conversion, "convert_in_worker", fail)
    with measurement.float_tflite(str(tmp_path)) as converted:
        assert converted() is None
