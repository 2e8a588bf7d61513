"""What a configuration says at once, before a pipeline runs: combinations that there are no models of."""

import pytest
import tfx_compression as tfc
from tfx_compression.errors import ConfigError

RULE = tfc.PrecisionRule(layers=".", precision="int8")
TWO = ("serving_default", "other")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "mixed"}, "rules are of mode 'mixed', which needs one at least"),
        ({"mode": "int8", "rules": [RULE]}, "rules are of mode 'mixed'.*mode is 'int8'"),
        ({"mode": "int16x8", "io": "uint8"}, "'uint8' is of the modes int8, int4, mixed, auto, not of 'int16x8'"),
        ({"mode": "float32", "io": "uint8"}, "'uint8' is of the modes.*not of 'float32'"),
        ({"mode": "auto", "io": "uint8", "auto": {"precisions": ("int8", "int16x8")}}, "no kernel between them"),
        ({"mode": "auto", "auto": {"precisions": ()}}, "precisions"),
        ({"mode": "int4_dynamic", "per_channel": False, "block_size": 32}, "several for a channel"),
        ({"signatures": ("serving_default", "serving_default")}, "each once"),
        (
            {"mode": "mixed", "rules": [{"layers": ".", "precision": "int8", "block_size": 32}]},
            "block_size=32 is of precision 'int4_dynamic', not of 'int8'",
        ),
        ({"mode": "int4", "block_size": 32}, "block_size=32 is of mode 'int4_dynamic', not of 'int4'"),
        ({"mode": "dynamic", "per_channel": False}, "per_channel=False is of the calibrated modes"),
        ({"mode": "int16x8", "calibration": {"ranges": "mse"}}, "'int16x8' is 'min_max'"),
        ({"mode": "float16", "equalize": True}, "equalize=True is of mode 'int8'.*not of 'float16'"),
        ({"target": "edge_tpu"}, "needs mode='int8' and a batch_size"),
        ({"target": "edge_tpu", "mode": "dynamic", "batch_size": 1}, "needs mode='int8'"),
        ({"target": "microcontroller", "mode": "dynamic"}, "no kernels of mode 'dynamic'. Remedy: mode 'int8'"),
        ({"target": "microcontroller", "select_tf_ops": True}, "Flex delegate, which target 'microcontroller' has not"),
        ({"signatures": ()}, "signatures names at least one"),
        ({"signatures": ("a", "b")}, "one is 'serving_default'"),
        ({"signatures": TWO, "mode": "int4"}, "several signatures convert in the modes float32, float16"),
        ({"signatures": TWO, "transform": "outside"}, "several signatures convert.*transform 'inside'"),
        ({"signatures": TWO, "equalize": True}, "several signatures convert.*without equalize"),
        ({"metadata": {"normalization": {"image": {"mean": [0, 0], "std": [1]}}}}, "as many each"),
        ({"metadata": {"normalization": {"image": {"mean": [0], "std": [0]}}}}, "std is above zero"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_does(fields, message):
    with pytest.raises(ConfigError, match=message):
        tfc.Quantization(**fields)


def test_data_and_labels_are_needed_where_something_is_measured_on_them():
    needs = {mode: tfc.Quantization(mode=mode).needs_data for mode in ("float32", "dynamic", "int8", "int4", "auto")}
    assert needs == {"float32": False, "dynamic": False, "int8": True, "int4": True, "auto": True}
    floats = tfc.PrecisionRule(layers=".", precision="float16")
    assert not tfc.Quantization(mode="mixed", rules=[floats]).needs_data
    assert tfc.Quantization(mode="mixed", rules=[floats, RULE]).needs_data
    assert tfc.Quantization(mode="auto").needs_labels
    assert not tfc.Quantization(mode="auto", auto={"metric": "agreement"}).needs_labels
