"""Mode `fixed`: the pruned weights stay zero, and the others train."""

from tfx_compression.model_handle.compressed import Masks
from tfx_compression.sparsity_fine_tuner.results import ModeResult
from tfx_compression.sparsity_fine_tuner.session import Session


def run(session: Session, masks: Masks) -> ModeResult:
    """Trains the session's model with constant masks."""
    training = session.prepare(session.handle, masks)
    result = training.run()
    return ModeResult.from_training(session.handle, training.masks, result)
