"""How a pruned model is trained further."""

from typing import Literal

from pydantic import Field

from tfx_compression.models.config import Config


class FineTuning(Config):
    """Training after pruning.

    Attributes:
      mode: `fixed`, what was pruned stays zero.
      epochs: passes over the training split.
      batch_size: rows per step.
      steps_per_epoch: steps that make an epoch; by default until the data ends, which it must then do.
      learning_rate: constant, of the optimizer that the model was compiled with; a tenth of the Trainer's is usual.
      label_key: the label's feature; by default the one feature of the schema that is no input of the model.
      seed: of shuffling and dropout.
    """

    mode: Literal["fixed"] = "fixed"
    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=64, ge=1)
    steps_per_epoch: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0.0)
    label_key: str | None = None
    seed: int = 0
