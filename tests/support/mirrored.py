"""Fine-tunes on one and on two devices, in a process of its own: devices are chosen before TensorFlow runs.

It prints the differences between the results as JSON, by case: `KIND MODE`, or `KIND MODE outside` for a model that is
loaded outside of the strategy.
"""

import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf
from tfx_compression.errors import CompressionError
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import nets

_PLANS = {
    "fixed": {"sparsity": 0.5},
    "gradual": {"schedule": "cubic", "sparsity": 0.8, "frequency": 2},
    "dynamic": {"sparsity": 0.5, "frequency": 2},
    "cluster": {"sparsity": 0.5},
}


def tuned(
    kind: str, mode: str, eager: bool, loaded: Any = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]:
    """Returns the kernels, the masks and the loss of the last epoch."""
    model = loaded or nets.dense(kind, pathlib.Path(tempfile.mkdtemp()))
    if kind != "saved_model":
        model.model.run_eagerly = eager
    pruned = nets.pruned(model, **_PLANS[mode])
    if kind != "saved_model":
        pruned.model.run_eagerly = eager
    config = FineTuning(mode=mode, epochs=2, optimizer="adam", loss="mse", learning_rate=0.02, clusters=4)
    result = fine_tune(pruned, nets.points(), config, validation_data=nets.points(32))
    return nets.kernels(pruned.model), dict(result.masks), result.history[-1]["val_loss"]


def main(cases: list[str]) -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    results = {}
    for case in cases:
        kind, mode, *place = case.split()
        kernels, masks, loss = tuned(kind, mode, eager=True)
        loaded = nets.dense(kind, pathlib.Path(tempfile.mkdtemp())) if place else None
        try:
            with strategy.scope():
                kernels_of_two, masks_of_two, loss_of_two = tuned(kind, mode, False, loaded)
        except CompressionError as error:
            results[case] = {"error": f"{type(error).__name__}: {error}"}
            continue
        results[case] = {
            "weight_difference": max(float(np.abs(kernels[name] - kernels_of_two[name]).max()) for name in kernels),
            "loss_difference": abs(loss - loss_of_two),
            "revived": sum(int(np.count_nonzero(kernels_of_two[name][~mask])) for name, mask in masks_of_two.items()),
            "same_masks": bool(masks) and all(bool((masks[name] == mask).all()) for name, mask in masks_of_two.items()),
        }
    print(json.dumps(results))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
