"""Small models and data sets for tests."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
import tfx_compression.keras_models.library  # noqa: F401 - keeps AutoGraph from rewriting tf_keras, which takes 20 s
from tensorflow_metadata.proto.v0 import schema_pb2

IMAGE = (8, 8, 1)
LARGEST = 16.0  # Pixels go from 0 to 16 in the examples, and from 0 to 1 after preprocessing.
CLASSES = 3


def images(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns images [rows, 8, 8, 1] from 0 to 16 and their labels, the brightest third of the columns."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, rows)
    pixels = generator.uniform(0.0, 0.6 * LARGEST, (rows, *IMAGE))
    for row, label in enumerate(labels):
        pixels[row, :, 1 + 2 * label : 3 + 2 * label] += 0.4 * LARGEST
    return pixels.astype(np.float32), labels.astype(np.int64)


def small_cnn(seed: int = 1) -> tf_keras.Model:
    """Returns a network from `images` to three probabilities: convolutions, batch normalization and dense layers."""
    tf_keras.utils.set_random_seed(seed)
    layers = tf_keras.layers
    image = tf_keras.Input(IMAGE, name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(image)
    x = layers.BatchNormalization(name="normalization")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.SeparableConv2D(16, 3, padding="same", activation="relu", name="separable")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(32, activation="relu", name="dense")(x)
    probabilities = layers.Dense(CLASSES, activation="softmax", name="probabilities")(x)
    model = tf_keras.Model(image, probabilities, name="small_cnn")
    for name in ("gamma", "moving_variance"):  # As after training. The initial values normalize nothing.
        weight = getattr(model.get_layer("normalization"), name)
        weight.assign(np.random.default_rng(seed).uniform(0.5, 1.5, weight.shape))
    return model


def small_dense(seed: int = 1, dropout: float = 0.0) -> tf_keras.Model:
    """Returns a network from four numbers, `x`, to two."""
    tf_keras.utils.set_random_seed(seed)
    x = tf_keras.Input((4,), name="x")
    hidden = tf_keras.layers.Dense(16, activation="relu", name="hidden")(x)
    if dropout:
        hidden = tf_keras.layers.Dropout(dropout, name="dropout")(hidden)
    return tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(hidden), name="small_dense")


def small_convolutions(seed: int = 1) -> tf_keras.Model:
    """Returns a network from `images` to two numbers: depthwise, separable and transposed convolutions."""
    tf_keras.utils.set_random_seed(seed)
    layers = tf_keras.layers
    image = tf_keras.Input(IMAGE, name="image")
    x = layers.DepthwiseConv2D(3, depth_multiplier=4, name="depthwise")(image)
    x = layers.SeparableConv2D(6, 3, activation="relu", name="separable")(x)
    x = layers.Conv2DTranspose(5, 2, strides=2, activation="relu", name="transposed")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return tf_keras.Model(image, layers.Dense(2, name="y")(x), name="small_convolutions")


def points(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns numbers [rows, 4] and a linear function of them, [rows, 2], which `small_dense` can learn."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 4)).astype(np.float32)
    return x, (x @ np.array([[1.0, -2.0], [0.5, 1.0], [0.0, 2.0], [-1.0, 0.0]], np.float32)).astype(np.float32)


def batches(features: Any, labels: np.ndarray, size: int = 16) -> tf.data.Dataset:
    """Returns batches of (features, label) in order."""
    return tf.data.Dataset.from_tensor_slices((features, labels)).batch(size)


def serialized(features: Mapping[str, np.ndarray]) -> list[bytes]:
    """Returns a serialized tf.Example for each row of `features`, arrays [rows, …] by name."""
    rows = len(next(iter(features.values())))
    return [
        tf.train.Example(
            features=tf.train.Features(feature={name: _feature(values[row]) for name, values in features.items()})
        ).SerializeToString()
        for row in range(rows)
    ]


def _feature(values: np.ndarray) -> tf.train.Feature:
    flat = np.asarray(values).ravel()
    if flat.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=flat))
    if flat.dtype.kind in "iub":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=flat.astype(np.int64)))
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[tf.compat.as_bytes(value) for value in flat]))


def write_examples(path: Any, features: Mapping[str, np.ndarray], labels: np.ndarray | None = None) -> str:
    """Writes rows as tf.Examples to a TFRecord file, gzipped if its name ends in .gz. The feature `label` has labels.

    Returns:
      The path.
    """
    if labels is not None:
        features = {**features, "label": labels}
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.io.TFRecordWriter(str(path), "GZIP" if str(path).endswith(".gz") else "") as writer:
        for row in serialized(features):
            writer.write(row)
    return str(path)


def schema(features: Mapping[str, tuple[str, Sequence[int] | None]]) -> schema_pb2.Schema:
    """Returns a schema of required features, `{name: ("FLOAT" | "INT" | "BYTES", shape)}`. None is no fixed shape."""
    result = schema_pb2.Schema()
    for name, (kind, shape) in features.items():
        feature = result.feature.add(name=name, type=schema_pb2.FeatureType.Value(kind))
        feature.presence.min_fraction = 1.0
        feature.presence.min_count = 1
        if shape is None:
            feature.value_count.min = 1
        else:
            feature.shape.SetInParent()
            for size in shape:
                feature.shape.dim.add(size=size)
    return result


def save_with_examples_signature(
    model: tf_keras.Model, path: Any, feature: str = "image", shape: Sequence[int] = IMAGE, scale: float = LARGEST
) -> str:
    """Saves a model like a Trainer after Transform, and returns the path.

    The signature `serving_default` takes serialized tf.Examples and returns `probabilities`. It divides the raw feature
    by `scale` in a layer that is an attribute of the model and that only the signature uses, like Transform's layer.
    """
    model.tft_layer = tf_keras.layers.Rescaling(1.0 / scale, name="transform_features_layer")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve_tf_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(examples, {feature: tf.io.FixedLenFeature(shape, tf.float32)})
        return {"probabilities": model(model.tft_layer(parsed[feature]))}

    model.save(str(path), save_format="tf", signatures={"serving_default": serve_tf_examples})
    return str(path)


def save_function(
    function: Callable, specs: Sequence[tf.TensorSpec], path: Any, signature: str = "serving_default", **tracked: Any
) -> str:
    """Saves a function and the objects it uses as a SavedModel without Keras; returns the path."""
    module = tf.Module()
    for name, value in tracked.items():
        setattr(module, name, value)
    module.function = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, str(path), signatures={signature: module.function})
    return str(path)


def answers(path: str, signature: str = "serving_default", **arguments: Any) -> dict[str, np.ndarray]:
    """Returns the outputs of a SavedModel's signature."""
    loaded = tf.saved_model.load(path)
    feeds = {name: tf.constant(value) for name, value in arguments.items()}
    return {name: value.numpy() for name, value in loaded.signatures[signature](**feeds).items()}


def to_tflite(model: tf_keras.Model, mode: str, rows: np.ndarray | None = None, io: str = "int8") -> bytes:
    """Converts a Keras model with TensorFlow's converter in this process. `int8` is calibrated on `rows`."""
    (name,), (output,) = model.input_names, model.output_names
    spec = tf.TensorSpec(model.inputs[0].shape, tf.float32, name=name)
    with tempfile.TemporaryDirectory() as folder:
        save_function(lambda x: {output: model(x)}, [spec], folder, weights=model.weights)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
        if mode != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if mode == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if mode == "int8":
            converter.representative_dataset = lambda: ({name: row[None]} for row in rows)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(io)
        return bytes(converter.convert())


def zero_smallest(model: tf_keras.Model, layer: str, fraction: float) -> np.ndarray:
    """Zeroes the smallest weights of a layer's kernel in place; returns a mask of the others."""
    kernel = model.get_layer(layer).kernel
    values = kernel.numpy()
    keep = np.abs(values) > np.quantile(np.abs(values), fraction)
    kernel.assign(values * keep)
    return keep
