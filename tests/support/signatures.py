"""SavedModels whose signatures parse tf.Examples, with and without a Transform layer."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from tfx_compression.saved_models.signature_graph import SignatureGraph

from tests.support import helpers


def save_on_examples(path: Any, spec: Mapping[str, Any], function: Callable[[Any], Any], **tracked: Any) -> str:
    """Saves a signature that parses `spec` from serialized tf.Examples and calls a function; returns the path."""

    def serve(examples: tf.Tensor) -> Any:
        return function(tf.io.parse_example(examples, spec))

    return helpers.save_function(serve, [tf.TensorSpec([None], tf.string, name="examples")], path, **tracked)


def transform_layer(function: Callable[[Any], Any], **specs: tf.TensorSpec) -> tf.Module:
    """Returns a layer that computes features from features by name, like that of TensorFlow Transform."""

    class Layer(tf.Module):
        @tf.function(input_signature=[specs], autograph=False)
        def __call__(self, features: Mapping[str, tf.Tensor]) -> Any:
            return function(features)

    return Layer()


def open_signature(path: str, name: str = "serving_default") -> SignatureGraph:
    """Loads a SavedModel and opens one of its signatures."""
    return SignatureGraph(path, tf.saved_model.load(path), name)
