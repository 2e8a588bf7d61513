"""Models of fixed functions, loaded as predictors."""

import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tfx_compression.compressed_evaluator import predictors

from tests.support import by_hand, helpers
from tests.support.by_hand import Graph, Op, Type


def saved_model_of_tensors(path: Any, **outputs: int) -> predictors.Predictor:
    """A SavedModel that takes `x`, [rows, 3], and returns 2 x, padded to the size of each output."""
    spec = tf.TensorSpec([None, 3], tf.float32, name="x")

    def function(x):
        return {name: tf.pad(2 * x, [[0, 0], [0, size - 3]]) for name, size in outputs.items()}

    return predictors.load(helpers.save_function(function, [spec], path))


def saved_model_of_examples(path: Any, features: Mapping[str, Any]) -> predictors.Predictor:
    """A SavedModel that parses `features` from tf.Examples and returns twice their sum."""

    def function(examples):
        return {"y": 2 * tf.add_n(list(tf.io.parse_example(examples, features).values()))}

    return predictors.load(helpers.save_function(function, [tf.TensorSpec([None], tf.string, name="examples")], path))


def tflite_model(
    path: Any, sizes: Mapping[str, int], signature: bool = False, dtype: int = Type.FLOAT32
) -> predictors.Predictor:
    """A TFLite model with outputs of these sizes, each the floor of an input of the same size."""
    graph = Graph()
    for name, size in sizes.items():
        graph.inputs.append(graph.tensor(f"from_{name}", [-1, size], dtype))
        graph.outputs.append(graph.apply(Op.FLOOR, [graph.inputs[-1]], [graph.tensor(name, [-1, size], dtype)]))
    names = {f"from_{name}": index for name, index in zip(sizes, graph.inputs, strict=True)}
    signatures = {"serving_default": (0, names, dict(zip(sizes, graph.outputs, strict=True)))} if signature else {}
    path = os.path.join(path, f"{'_'.join(sizes)}.tflite")
    with open(path, "wb") as file:
        file.write(by_hand.model(graph, signatures=signatures))
    return predictors.load(path)
