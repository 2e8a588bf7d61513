"""Models on disk, in any format, and their kernels."""

import os

import numpy as np
import tensorflow as tf

from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.model_handle.layout import KERAS_ENDINGS, METADATA_FILE
from tfx_compression.saved_models import saved_model
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.contents import read_contents


def locate(path: str) -> str:
    """Returns the path of a model: the TFLite model in a folder as TFX stores it, or else `path` itself.

    Raises:
      ModelError: There is neither a SavedModel nor a file (code `missing-model`).
    """
    stored = os.path.join(path, flatbuffer.MODEL_FILE)
    if tf.io.gfile.exists(stored):
        return stored
    if tf.io.gfile.exists(path) and (not tf.io.gfile.isdir(path) or tf.saved_model.contains_saved_model(path)):
        return path
    raise ModelError(f"{path} is neither a SavedModel nor a model file. Remedy: check the path.", code="missing-model")


def model_format(path: str) -> str:
    """Returns `saved_model`, `keras` or `tflite` for a path that `locate` returned."""
    if tf.io.gfile.isdir(path):
        return "saved_model"
    return "keras" if path.endswith(KERAS_ENDINGS) else "tflite"


def read_kernels(path: str) -> dict[str, np.ndarray]:
    """Returns the kernels of the model at a path that `locate` returned.

    They go by layer; in a SavedModel without Keras metadata, by variable.
    """
    if model_format(path) == "tflite":
        with tf.io.gfile.GFile(path, "rb") as file:
            return read_contents(file.read()).weights
    if model_format(path) == "keras" or tf.io.gfile.exists(os.path.join(path, METADATA_FILE)):
        kernels = model_handle.load(path).kernels
    else:
        kernels = saved_model.load(path).kernels
    return {name: kernel.values for name, kernel in kernels.items()}


def sparsity(kernel: np.ndarray) -> float:
    """Returns the fraction of zeros."""
    return float(1 - np.count_nonzero(kernel) / kernel.size)
