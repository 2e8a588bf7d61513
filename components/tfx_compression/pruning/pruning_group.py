"""The unit to which a sparsity is allocated: a kernel, or a group of coupled channels."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PruningGroup:
    """Elements that share one sparsity.

    Attributes:
      name: Name of the kernel or of the channel group.
      scores: Importance of each element that can be pruned; larger is more important. Single weights have the kernel's
        shape, blocks of weights [block rows, block columns], channel units [units].
      erdos_renyi: Erdős-Rényi-kernel density before scaling: the sum of the kernel's sizes over their product
        (arXiv:1911.11134). For channels, the sums and products of all producing kernels are added up.
      multiple: The number of kept elements is a multiple of this (`round_to`), and at least one multiple, unless all
        are kept.
    """

    name: str
    scores: np.ndarray
    erdos_renyi: float
    multiple: int = 1

    def kept(self, sparsity: float) -> int:
        """Returns the number of elements that are kept at `sparsity`."""
        size = self.scores.size
        kept = round(size * (1 - sparsity))
        if self.multiple > 1:
            kept = self.multiple * round(kept / self.multiple)
        return min(size, max(kept, self.multiple))
