"""Weight clustering: decides which weights of a kernel share a value (Han et al. 2016, arXiv:1510.00149)."""

import numpy as np

_LLOYD_ITERATIONS = 100
_MOST_EDGES = 800  # of the dynamic programme, whose time grows with their square


def cluster(values: np.ndarray, mask: np.ndarray | None, count: int) -> np.ndarray:
    """Returns the cluster number of each weight, int32 in the kernel's shape. Every number up to the largest is used.

    It is k-means in one dimension. Dynamic programming finds the best split (Wang and Song 2011, "Ckmeans.1d.dp"). For
    kernels with many distinct weights it does so on a grid, and Lloyd's algorithm refines the result. The result is
    deterministic.

    Args:
      values: Kernel weights.
      mask: 0 where a weight is pruned. Pruned weights form cluster 0. None prunes nothing.
      count: Largest number of clusters, including the cluster of the pruned weights.
    """
    pruned = np.zeros(values.shape, bool) if mask is None else ~mask.astype(bool)
    kept = values[~pruned].astype(np.float64)
    first = int(pruned.any())
    result = np.zeros(values.shape, np.int32)
    if kept.size:
        result[~pruned] = first + _k_means(kept, max(1, count - first))
    return result


def existing_clusters(values: np.ndarray, most: int) -> np.ndarray | None:
    """Returns the clusters of a kernel whose weights already share values, or None if they don't.

    Weights share values if there are at most `most` distinct ones, each used twice on average: a small kernel has few
    values anyway. Cluster 0 is the value zero, if the kernel has zeros.

    Args:
      values: Kernel weights.
      most: Largest number of distinct values.
    """
    levels, numbers = np.unique(values, return_inverse=True)
    if not 0 < levels.size <= most or values.size < 2 * levels.size:
        return None
    order = np.argsort(levels != 0, kind="stable")
    return np.argsort(order)[numbers].reshape(values.shape).astype(np.int32)


def _k_means(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the cluster number of each value. Clusters are numbered in the order of their means."""
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
    """Returns the positions in sorted values at which a cluster may begin.

    They are those of all distinct values. If there are too many, it selects some of them: one half evenly spaced by
    position, the other half evenly spaced by value.
    """
    starts = np.concatenate([[0], np.flatnonzero(np.diff(line)) + 1, [line.size]])
    if starts.size > _MOST_EDGES:
        by_position = np.linspace(0, line.size, _MOST_EDGES // 2).astype(int)
        by_value = np.searchsorted(line, np.linspace(line[0], line[-1], _MOST_EDGES // 2))
        selected = np.searchsorted(starts, np.concatenate([by_position, by_value, [line.size]]))
        starts = starts[np.unique(np.concatenate([[0], selected]))]
    return starts


def _best_split(edges: np.ndarray, sums: np.ndarray, squares: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the edges between which `count` clusters have the least squared error."""
    sizes = np.maximum(edges[None] - edges[:, None], 1)
    error = (squares[edges][None] - squares[edges][:, None]) - (sums[edges][None] - sums[edges][:, None]) ** 2 / sizes
    error[np.tril_indices(edges.size)] = np.inf  # row: first edge, column: last edge; no cluster is empty
    least, choices = error[0], []
    for _ in range(count - 1):
        total = least[:, None] + error
        choices.append(total.argmin(axis=0))
        least = total.min(axis=0)
    split = [edges.size - 1]
    for choice in reversed(choices):
        split.append(int(choice[split[-1]]))
    return np.array([0, *reversed(split)])


def _lloyd(line: np.ndarray, sums: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Moves the bounds of clusters, in sorted values, until each value is nearest to its own mean.

    It stops before a cluster would become empty.
    """
    for _ in range(_LLOYD_ITERATIONS):
        centers = np.diff(sums[bounds]) / np.diff(bounds)
        inner = np.searchsorted(line, (centers[1:] + centers[:-1]) / 2)
        moved = np.unique(np.concatenate([[0], inner, [line.size]]))
        if np.array_equal(moved, bounds) or moved.size < bounds.size:
            break
        bounds = moved
    return bounds
