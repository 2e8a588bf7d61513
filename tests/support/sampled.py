"""Draws samples from files in its own process, and prints the growth of its memory in MB by file as JSON."""

import json
import sys

import numpy as np
import tensorflow as tf
from tfx_compression.tflite_quantizer import sampling

from tests.support import helpers

ROWS, WIDTH = 1000, 64


def resident() -> float:
    """Returns the resident memory of the process in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def write(path: str, rows: int) -> None:
    """Writes rows of 64 floats and one of ten labels, which repeat after 1,000 rows."""
    x = np.random.default_rng(0).random((1000, WIDTH), np.float32)
    records = helpers.serialized({"x": x, "label": np.arange(1000) % 10})
    with tf.io.TFRecordWriter(path) as writer:
        for row in range(rows):
            writer.write(records[row % 1000])


def main(folder: str, counts: list[str]) -> None:
    for count in ["2000", *counts]:
        write(f"{folder}/{count}", int(count))
    features = {"x": tf.TensorSpec([None, WIDTH], tf.float32)}
    growth = {}
    for count in ["2000", *counts]:  # the first one loads libraries
        before = resident()
        for stratify_by in (None, "label"):
            sample = sampling.sample([f"{folder}/{count}"], features, ROWS, 0, stratify_by=stratify_by)
            assert len(sample.columns["x"]) == ROWS
        growth[count] = resident() - before
    print(json.dumps(growth))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
