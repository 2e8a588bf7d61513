"""The zoo's operations by name. This module imports neither TensorFlow nor the library."""

from collections.abc import Mapping
from typing import Any

QUANTIZATIONS: Mapping[str, Mapping[str, Any]] = {
    "float32": {"mode": "float32"},
    "float16": {"mode": "float16"},
    "dynamic": {"mode": "dynamic"},
    "int8": {"mode": "int8"},
    "int16x8": {"mode": "int16x8"},
    "int4": {"mode": "int4"},
    "int4_dynamic": {"mode": "int4_dynamic"},
    "int4_dynamic, blocks of 32": {"mode": "int4_dynamic", "block_size": 32},
    "int4_weight_only": {"mode": "int4_weight_only"},
    "mixed, all int8": {"mode": "mixed", "rules": ({"layers": ".*", "precision": "int8"},)},
    "auto": {"mode": "auto"},
}
PRUNINGS: Mapping[str, Mapping[str, Any]] = {
    "weight 80 %": {"technique": "weight", "sparsity": 0.8},
    "weight 2:4": {"technique": "weight", "pattern": "2:4"},
    "filter 50 %": {"technique": "filter", "sparsity": 0.5},
    "neuron 50 %": {"technique": "neuron", "sparsity": 0.5},
}
BOTH = {
    "weight 80 %, int4": ("weight 80 %", "int4"),
    "filter 50 %, int8": ("filter 50 %", "int8"),
}
PLAIN = {f"plain {name}": name for name in QUANTIZATIONS if name != "auto"}  # By the tools beneath, on their own.
REFERENCE = "reference int8"  # Somebody else's file of the same net.
