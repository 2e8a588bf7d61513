"""Models in every form in which Trainers save them."""

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
import tf_keras
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils
from tfx_compression.model_handle import ModelHandle

from tests.support import helpers

FEATURES = ("a", "b")


def transform_graph(path: Any, sparse: bool = False) -> str:
    """Writes a transform graph that divides `a` and `b` by 4 and looks `word` up in a vocabulary; returns its path.

    Args:
      path: Folder of the graph.
      sparse: Whether the features are sparse, with one value or none in a row. A missing number counts as 2.
    """
    spec = {name: tf.io.FixedLenFeature([1], tf.float32) for name in FEATURES}
    spec["word"] = tf.io.FixedLenFeature([1], tf.string)
    if sparse:
        spec = {name: tf.io.VarLenFeature(feature.dtype) for name, feature in spec.items()}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))

    def filled(feature: tf.SparseTensor) -> tf.Tensor:
        column = tf.SparseTensor(feature.indices, feature.values, [feature.dense_shape[0], 1])
        return tf.reshape(tf.sparse.to_dense(column, 2.0), [-1, 1])

    def preprocessing_fn(features: Any) -> Any:
        scaled = {name: (filled(features[name]) if sparse else features[name]) / 4.0 for name in FEATURES}
        return {**scaled, "word": tft.compute_and_apply_vocabulary(features["word"], vocab_filename="words")}

    rows = [{"a": [1.0], "b": [2.0], "word": [word]} for word in ("one", "two", "two")]
    with tft_beam.Context(temp_dir=str(path) + "-temporary"):
        _ = (rows, metadata) | tft_beam.AnalyzeDataset(preprocessing_fn) | tft_beam.WriteTransformFn(str(path))
    return str(path)


def keras3_dense(seed: int = 1, units: int = 16) -> keras.Model:
    """Returns a Keras 3 network from four numbers, `x`, to two."""
    keras.utils.set_random_seed(seed)
    x = keras.Input((4,), name="x")
    hidden = keras.layers.Dense(units, activation="relu", name="hidden")(x)
    return keras.Model(x, keras.layers.Dense(2, name="y")(hidden))


def two_features(library: Any, units: int = 16, seed: int = 1) -> Any:
    """Returns a network of Keras 2 or Keras 3 from two numbers, `a` and `b`, to two."""
    library.utils.set_random_seed(seed)
    inputs = [library.Input((1,), name=name) for name in FEATURES]
    joined = library.layers.Concatenate()(inputs)
    hidden = library.layers.Dense(units, activation="relu", name="hidden")(joined)
    return library.Model(inputs, library.layers.Dense(2, name="y")(hidden), name="two_features")


def penguin(path: Any, model: Any, transform: str) -> str:
    """Saves a model of `two_features` with the signatures of TFX's penguin example; returns the path.

    `serving_default` parses tf.Examples (with a default for `b`), transforms them and runs the model.
    `transform_features` parses and transforms them.
    """
    model.tft_layer = tft.TFTransformOutput(transform).transform_features_layer()
    spec = {
        "a": tf.io.FixedLenFeature([1], tf.float32),
        "b": tf.io.FixedLenFeature([1], tf.float32, 0.5),
        "word": tf.io.FixedLenFeature([1], tf.string),
    }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        scaled = model.tft_layer(tf.io.parse_example(examples, spec))
        return {"outputs": model([scaled[name] for name in FEATURES], training=False)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def transform_features(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return model.tft_layer(tf.io.parse_example(examples, spec))

    signatures = {"serving_default": serve, "transform_features": transform_features}
    if isinstance(model, tf_keras.Model):
        model.save(str(path), save_format="tf", signatures=signatures)
    else:
        tf.saved_model.save(model, str(path), signatures=signatures)
    return str(path)


def examples(rows: int = 6) -> list[bytes]:
    """Returns serialized tf.Examples for `penguin`. The last one has no `b`."""
    generator = np.random.default_rng(0)
    words = np.array([["one"], ["two"], ["none"]] * rows)[:rows]
    complete = helpers.serialized({**{name: generator.normal(size=(rows, 1)) for name in FEATURES}, "word": words})
    return [*complete, *helpers.serialized({"a": np.ones([1, 1], np.float32), "word": np.array([["two"]])})]


def module(path: Any, vocabulary: Any = None) -> str:
    """Saves a tf.Module that computes `(relu(x @ first) * scale) @ second^T`; returns the path.

    Args:
      path: Folder of the SavedModel.
      vocabulary: File of a vocabulary, in which the module then looks an input `word` up.
    """
    generator = np.random.default_rng(0)
    result = tf.Module()
    result.first = tf.Variable(generator.normal(size=(4, 8)), dtype=tf.float32, name="first")
    result.second = tf.Variable(generator.normal(size=(2, 8)), dtype=tf.float32, name="second")
    result.scale = tf.Variable(generator.normal(size=(1, 8)), dtype=tf.float32, name="scale")
    specs = [tf.TensorSpec([None, 4], tf.float32, name="x")]
    if vocabulary is not None:
        index = tf.lookup.TextFileIndex
        words = tf.lookup.TextFileInitializer(str(vocabulary), tf.string, index.WHOLE_LINE, tf.int64, index.LINE_NUMBER)
        result.table = tf.lookup.StaticHashTable(words, -1)
        specs.append(tf.TensorSpec([None], tf.string, name="word"))

    @tf.function(input_signature=specs)
    def serve(x: tf.Tensor, word: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        hidden = tf.nn.relu(x @ result.first) * result.scale
        outputs = {"y": tf.matmul(hidden, result.second, transpose_b=True)}
        return outputs if word is None else {**outputs, "word": result.table.lookup(word)}

    result.serve = serve
    tf.saved_model.save(result, str(path), signatures={"serving_default": serve})
    return str(path)


def artifact(path: Any) -> str:
    """Returns the serving folder of a Model artifact, after making the artifact's folder."""
    folder = os.path.join(str(path), "Format-Serving")
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    return folder


class Subclassed(tf_keras.Model):
    """A subclassed Keras 2 model, which has no graph of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tf_keras.layers.Dense(2, name="inner")

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)


def zero_half(handle: ModelHandle) -> None:
    """Zeroes the smaller half of the weights of every kernel in place."""
    for kernel in handle.kernels.values():
        size = np.abs(kernel.values)
        kernel.variable.assign(kernel.values * (size > np.quantile(size, 0.5)))


def save_sparse_transform_model(folder: Any) -> str:
    """Writes a SavedModel that transforms sparse features, as in TFX's taxi example; returns its path."""
    model = two_features(tf_keras)
    model.tft_layer = tft.TFTransformOutput(transform_graph(folder / "graph", sparse=True)).transform_features_layer()
    spec = {name: tf.io.VarLenFeature(tf.float32) for name in FEATURES} | {"word": tf.io.VarLenFeature(tf.string)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        transformed = model.tft_layer(tf.io.parse_example(examples, spec))
        return {"outputs": model([transformed[name] for name in FEATURES])}

    path = str(folder / "model")
    model.save(path, save_format="tf", signatures={"serving_default": serve})
    return path
