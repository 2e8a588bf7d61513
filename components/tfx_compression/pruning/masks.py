"""Masks: which weights of a kernel stay, single ones, N of every M, or whole blocks."""

import math

import numpy as np

from tfx_compression.errors import ConfigError
from tfx_compression.kernels import Kernel
from tfx_compression.pruning.plan import PruningPlan


def mask(kernel: Kernel, scores: np.ndarray, sparsity: float, plan: PruningPlan) -> np.ndarray:
    """Which weights of a kernel stay, in the plan's pattern.

    Unstructured, it is tfmot's rule (`pruning_impl.Pruning._update_mask`; Zhu & Gupta 2017, arXiv:1710.01878), and N:M
    tfmot's `generate_m_by_n_mask` (Mishra et al. 2021, arXiv:2104.08378), for every kind of kernel. Blocks are those of
    tfmot where its sizes divide the kernel's. At a ragged edge tfmot averages other cells than it masks (its pooling
    pads on both sides); here a block's score is the average of its own cells.

    Args:
      kernel: to be masked.
      scores: the importance of each weight, larger is more important, in the kernel's shape.
      sparsity: the fraction of the weights (or blocks) that goes, in [0, 1). N:M says itself how much; 0 leaves
        everything also there.
      plan: its `pattern` is used.

    Returns:
      Booleans in the kernel's shape; at least one weight or block is True. What ties with the last that stays, stays.

    Raises:
      ConfigError: where the kernel is too small for the pattern, see `supports_pattern`.
    """
    if sparsity <= 0:
        return np.ones(scores.shape, bool)
    if not supports_pattern(kernel, plan):
        raise ConfigError(
            f"PruningPlan.pattern = {plan.pattern!r}: the kernel {kernel.name!r} of shape {kernel.shape} is too small "
            f"for it, nothing of it could be zero. Remedy: rules=[LayerRule(layers={kernel.name!r}, sparsity=0)]."
        )
    if plan.n_of_m:
        return kernel.from_matrix(_n_of_m(_groups(kernel, scores, plan.n_of_m[1]), plan.n_of_m[0], kernel))
    if plan.block == (1, 1):
        return _largest(scores, sparsity)
    kept = _largest(block_scores(kernel, scores, plan.block), sparsity)
    rows, columns = kernel.to_matrix(scores).shape
    return kernel.from_matrix(kept.repeat(plan.block[0], 0).repeat(plan.block[1], 1)[:rows, :columns])


def supports_pattern(kernel: Kernel, plan: PruningPlan) -> bool:
    """Whether anything in the kernel can be zero in the plan's pattern.

    Not of a convolution with N input channels or fewer at N:M (tfmot leaves it dense and says nothing), of an embedding
    at N:M (nothing is summed over), or of a kernel of a single block.
    """
    if plan.n_of_m:
        return bool(kernel.input_axes) and kernel.shape[kernel.input_axes[-1]] > plan.n_of_m[0]
    if plan.block == (1, 1):
        return True
    rows = math.prod(kernel.shape[axis] for axis in kernel.input_axes)
    columns = math.prod(kernel.shape[axis] for axis in kernel.output_axes)
    return rows > plan.block[0] or columns > plan.block[1]


def check_pattern(kernel: Kernel, values: np.ndarray, plan: PruningPlan) -> bool:
    """Whether the zeros of `values`, weights or a mask in the kernel's shape, are whole in the plan's pattern.

    At N:M, at most N of every M differ from zero. In blocks, each is zero everywhere or nowhere. Unstructured is
    always whole.
    """
    if plan.n_of_m:
        used = np.count_nonzero(_groups(kernel, values != 0, plan.n_of_m[1]), axis=-1)
        return bool((used <= plan.n_of_m[0]).all())
    if plan.block == (1, 1):
        return True
    used = block_scores(kernel, (values != 0).astype(np.float32), plan.block)
    return bool(((used == 0) | (used == 1)).all())


def block_scores(kernel: Kernel, scores: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """The average of `scores`, in the kernel's shape, over each block of (inputs, outputs): [block rows, columns].

    What sticks out of the matrix at the last blocks counts for nothing.
    """
    averages = kernel.to_matrix(scores)
    for axis, size in enumerate(block):
        starts = np.arange(0, averages.shape[axis], size)
        counts = np.minimum(averages.shape[axis] - starts, size).reshape((-1, 1) if axis == 0 else (1, -1))
        averages = np.add.reduceat(averages, starts, axis) / counts.astype(np.float32)
    return averages


def _largest(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """The rule of tfmot, in its arithmetic of 32 bits: the k largest stay, and what ties with the k-th."""
    wanted = np.round(np.float32(scores.size) * (np.float32(1) - np.float32(sparsity)))
    k = min(max(int(wanted), 1), scores.size)
    threshold = np.partition(scores.ravel(), scores.size - k)[scores.size - k]
    return scores >= threshold


def _groups(kernel: Kernel, values: np.ndarray, size: int) -> np.ndarray:
    """`values` as [runs, groups, size], each run along the input channels; the least fills up the last group."""
    depth = kernel.shape[kernel.input_axes[-1]]
    runs = kernel.to_matrix(values).T.reshape(-1, depth)
    padded = np.pad(runs, ((0, 0), (0, -depth % size)), constant_values=False if values.dtype == bool else -np.inf)
    return padded.reshape(len(runs), -1, size)


def _n_of_m(groups: np.ndarray, n: int, kernel: Kernel) -> np.ndarray:
    """Where the n largest of each group are, as the kernel's matrix; the first of equals, as top_k picks."""
    chosen = np.argsort(-groups, axis=-1, kind="stable")[..., :n]
    kept = np.zeros(groups.shape, bool)
    np.put_along_axis(kept, chosen, True, axis=-1)
    depth = kernel.shape[kernel.input_axes[-1]]
    outputs = math.prod(kernel.shape[axis] for axis in kernel.output_axes)
    return kept.reshape(len(groups), -1)[:, :depth].reshape(outputs, -1).T
