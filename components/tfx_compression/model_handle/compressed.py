"""The result of pruning and fine-tuning: a model, its size before and after, its masks, and their files."""

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
    """The size of a model before and after a step.

    Attributes:
      before: Size before.
      after: Size after.
      warnings: What is not as asked, such as a whole model that is less sparse than the plan says.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    before: ModelSize
    after: ModelSize
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A compressed model.

    Attributes:
      model: A Keras model, or a `SavedModel` without a graph of layers.
      summary: Parameters, sparsity, multiply-accumulates and bytes before and after, in total and per layer.
      masks: By kernel name, an array of 0 and 1 in the kernel's shape, with 0 for each pruned weight. The name is
        mostly the layer's.
    """

    model: Any
    summary: Summary
    masks: Masks

    def save(self, path: str) -> None:
        """Writes a SavedModel with the same signatures."""
        model_handle.wrap(self.model).save(path)


def write_masks(path: str, masks: Masks) -> None:
    """Writes masks as compressed NumPy arrays by kernel name."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{f"mask/{name}": mask.astype(bool) for name, mask in masks.items()})
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(buffer.getvalue())


def read_masks(path: str) -> dict[str, np.ndarray]:
    """Returns the masks in a file that `write_masks` wrote."""
    with tf.io.gfile.GFile(path, "rb") as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as stored:
        return {name.removeprefix("mask/"): stored[name] for name in stored.files}


def require_masked_zeros(model: Any, masks: Masks, place: str) -> None:
    """Checks that every weight that a mask prunes is zero.

    Args:
      model: Model, or its handle.
      masks: Masks by kernel name.
      place: Description of the model; error messages start with it.

    Raises:
      ModelError: A pruned weight is not zero (code `revived-weights`), or the masks belong to another model
        (`mask-mismatch`).
    """
    kernels = model_handle.wrap(model).kernels
    for name, mask in masks.items():
        if name not in kernels:
            raise ModelError(
                f"{place} has no kernel {name!r}, which the masks name; its kernels: {', '.join(kernels)}. "
                "Remedy: masks of the same model.",
                code="mask-mismatch",
            )
        kernel = kernels[name].values
        if kernel.shape != mask.shape:
            raise ModelError(
                f"{place}: the kernel {name!r} has shape {kernel.shape}, its mask {mask.shape}. "
                "Remedy: masks of the same model.",
                code="mask-mismatch",
            )
        revived = np.count_nonzero(kernel[~mask.astype(bool)])
        if revived:
            raise ModelError(
                f"{place}: {revived} pruned weights of the kernel {name!r} are not zero. "
                "Remedy: prune the model again, or pass the masks that belong to it.",
                code="revived-weights",
            )
