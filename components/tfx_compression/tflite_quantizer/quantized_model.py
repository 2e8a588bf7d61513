"""The result of a conversion: a TFLite model and what is known about it."""

import dataclasses
import os
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfx_compression import files
from tfx_compression.tflite.contents import ModelContents
from tfx_compression.tflite.interpreter import TensorDetails
from tfx_compression.tflite_quantizer.record import QuantizationRecord


@dataclasses.dataclass(frozen=True, repr=False)
class QuantizedModel:
    """A TFLite model and what is known about it. `bytes(model)` is the file's content.

    Attributes:
      content: Content of the file.
      record: How it was made, and what is in it.
      self_test: Rows and the model's outputs for them, as devices store them (`self_test.make`).
      inputs, outputs: Tensors by name, of `serving_default` or the only signature.
      contents: Operators and weights.
    """

    content: bytes
    record: QuantizationRecord
    self_test: Mapping[str, np.ndarray]
    inputs: dict[str, TensorDetails]
    outputs: dict[str, TensorDetails]
    contents: ModelContents

    @property
    def warnings(self) -> tuple[str, ...]:
        """Findings that a user should act on."""
        return self.record.warnings

    @property
    def calibration_rows(self) -> int:
        """Number of rows that ranges were measured on."""
        return self.record.calibration.rows if self.record.calibration else 0

    @property
    def summary(self) -> str:
        """The size, the error of each output and the warnings, in lines of text."""
        return self.record.summary

    def save(self, path: str | os.PathLike) -> None:
        """Writes the TFLite file, and the folders above it.

        Raises:
          ModelError: It can't be written (code `unwritable-folder`; `disk-full` if no space is left).
        """
        path = os.fspath(path)
        try:
            files.write_bytes(path, self.content)
        except (OSError, tf.errors.OpError) as error:
            remedy = "the path of a file, in a folder that can be created and written"
            raise files.unwritable("The TFLite file", path, error, remedy) from error

    def __bytes__(self) -> bytes:
        return self.content

    def __repr__(self) -> str:
        return f"<{type(self).__name__}\n{self.summary}>"
