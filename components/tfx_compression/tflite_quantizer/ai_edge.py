"""The modules of ai-edge-quantizer. Version 0.10 needs numpy.typing, which it doesn't import itself."""

import numpy.typing  # noqa: F401
from ai_edge_quantizer import algorithm_manager, qtyping, quantizer
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

__all__ = ["algorithm_manager", "qtyping", "quantizer", "tfl_flatbuffer_utils"]
