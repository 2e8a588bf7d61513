"""Weight clustering: which of a kernel's weights share a value."""

import numpy as np

from tfx_compression.models.compressed import Masks


def cluster(values: np.ndarray, mask: np.ndarray | None, count: int) -> np.ndarray:
    """The number of each weight's cluster, in the kernel's shape; what is masked is a cluster of its own, number 0."""
    raise NotImplementedError


def clustered(values: np.ndarray, most: int) -> np.ndarray | None:
    """The clusters of a kernel that has at most so many values already, or None."""
    raise NotImplementedError


__all__ = ["Masks"]
