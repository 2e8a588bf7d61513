"""Fine-tunes from a generator and prints the growth of the process's memory in MB as JSON, by number of rows."""

import json
import sys
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tf_keras
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

WIDTH = 512


def resident() -> float:
    """Returns the MB that the process holds."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def data(rows: int) -> tf.data.Dataset:
    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number in range(rows // 200):
            x = np.random.default_rng(number).random((200, WIDTH), np.float32)
            yield x, x[:, :1]

    spec = (tf.TensorSpec((200, WIDTH), tf.float32), tf.TensorSpec((200, 1), tf.float32))
    return tf.data.Dataset.from_generator(batches, output_signature=spec)


def main(counts: list[str]) -> None:
    model = tf_keras.Sequential([tf_keras.Input((WIDTH,)), tf_keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    pruned = prune(model, PruningPlan(protect=(), sparsity=0.5))
    config = FineTuning(epochs=1, learning_rate=1e-3)
    fine_tune(pruned, data(2000), config)
    growth = {}
    for count in counts:
        before = resident()
        fine_tune(pruned, data(int(count)), config)
        growth[count] = resident() - before
    print(json.dumps(growth))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
