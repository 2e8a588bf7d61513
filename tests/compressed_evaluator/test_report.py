"""The report: what it shows, and that no name or number breaks it."""

import json
import math
import re
from typing import Any

from tfx_compression.compressed_evaluator import report
from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.compressed_evaluator.evaluation import Evaluation
from tfx_compression.compressed_evaluator.records import (
    AnswerChange,
    BaselineComparison,
    LayerMeasurements,
    LimitVerdict,
    MetricDrop,
    ModelMeasurements,
    OutputComparison,
)

from tests.support import evaluations
from tests.support.report_page import Page

_NAN = float("nan")


def model(**changes: Any) -> ModelMeasurements:
    """A TFLite model of which less is known than of `evaluations.model`."""
    unknown = {"sparsity": None, "arena_bytes": None, "ops": {}}
    return evaluations.model(**{"metrics": {"accuracy": 0.75, "example_count": 100.0}, **unknown, **changes})


_BASELINE = model(
    kind="saved_model",
    uri="/baseline",
    bytes=8_000_000,
    bytes_gzip=6000,
    latency_ms=64.0,
    tflite=model(bytes=4000, bytes_gzip=2000, latency_ms=4.0, metrics={}),
)


def evaluation(baseline: ModelMeasurements | None = _BASELINE, **changes: Any) -> Evaluation:
    """An evaluation with one candidate, int8, which is chosen."""
    candidates = changes.pop("candidates", {"int8": model()})
    known: dict[str, Any] = {
        "rows": 100,
        "baseline": baseline,
        "candidates": candidates,
        "verdicts": dict.fromkeys(candidates, ()),
        "budget": Budget(),
        "chosen": "int8",
        "reason": "int8 holds every limit.",
    }
    return Evaluation(**{**known, **changes})


def page(shown: Evaluation, **origins: Any) -> Page:
    return Page(report.render({"": shown}, origins={"": origins} if origins else None))


_MISSED = LimitVerdict(
    field="max_bytes", limit="model size at most", bound=800, measured=1000, held=False, unit="bytes"
)
_HELD = LimitVerdict(field="max_latency_ms", limit="latency at most", bound=2.5, measured=2.0, held=True, unit="ms")


# The decision


def test_the_first_line_is_the_decision_and_its_reason():
    assert page(evaluation()).text.startswith(
        "Compression report Chosen for release. int8 holds every limit. model verdict"
    )
    refused = evaluation(chosen=None, reason="No candidate holds every limit.")
    assert "Compression report Nothing is chosen for release. No candidate holds every limit." in page(refused).text


def test_the_decisions_of_several_evaluations_come_first():
    other = evaluation(chosen=None, reason="None is good.")
    shown = Page(report.render({"edge": evaluation(), "serving": other}, title="Digits"))
    assert shown.text.startswith(
        "Digits edge Chosen for release. int8 holds every limit. "
        "serving Nothing is chosen for release. None is good. edge"
    )
    assert shown.tags.count("h2") == 2


def test_models_that_failed_or_predict_nan_are_named_before_the_table():
    crashed = model(failure="RuntimeError: no kernel for FlexRelu", metrics={}, latency_ms=None, latency_spread_ms=None)
    shown = page(evaluation(candidates={"int8": model(), "int4": crashed, "wild": model(not_finite=7)}))
    before, after = shown.text.split("model verdict", 1)
    assert "int4 could not be run: RuntimeError: no kernel for FlexRelu" in before
    assert "wild predicts NaN or infinity in 7 of 100 rows." in before
    assert "int4: did not run" in after
    rows = {row[0]: row for row in shown.tables[""]}
    assert rows["int4"][1] == "did not run"
    assert "wild NaN in 7 rows" in rows


# The table


def test_the_table_shows_differences_from_the_baseline_in_the_candidates_format():
    comparison = BaselineComparison(
        drops={"accuracy": MetricDrop(value=0.125, upper=0.25)}, behavior={"": OutputComparison(agreement=0.875)}
    )
    candidates = {"int8": model(metrics={"accuracy": 0.625}, sparsity=0.5), "pruned": model(kind="saved_model")}
    shown = page(evaluation(candidates=candidates, comparisons={"int8": comparison}))
    assert shown.tables[""] == [
        ["model", "verdict", "accuracy", "drop", "size", "gzipped", "ms per row", "speedup", "zeros", "same answer"],
        ["baseline", "", "0.7500", "", "8.00 MB", "6.0 kB", "64.0", "", "", ""],
        ["baseline as float TFLite", "", "", "", "4.0 kB", "2.0 kB", "4.000", "", "", ""],
        [
            *("int8", "chosen", "0.6250", "0.1250 up to 0.2500", "1.0 kB -75 %", "0.5 kB -75 %", "2.000 -50 %"),
            *("2.00×", "50.0 %", "87.5 %"),
        ],
        ["pruned", "held", "0.7500", "", "1.0 kB -100 %", "0.5 kB -92 %", "2.000 -97 %", "32.00×", "", ""],
    ]
    assert "with 95% confidence" in shown.text


def test_empty_columns_are_omitted():
    shown = page(evaluation(baseline=None))
    assert shown.tables[""] == [
        ["model", "verdict", "accuracy", "size", "gzipped", "ms per row"],
        ["int8", "chosen", "0.7500", "1.0 kB", "0.5 kB", "2.000"],
    ]
    assert "baseline" not in shown.text
    assert "confidence" not in shown.text


def test_a_refused_candidate_is_shown_with_its_first_missed_limit():
    verdicts = (_HELD, _MISSED, _MISSED)
    shown = page(evaluation(candidates={"int8": model()}, verdicts={"int8": verdicts}, chosen=None))
    assert shown.tables[""][-1][1] == f"refused {_MISSED.sentence}; and 1 more"


def test_other_metrics_have_a_table_of_their_own():
    metrics = {"accuracy": 0.5, "loss": 0.75}
    comparison = BaselineComparison(drops={"loss": MetricDrop(value=0.25, upper=0.5)})
    shown = page(
        evaluation(
            baseline=model(metrics={**metrics, "loss": 0.5}),
            candidates={"int8": model(metrics=metrics)},
            comparisons={"int8": comparison},
        )
    )
    assert shown.tables["Other metrics"] == [
        ["metric", "baseline", "int8"],
        ["loss", "0.5000", "0.7500 drop 0.2500, up to 0.5000"],
    ]


# Verdicts


def test_each_limit_has_a_line_and_missed_limits_come_first():
    unknown = LimitVerdict(
        field="x", limit="x at least", bound=1, measured=None, held=False, note="its weights can't be read"
    )
    shown = page(evaluation(verdicts={"int8": (_HELD, _MISSED, unknown)}, chosen=None))
    assert shown.tables["int8: refused"] == [
        ["", "limit", "bound", "measured", "margin"],
        ["✗ not held", "model size at most", "800 bytes", "1,000 bytes", "-200"],
        ["✗ not held", "x at least its weights can't be read", "1", "–", ""],
        ["✓ held", "latency at most", "2.5 ms", "2 ms", "+0.5"],
    ]


def test_the_report_says_if_no_limits_were_set():
    assert "int8: chosen No limits were set." in page(evaluation()).text


# Plots


def points(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return spec["data"]["values"]


def test_the_plot_identifies_similar_models_by_a_legend():
    candidates = {"int8": model(), "dynamic": model(), "broken": model(metrics={"accuracy": _NAN})}
    (spec,) = page(evaluation(candidates=candidates, pareto=("int8", "dynamic"))).specs()
    assert {(point["model"], point["front"]) for point in points(spec)} == {
        ("baseline", False),
        ("int8 (chosen)", True),
        ("dynamic (held)", True),
    }
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["line", "point"]
    marks = spec["layer"][1]["encoding"]
    for channel in ("fill", "stroke", "shape"):
        assert marks[channel]["scale"]["domain"] == ["baseline", "int8 (chosen)", "dynamic (held)"]


def test_vega_draws_the_plots_in_the_colors_of_the_page():
    import vl_convert

    times = tuple(float(time) for time in range(1, 10))
    timed = evaluation(baseline=_BASELINE.model_copy(update={"latency_quantiles_ms": times}), pareto=("int8",))
    for spec in page(timed).specs():
        drawn = vl_convert.vegalite_to_svg({**spec, "width": 300})
        assert "baseline" in drawn
        assert 'fill="currentColor"' in drawn
        assert "NaN" not in drawn


def test_latencies_are_plotted_and_listed():
    times = (1.0, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 9.0)
    timed = {"latency_quantiles_ms": times, "latency_ms": 2.5, "latency_repeats": 200, "runtime": "TFLite, 1 thread"}
    twin = model(latency_quantiles_ms=tuple(2 * time for time in times), latency_ms=5.0, metrics={})
    shown = page(
        evaluation(baseline=_BASELINE.model_copy(update={"tflite": twin}), candidates={"int8": model(**timed)})
    )
    assert shown.tables["Latency"] == [
        ["model", "median", "5 %", "25 %", "75 %", "95 %", "slowest", "times run", "with"],
        ["baseline", "64.0", "", "", "", "", "", "", ""],
        ["baseline as float TFLite", "5.000", "3.000", "4.000", "6.000", "8.000", "18.0", "", ""],
        ["int8", "2.500", "1.500", "2.000", "3.000", "4.000", "9.000", "200", "TFLite, 1 thread"],
    ]
    boxes = points(shown.specs()[-1])
    assert [(box["model"], box["q5"], box["q50"], box["q95"]) for box in boxes] == [
        ("baseline as float TFLite", 3.0, 5.0, 8.0),
        ("int8", 1.5, 2.5, 4.0),
    ]


# What got worse


def sliced(drops: dict[str, MetricDrop]) -> Evaluation:
    """An evaluation in which the baseline has an accuracy of 0.5 in every slice."""
    return evaluation(
        baseline=_BASELINE.model_copy(update={"slices": {key: {"accuracy": 0.5} for key in drops}}),
        candidates={"int8": model(slices={key: {"accuracy": 0.5 - drop.value} for key, drop in drops.items()})},
        comparisons={"int8": BaselineComparison(slice_drops={key: {"accuracy": drop} for key, drop in drops.items()})},
        budget=Budget(min_slice_rows=30),
    )


def test_the_worst_slices_come_first_by_their_bound_and_small_slices_last():
    drops = {
        "digit=1": MetricDrop(value=0.0, upper=0.125, rows=30),
        "digit=2": MetricDrop(value=0.25, upper=0.375, rows=40),
        "digit=3": MetricDrop(value=0.125, upper=0.5, rows=50),
        "digit=4": MetricDrop(value=0.5, upper=0.625, rows=29),
    }
    assert page(sliced(drops)).tables["int8: accuracy"] == [
        ["slice", "rows", "baseline", "int8", "drop", "up to"],
        ["digit=3", "50", "0.5000", "0.3750", "0.1250", "0.5000"],
        ["digit=2", "40", "0.5000", "0.2500", "0.2500", "0.3750"],
        ["digit=1", "30", "0.5000", "0.5000", "0.0000", "0.1250"],
        ["digit=4 not judged: too few rows", "29", "0.5000", "0.0000", "0.5000", "0.6250"],
    ]


def test_the_twenty_worst_slices_are_shown_with_nan_as_the_worst():
    drops = {f"user={number}": MetricDrop(value=number / 100, rows=50) for number in range(40)}
    lines = page(sliced({**drops, "user=none": MetricDrop(value=_NAN, rows=50)})).tables["int8: accuracy"]
    assert [line[0] for line in lines] == ["slice", "user=none", *(f"user={number}" for number in range(39, 20, -1))]


def test_broken_answers_come_before_mended_ones():
    changes = (
        AnswerChange(label=1, baseline=2, candidate=3, count=9),
        AnswerChange(label=1, baseline=2, candidate=1, count=8),
        AnswerChange(label=5, baseline=5, candidate=6, count=3),
        AnswerChange(label=8, baseline=8, candidate=6, count=1_000),
    )
    behavior = OutputComparison(agreement=0.75, divergence=0.0625, broken=1003, mended=8, changes=changes)
    shown = page(evaluation(comparisons={"int8": BaselineComparison(behavior={"": behavior})}))
    assert shown.tables["Changed answers"] == [
        ["candidate", "broken", "mended", "same answer", "outputs differ by"],
        ["int8", "1,003", "8", "75.0 %", "6.2 %"],
    ]
    assert shown.tables["What int8 answers differently"] == [
        ["true class", "baseline said", "int8 said", "rows", ""],
        ["8", "8", "6", "1,000", "broken"],
        ["5", "5", "6", "3", "broken"],
        ["1", "2", "1", "8", "mended"],
        ["1", "2", "3", "9", "wrong before and after"],
    ]


def test_each_output_has_a_line():
    behavior = {"digit": OutputComparison(agreement=0.5, broken=1, mended=0), "box": OutputComparison(divergence=0.25)}
    shown = page(evaluation(comparisons={"int8": BaselineComparison(behavior=behavior)}))
    assert shown.tables["Changed answers"] == [
        ["candidate", "output", "broken", "mended", "same answer", "outputs differ by"],
        ["int8", "digit", "1", "0", "50.0 %", ""],
        ["int8", "box", "", "", "", "25.0 %"],
    ]


def test_layers_have_size_sparsity_and_error():
    layers = (
        LayerMeasurements(name="conv", size=2000, sparsity=0.75, snr_db=20.0),
        LayerMeasurements(name="dense", size=10, sparsity=0.0, snr_db=math.inf),
        LayerMeasurements(name="new", size=10, sparsity=0.0),
    )
    shown = page(evaluation(candidates={"int8": model(layers=layers, sparsity=0.5)}))
    assert shown.tables["int8: 2,020 weights, 50.0 % zeros, worst 20.0 dB"] == [
        ["kernel", "weights", "zeros", "signal to error"],
        ["conv", "2,000", "75.0 %", "20.0 dB"],
        ["dense", "10", "0.0 %", "equal"],
        ["new", "10", "0.0 %", ""],
    ]


# Recipe, lineage, JSON


def test_known_facts_about_a_models_origin_are_shown():
    shown = page(evaluation(), int8={"uri": "/model/14", "id": 14, "plan": '{"sparsity":0.8}', "unknown": None})
    assert 'Recipe and lineage int8 uri /model/14 id 14 plan { "sparsity": 0.8 }' in shown.text
    assert "unknown" not in shown.text
    assert "Recipe and lineage" not in page(evaluation()).text


def test_the_json_in_the_report_is_the_evaluation():
    written = evaluation(verdicts={"int8": (_HELD,)}, candidates={"int8": model(uri="/a&b/<c>", sparsity=0.5)})
    (copied,) = page(written).pre
    assert Evaluation.model_validate_json(copied) == written


def test_empty_sections_are_omitted():
    headings = ("Worst slices", "Changed answers", "Layers", "Other metrics", "Recipe", "Size against")
    text = page(evaluation(baseline=None)).text
    assert [heading for heading in headings if heading in text] == []


# Safety


def test_the_report_needs_no_network():
    source = report.render({"": evaluation()})
    shown = Page(source)
    assert not shown.attributes & {"src", "href", "srcset"}
    assert not set(shown.tags) & {"link", "img", "iframe", "object", "base"}
    assert not re.search(r"@import|url\(", "".join(re.findall(r"<style>(.*?)</style>", source, re.DOTALL)))


def test_names_are_escaped():
    name = "</script><img src=x onerror=alert(1)><!--"
    wild = model(
        metrics={name: 0.5, f"{name}2": 0.5},
        slices={name: {name: 0.5}},
        layers=(LayerMeasurements(name=name, size=1, sparsity=0.0),),
        latency_quantiles_ms=(1.0,) * 9,
        runtime=name,
    )
    shown = page(
        evaluation(
            baseline=wild,
            candidates={name: wild},
            comparisons={name: BaselineComparison(slice_drops={name: {name: MetricDrop(value=0.5)}})},
            verdicts={name: (LimitVerdict(field=name, limit=name, bound=1, measured=None, held=False, note=name),)},
            chosen=name,
            reason=name,
        ),
        **{name: {name: name}},
    )
    assert "img" not in shown.tags
    assert shown.tags.count("script") == 4  # the bundle, our own, two plots
    assert [point["model"] for point in points(shown.specs()[1])] == ["baseline", name]
    assert json.loads(shown.pre[0])["chosen"] == name


def test_metric_names_are_not_vega_fields():
    """Vega-Lite would read a field `a.b[c]` as a path."""
    metrics = {"head.one/top[k]:5@class": 0.5}
    shown = page(evaluation(baseline=model(metrics=metrics), candidates={"int8": model(metrics=metrics)}))
    assert {point["metric"] for point in points(shown.specs()[0])} == {0.5}
