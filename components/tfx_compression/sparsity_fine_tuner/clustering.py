"""Weight clustering: which of a kernel's weights share a value (Han et al. 2016, arXiv:1510.00149)."""

import numpy as np

_ROUNDS = 100


def cluster(values: np.ndarray, mask: np.ndarray | None, count: int) -> np.ndarray:
    """The number of each weight's cluster, int32 in the kernel's shape; no number is left out.

    k-means on a line (Lloyd), from centres spaced evenly between the least and the largest weight, and again from
    centres with equally many weights between them: the one of less squared error.

    Args:
      values: the kernel's.
      mask: 0 where it is pruned: a cluster of its own, number 0. None prunes nothing.
      count: the most clusters that there may be, that of the pruned included.
    """
    pruned = np.zeros(values.shape, bool) if mask is None else ~mask.astype(bool)
    kept = values[~pruned].astype(np.float64)
    first = int(pruned.any())
    result = np.zeros(values.shape, np.int32)
    if kept.size:
        result[~pruned] = first + _k_means(kept, max(1, count - first))
    return result


def clustered(values: np.ndarray, most: int) -> np.ndarray | None:
    """The clusters of a kernel whose weights share at most so many values already, zero's first; otherwise None.

    Each value must be there twice on average: a small kernel has few values anyway.
    """
    levels, numbers = np.unique(values, return_inverse=True)
    if not 0 < levels.size <= most or values.size < 2 * levels.size:
        return None
    order = np.argsort(levels != 0, kind="stable")
    return np.argsort(order)[numbers].reshape(values.shape).astype(np.int32)


def _k_means(values: np.ndarray, count: int) -> np.ndarray:
    """The cluster of each value, in the order of the clusters' means."""
    order = np.argsort(values)
    line = values[order]
    levels = np.unique(line)
    sums, squares = (np.concatenate([[0.0], np.cumsum(power)]) for power in (line, line**2))
    count = min(count, levels.size)
    even = np.linspace(line[0], line[-1], count)
    dense = line[((np.arange(count) + 0.5) * line.size / count).astype(int)]
    spread = levels[((np.arange(count) + 0.5) * levels.size / count).astype(int)]
    tried = [_lloyd(line, sums, np.unique(centres)) for centres in (even, dense, spread)]
    bounds = min(tried, key=lambda bounds: _error(sums, squares, bounds))
    result = np.empty(values.size, np.int64)
    result[order] = np.repeat(np.arange(bounds.size - 1), np.diff(bounds))
    return result


def _lloyd(line: np.ndarray, sums: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Where clusters begin in sorted values, and the end; an empty cluster is given up."""
    bounds = np.array([0, line.size])
    for _ in range(_ROUNDS):
        inner = np.searchsorted(line, (centres[1:] + centres[:-1]) / 2)
        found = np.unique(np.concatenate([[0], inner, [line.size]]))
        if np.array_equal(found, bounds):
            break
        bounds = found
        centres = np.diff(sums[bounds]) / np.diff(bounds)
    return bounds


def _error(sums: np.ndarray, squares: np.ndarray, bounds: np.ndarray) -> float:
    """The sum of the squared distances to the means."""
    sizes, totals = np.diff(bounds), np.diff(sums[bounds])
    return float(np.sum(np.diff(squares[bounds]) - totals**2 / sizes))
