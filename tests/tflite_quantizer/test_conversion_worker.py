"""The worker process of a conversion: limits on its time and memory, and crashes."""

import sys

import numpy as np
import pytest
import tensorflow as tf
import tfx_compression as tfc
from tfx_compression import worker
from tfx_compression.errors import ModelError, WorkerError
from tfx_compression.tflite_quantizer.quantize import quantize

from tests.support import helpers
from tests.support.conversions import normal
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # starts processes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel that is quick to write."""
    specs = [tf.TensorSpec([None, 4], tf.float32, name="x")]
    path = tmp_path_factory.mktemp("signature") / "model"
    return helpers.save_function(lambda x: {"y": 2.0 * x}, specs, path)


def test_a_conversion_that_takes_too_long_is_ended(saved):
    with raises(WorkerError, code="hung", match=r"'dynamic'.* 0\.5 s"):
        quantize(saved, tfc.Quantization(mode="dynamic", timeout_seconds=0.5))


def test_a_conversion_that_takes_too_much_memory_is_ended(saved):
    with raises(WorkerError, code="out-of-memory", match="50 MB"):
        quantize(saved, tfc.Quantization(mode="dynamic", max_memory_bytes=50 * 2**20))


def test_a_crash_names_the_signal(saved, tmp_path, monkeypatch):
    """A stand-in for Python crashes: models that crash TensorFlow's converter depend on its version."""
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\necho 'its last words' >&2\nkill -SEGV $$\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    with raises(WorkerError, code="crashed", match="'dynamic'.*SIGSEGV.*its last words"):
        quantize(saved, tfc.Quantization(mode="dynamic"))


@pytest.mark.parametrize(("batch_size", "remedy"), [(None, "batch_size=1"), (1, "Remedy: mode 'dynamic'")])
def test_a_crash_of_the_runtime_has_a_remedy(saved, monkeypatch, batch_size, remedy):
    """As attention in int16x8 with a free number of rows on LiteRT 2.3."""

    def crash(*arguments, **options):
        step = "running the TFLite model for the first time"
        raise WorkerError("It crashed.", code="crashed", reason="crashed (SIGABRT)", step=step)

    monkeypatch.setattr(worker, "run", crash)
    data = helpers.batches({"x": normal(4, 4)}, np.zeros(4))
    config = tfc.Quantization(mode="int8", batch_size=batch_size)
    with raises(ModelError, code="crashes-runtime", field="Quantization.mode", match=remedy):
        quantize(saved, config, data)
