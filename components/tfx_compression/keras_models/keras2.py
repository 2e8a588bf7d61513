"""Loading and saving Keras 2 models with their signatures, and what they were compiled with.

Importing this module imports TensorFlow and tf_keras.
"""

import contextlib
import os
import zipfile
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # tfmot and Transform's layers are Keras 2

import tensorflow as tf
import tf_keras

from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph
from tfx_compression.keras_models.keras3 import H5_ENDINGS, LOADING_FAILURES, loading_error


def load(path: str, custom_objects: Mapping[str, Any] | None = None) -> tf_keras.Model:
    """Loads the Keras 2 model in a SavedModel folder, a `.keras`, an `.h5` or an `.hdf5` file.

    Raises:
      ModelError: There is no model (code `missing-model`), a SavedModel without Keras metadata, whose layers are
        unknown (`no-keras-metadata`), a class or function that is unknown (`unknown-class`), or a model that can't be
        loaded otherwise (`unreadable-model`).
    """
    if not tf.io.gfile.exists(path):
        raise ModelError(f"No model at {path}. Remedy: check the path.", code="missing-model")
    if tf.io.gfile.isdir(path):
        if not tf.io.gfile.exists(os.path.join(path, "saved_model.pb")):
            raise ModelError(
                f"{path} holds no saved_model.pb. Remedy: the path of a SavedModel folder.", code="missing-model"
            )
        if not tf.io.gfile.exists(os.path.join(path, "keras_metadata.pb")):
            raise ModelError(
                f"The SavedModel in {path} has no Keras metadata (keras_metadata.pb), so its layers are unknown. "
                "tf.saved_model.save, model.export and Keras 3 write none. Remedy: in Trainer's run_fn, save a "
                'tf_keras model with model.save(fn_args.serving_model_dir, save_format="tf", signatures=…).',
                code="no-keras-metadata",
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
                    'files. Remedy: write it with model.save(path, save_format="tf").',
                    code="unreadable-model",
                ) from error
            raise loading_error(f"The Keras model in {path}", error) from error


def _quantize_scope() -> contextlib.AbstractContextManager:
    """Returns a scope in which Keras knows tfmot's classes."""
    import tensorflow_model_optimization as tfmot

    return tfmot.quantization.keras.quantize_scope()


def _configuration(path: str) -> bytes:
    """Returns the text that names a model's layers; empty if it can't be read, which loading then reports."""
    try:
        if path.endswith(H5_ENDINGS):
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
    """Returns the arguments that a model was compiled with, and a new optimizer without state; empty if it was not."""
    if getattr(model, "optimizer", None) is None:
        return {}
    # Losses and metrics are passed as objects, because the user's own have no registered name to build them from. Those
    # that Keras built from names are passed too: it derives the meaning of "accuracy" from the first labels, and a
    # saved model has forgotten it.
    arguments = dict(model._get_compile_args(user_metrics=False))
    for name in ("metrics", "weighted_metrics"):
        arguments[name] = _by_output(model, arguments[name])
    return {
        **arguments,
        "optimizer": fresh_optimizer(model.optimizer),
        "run_eagerly": model._run_eagerly,
        # Keras doesn't prefix the metrics' names with the output's again.
        "from_serialized": model.compiled_metrics._from_serialized or model.compiled_metrics.built,
    }


def _by_output(model: tf_keras.Model, metrics: Any) -> Any:
    """Returns metrics in the structure of the model's outputs, for which Keras keeps one list each."""
    if not isinstance(metrics, list | tuple) or not all(isinstance(each, list | tuple) for each in metrics):
        return metrics
    by_output = [[metric for metric in each if metric is not None] for each in metrics]
    if not by_output or len(by_output) != len(model.outputs):
        return metrics
    if len(by_output) == 1:
        return by_output[0]
    return tf.nest.pack_sequence_as(graph.io_structures(model)[1], [tuple(each) for each in by_output])


def fresh_optimizer(
    optimizer: tf_keras.optimizers.Optimizer, learning_rate: float | None = None
) -> tf_keras.optimizers.Optimizer:
    """Returns a new optimizer of the same class and settings without state.

    Args:
      optimizer: The optimizer to copy.
      learning_rate: Learning rate of the new one; None keeps the old one's, which may be a schedule.
    """
    config = optimizer.get_config()
    if learning_rate is not None:
        inner = (
            config["inner_optimizer"]["config"] if "inner_optimizer" in config else config
        )  # mixed precision wraps it
        inner["learning_rate"] = learning_rate
    fresh = type(optimizer).from_config(config)
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_names"):  # missing in the configuration
        if hasattr(optimizer, name):
            setattr(fresh, name, list(getattr(optimizer, name)))
    return fresh


def resolve_metrics(model: tf_keras.Model) -> None:
    """Builds the metrics of a compiled model that has seen no labels yet.

    The meaning of "accuracy" depends on the labels. A model that is saved before Keras resolves the name is loaded with
    the metric for one-hot labels.
    """
    if getattr(model, "optimizer", None) is None or model.compiled_metrics.built:
        return
    outputs = graph.io_structures(model)[1]
    losses = tf.nest.flatten(model.compiled_loss._user_losses)
    flat = graph.flat_tensors(outputs)
    if len(losses) != len(flat):
        losses = losses[:1] * len(flat)
    predictions, labels = [], []
    for tensor, loss in zip(flat, losses, strict=True):
        shape = [size or 1 for size in tensor.shape]
        name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        predictions.append(tf.zeros(shape, tensor.dtype))
        labels.append(tf.zeros([*shape[:-1], 1] if "sparse" in str(name).lower() else shape, tensor.dtype))
    indices = iter(range(len(flat)))
    order = graph.map_tensors(outputs, lambda _: next(indices))
    model.compiled_metrics.build(
        tf.nest.map_structure(lambda index: predictions[index], order),
        tf.nest.map_structure(lambda index: labels[index], order),
    )


def save(model: tf_keras.Model, path: str) -> None:
    """Writes a SavedModel with the signatures that a model was loaded with.

    Without `signatures=`, Keras would silently replace `serving_default`. The optimizer's configuration is saved, but
    not its state, which belongs to a training that has ended.
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
