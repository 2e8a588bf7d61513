"""Results of fine-tuning: of a training, of a round of pruning and training, of a mode, and of the whole."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pydantic

from tfx_compression.model_handle import ModelHandle
from tfx_compression.model_handle.compressed import Compressed, Masks


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The result of one training, whose model is trained in place.

    Attributes:
      steps: Number of training steps.
      history: Logs of each epoch.
      epoch: Epoch, counted from 0, whose weights the model has.
      notes: Notes for the user, such as why training ended early.
    """

    steps: int
    history: list[dict[str, float]]
    epoch: int
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """The logs of the epoch whose weights the model has."""
        return self.history[self.epoch]


class Round(pydantic.BaseModel):
    """One round of pruning and training.

    Attributes:
      step_sparsity: Sparsity that the round is to reach, as a fraction of the plan's `target`.
      achieved_sparsity: Sparsity that it reached.
      metrics: Loss and metrics on the evaluation data after training. Empty without such data.
      drop: Amount by which the guard's metric is worse than the baseline.
      accepted: Whether the next round starts from its model.
      steps: Number of training steps.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    step_sparsity: float
    achieved_sparsity: float
    metrics: dict[str, float] = {}
    drop: float | None = None
    accepted: bool = True
    steps: int = 0


@dataclasses.dataclass(frozen=True)
class ModeResult:
    """The result of a mode.

    Attributes:
      handle: Fine-tuned model.
      masks: Masks by kernel name.
      history: Logs of each epoch of all trainings.
      metrics: Metrics of the epoch or round whose model it is, named as in the history.
      notes: Notes for the user.
      rounds: Rounds of mode `iterative`.
    """

    handle: ModelHandle
    masks: Masks
    history: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float]
    notes: Sequence[str] = ()
    rounds: Sequence[Round] = ()

    @classmethod
    def from_training(
        cls, handle: ModelHandle, masks: Masks, result: TrainingResult, notes: Sequence[str] = ()
    ) -> "ModeResult":
        """Returns the result of a mode that trains once; `notes` come before those of the training."""
        return cls(handle, masks, result.history, result.metrics, (*notes, *result.notes))


@dataclasses.dataclass(frozen=True)
class FineTunedModel(Compressed):
    """A fine-tuned model.

    Attributes:
      handle: Handle that saves the model. It holds the model that was fine-tuned, whose signatures this one answers.
      network: Network that replaces its layers if the graph changed, or None if only weights changed.
      history: Logs of each epoch, round after round.
      rounds: Rounds of mode `iterative`.
      metrics: Metrics of the epoch or round whose model it is, named as in the history.
      notes: Notes for the user.
    """

    handle: ModelHandle
    network: Any = None
    history: Sequence[Mapping[str, float]] = ()
    rounds: Sequence[Round] = ()
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()

    def save(self, path: str, signatures_fn: Callable | None = None, transform_graph: str | None = None) -> None:
        """Writes a SavedModel with the same signatures, and a `.keras` file beside it if there was one.

        Args:
          path: Path of the SavedModel.
          signatures_fn: Function that makes the signatures of a network whose graph changed. By default they are
            rebuilt from the original ones, and compared with them on rows.
          transform_graph: URI of the TransformGraph, if signatures use one that the model doesn't hold.

        Raises:
          ModelError: If the signatures can't be rebuilt, or the files can't be written.
        """
        signatures_fn = signatures_fn if self.network is not None else None
        self.handle.save(path, self.network, signatures_fn, transform_graph)
