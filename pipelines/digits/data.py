"""Writes scikit-learn's handwritten digits as tf.Examples: 1,797 images of 8x8 pixels from 0 to 16, in ten classes."""

import hashlib
from pathlib import Path

import numpy as np

EVAL_ROWS = 500


def write(directory: Path) -> None:
    """Writes TFRecord files to `train/` and `eval/`, unless the same bytes are there already.

    TFX's cache identifies files by size and modification time, so rewriting unchanged data would rerun everything.
    """
    import tensorflow as tf
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    splits = {"eval": order[:EVAL_ROWS], "train": order[EVAL_ROWS:]}
    for split, rows in splits.items():
        path = directory / split / "digits.tfrecord"
        partial = directory / f"{split}.partial"  # Outside of the split's folder, where ExampleGen reads every file.
        path.parent.mkdir(parents=True, exist_ok=True)
        with tf.io.TFRecordWriter(str(partial)) as writer:
            for row in rows:
                writer.write(_example(digits.data[row], digits.target[row]))
        if path.exists() and _digest(path) == _digest(partial):
            partial.unlink()
        else:
            partial.replace(path)


def _example(image: np.ndarray, label: int) -> bytes:
    import tensorflow as tf

    feature = {
        "image": tf.train.Feature(float_list=tf.train.FloatList(value=image)),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
