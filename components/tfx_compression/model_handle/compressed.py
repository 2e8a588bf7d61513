"""What pruning and fine-tuning return: a model, what was done to it, and the files that go with it."""

import dataclasses
import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pydantic
import tensorflow as tf

from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.keras_models.model_size import ModelSize

Masks = Mapping[str, np.ndarray]

SUMMARY_FILE = "summary.json"


class Summary(pydantic.BaseModel):
    """A model before and after a step, in numbers."""

    model_config = pydantic.ConfigDict(frozen=True)

    before: ModelSize
    after: ModelSize


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A compressed model.

    Attributes:
      model: a Keras model, or a SavedModel without a graph of layers.
      summary: parameters, sparsity, multiply-accumulates and bytes before and after, whole and per layer.
      masks: by kernel name (the layer's, mostly), an array of 0 and 1 in the kernel's shape: 0 where it was pruned.
    """

    model: Any
    summary: Summary
    masks: Masks

    def save(self, path: str) -> None:
        """Writes a SavedModel that answers the same signatures."""
        model_handle.wrap(self.model).save(path)


def write_masks(path: str, masks: Masks) -> None:
    """Writes masks as compressed NumPy arrays by kernel name."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{f"mask/{name}": mask.astype(bool) for name, mask in masks.items()})
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(buffer.getvalue())


def read_masks(path: str) -> dict[str, np.ndarray]:
    """The masks in a file that `write_masks` wrote."""
    with tf.io.gfile.GFile(path, "rb") as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as stored:
        return {name.removeprefix("mask/"): stored[name] for name in stored.files}


def require_masked_zeros(model: Any, masks: Masks, place: str) -> None:
    """Checks that every weight of a model, or of what `model_handle.load` gave, that a mask prunes is zero.

    Raises:
      ModelError: naming `place`, the first layer where one is not, and how many there are.
    """
    kernels = model_handle.wrap(model).kernels
    for name, mask in masks.items():
        if name not in kernels:
            raise ModelError(f"{place} has no layer {name!r} that the masks name; its kernels: {', '.join(kernels)}.")
        kernel = kernels[name].values
        if kernel.shape != mask.shape:
            raise ModelError(f"{place}: layer {name!r} has a kernel of {kernel.shape}, its mask is {mask.shape}.")
        revived = np.count_nonzero(kernel[~mask.astype(bool)])
        if revived:
            raise ModelError(f"{place}: {revived} weights of layer {name!r} that were pruned are not zero.")
