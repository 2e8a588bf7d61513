"""Quantization refuses, before a pipeline runs, combinations that no model can have."""

import pytest
import tfx_compression as tfc
from tfx_compression.errors import ConfigError

from tests.support.errors import raises

RULE = tfc.PrecisionRule(layers=".", precision="int8")
TWO = ("serving_default", "other")


@pytest.mark.parametrize(
    ("fields", "field", "code", "match"),
    [
        ({"mode": "int3"}, "Quantization.mode", "unknown-mode", "int8, int16x8"),
        ({"target": "toaster"}, "Quantization.target", "unknown-target", "edge_tpu"),
        ({"mode": "mixed"}, "Quantization.rules", "rules-missing", "mixed"),
        ({"mode": "int8", "rules": [RULE]}, "Quantization.rules", "inapplicable-field", "'int8'"),
        ({"mode": "int16x8", "io": "uint8"}, "Quantization.io", "inapplicable-field", "int8, int4, mixed, auto"),
        ({"mode": "float32", "io": "uint8"}, "Quantization.io", "inapplicable-field", "'float32'"),
        (
            {"mode": "auto", "io": "uint8", "auto": {"precisions": ("int8", "int16x8")}},
            "Quantization.io",
            "incompatible-precision",
            "int16x8",
        ),
        ({"mode": "auto", "auto": {"precisions": ()}}, "Quantization.auto.precisions", "too_short", None),
        (
            {"mode": "auto", "auto": {"precisions": ("int3",)}},
            "Quantization.auto.precisions.0",
            "unknown-precision",
            "int3",
        ),
        (
            {"mode": "int4_dynamic", "per_channel": False, "block_size": 32},
            "Quantization.per_channel",
            "incompatible-block-size",
            None,
        ),
        ({"signatures": ("serving_default", "serving_default")}, "Quantization.signatures", "not-unique", None),
        (
            {"mode": "mixed", "rules": [{"layers": ".", "precision": "int8", "block_size": 32}]},
            "Quantization.rules.0.block_size",
            "inapplicable-field",
            "int4_dynamic",
        ),
        ({"mode": "int4", "block_size": 32}, "Quantization.block_size", "inapplicable-field", "int4_dynamic"),
        ({"mode": "dynamic", "per_channel": False}, "Quantization.per_channel", "inapplicable-field", "'dynamic'"),
        (
            {"mode": "int16x8", "calibration": {"ranges": "mse"}},
            "Quantization.calibration.ranges",
            "inapplicable-field",
            "int8, int4, mixed, auto",
        ),
        ({"mode": "float16", "equalize": True}, "Quantization.equalize", "inapplicable-field", "'float16'"),
        ({"target": "edge_tpu"}, "Quantization.batch_size", "required-by-target", "edge_tpu"),
        (
            {"target": "edge_tpu", "mode": "dynamic", "batch_size": 1},
            "Quantization.mode",
            "unsupported-by-target",
            "'dynamic'. Remedy: mode int8",
        ),
        (
            {"target": "microcontroller", "mode": "dynamic"},
            "Quantization.mode",
            "unsupported-by-target",
            "float32, int8, int16x8, int4, mixed, auto",
        ),
        (
            {"target": "microcontroller", "select_tf_ops": True},
            "Quantization.select_tf_ops",
            "unsupported-by-target",
            "microcontroller",
        ),
        ({"signatures": ()}, "Quantization.signatures", "not-unique", None),
        ({"signatures": ("a", "b")}, "Quantization.signatures", "no-serving-default", None),
        ({"signatures": TWO, "mode": "int4"}, "Quantization.signatures", "several-signatures", "float32, float16"),
        ({"signatures": TWO, "transform": "outside"}, "Quantization.signatures", "several-signatures", None),
        ({"signatures": TWO, "equalize": True}, "Quantization.signatures", "several-signatures", None),
        (
            {"metadata": {"normalization": {"image": {"mean": [0, 0], "std": [1]}}}},
            "Quantization.metadata.normalization.image.std",
            "length-mismatch",
            None,
        ),
        (
            {"metadata": {"normalization": {"image": {"mean": [0], "std": [0]}}}},
            "Quantization.metadata.normalization.image.std",
            "not-positive",
            None,
        ),
    ],
)
def test_incompatible_fields_are_refused(fields, field, code, match):
    with raises(ConfigError, field=field, code=code, match=match):
        tfc.Quantization(**fields)


def test_ranges_are_ignored_by_modes_without_calibration():
    assert not tfc.Quantization(mode="dynamic", calibration={"ranges": "mse"}).custom_ranges
    assert tfc.Quantization(mode="int8", calibration={"ranges": "mse"}).custom_ranges


def test_default_precisions_of_the_search():
    assert tfc.AutoPrecision().precisions == (
        *("int8", "int4", "int4_dynamic", "int4_weight_only", "int2_dynamic", "int8_dynamic", "int8_weight_only"),
        *("float16", "float32"),
    )


def test_data_and_labels_are_needed_where_something_is_measured_on_them():
    needs = {mode: tfc.Quantization(mode=mode).needs_data for mode in ("float32", "dynamic", "int8", "int4", "auto")}
    assert needs == {"float32": False, "dynamic": False, "int8": True, "int4": True, "auto": True}
    floats = tfc.PrecisionRule(layers=".", precision="float16")
    assert not tfc.Quantization(mode="mixed", rules=[floats]).needs_data
    assert tfc.Quantization(mode="mixed", rules=[floats, RULE]).needs_data
    assert tfc.Quantization(mode="auto").needs_labels
    assert not tfc.Quantization(mode="auto", auto={"metric": "agreement"}).needs_labels
