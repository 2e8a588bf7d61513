"""Weight clustering: which of a kernel's weights share a value (Han et al. 2016, arXiv:1510.00149)."""

import numpy as np

_ROUNDS = 100
_EDGES = 800


def cluster(values: np.ndarray, mask: np.ndarray | None, count: int) -> np.ndarray:
    """The number of each weight's cluster, int32 in the kernel's shape; no number is left out.

    k-means on a line: the best split, by dynamic programming (Wang and Song 2011, "Ckmeans.1d.dp"), of many weights on
    a grid, from which Lloyd's algorithm goes on. The same weights give the same clusters.

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
    sums, squares = (np.concatenate([[0.0], np.cumsum(power)]) for power in (line, line**2))
    edges = _edges(line)
    bounds = edges[_best_split(edges, sums, squares, min(count, edges.size - 1))]
    bounds = _lloyd(line, sums, bounds)
    result = np.empty(values.size, np.int64)
    result[order] = np.repeat(np.arange(bounds.size - 1), np.diff(bounds))
    return result


def _edges(line: np.ndarray) -> np.ndarray:
    """Where, in sorted values, a cluster may begin: at each value; of many at some, even in number or in distance."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(line)) + 1, [line.size]])
    if starts.size > _EDGES:
        numbers = np.linspace(0, line.size, _EDGES // 2).astype(int)
        distances = np.searchsorted(line, np.linspace(line[0], line[-1], _EDGES // 2))
        wanted = np.searchsorted(starts, np.concatenate([numbers, distances, [line.size]]))
        starts = starts[np.unique(np.concatenate([[0], wanted]))]
    return starts


def _best_split(edges: np.ndarray, sums: np.ndarray, squares: np.ndarray, count: int) -> np.ndarray:
    """The edges, by number, between which `count` clusters have the least squared error: dynamic programming."""
    sizes = np.maximum(edges[None] - edges[:, None], 1)
    error = (squares[edges][None] - squares[edges][:, None]) - (sums[edges][None] - sums[edges][:, None]) ** 2 / sizes
    error[np.tril_indices(edges.size)] = np.inf  # from the row's edge to the column's: no cluster is empty
    least, before = error[0], []
    for _ in range(count - 1):
        through = least[:, None] + error
        before.append(through.argmin(axis=0))
        least = through.min(axis=0)
    split = [edges.size - 1]
    for choice in reversed(before):
        split.append(int(choice[split[-1]]))
    return np.array([0, *reversed(split)])


def _lloyd(line: np.ndarray, sums: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Moves where clusters begin, in sorted values, until each value is nearest to its own mean; none gets empty."""
    for _ in range(_ROUNDS):
        centres = np.diff(sums[bounds]) / np.diff(bounds)
        inner = np.searchsorted(line, (centres[1:] + centres[:-1]) / 2)
        found = np.unique(np.concatenate([[0], inner, [line.size]]))
        if np.array_equal(found, bounds) or found.size < bounds.size:
            break
        bounds = found
    return bounds
