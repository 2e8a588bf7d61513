"""One interface to a model of any kind: Keras 2, Keras 3, or a SavedModel without layers."""

from tfx_compression.model_handle.handle import ModelHandle, ModelKind
from tfx_compression.model_handle.layout import KERAS_FILE, SERVING_FOLDER
from tfx_compression.model_handle.loading import load, wrap
from tfx_compression.model_handle.saving import copy_compilation

__all__ = ["KERAS_FILE", "SERVING_FOLDER", "ModelHandle", "ModelKind", "copy_compilation", "load", "wrap"]
