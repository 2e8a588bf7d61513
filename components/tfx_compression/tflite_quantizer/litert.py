"""The modules of litert-quantizer. Version 0.11 needs numpy.typing, which it doesn't import itself."""

import numpy.typing  # noqa: F401
from litert_quantizer import algorithm_manager, qtyping, quantizer
from litert_quantizer.utils import tfl_flatbuffer_utils

__all__ = ["algorithm_manager", "qtyping", "quantizer", "tfl_flatbuffer_utils"]
