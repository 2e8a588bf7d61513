"""Kernels: the weights of rank 2 or more that layers multiply with, and how graphs use them."""

from tfx_compression.kernels.kernel import (
    ATTRIBUTES,
    Kernel,
    Kind,
    children,
    is_wrapper,
    leaves,
    of_keras,
    own_weights,
    ranges,
)

__all__ = ["ATTRIBUTES", "Kernel", "Kind", "children", "is_wrapper", "leaves", "of_keras", "own_weights", "ranges"]
