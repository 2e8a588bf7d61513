"""Kernels: the weights of rank 2 or more that layers multiply with, and how graphs use them."""

from tfx_compression.kernels.keras_kernels import (
    KERNEL_ATTRIBUTES,
    direct_weights,
    find_kernels,
    is_quantize_wrapper,
    leaf_layers,
    quantization_variables,
    sublayers,
)
from tfx_compression.kernels.kernel import Kernel, KernelKind

__all__ = [
    "KERNEL_ATTRIBUTES",
    "Kernel",
    "KernelKind",
    "direct_weights",
    "find_kernels",
    "is_quantize_wrapper",
    "leaf_layers",
    "quantization_variables",
    "sublayers",
]
