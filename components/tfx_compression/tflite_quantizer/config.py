"""How a model becomes a TFLite model."""

from typing import Literal

from pydantic import Field

from tfx_compression.models.config import Config


class Quantization(Config):
    """Conversion to TFLite.

    Attributes:
      mode: `float32`; `float16` (weights stored as halves); `dynamic` (int8 weights, float activations); `int8`
        (weights and activations, calibrated on data). Per channel, as TFLite's 8-bit quantization specification has it
        (ai.google.dev/edge/litert/models/quantization_spec).
      io: what an `int8` model takes and returns: `int8`, or `float32` with the quantization inside.
      calibration_rows: rows that an `int8` model's activation ranges are measured on.
      calibration_split: the split of the examples that they are drawn from.
      seed: of that draw.
    """

    mode: Literal["float32", "float16", "dynamic", "int8"] = "int8"
    io: Literal["int8", "float32"] = "int8"
    calibration_rows: int = Field(default=200, ge=1)
    calibration_split: str = "train"
    seed: int = 0

    @property
    def needs_data(self) -> bool:
        """Whether the mode is calibrated."""
        return self.mode == "int8"
