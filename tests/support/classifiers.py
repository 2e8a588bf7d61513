"""Linear classifiers of three classes in every format, and rows that they classify."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_model_analysis.proto import config_pb2

ROWS, CLASSES = 400, 3
ACCURACY = "sparse_categorical_accuracy"
# Names of the candidates that the fixture `evaluated` evaluates.
CANDIDATES = ("float32", "int8", "int16x8", "one_row", "raw")


def rows(count: int = ROWS, seed: int = 1, spread: float = 1.0) -> dict[str, np.ndarray]:
    """Points `x`, [rows, 4], labeled by the largest of the first three coordinates, in two groups."""
    x = (spread * np.random.default_rng(seed).normal(size=(count, 4))).astype(np.float32)
    label = np.argmax(x[:, :CLASSES], axis=1).astype(np.int64)
    group = np.where(np.arange(count) % 4 == 0, b"rare", b"common")
    return {"x": x, "label": label[:, None], "group": group[:, None]}


def kernel(noise: float = 0.8) -> np.ndarray:
    """A kernel that classifies every row correctly, except for the noise."""
    return np.eye(4, CLASSES) * 3 + noise * np.random.default_rng(5).normal(size=(4, CLASSES))


def save(path: Any, answer: Callable | None = None, batch: int | None = None, noise: float = 0.8) -> str:
    """Saves a model whose `serving_default` takes `x`, and beside it one, `<path>.examples`, that takes tf.Examples.

    Args:
      path: Path of the model.
      answer: Returns the probabilities for `kernel` and `x`; by default the softmax.
      batch: Fixed batch size; then there is no model for tf.Examples.
      noise: Noise of the kernel.
    """
    module = tf.Module()
    module.kernel = tf.Variable(kernel(noise), dtype=tf.float32)
    answer = answer or (lambda kernel, x: tf.nn.softmax(x @ kernel))

    @tf.function(input_signature=[tf.TensorSpec([batch, 4], tf.float32, name="x")])
    def raw(x):
        return {"probabilities": answer(module.kernel, x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def parsed(examples):
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([4], tf.float32, [0.0] * 4)})["x"]
        return {"probabilities": answer(module.kernel, x)}

    tf.saved_model.save(module, str(path), signatures={"serving_default": raw})
    if batch is None:
        tf.saved_model.save(module, f"{path}.examples", signatures={"serving_default": parsed})
    return str(path)


def convert(saved: str, mode: str) -> bytes:
    """Converts a SavedModel of `x`. `mode` is float32, int8 or int16x8."""
    converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=["serving_default"])
    if mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ({"x": row[None]} for row in rows()["x"][:100])
    if mode == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    if mode == "int16x8":
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
    return bytes(converter.convert())


def sliced_config(threshold: float | None = None) -> config_pb2.EvalConfig:
    """An EvalConfig with the accuracy on the whole split and by group, and perhaps a threshold on the whole split."""
    config = text_format.Parse(
        """
        model_specs { label_key: "label" }
        metrics_specs { metrics { class_name: "SparseCategoricalAccuracy" } }
        slicing_specs {} slicing_specs { feature_keys: "group" }
        """,
        config_pb2.EvalConfig(),
    )
    if threshold is not None:
        config.metrics_specs[0].metrics[0].threshold.value_threshold.lower_bound.value = threshold
    return config
