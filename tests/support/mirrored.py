"""Fine-tunes on one and on two devices, in a process of its own: devices are chosen before TensorFlow runs.

Prints what came out as JSON: by case, how far the weights are apart, and whether pruned weights are zero.
"""

import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.training import fine_tune

from tests.support import nets

_PLANS = {
    "fixed": {"sparsity": 0.5},
    "gradual": {"schedule": "cubic", "sparsity": 0.8, "frequency": 2},
    "dynamic": {"sparsity": 0.5, "frequency": 2},
    "cluster": {"sparsity": 0.5},
}


def tuned(kind: str, mode: str, loaded: Any = None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]:
    """The kernels, the masks and the loss of the last epoch."""
    model = loaded or nets.dense(kind, pathlib.Path(tempfile.mkdtemp()))
    if kind != "saved_model":
        model.model.run_eagerly = False
    pruned = nets.pruned(model, **_PLANS[mode])
    model = pruned.handle
    config = FineTuning(mode=mode, epochs=2, optimizer="adam", loss="mse", learning_rate=0.02, clusters=4)
    plan = None if mode == "cluster" else pruned.plan
    found = fine_tune(model, nets.points(), config, plan=plan, masks=pruned.masks, validation_data=nets.points(32))
    return nets.kernels(model), dict(found.masks), found.history[-1]["val_loss"]


def main(cases: list[str]) -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    found = {}
    for case in cases:
        kind, mode, *where = case.split()
        kernels, masks, loss = tuned(kind, mode)
        loaded = nets.dense(kind, pathlib.Path(tempfile.mkdtemp())) if where else None  # outside of the strategy
        try:
            with strategy.scope():
                both, theirs, other = tuned(kind, mode, loaded)
        except (ModelError, ConfigError) as error:
            found[case] = {"error": f"{type(error).__name__}: {error}"}
            continue
        found[case] = {
            "apart": max(float(np.abs(kernels[name] - both[name]).max()) for name in kernels),
            "loss": abs(loss - other),
            "revived": sum(int(np.count_nonzero(both[name][~mask])) for name, mask in theirs.items()),
            "masks": all(bool((masks[name] == mask).all()) for name, mask in theirs.items()),
        }
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
