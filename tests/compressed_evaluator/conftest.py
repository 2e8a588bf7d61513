"""Models of three classes in every format, rows for them, and one evaluation of all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tfx_compression as tfc
from google.protobuf import text_format
from tensorflow_model_analysis.proto import config_pb2

from tests.support.helpers import write_examples

ROWS, CLASSES = 400, 3
ACCURACY = "sparse_categorical_accuracy"


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


def _convert(saved: str, mode: str) -> bytes:
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


@pytest.fixture(scope="session")
def paths(tmp_path_factory) -> dict[str, str]:
    """Paths of the models by format, and of the rows, which are `rows`."""
    folder = tmp_path_factory.mktemp("models")
    saved, one_row = save(folder / "saved"), save(folder / "one_row", batch=1)
    found = {
        "raw": saved,
        "examples": f"{saved}.examples",
        "rows": write_examples(folder / "rows.tfrecord", rows()),
    }
    for name, source, mode in (
        ("float32", saved, "float32"),
        ("int8", saved, "int8"),
        ("int16x8", saved, "int16x8"),
        ("one_row", one_row, "int8"),
    ):
        found[name] = str(folder / f"{name}.tflite")
        Path(found[name]).write_bytes(_convert(source, mode))
    return found


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


CANDIDATES = ("float32", "int8", "int16x8", "one_row", "raw")


@pytest.fixture(scope="session")
def evaluated(paths, tmp_path_factory) -> tuple[tfc.Evaluation, Path]:
    """An evaluation of models of every format in one pass, and the folder of its files."""
    output = tmp_path_factory.mktemp("evaluated")
    evaluation = tfc.evaluate(
        {name: paths[name] for name in CANDIDATES},
        paths["rows"],
        baseline=paths["examples"],
        eval_config=sliced_config(),
        budget=tfc.Budget(
            max_metric_drop={ACCURACY: 0.1}, min_agreement=0.8, max_divergence=0.5, objective="most_accurate"
        ),
        output_path=str(output),
    )
    return evaluation, output
