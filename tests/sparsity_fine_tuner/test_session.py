"""Trainings of a session: mixed precision, several devices, and memory."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.errors import ConfigError
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import nets
from tests.support.errors import raises


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", nets.EVERY_KIND[:2])
def test_mixed_precision_computes_in_16_bits_with_weights_in_32(kind, policy):
    trained, computed = [], []
    for precision in (policy, None):
        pruned = nets.pruned(nets.dense(kind, None), sparsity=0.5)
        model = pruned.handle

        def step(network, batch):
            computed.append(tf.as_dtype(network.get_layer("hidden")(batch[0]).dtype).name)
            return network.train_step(batch)

        config = FineTuning(epochs=1, learning_rate=0.05, mixed_precision=precision)
        tuned = fine_tune(model, nets.points(), config, masks=pruned.masks, train_step=step)
        trained.append(nets.kernels(model))
        assert tuned.model is model.model
        for name, mask in pruned.masks.items():
            assert trained[-1][name].dtype == np.float32
            assert not trained[-1][name][~mask].any()
    assert computed[0] == policy.removeprefix("mixed_") and computed[-1] == "float32"
    for name in nets.KERNELS:
        np.testing.assert_allclose(trained[0][name], trained[1][name], atol=0.03)
        assert (trained[0][name] != trained[1][name]).any()


def test_mixed_precision_of_a_saved_model_is_refused(tmp_path):
    config = FineTuning(mixed_precision="mixed_bfloat16", loss="mse")
    with raises(ConfigError, field="FineTuning.mixed_precision", code="no-layers"):
        fine_tune(nets.dense("saved_model", tmp_path), nets.points(), config, masks={})


# Devices and memory, each in a process of its own.


def run_module(*arguments):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    finished = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.slow
def test_two_devices_train_like_one():
    cases = [f"keras2 {mode}" for mode in ("fixed", "gradual", "dynamic", "cluster")] + ["keras3 dynamic"]
    refused = ["saved_model fixed", "saved_model fixed outside"]
    results = run_module("tests.support.mirrored", *cases, *refused)
    for case in refused:
        assert results[case].keys() == {"error"}
    for case in cases:
        result = results[case]
        assert "error" not in result, f"{case}: {result}"
        assert result["revived"] == 0, case
        assert result["same_masks"], case
        assert result["weight_difference"] < 1e-4 and result["loss_difference"] < 1e-3, f"{case}: {result}"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data():
    """Rows have 2 kB and come from a generator: 60000 of them, kept, would be 120 MB."""
    growth = run_module("tests.support.streamed", "5000", "60000")
    assert growth["60000"] - growth["5000"] < 40
