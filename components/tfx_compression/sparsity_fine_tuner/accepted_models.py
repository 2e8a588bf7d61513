"""The accepted models of iterative pruning on disk: later rounds start from them, also after the process was killed."""

import dataclasses
import os

from tfx_compression import model_handle
from tfx_compression.keras_models import keras3
from tfx_compression.model_handle import ModelHandle
from tfx_compression.model_handle.compressed import Masks, read_masks, write_masks
from tfx_compression.sparsity_fine_tuner.checkpoints import WeightSnapshot, writing
from tfx_compression.sparsity_fine_tuner.results import Round
from tfx_compression.sparsity_fine_tuner.session import Session
from tfx_compression.sparsity_fine_tuner.variables import unique

_MASKS = "masks.npz"
_NETWORK = "model.keras"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A pruned model.

    Attributes:
      handle: Model.
      masks: Masks by kernel name.
      step_sparsity: Sparsity that it was pruned for, as a fraction of the plan's `target`.
      achieved_sparsity: Sparsity that it has.
      number: Number of the round that produced it. 0 is the dense model.
    """

    handle: ModelHandle
    masks: Masks
    step_sparsity: float
    achieved_sparsity: float
    number: int


class AcceptedModels:
    """Saves accepted models and restores them.

    Args:
      session: Session whose folder and teachers are used.
      structured: Whether the plan removes channels, so that a round produces a new network.
    """

    def __init__(self, session: Session, structured: bool):
        self._session = session
        self._structured = structured

    def save(self, accepted: Candidate) -> None:
        """Writes a model's masks and weights, and its network if it is not the session's or the teacher's."""
        folder = self._folder(accepted.number)
        with writing(os.path.join(folder, _MASKS)):
            write_masks(os.path.join(folder, _MASKS), accepted.masks)
            if accepted.handle is not self._session.handle and accepted.number:
                keras3.save(accepted.handle.network, os.path.join(folder, _NETWORK))
        self._snapshot(accepted).save("accepted")

    def restore_weights(self, accepted: Candidate) -> None:
        """Restores the accepted weights of a model that trains in place. New networks already hold them."""
        if accepted.handle is self._session.handle:
            self._snapshot(accepted).restore("accepted")

    def load(self, number: int, rounds: list[Round]) -> Candidate:
        """Returns the model that was accepted after round `number`; 0 is the dense model."""
        handle = self._session.handle
        step_sparsity = achieved_sparsity = 0.0
        if number:
            step_sparsity = rounds[number - 1].step_sparsity
            achieved_sparsity = rounds[number - 1].achieved_sparsity
        if self._structured and number != 1:
            handle = self._load_network(number) if number else self._session.teachers[0]
        masks = read_masks(os.path.join(self._folder(number), _MASKS))
        return Candidate(handle, masks, step_sparsity, achieved_sparsity, number)

    def _load_network(self, number: int) -> ModelHandle:
        path = os.path.join(self._folder(number), _NETWORK)
        handle = model_handle.load(path, self._session.custom_objects)
        model_handle.copy_compilation(self._session.handle.model, handle.model)
        return handle

    def _snapshot(self, accepted: Candidate) -> WeightSnapshot:
        path = os.path.join(self._folder(accepted.number), "weights")
        return WeightSnapshot(path, unique(accepted.handle.weights))

    def _folder(self, number: int) -> str:
        return os.path.join(self._session.folder, "accepted", f"round-{number:03d}")
