"""Masks: which weights of a kernel are kept, as single weights, N of every M, or whole blocks."""

import math

import numpy as np

from tfx_compression.errors import ConfigError
from tfx_compression.kernels import Kernel
from tfx_compression.pruning.plan import PruningPlan


def mask(kernel: Kernel, scores: np.ndarray, sparsity: float, plan: PruningPlan) -> np.ndarray:
    """Returns the mask of a kernel in the plan's pattern.

    Unstructured masks follow tfmot's rule (`pruning_impl.Pruning._update_mask`; Zhu & Gupta 2017, arXiv:1710.01878),
    and N:M masks tfmot's `generate_m_by_n_mask` (Mishra et al. 2021, arXiv:2104.08378), for every kind of kernel.
    Blocks are those of tfmot if their sizes divide the kernel's. At a ragged edge tfmot averages other cells than it
    masks, as its pooling pads on both sides; here the score of a block is the average of its own cells.

    Args:
      kernel: The kernel.
      scores: Importance of each weight, in the kernel's shape; larger is more important.
      sparsity: Fraction of the weights (or blocks) to prune, in [0, 1). A pattern N:M implies it, but 0 keeps all.
      plan: Plan, whose pattern is used.

    Returns:
      An array of bool in the kernel's shape, True where a weight is kept. At least one weight or block is kept, and
      those that tie with the least important kept one are kept too.

    Raises:
      ConfigError: The kernel is too small for the pattern; see `supports_pattern`.
    """
    if sparsity <= 0:
        return np.ones(scores.shape, bool)
    if not supports_pattern(kernel, plan):
        raise ConfigError(
            f"PruningPlan.pattern = {plan.pattern!r}: the kernel {kernel.name!r} of shape {kernel.shape} is too small "
            f"for it, as no weight could be zero. Remedy: rules=[LayerRule(layers={kernel.name!r}, sparsity=0)].",
            field="PruningPlan.pattern",
            code="kernel-too-small",
        )
    if plan.n_of_m:
        return kernel.from_matrix(_n_of_m(_groups(kernel, scores, plan.n_of_m[1]), plan.n_of_m[0], kernel))
    if plan.block == (1, 1):
        return _largest(scores, sparsity)
    kept = _largest(block_scores(kernel, scores, plan.block), sparsity)
    rows, columns = kernel.to_matrix(scores).shape
    return kernel.from_matrix(kept.repeat(plan.block[0], 0).repeat(plan.block[1], 1)[:rows, :columns])


def supports_pattern(kernel: Kernel, plan: PruningPlan) -> bool:
    """Returns whether any weight of a kernel can be zero in the plan's pattern.

    None can in a convolution with at most N input channels at N:M (tfmot leaves it dense silently), in an embedding at
    N:M (nothing is summed over), or in a kernel of a single block.
    """
    if plan.n_of_m:
        return bool(kernel.input_axes) and kernel.shape[kernel.input_axes[-1]] > plan.n_of_m[0]
    if plan.block == (1, 1):
        return True
    rows = math.prod(kernel.shape[axis] for axis in kernel.input_axes)
    columns = math.prod(kernel.shape[axis] for axis in kernel.output_axes)
    return rows > plan.block[0] or columns > plan.block[1]


def check_pattern(kernel: Kernel, values: np.ndarray, plan: PruningPlan) -> bool:
    """Returns whether the zeros of weights or of a mask, in the kernel's shape, follow the plan's pattern.

    In N:M, at most N of every M values differ from zero. Each block is zero everywhere or nowhere. Unstructured zeros
    always follow their pattern.
    """
    if plan.n_of_m:
        used = np.count_nonzero(_groups(kernel, values != 0, plan.n_of_m[1]), axis=-1)
        return bool((used <= plan.n_of_m[0]).all())
    if plan.block == (1, 1):
        return True
    used = block_scores(kernel, (values != 0).astype(np.float32), plan.block)
    return bool(((used == 0) | (used == 1)).all())


def block_scores(kernel: Kernel, scores: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Returns the average score of each block of (inputs, outputs): [block rows, block columns].

    Blocks that extend beyond the matrix are averaged over the cells inside it.
    """
    averages = kernel.to_matrix(scores)
    for axis, size in enumerate(block):
        starts = np.arange(0, averages.shape[axis], size)
        counts = np.minimum(averages.shape[axis] - starts, size).reshape((-1, 1) if axis == 0 else (1, -1))
        averages = np.add.reduceat(averages, starts, axis) / counts.astype(np.float32)
    return averages


def _largest(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """Keeps the k largest scores and those that tie with the k-th: tfmot's rule, in its arithmetic of 32 bits."""
    wanted = np.round(np.float32(scores.size) * (np.float32(1) - np.float32(sparsity)))
    k = min(max(int(wanted), 1), scores.size)
    threshold = np.partition(scores.ravel(), scores.size - k)[scores.size - k]
    return scores >= threshold


def _groups(kernel: Kernel, values: np.ndarray, size: int) -> np.ndarray:
    """Returns values as [runs, groups, size], with runs along the input channels and the last group padded."""
    depth = kernel.shape[kernel.input_axes[-1]]
    runs = kernel.to_matrix(values).T.reshape(-1, depth)
    padded = np.pad(runs, ((0, 0), (0, -depth % size)), constant_values=False if values.dtype == bool else -np.inf)
    return padded.reshape(len(runs), -1, size)


def _n_of_m(groups: np.ndarray, n: int, kernel: Kernel) -> np.ndarray:
    """Keeps the n largest values of each group, the first of equal ones as `top_k` does."""
    chosen = np.argsort(-groups, axis=-1, kind="stable")[..., :n]
    kept = np.zeros(groups.shape, bool)
    np.put_along_axis(kept, chosen, True, axis=-1)
    depth = kernel.shape[kernel.input_axes[-1]]
    outputs = math.prod(kernel.shape[axis] for axis in kernel.output_axes)
    return kept.reshape(len(groups), -1)[:, :depth].reshape(outputs, -1).T
