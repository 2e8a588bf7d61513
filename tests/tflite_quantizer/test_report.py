"""The report: its contents as a reader sees them, and its robustness to names and numbers."""

import re
from typing import Any

import pytest
from tfx_compression.tflite_quantizer import plots, report
from tfx_compression.tflite_quantizer.config import AutoPrecision, Calibration, Quantization
from tfx_compression.tflite_quantizer.devices.verdicts import DelegateVerdict, OperatorVerdict, TargetVerdict
from tfx_compression.tflite_quantizer.record import (
    AutoRecord,
    CalibrationRecord,
    EqualizedPair,
    InputRange,
    LayerError,
    QuantizationRecord,
    SignatureRecord,
    SparseRecord,
    TensorRecord,
    TrialRecord,
)

from tests.support.report_page import Page

_LAYERS = (
    LayerError(layer="net/conv", op="CONV_2D", precision="int8", snr_db=41.25, max_error=0.0125, cosine=0.9999),
    LayerError(layer="net/flatten", op="RESHAPE", snr_db=None, max_error=0.0, cosine=1.0),
    LayerError(layer="net/dense", op="FULLY_CONNECTED", precision="int4", snr_db=18.5, max_error=1.5, cosine=None),
)
_TPU = DelegateVerdict(
    name="Edge TPU",
    ops=(
        OperatorVerdict(index=0, op="CONV_2D", layer="net/conv", mapped=True),
        OperatorVerdict(index=1, op="ELU", layer="net/elu", mapped=False, reason="no such operator"),
        OperatorVerdict(index=2, op="SOFTMAX", layer="net/softmax", mapped=False, reason="behind the cut"),
    ),
    segments=1,
    cut="ELU (net/elu)",
    source="coral.ai/docs/edgetpu/models-intro",
    source_date="2024-05-01",
)


def verdict(**changes: Any) -> TargetVerdict:
    known: dict[str, Any] = {
        "target": "edge_tpu",
        "runs": True,
        "problems": (),
        "runtime": "LiteRT 2.1 or newer",
        "delegates": (_TPU,),
        "arena_bytes": 4096,
    }
    return TargetVerdict(**{**known, **changes})


def record(**changes: Any) -> QuantizationRecord:
    """Returns the record of a small network in int8, with changes."""
    known: dict[str, Any] = {
        "config": Quantization(mode="int8", batch_size=1, target="edge_tpu"),
        "versions": {"tensorflow": "2.16.2", "ai-edge-litert": "2.3.0"},
        "seconds": {"convert": 3.25, "calibrate": 0.5},
        "signatures": (
            SignatureRecord(
                name="serving_default",
                inputs=(
                    TensorRecord(name="image", dtype="int8", shape=(-1, 28, 28), scale=0.00390625, zero_point=-128),
                ),
                outputs=(TensorRecord(name="logits", dtype="float32", shape=(-1, 10), scale=0.0, zero_point=0),),
            ),
        ),
        "ops": {"SOFTMAX": 1, "CONV_2D": 3},
        "float_ops": {"SOFTMAX": 1},
        "bytes": 93_120,
        "bytes_gzip": 32_900,
        "bytes_zstd": 31_400,
        "arena_bytes": 6_200,
        "parameters": 86_000,
        "sparsity": 0.25,
        "runtime": "LiteRT 2.1 or newer",
        "layers": _LAYERS,
    }
    return QuantizationRecord(**{**known, **changes})


def page(**changes: Any) -> Page:
    return Page(report.render(record(**changes)))


def values(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return spec["data"]["values"]


def test_mode_and_sizes_are_on_top():
    text = page().text
    assert "Mode int8: 8-bit weights and activations Converted to 93.1 kB. Needs LiteRT 2.1 or newer." in text
    assert "file 93.1 kB weights in float32: 344.0 kB gzipped 32.9 kB as zstd 31.4 kB arena 6.2 kB" in text
    assert "zeros in weights 25.0 %" in text


def test_problems_of_the_target_are_on_top_in_red():
    source = report.render(record(verdict=verdict(runs=False, problems=("ELU: use ReLU.",))))
    assert "Does not run on edge_tpu. Needs LiteRT 2.1 or newer. ELU: use ReLU." in Page(source).text
    assert 'class="decision "' in source
    assert 'class="decision released"' in report.render(record(verdict=verdict()))


def test_warnings_come_before_the_figures_and_notes_after():
    text = page(warnings=("Data left the range.",), notes=("Ranges of training.",)).text
    assert text.index("Data left the range.") < text.index("gzipped") < text.index("Ranges of training.")


def test_inputs_and_outputs_have_types_shapes_and_scales():
    assert page().tables["Signature serving_default"] == [
        ["", "name", "type", "shape", "scale", "zero point"],
        ["input", "image", "int8", "any × 28 × 28", "0.00390625", "-128"],
        ["output", "logits", "float32", "any × 10", "", ""],
    ]


def test_layers_are_sorted_worst_first():
    rendered = page()
    assert rendered.tables["Errors by layer"] == [
        ["layer", "precision", "SNR in dB", "largest error", "cosine"],
        ["net/dense FULLY_CONNECTED", "int4", "18.5", "1.5", ""],
        ["net/conv CONV_2D", "int8", "41.2", "0.0125", "0.999900"],
        ["net/flatten RESHAPE", "", "exact", "0", "1.000000"],
    ]
    (spec,) = rendered.specs()
    assert [(value["layer"], value["snr"]) for value in values(spec)] == [("net/dense", 18.5), ("net/conv", 41.25)]


def test_the_plot_shows_the_worst_of_many_layers():
    layers = tuple(_LAYERS[0].model_copy(update={"layer": f"conv{n}", "snr_db": float(n)}) for n in range(100))
    rendered = page(layers=layers)
    assert [value["layer"] for value in values(rendered.specs()[0])] == [f"conv{n}" for n in range(plots.MOST_LAYERS)]
    assert f"{100 - plots.MOST_LAYERS} more layers are in the table." in rendered.text
    assert len(rendered.tables["Errors by layer"]) == 101


def test_without_any_difference_there_is_no_plot():
    assert page(layers=_LAYERS[1:2]).specs() == []
    assert "Error of each layer" not in page(layers=()).text


def test_accelerators_list_the_operators_left_out():
    rendered = page(verdict=verdict())
    assert rendered.tables["Target edge_tpu"] == [
        ["", "operators mapped", "segments", "first operator left out", "rules"],
        ["Edge TPU", "1 of 3", "1", "ELU (net/elu)", "coral.ai/docs/edgetpu/models-intro 2024-05-01"],
    ]
    assert rendered.tables["Edge TPU: 2 operators left out"] == [
        ["", "operator", "reason"],
        ["1", "ELU net/elu", "no such operator"],
        ["2", "SOFTMAX net/softmax", "behind the cut"],
    ]


def test_the_arena_is_shown_with_its_limit():
    assert "arena 6.2 kB limit 8.0 kB" in page(verdict=verdict(max_arena_bytes=8000)).text


def test_a_share_outside_the_range_is_marked_above_its_limit():
    calibration = CalibrationRecord(
        rows=200,
        method="min_max",
        checked_rows=1000,
        strata={"0": 100, "1": 100},
        inputs=(
            InputRange(input="image", minimum=0.0, maximum=1.0, range=(0.0, 1.0), outside=0.125),
            InputRange(input="age", minimum=-2.5, maximum=80.0, range=(-2.0, 80.0), outside=0.004),
            InputRange(input="free", minimum=0.0, maximum=1.0, range=(0.0, 1.0)),
        ),
    )
    source = report.render(record(calibration=calibration))
    rendered = Page(source)
    assert "rows 200 ranges min/max rows checked 1,000 rows per value 0: 100, 1: 100" in rendered.text
    assert rendered.tables["Calibration"] == [
        ["input", "seen", "quantized", "checked values outside"],
        ["image", "0 to 1", "0 to 1", "12.5 % more than 1 %"],
        ["age", "-2.5 to 80", "-2 to 80", "0.4 %"],
        ["free", "0 to 1", "0 to 1", ""],
    ]
    assert '<td class="bad"><bdi>12.5 %' in source
    assert '<td class=""><bdi>0.4 %' in source


AUTO = AutoRecord(
    metric="sparse_categorical_accuracy",
    baseline=0.9,
    value=0.897,
    drop=0.003,
    rows=2000,
    equalized=True,
    precisions={"net/conv": "int8", "net/dense": "int4"},
    trials=(
        TrialRecord(step="all int4", metric=0.8, bytes=50_000, accepted=False),
        TrialRecord(step="net/conv int8", metric=0.897, bytes=60_000, accepted=True),
    ),
)


def test_trials_of_a_search_are_drawn_and_listed():
    rendered = page(auto=AUTO, config=Quantization(mode="auto", auto=AutoPrecision(max_drop=0.005)))
    assert (
        "sparse categorical accuracy 0.8970, the float model’s 0.9000, on 2,000 rows; 2 trials, 1 of them accepted; "
        "equalized." in rendered.text
    )
    line, points = rendered.specs()[0]["layer"]
    assert line["data"]["values"] == [{"baseline": 0.9}]
    assert [(value["kilobytes"], value["metric"], value["verdict"]) for value in values(points)] == [
        (50.0, 0.8, "refused"),
        (60.0, 0.897, "accepted"),
    ]
    assert rendered.tables["Trials in order"][2] == ["net/conv int8", "0.8970", "60,000", "accepted"]
    assert rendered.tables["Precision by layer"][1:] == [["net/conv", "int8"], ["net/dense", "int4"]]


def test_operators_are_counted_and_flex_operators_listed_with_their_layers():
    rendered = page(select_tf_ops={"FlexErf": ("net/gelu", "net/gelu_1")})
    assert rendered.tables["Operators by count"] == [
        ["operator", "count", "returning floats"],
        ["CONV_2D", "3", "0"],
        ["SOFTMAX", "1", "1"],
    ]
    assert "FlexErf net/gelu, net/gelu_1" in rendered.text


def test_equalization_sparse_encoding_and_durations_are_shown():
    pair = EqualizedPair(first="net/conv", second="net/dw", spread_before=812.5, spread_after=3.0)
    sparse = SparseRecord(encoded=False, reason="the gzipped file is 4 kB larger.")
    rendered = page(equalization=(pair,), sparse=sparse, self_test={"logits": 0.03125, "other": 0.001})
    assert rendered.tables["Equalized layers"][1] == ["net/conv", "net/dw", "812.5×", "3.0×"]
    assert "Not encoded: the gzipped file is 4 kB larger." in rendered.text
    assert "largest difference from float 0.0312 in logits" in rendered.text
    assert "tensorflow 2.16.2" in rendered.text
    assert "convert 3.2 s" in rendered.text


def test_set_fields_are_apart_from_default_values():
    config = Quantization(mode="int8", calibration=Calibration(rows=77))
    shown, left = page(config=config).text.split(" Configuration ")[1].split("Default values")
    assert "mode int8" in shown
    assert '"rows": 77' in shown
    assert "per_channel true" in left
    assert "max_arena_bytes none" in left


def full(name: str = "net/conv") -> QuantizationRecord:
    return record(
        layers=tuple(layer.model_copy(update={"layer": name, "op": name}) for layer in _LAYERS),
        verdict=verdict(
            target=name,
            problems=(name,),
            delegates=(_TPU.model_copy(update={"name": name, "cut": name, "source": name}),),
        ),
        auto=AUTO.model_copy(update={"metric": name, "precisions": {name: "int8"}}),
        ops={name: 1},
        select_tf_ops={name: (name,)},
        versions={name: name},
        notes=(name,),
        warnings=(name,),
    )


def test_vega_draws_the_plots():
    import vl_convert

    for spec in Page(report.render(full())).specs():
        drawn = vl_convert.vegalite_to_svg({**spec, "width": 900})
        assert 'fill="currentColor"' in drawn


def test_the_report_contains_the_record_as_json():
    original = full()
    (copied,) = Page(report.render(original)).pre
    assert QuantizationRecord.model_validate_json(copied) == original


def test_the_report_works_offline():
    source = report.render(full())
    rendered = Page(source)
    assert not rendered.attributes & {"src", "href", "srcset"}
    assert not set(rendered.tags) & {"link", "img", "iframe", "object", "base"}
    assert not re.search(r"@import|url\(", "".join(re.findall(r"<style>(.*?)</style>", source, re.DOTALL)))


@pytest.mark.parametrize("name", ["</script><img src=x onerror=alert(1)><!--", '"><img>', "{{ 7 * 7 }}"])
def test_names_are_escaped(name):
    rendered = Page(report.render(full(name), title=name))
    assert "img" not in rendered.tags
    assert rendered.tags.count("script") == 4  # the bundle, the page's own, and two plots
    assert {value["layer"] for value in values(rendered.specs()[1])} == {name}
    assert name in rendered.text  # unchanged
