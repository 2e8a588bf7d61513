"""What pruning shares out sparsity over: kernels, or groups of coupled channels."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PruningGroup:
    """What gets one sparsity.

    Attributes:
      name: of the kernel, or of the group of channels.
      scores: the importance of each element that may go, larger is more important: of single weights in the kernel's
        shape, or of channel units, [units].
      erdos_renyi: the Erdős-Rényi-kernel density before scaling: the sum of the kernel's sizes over their product
        (arXiv:1911.11134); of a group, over its producing kernels together.
      multiple: the number of elements that stay is a multiple of this (`round_to`), at least one, unless all stay.
    """

    name: str
    scores: np.ndarray
    erdos_renyi: float
    multiple: int = 1

    def kept(self, sparsity: float) -> int:
        """How many elements stay at `sparsity`."""
        size = self.scores.size
        kept = round(size * (1 - sparsity))
        if self.multiple > 1:
            kept = self.multiple * round(kept / self.multiple)
        return min(size, max(kept, self.multiple))
