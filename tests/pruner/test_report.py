"""The pruning report: its statements, tables and plots, and names and numbers that could break it."""

import math
import re
from typing import Any

import pytest
from tfx_compression.keras_models.model_size import LayerSize, ModelSize
from tfx_compression.model_handle.compressed import Summary
from tfx_compression.pruner import report
from tfx_compression.pruning.plan import LayerRule, PruningPlan
from tfx_compression.pruning.record import GroupResult, PruningRecord, SensitivityCurve

from tests.support.report_page import Page


def layer(name: str, parameters: int, **changes: Any) -> LayerSize:
    known: dict[str, Any] = {"type": "Conv2D", "zeros": 0, "sparsity": 0.0, "macs": 10 * parameters}
    return LayerSize(name=name, parameters=parameters, **{**known, **changes})


def size(*layers: LayerSize, **changes: Any) -> ModelSize:
    parameters, macs = sum(layer.parameters for layer in layers), sum(layer.macs or 0 for layer in layers)
    known: dict[str, Any] = {
        "parameters": parameters,
        "sparsity": 0.0,
        "macs": macs,
        "nonzero_macs": macs,
        "bytes": 4 * parameters,
        "bytes_gzip": 3 * parameters,
    }
    return ModelSize(layers=layers, **{**known, **changes})


_STEM = GroupResult(name="stem", layers=("stem",), elements=16, kept=16, target_sparsity=0.0, protected="first")
_TRUNK = GroupResult(
    name="conv",
    layers=("conv", "bn", "next"),
    elements=64,
    kept=16,
    target_sparsity=0.75,
    scores=(0.00125, 0.5, 1234.0),
)


def record(**changes: Any) -> PruningRecord:
    """Returns the record of a pruning that removed three quarters of one layer's filters, with changed fields."""
    before = size(layer("stem", 400), layer("conv", 4000), layer("bn", 256, type="BatchNormalization", macs=0))
    after = size(layer("stem", 400), layer("conv", 1000), layer("bn", 64, type="BatchNormalization", macs=0))
    known: dict[str, Any] = {
        "plan": PruningPlan(technique="filter", sparsity=0.75),
        "kind": "keras2",
        "summary": Summary(before=before, after=after),
        "groups": (_STEM, _TRUNK),
        "step_sparsity": 0.75,
        "achieved_sparsity": 0.75,
    }
    return PruningRecord(**{**known, **changes})


def page(**changes: Any) -> Page:
    return Page(report.render(record(**changes)))


def values(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return spec["data"]["values"]


# The result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "requested", "achieved", "statement"),
    [
        (
            PruningPlan(technique="filter", sparsity=0.75),
            0.75,
            0.75,
            "75.0 % of the prunable filters are removed , as requested.",
        ),
        (
            PruningPlan(technique="neuron", target="macs", sparsity=0.75, allocation="global"),
            0.75,
            0.6,
            "60.0 % of the model’s multiply-accumulates are saved , 75.0 % were requested.",
        ),
        (
            PruningPlan(schedule="cubic", initial_sparsity=0.25, sparsity=0.875),
            0.25,
            0.25,
            "25.0 % of the prunable weights are set to zero , as requested at this step, "
            "87.5 % at the end of the schedule.",
        ),
    ],
    ids=["reached", "missed", "first step"],
)
def test_the_statement_compares_the_achieved_with_the_requested_sparsity(plan, requested, achieved, statement):
    assert statement in page(plan=plan, step_sparsity=requested, achieved_sparsity=achieved).text


def test_the_statement_has_the_sparsity_of_the_whole_model_if_it_is_not_as_asked():
    summary = record().summary.model_copy(update={"warnings": ("less",)})
    asked = {"plan": PruningPlan(sparsity=0.75), "step_sparsity": 0.75, "achieved_sparsity": 0.75}
    shown = page(**asked, summary=summary, model_sparsity=0.125)
    assert "as requested; of the whole model it is 12.5 %." in shown.text
    assert 'class="decision released"' not in report.render(record(**asked, summary=summary))
    assert 'class="decision released"' in report.render(record(**asked))


def test_the_figures_of_the_model_before_and_after():
    shown = page()
    assert (
        "parameters 4,656 → 1,464 (3.18×) multiply-accumulates 44,000 → 14,000 (3.14×) "
        "bytes, gzipped 14.0 kB → 4.4 kB (3.18×)" in shown.text
    )
    assert shown.tables["Whole model"] == [
        ["", "before", "after", "change"],
        ["parameters", "4,656", "1,464", "-69 %"],
        ["multiply-accumulates", "44,000", "14,000", "-68 %"],
        ["bytes of the weights", "18.6 kB", "5.9 kB", "-69 %"],
        ["bytes of the weights, gzipped", "14.0 kB", "4.4 kB", "-69 %"],
        ["zeros in kernels", "0.0 %", "0.0 %", ""],
    ]


def test_zeros_and_removed_weights_are_counted_separately():
    before = size(layer("conv", 4000))
    after = size(
        layer("conv", 4000, zeros=2000, sparsity=0.5), sparsity=0.5, nonzero_macs=before.macs // 2, bytes_gzip=6000
    )
    shown = page(
        plan=PruningPlan(), summary=Summary(before=before, after=after), step_sparsity=0.5, achieved_sparsity=0.5
    )
    assert "parameters 4,000, the same" in shown.text
    assert "zeros in kernels 0.0 % → 50.0 %" in shown.text
    lines = {line[0]: line[1:] for line in shown.tables["Whole model"]}
    assert lines["parameters"] == ["4,000", "4,000", "same"]
    assert lines["multiply-accumulates of nonzero weights"] == ["40,000", "20,000", "-50 %"]
    assert shown.tables["1 layer with weights, before → after"][1] == [
        *("conv Conv2D", "4,000", "40,000", "0 → 2,000", "0.0 % → 50.0 %"),
    ]


def test_notes_come_first_and_many_are_folded():
    notes = tuple(f"Group {number} is blocked." for number in range(9))
    shown = page(notes=notes)
    before, _ = shown.text.split("Whole model")
    assert all(note in before for note in notes)
    assert "Group 5 is blocked. 3 more notes Group 6 is blocked." in before
    assert "Notes" not in page().text


# Groups


def test_a_group_has_its_coupled_layers_importance_and_protection():
    assert page().tables["2 groups, 1 of them protected"] == [
        ["group", "filters", "kept", "at the end", "least importance", "median", "most", "protected"],
        ["stem", "16", "100.0 %", "", "", "", "", "first"],
        ["conv conv, bn, next", "64 → 16", "25.0 %", "25.0 %", "0.00125", "0.5", "1.23e+03", ""],
    ]


def test_only_the_first_of_many_coupled_layers_are_named():
    trunk = _TRUNK.model_copy(update={"layers": tuple(f"block{number}" for number in range(12))})
    name = page(groups=(trunk,)).tables["1 group"][1][0]
    assert name == "conv block0, block1, block2, block3, block4, block5, block6, block7 and 4 more"


def test_the_plot_shows_kept_fractions_and_protection():
    (spec,) = page().specs()
    assert values(spec) == [
        {"group": "stem", "kept": 1.0, "end": None, "protected": "first", "count": "16 of 16"},
        {"group": "conv", "kept": 0.25, "end": 0.25, "protected": "", "count": "16 of 64"},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 40, 41, 200])
def test_vega_draws_few_and_many_groups_in_the_colors_of_the_page(count):
    import vl_convert

    groups = (_STEM, *(_TRUNK.model_copy(update={"name": f"net/conv{number}"}) for number in range(1, count)))
    (spec,) = page(groups=groups).specs()
    drawn = vl_convert.vegalite_to_svg({**spec, "width": 900})
    assert 'fill="currentColor"' in drawn
    assert "stem" in drawn
    names = re.findall(r'opacity="1"[^>]*>net/conv\d+<', drawn)
    assert len(names) in (range(20, 80) if count == 200 else [count - 1])  # all of them would overlap
    assert float(re.search(r'height="([\d.]+)"', drawn)[1]) < 1000


def test_a_record_without_groups_has_no_plot():
    shown = page(groups=())
    assert shown.specs() == []
    assert "Kept fraction" not in shown.text


# Layers and channels


def test_layers_are_matched_by_name():
    before = size(layer("conv", 4000), layer("dense", 50, type="Dense"), layer("gone", 9, macs=None))
    after = size(layer("new", 7, macs=None), layer("dense", 20, type="Dense", macs=None), layer("conv", 4000))
    assert page(summary=Summary(before=before, after=after)).tables["4 layers with weights, before → after"] == [
        ["layer", "parameters", "multiply-accumulates"],
        ["conv Conv2D", "4,000", "40,000"],
        ["dense Dense", "50 → 20", "500 → unknown"],
        ["gone Conv2D", "9 → –", "unknown → –"],
        ["new Conv2D", "– → 7", "– → unknown"],
    ]


def test_kept_channels_are_listed_in_runs():
    shown = page(channels={"conv": (0, 3, 4, 5, 9, 10), "dense": (7,)})
    assert "of 2 layers conv 6 kept: 0, 3–5, 9–10 dense 1 kept: 7" in shown.text
    assert "Channels" not in page().text


# Sensitivity


def curve(name: str, *damage: float) -> SensitivityCurve:
    return SensitivityCurve(name=name, levels=(0.0, 0.25, 0.5), values=(1.0, *damage))


def test_curves_are_plotted_and_tabulated_with_the_most_sensitive_group_first():
    curves = (curve("calm", 1.0, 1.5), curve("wild", 2.0, math.inf), curve("better", 0.5, 0.25))
    shown = page(sensitivity=curves, metric="top_k_loss")
    assert "Sensitivity: top k loss" in shown.text
    assert shown.tables["As a table"] == [
        ["group", "0 %", "25 %", "50 %"],
        ["wild", "1.0000", "2.0000", "inf"],
        ["better", "1.0000", "0.5000", "0.2500"],
        ["calm", "1.0000", "1.0000", "1.5000"],
    ]
    points = {(point["group"], point["level"]): point["value"] for point in values(shown.specs()[1])}
    assert points["wild", 0.25] == 2.0
    assert ("wild", 0.5) not in points  # not finite, so not drawn
    assert shown.specs()[1]["encoding"]["color"]["scale"]["domain"] == ["wild", "better", "calm"]


def test_many_curves_have_small_plots_and_at_most_sixty_are_drawn():
    import vl_convert

    curves = tuple(curve(f"net/conv{number}", 1.0, 1 + number / 100) for number in range(70))
    shown = page(sensitivity=curves, metric="loss")
    spec = shown.specs()[1]
    drawn = {point["group"] for point in values(spec)}
    assert drawn == {f"net/conv{number}" for number in range(10, 70)}
    assert "10 more groups are in the table." in shown.text
    assert len(shown.tables["As a table"]) == 71
    assert "net/conv69" in vl_convert.vegalite_to_svg(spec)


def test_a_record_without_curves_has_no_section():
    assert "Sensitivity" not in page().text


# Plan and JSON


def test_fields_of_the_plan_with_default_values_are_folded():
    plan = PruningPlan(technique="filter", round_to=8, rules=(LayerRule(layers="block.*", sparsity=0.25),))
    shown, left = page(plan=plan).text.split(" Plan ")[1].split("Fields with default values")
    assert "technique filter" in shown
    assert "sparsity 0.5" in shown
    assert "rules block.*: 0.25" in shown
    assert "round_to 8" in shown
    assert "protect not set" in left
    assert "label_key not set" in left


def test_the_json_in_the_report_is_the_record():
    expected = record(
        notes=("a&b <c>",), channels={"conv": (0, 2)}, sensitivity=(curve("conv", 2.0, 3.0),), metric="loss"
    )
    (copied,) = Page(report.render(expected)).pre
    assert PruningRecord.model_validate_json(copied) == expected


# Sizes and safety


@pytest.mark.parametrize("kind", ["keras2", "keras3", "saved_model"])
def test_a_model_of_one_layer_of_any_kind(kind):
    tiny = size(layer("dense", 2, macs=None), macs=None, nonzero_macs=None)
    shown = page(kind=kind, summary=Summary(before=tiny, after=tiny), groups=(), plan=PruningPlan())
    assert "1 layer with weights" in shown.text
    assert ["multiply-accumulates", "unknown", "unknown", ""] in shown.tables["Whole model"]


def test_the_tables_of_a_large_model_are_folded_but_complete():
    count = 300
    names = [f"net/stage{number // 100}/conv{number}" for number in range(count)]
    summary = Summary(
        before=size(*(layer(name, 1000) for name in names)), after=size(*(layer(name, 500) for name in names))
    )
    groups = tuple(_TRUNK.model_copy(update={"name": name, "layers": (name,)}) for name in names)
    curves = tuple(curve(name, 2.0, 3.0) for name in names)
    source = report.render(
        record(
            summary=summary, groups=groups, sensitivity=curves, metric="loss", channels=dict.fromkeys(names, (0, 1, 5))
        )
    )
    shown = Page(source)
    assert len(shown.tables["300 layers with weights, before → after"]) == count + 1
    assert len(shown.tables["300 groups"]) == count + 1
    assert not re.search(r"<details[^>]*\bopen\b", source)
    assert re.search(r"<details[^>]*\bopen\b", report.render(record()))


def test_the_report_needs_no_network():
    source = report.render(record(sensitivity=(curve("conv", 2.0, 3.0),), metric="loss"))
    shown = Page(source)
    assert not shown.attributes & {"src", "href", "srcset"}
    assert not set(shown.tags) & {"link", "img", "iframe", "object", "base"}
    assert not re.search(r"@import|url\(", "".join(re.findall(r"<style>(.*?)</style>", source, re.DOTALL)))


def test_names_are_escaped():
    name = "</script><img src=x onerror=alert(1)><!--"
    wild = size(layer(name, 10, type=name))
    group = _TRUNK.model_copy(update={"name": name, "layers": (name, name), "protected": name})
    shown = Page(
        report.render(
            record(
                kind=name,
                summary=Summary(before=wild, after=wild),
                groups=(group, group.model_copy(update={"name": f"{name}2"})),
                channels={name: (0,)},
                notes=(name,),
                sensitivity=(curve(name, 2.0, 3.0),),
                metric=name,
                plan=PruningPlan(criterion=name, rules=(LayerRule(layers="</dd><img>.*", sparsity=0.5),)),
            ),
            title=name,
        )
    )
    assert "img" not in shown.tags
    assert shown.tags.count("script") == 4  # the bundle, our own, two plots
    assert [point["group"] for point in values(shown.specs()[0])] == [name, f"{name}2"]
    assert PruningRecord.model_validate_json(shown.pre[0]).notes == (name,)
