"""The models that lie on disk, and their kernels, whatever format they have."""

import os

import numpy as np
import tensorflow as tf

from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.saved_models import saved_model
from tfx_compression.tflite import flatbuffer


def locate(path: str) -> str:
    """The model at `path`: a file, a SavedModel, or in a folder that holds a TFLite model as TFX stores it, that file.

    Raises:
      ModelError: where there is none.
    """
    stored = os.path.join(path, flatbuffer.MODEL_FILE)
    if tf.io.gfile.exists(stored):
        return stored
    if tf.io.gfile.exists(path) and (not tf.io.gfile.isdir(path) or tf.saved_model.contains_saved_model(path)):
        return path
    raise ModelError(f"{path} is neither a SavedModel nor a model file.")


def model_format(path: str) -> str:
    """`saved_model`, `keras` or `tflite`, by what `locate` found."""
    if tf.io.gfile.isdir(path):
        return "saved_model"
    return "keras" if path.endswith((".keras", ".h5")) else "tflite"


def read_kernels(path: str) -> dict[str, np.ndarray]:
    """The kernels of a model that `locate` found: by layer; of a SavedModel without Keras metadata, by variable."""
    if model_format(path) == "tflite":
        with tf.io.gfile.GFile(path, "rb") as file:
            return flatbuffer.read_contents(file.read()).weights
    if model_format(path) == "keras" or tf.io.gfile.exists(os.path.join(path, "keras_metadata.pb")):
        found = model_handle.load(path).kernels
    else:
        found = saved_model.load(path).kernels
    return {name: kernel.values for name, kernel in found.items()}


def sparsity(kernel: np.ndarray) -> float:
    """The fraction of zeros."""
    return float(1 - np.count_nonzero(kernel) / kernel.size)
