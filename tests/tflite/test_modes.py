"""The tables of modes and precisions: each row is consistent, and what follows from it is what users rely on."""

import re
from pathlib import Path

import pytest
from tfx_compression.tflite.modes import MODES, PRECISIONS, precision_of_types, weightless_precision

DOCS = Path(__file__).parents[2] / "docs"


def test_rows_refer_to_rows_that_exist():
    for name, mode in MODES.items():
        assert mode.name == name
        assert (mode.precision is None) == (mode.layers != "uniform")
        assert mode.precision is None or mode.precision in PRECISIONS
    for name, precision in PRECISIONS.items():
        assert precision.name == name
        assert set(precision.fallbacks) <= PRECISIONS.keys() - {name}


def test_calibrated_modes_and_their_inputs_and_outputs():
    assert {name for name, mode in MODES.items() if mode.calibrated} == {"int8", "int16x8", "int4", "mixed", "auto"}
    assert {name for name, mode in MODES.items() if "uint8" in mode.io} == {"int8", "int4", "mixed", "auto"}
    assert {name for name, mode in MODES.items() if mode.io == ("float32",)} == {
        *("float32", "float16", "dynamic", "int4_dynamic", "int4_weight_only"),
    }
    assert {name for name, mode in MODES.items() if mode.calibrated_by_converter} == {"int8", "int16x8"}


def test_fields_that_apply_to_some_modes_only():
    assert {name for name, mode in MODES.items() if not mode.per_tensor} == {"float32", "float16", "dynamic"}
    assert {name for name, mode in MODES.items() if not mode.from_float_model} == {
        *("float32", "float16", "dynamic", "int16x8"),
    }
    assert {name for name, mode in MODES.items() if mode.blocks} == {"int4_dynamic"}


def test_a_precision_has_the_types_of_its_tensors():
    for precision in PRECISIONS.values():
        types = (precision.activations, precision.weights, precision.dequantized_weights)
        assert precision_of_types(*types) == precision.name


@pytest.mark.parametrize(("activations", "bits"), [("float32", 0), ("int8", 8), ("int16", 16)])
def test_operators_without_weights_have_the_precision_of_their_activations(activations, bits):
    precision = PRECISIONS[weightless_precision(bits)]
    assert precision.activations == activations
    assert precision_of_types(activations, None, False) == precision.name


def test_sparse_weights_are_unpacked_in_their_own_type():
    assert precision_of_types("float32", "float32", True) == "float32"
    assert precision_of_types("int8", "int8", True) == "int8"


def test_types_of_no_precision():
    assert precision_of_types("int8", "float32", False) is None
    assert precision_of_types("bool", None, False) is None


def test_the_guide_lists_every_mode():
    table = (DOCS / "quantization.md").read_text().split("## Modes")[1].split("\n\n`io`")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(MODES)
