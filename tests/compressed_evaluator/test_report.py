"""The report: what a release manager reads in it, and that nothing in a name or a number breaks it."""

import json
import math
import re
from typing import Any

import pytest
from tfx_compression.compressed_evaluator import report
from tfx_compression.compressed_evaluator.budget import Budget, Verdict
from tfx_compression.compressed_evaluator.evaluation import (
    Behaviour,
    Change,
    Comparison,
    Drop,
    Evaluation,
    Layer,
    Measured,
)

from tests.support.report_page import Page

_NAN = float("nan")


def model(**changes: Any) -> Measured:
    """A TFLite model of round numbers, but for `changes`."""
    known: dict[str, Any] = {
        "kind": "tflite",
        "uri": "/candidate",
        "metrics": {"accuracy": 0.75, "example_count": 100.0},
        "bytes": 1000,
        "bytes_gzip": 500,
        "latency_ms": 2.0,
        "latency_spread_ms": 0.25,
    }
    return Measured(**{**known, **changes})


_BASELINE = model(
    kind="saved_model",
    uri="/baseline",
    bytes=8_000_000,
    bytes_gzip=6000,
    latency_ms=64.0,
    tflite=model(bytes=4000, bytes_gzip=2000, latency_ms=4.0, metrics={}),
)


def evaluation(baseline: Measured | None = _BASELINE, **changes: Any) -> Evaluation:
    """Of one candidate, int8, which is chosen, but for `changes`."""
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


def page(found: Evaluation, **origins: Any) -> Page:
    return Page(report.render({"": found}, origins={"": origins} if origins else None))


_MISSED = Verdict(limit="bytes at most", bound=800, measured=1000, held=False)
_HELD = Verdict(limit="milliseconds for one row at most", bound=2.5, measured=2.0, held=True)


# The decision


def test_the_first_line_is_the_decision_and_its_reason():
    assert page(evaluation()).text.startswith(
        "Compression report Chosen for release. int8 holds every limit. model verdict"
    )
    refused = evaluation(chosen=None, reason="No candidate holds every limit.")
    assert "Compression report Nothing is chosen for release. No candidate holds every limit." in page(refused).text


def test_of_several_evaluations_the_decisions_come_first():
    other = evaluation(chosen=None, reason="None is good.")
    found = Page(report.render({"edge": evaluation(), "serving": other}, title="Digits"))
    assert found.text.startswith(
        "Digits edge Chosen for release. int8 holds every limit. "
        "serving Nothing is chosen for release. None is good. edge"
    )
    assert found.tags.count("h2") == 2


def test_a_model_that_could_not_be_run_and_one_that_answers_nan_are_named_before_the_table():
    crashed = model(failure="RuntimeError: no kernel for FlexRelu", metrics={}, latency_ms=None, latency_spread_ms=None)
    found = page(evaluation(candidates={"int8": model(), "int4": crashed, "wild": model(not_finite=7)}))
    before, after = found.text.split("model verdict", 1)
    assert "int4 could not be run: RuntimeError: no kernel for FlexRelu" in before
    assert "wild answers 7 of 100 rows with NaN or infinity." in before
    assert "int4: did not run" in after
    rows = {row[0]: row for row in found.tables[""]}
    assert rows["int4"][1] == "did not run"
    assert "wild NaN in 7 rows" in rows


# The table


def test_the_table_has_the_differences_from_the_baseline_in_the_candidates_format():
    comparison = Comparison(
        drops={"accuracy": Drop(value=0.125, upper=0.25)}, behaviour={"": Behaviour(agreement=0.875)}
    )
    candidates = {"int8": model(metrics={"accuracy": 0.625}, sparsity=0.5), "pruned": model(kind="saved_model")}
    found = page(evaluation(candidates=candidates, comparisons={"int8": comparison}))
    assert found.tables[""] == [
        ["model", "verdict", "accuracy", "drop", "size", "gzipped", "ms per row", "speed-up", "zeros", "same answer"],
        ["baseline", "", "0.7500", "", "8.00 MB", "6.0 kB", "64.0", "", "", ""],
        ["baseline as float TFLite", "", "", "", "4.0 kB", "2.0 kB", "4.000", "", "", ""],
        [
            *("int8", "chosen", "0.6250", "0.1250 up to 0.2500", "1.0 kB -75 %", "0.5 kB -75 %", "2.000 -50 %"),
            *("2.00×", "50.0 %", "87.5 %"),
        ],
        ["pruned", "held", "0.7500", "", "1.0 kB -100 %", "0.5 kB -92 %", "2.000 -97 %", "32.00×", "", ""],
    ]
    assert "Up to: it is no larger than this with 95 % confidence." in found.text


def test_columns_that_hold_nothing_are_left_out():
    found = page(evaluation(baseline=None))
    assert found.tables[""] == [
        ["model", "verdict", "accuracy", "size", "gzipped", "ms per row"],
        ["int8", "chosen", "0.7500", "1.0 kB", "0.5 kB", "2.000"],
    ]
    assert "baseline" not in found.text
    assert "confidence" not in found.text


def test_a_refused_candidate_has_its_first_missed_limit_beside_it():
    verdicts = (_HELD, _MISSED, _MISSED)
    found = page(evaluation(candidates={"int8": model()}, verdicts={"int8": verdicts}, chosen=None))
    assert found.tables[""][-1][1] == "refused bytes at most 800: not held (measured 1,000); and 1 more"


def test_metrics_that_the_table_does_not_show_are_below_it():
    metrics = {"accuracy": 0.5, "loss": 0.75}
    comparison = Comparison(drops={"loss": Drop(value=0.25, upper=0.5)})
    found = page(
        evaluation(
            baseline=model(metrics={**metrics, "loss": 0.5}),
            candidates={"int8": model(metrics=metrics)},
            comparisons={"int8": comparison},
        )
    )
    assert found.tables["Other metrics"] == [
        ["metric", "baseline", "int8"],
        ["loss", "0.5000", "0.7500 drop 0.2500, up to 0.5000"],
    ]


@pytest.mark.parametrize(
    ("budget", "metrics", "shown"),
    [
        (Budget(max_slice_metric_drop={"auc": 0.1}), {"accuracy": 1.0, "auc": 1.0}, "auc"),
        (Budget(), {"example_count": 5.0, "accuracy": 1.0}, "accuracy"),
        (Budget(), {}, ""),
    ],
    ids=["the budget's first", "the first", "none"],
)
def test_the_table_shows_one_metric(budget, metrics, shown):
    found = evaluation(baseline=None, budget=budget, candidates={"int8": model(metrics=metrics)})
    assert report.metric_of(found) == shown
    assert page(found).tables


# Verdicts


def test_each_limit_has_a_line_and_the_missed_ones_come_first():
    unknown = Verdict(limit="x at least", bound=1, measured=None, held=False, note="its weights can't be seen")
    found = page(evaluation(verdicts={"int8": (_HELD, _MISSED, unknown)}, chosen=None))
    assert found.tables["int8: refused"] == [
        ["", "limit", "bound", "measured", "margin"],
        ["✗ not held", "bytes at most", "800", "1,000", "-200"],
        ["✗ not held", "x at least its weights can't be seen", "1", "–", ""],
        ["✓ held", "milliseconds for one row at most", "2.5", "2", "+0.5"],
    ]


def test_without_limits_it_says_so():
    assert "int8: chosen No limits were set." in page(evaluation()).text


# Plots


def points(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return spec["data"]["values"]


def test_the_plot_tells_models_apart_that_are_alike():
    """They are told by a legend: names beside points would cover each other."""
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


def test_vega_draws_the_plots_in_the_colours_of_the_page():
    import vl_convert

    times = tuple(float(time) for time in range(1, 10))
    found = evaluation(baseline=_BASELINE.model_copy(update={"latency_quantiles_ms": times}), pareto=("int8",))
    for spec in page(found).specs():
        drawn = vl_convert.vegalite_to_svg({**spec, "width": 300})
        assert "baseline" in drawn
        assert 'fill="currentColor"' in drawn
        assert "NaN" not in drawn


def test_the_times_of_all_models_are_on_one_axis_and_in_a_table():
    times = (1.0, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 9.0)
    timed = {"latency_quantiles_ms": times, "latency_ms": 2.5, "latency_repeats": 200, "runtime": "TFLite, 1 thread"}
    twin = model(latency_quantiles_ms=tuple(2 * time for time in times), latency_ms=5.0, metrics={})
    found = page(
        evaluation(baseline=_BASELINE.model_copy(update={"tflite": twin}), candidates={"int8": model(**timed)})
    )
    assert found.tables["Latency"] == [
        ["model", "median", "5 %", "25 %", "75 %", "95 %", "slowest", "times run", "with"],
        ["baseline", "64.0", "", "", "", "", "", "", ""],
        ["baseline as float TFLite", "5.000", "3.000", "4.000", "6.000", "8.000", "18.0", "", ""],
        ["int8", "2.500", "1.500", "2.000", "3.000", "4.000", "9.000", "200", "TFLite, 1 thread"],
    ]
    boxes = points(found.specs()[-1])
    assert [(box["model"], box["q5"], box["q50"], box["q95"]) for box in boxes] == [
        ("baseline as float TFLite", 3.0, 5.0, 8.0),
        ("int8", 1.5, 2.5, 4.0),
    ]


# What got worse


def sliced(drops: dict[str, Drop]) -> Evaluation:
    """Accuracy 0.5 of the baseline in every slice."""
    return evaluation(
        baseline=_BASELINE.model_copy(update={"slices": {key: {"accuracy": 0.5} for key in drops}}),
        candidates={"int8": model(slices={key: {"accuracy": 0.5 - drop.value} for key, drop in drops.items()})},
        comparisons={"int8": Comparison(slice_drops={key: {"accuracy": drop} for key, drop in drops.items()})},
        budget=Budget(min_slice_rows=30),
    )


def test_the_worst_slices_come_first_by_their_bound_and_small_ones_last():
    drops = {
        "digit=1": Drop(value=0.0, upper=0.125, rows=30),
        "digit=2": Drop(value=0.25, upper=0.375, rows=40),
        "digit=3": Drop(value=0.125, upper=0.5, rows=50),
        "digit=4": Drop(value=0.5, upper=0.625, rows=29),
    }
    assert page(sliced(drops)).tables["int8: accuracy"] == [
        ["slice", "rows", "baseline", "int8", "drop", "up to"],
        ["digit=3", "50", "0.5000", "0.3750", "0.1250", "0.5000"],
        ["digit=2", "40", "0.5000", "0.2500", "0.2500", "0.3750"],
        ["digit=1", "30", "0.5000", "0.5000", "0.0000", "0.1250"],
        ["digit=4 not judged: too few rows", "29", "0.5000", "0.0000", "0.5000", "0.6250"],
    ]


def test_of_many_slices_the_twenty_worst_are_shown_and_one_that_is_no_number_is_the_worst():
    drops = {f"user={number}": Drop(value=number / 100, rows=50) for number in range(40)}
    lines = page(sliced({**drops, "user=none": Drop(value=_NAN, rows=50)})).tables["int8: accuracy"]
    assert [line[0] for line in lines] == ["slice", "user=none", *(f"user={number}" for number in range(39, 20, -1))]


def test_answers_that_were_broken_come_before_those_that_were_mended():
    changes = (
        Change(label=1, baseline=2, candidate=3, count=9),
        Change(label=1, baseline=2, candidate=1, count=8),
        Change(label=5, baseline=5, candidate=6, count=3),
        Change(label=8, baseline=8, candidate=6, count=1_000),
    )
    behaviour = Behaviour(agreement=0.75, divergence=0.0625, broken=1003, mended=8, changes=changes)
    found = page(evaluation(comparisons={"int8": Comparison(behaviour={"": behaviour})}))
    assert found.tables["Changed answers"] == [
        ["candidate", "broken", "mended", "same answer", "outputs differ by"],
        ["int8", "1,003", "8", "75.0 %", "6.2 %"],
    ]
    assert found.tables["What int8 answers differently"] == [
        ["true class", "baseline said", "int8 said", "rows", ""],
        ["8", "8", "6", "1,000", "broken"],
        ["5", "5", "6", "3", "broken"],
        ["1", "2", "1", "8", "mended"],
        ["1", "2", "3", "9", "wrong before and after"],
    ]


def test_the_outputs_of_a_model_are_told_apart():
    behaviour = {"digit": Behaviour(agreement=0.5, broken=1, mended=0), "box": Behaviour(divergence=0.25)}
    found = page(evaluation(comparisons={"int8": Comparison(behaviour=behaviour)}))
    assert found.tables["Changed answers"] == [
        ["candidate", "output", "broken", "mended", "same answer", "outputs differ by"],
        ["int8", "digit", "1", "0", "50.0 %", ""],
        ["int8", "box", "", "", "", "25.0 %"],
    ]


def test_layers_have_size_sparsity_and_error():
    layers = (
        Layer(name="conv", size=2000, sparsity=0.75, snr_db=20.0),
        Layer(name="dense", size=10, sparsity=0.0, snr_db=math.inf),
        Layer(name="new", size=10, sparsity=0.0),
    )
    found = page(evaluation(candidates={"int8": model(layers=layers, sparsity=0.5)}))
    assert found.tables["int8: 2,020 weights, 50.0 % zeros, worst 20.0 dB"] == [
        ["kernel", "weights", "zeros", "signal to error"],
        ["conv", "2,000", "75.0 %", "20.0 dB"],
        ["dense", "10", "0.0 %", "equal"],
        ["new", "10", "0.0 %", ""],
    ]


# Recipe, lineage, JSON


def test_the_recipe_and_the_lineage_are_shown_where_they_are_known():
    found = page(evaluation(), int8={"uri": "/model/14", "id": 14, "plan": '{"sparsity":0.8}', "unknown": None})
    assert 'Recipe and lineage int8 uri /model/14 id 14 plan { "sparsity": 0.8 }' in found.text
    assert "unknown" not in found.text
    assert "Recipe and lineage" not in page(evaluation()).text


def test_the_json_in_the_report_is_the_evaluation():
    found = evaluation(verdicts={"int8": (_HELD,)}, candidates={"int8": model(uri="/a&b/<c>", sparsity=0.5)})
    (copied,) = page(found).pre
    assert Evaluation.model_validate_json(copied) == found


def test_sections_that_would_be_empty_are_not_there():
    headings = ("Worst slices", "Changed answers", "Layers", "Other metrics", "Recipe", "Size against")
    text = page(evaluation(baseline=None)).text
    assert [heading for heading in headings if heading in text] == []


# Safety


def test_it_needs_no_network():
    source = report.render({"": evaluation()})
    found = Page(source)
    assert not found.attributes & {"src", "href", "srcset"}
    assert not set(found.tags) & {"link", "img", "iframe", "object", "base"}
    assert not re.search(r"@import|url\(", "".join(re.findall(r"<style>(.*?)</style>", source, re.DOTALL)))


def test_no_name_breaks_out_of_its_place():
    name = "</script><img src=x onerror=alert(1)><!--"
    wild = model(
        metrics={name: 0.5, f"{name}2": 0.5},
        slices={name: {name: 0.5}},
        layers=(Layer(name=name, size=1, sparsity=0.0),),
        latency_quantiles_ms=(1.0,) * 9,
        runtime=name,
    )
    found = page(
        evaluation(
            baseline=wild,
            candidates={name: wild},
            comparisons={name: Comparison(slice_drops={name: {name: Drop(value=0.5)}})},
            verdicts={name: (Verdict(limit=name, bound=1, measured=None, held=False, note=name),)},
            chosen=name,
            reason=name,
        ),
        **{name: {name: name}},
    )
    assert "img" not in found.tags
    assert found.tags.count("script") == 4  # the bundle, our own, two plots
    assert [point["model"] for point in points(found.specs()[1])] == ["baseline", name]
    assert json.loads(found.pre[0])["chosen"] == name


def test_field_names_of_vega_are_not_taken_from_metrics():
    """In Vega-Lite a field `a.b[c]` is c of b of a."""
    metrics = {"head.one/top[k]:5@class": 0.5}
    found = page(evaluation(baseline=model(metrics=metrics), candidates={"int8": model(metrics=metrics)}))
    assert {point["metric"] for point in points(found.specs()[0])} == {0.5}
