"""One interface to a model of any kind: Keras 2, Keras 3, or a SavedModel without layers."""

from tfx_compression.model_handle.handle import (
    KERAS_FILE,
    SERVING_FOLDER,
    ModelHandle,
    ModelKind,
    copy_compilation,
    load,
    wrap,
)

__all__ = ["KERAS_FILE", "SERVING_FOLDER", "ModelHandle", "ModelKind", "copy_compilation", "load", "wrap"]
