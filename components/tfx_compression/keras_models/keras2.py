"""Keras 2 models as a Trainer writes them: load, look at the network, save again with the same signatures.

Importing this module imports TensorFlow and tf_keras.
"""

import contextlib
import os
import zipfile
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # tfmot and Transform's layers are Keras 2: one Keras per process

import tensorflow as tf
import tf_keras
from tensorflow.python.autograph.core import config as autograph

from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph
from tfx_compression.keras_models.keras3 import LOADING_FAILURES

# AutoGraph passes over Keras' own source, but knows it as `keras` only: without this rule it rewrites all of tf_keras,
# 20 s in every process that trains. User code is converted as before.
autograph.CONVERSION_RULES = (autograph.DoNotConvert("tf_keras"), *autograph.CONVERSION_RULES)


def load(path: str, custom_objects: Mapping[str, Any] | None = None) -> tf_keras.Model:
    """The Keras 2 model in a SavedModel directory, a `.keras` or an `.h5` file.

    Raises:
      ModelError: where there is no model, or a SavedModel without Keras metadata: its layers can't be seen.
    """
    if not tf.io.gfile.exists(path):
        raise ModelError(f"No model at {path}.")
    if tf.io.gfile.isdir(path):
        if not tf.io.gfile.exists(os.path.join(path, "saved_model.pb")):
            raise ModelError(f"{path} holds no saved_model.pb: not a SavedModel.")
        if not tf.io.gfile.exists(os.path.join(path, "keras_metadata.pb")):
            raise ModelError(
                f"The SavedModel in {path} has no Keras metadata (keras_metadata.pb), so its layers can't be seen. "
                "tf.saved_model.save, model.export and Keras 3 write none. Remedy: in Trainer's run_fn, save a "
                'tf_keras model with model.save(fn_args.serving_model_dir, save_format="tf", signatures=…).'
            )
    quantized = b"Quantize" in _configuration(path)
    with (
        _quantize_scope() if quantized else contextlib.nullcontext(),
        tf_keras.utils.custom_object_scope(dict(custom_objects or {})),
    ):
        try:
            return tf_keras.models.load_model(path)
        except LOADING_FAILURES as error:
            if quantized and path.endswith(".keras"):
                raise ModelError(
                    f"The quantization-aware model in {path} can't be loaded: tfmot's layers can't be read from .keras "
                    'files. Remedy: write it with model.save(path, save_format="tf").'
                ) from error
            raise ModelError(
                f"The Keras model in {path} can't be loaded: {str(error).rstrip(' .')}. "
                "Remedy: for classes and functions of your own, a custom_objects() in the module file; "
                "otherwise the file is damaged."
            ) from error


def _quantize_scope() -> contextlib.AbstractContextManager:
    """What makes tfmot's classes known."""
    import tensorflow_model_optimization as tfmot

    return tfmot.quantization.keras.quantize_scope()


def _configuration(path: str) -> bytes:
    """The text that names a model's layers; empty where it can't be read: loading will tell."""
    try:
        if path.endswith(".h5"):
            import h5py

            with tf.io.gfile.GFile(path, "rb") as file, h5py.File(file, "r") as stored:
                text = stored.attrs["model_config"]
            return text if isinstance(text, bytes) else str(text).encode()
        with tf.io.gfile.GFile(
            os.path.join(path, "keras_metadata.pb") if tf.io.gfile.isdir(path) else path, "rb"
        ) as file:
            if tf.io.gfile.isdir(path):
                return bytes(file.read())
            with zipfile.ZipFile(file) as archive:
                return archive.read("config.json")
    except LOADING_FAILURES:
        return b""


def compile_arguments(model: tf_keras.Model) -> dict[str, Any]:
    """What the model was compiled with, its optimizer a new one without state; empty where it never was."""
    if getattr(model, "optimizer", None) is None:
        return {}
    # The objects themselves: a loss or metric of the user's own has no registered name to make it from again. Those
    # that Keras has made of names: what "accuracy" means it finds out by the first labels, and not in a saved model.
    arguments = dict(model._get_compile_args(user_metrics=False))
    for name in ("metrics", "weighted_metrics"):
        arguments[name] = _by_output(model, arguments[name])
    return {
        **arguments,
        "optimizer": fresh_optimizer(model.optimizer),
        "run_eagerly": model._run_eagerly,
        "from_serialized": model.compiled_metrics._from_serialized or model.compiled_metrics.built,  # names are whole
    }


def _by_output(model: tf_keras.Model, metrics: Any) -> Any:
    """Metrics in the structure of the model's outputs, where Keras holds a list for each output."""
    if not isinstance(metrics, list | tuple) or not all(isinstance(each, list | tuple) for each in metrics):
        return metrics
    found = [[metric for metric in each if metric is not None] for each in metrics]
    if not found or len(found) != len(model.outputs):
        return metrics
    if len(found) == 1:
        return found[0]
    return tf.nest.pack_sequence_as(graph.io_structures(model)[1], [tuple(each) for each in found])


def fresh_optimizer(
    optimizer: tf_keras.optimizers.Optimizer, learning_rate: float | None = None
) -> tf_keras.optimizers.Optimizer:
    """An optimizer of the same kind and settings without state, at another learning rate where one is given."""
    config = optimizer.get_config()
    if learning_rate is not None:
        inner = config["inner_optimizer"]["config"] if "inner_optimizer" in config else config  # mixed precision wraps
        inner["learning_rate"] = learning_rate
    fresh = type(optimizer).from_config(config)
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_names"):  # are in no configuration
        if hasattr(optimizer, name):
            setattr(fresh, name, list(getattr(optimizer, name)))
    return fresh


def resolve_metrics(model: tf_keras.Model) -> None:
    """Has Keras make the metrics of a model that has seen no labels yet: "accuracy" is another for each kind of them.

    Saved as a name, it would be read as that of one-hot labels.
    """
    if getattr(model, "optimizer", None) is None or model.compiled_metrics.built:
        return
    outputs = graph.io_structures(model)[1]
    losses = tf.nest.flatten(model.compiled_loss._user_losses)
    flat = graph.flat_tensors(outputs)
    if len(losses) != len(flat):
        losses = losses[:1] * len(flat)
    answers, labels = [], []
    for tensor, loss in zip(flat, losses, strict=True):
        shape = [size or 1 for size in tensor.shape]
        name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        answers.append(tf.zeros(shape, tensor.dtype))
        labels.append(tf.zeros([*shape[:-1], 1] if "sparse" in str(name).lower() else shape, tensor.dtype))
    places = iter(range(len(flat)))
    order = graph.map_tensors(outputs, lambda _: next(places))
    model.compiled_metrics.build(
        tf.nest.map_structure(lambda place: answers[place], order),
        tf.nest.map_structure(lambda place: labels[place], order),
    )


def save(model: tf_keras.Model, path: str) -> None:
    """Writes a SavedModel that answers the signatures that `model` was loaded with.

    Without `signatures=` Keras would silently replace `serving_default`. The optimizer's configuration is kept, its
    state is not: it belongs to the training that is over.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        resolve_metrics(model)
        model.optimizer = fresh_optimizer(optimizer)
    signatures = dict(getattr(model, "signatures", None) or {})
    try:
        model.save(path, save_format="tf", signatures=signatures or None)
    finally:
        model.optimizer = optimizer
