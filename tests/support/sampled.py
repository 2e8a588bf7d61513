"""Draws samples of files, in a process of its own, and prints the growth of its memory in MB by file as JSON."""

import json
import sys

import numpy as np
import tensorflow as tf
from tfx_compression.tflite_quantizer import sampling

from tests.support import helpers

ROWS, WIDTH = 1000, 64


def resident() -> float:
    """MB that the process holds."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def write(path: str, rows: int) -> None:
    """The same 1,000 rows of 64 floats and a label of ten, over and over."""
    x = np.random.default_rng(0).random((1000, WIDTH), np.float32)
    records = helpers.serialized({"x": x, "label": np.arange(1000) % 10})
    with tf.io.TFRecordWriter(path) as writer:
        for row in range(rows):
            writer.write(records[row % 1000])


def main(folder: str, counts: list[str]) -> None:
    for count in ["2000", *counts]:
        write(f"{folder}/{count}", int(count))
    features = {"x": tf.TensorSpec([None, WIDTH], tf.float32)}
    grown = {}
    for count in ["2000", *counts]:  # the first one loads what is loaded once
        before = resident()
        for stratify_by in (None, "label"):
            sample = sampling.sample([f"{folder}/{count}"], features, ROWS, 0, stratify_by=stratify_by)
            assert len(sample.columns["x"]) == ROWS
        grown[count] = resident() - before
    print(json.dumps(grown))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
