"""The pruning report: one HTML file that needs no network."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from tfx_compression.keras_models.model_size import LayerSize
from tfx_compression.page import numbers, tables, template
from tfx_compression.page.tables import Cell, Column
from tfx_compression.pruner import plots
from tfx_compression.pruner.plots import kept_fraction
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.record import GroupResult, PruningRecord, SensitivityCurve

# Most names of coupled layers in a cell; the JSON has all of them.
_NAMES = 8
# Most notes that show without a click.
_NOTES = 6

_KINDS = {
    "keras2": "Keras 2 model",
    "keras3": "Keras 3 model",
    "saved_model": "SavedModel without a layer graph",
}
_ELEMENTS = {"weight": "weights", "filter": "filters", "neuron": "units"}
_TARGETS = {"parameters": "parameters", "macs": "multiply-accumulates", "bytes": "bytes"}
# Fields of the plan that are always shown.
_MAIN_FIELDS = ("technique", "criterion", "allocation", "target", "sparsity", "schedule")


def render(record: PruningRecord, title: str = "Pruning report") -> str:
    """Returns the report on a pruning, as HTML with style, scripts and data inside.

    Args:
      record: Record of the pruning.
      title: Title of the page.
    """
    curves = sorted(record.sensitivity, key=_largest_change, reverse=True)
    metric, layers = record.metric.replace("_", " "), _layers(record)
    shown_fields, default_fields = _plan(record.plan)
    return template.render(
        __package__,
        title,
        headline=_headline(record),
        statement=_statement(record),
        reached=record.achieved_sparsity > record.step_sparsity - 0.01 and not record.summary.warnings,
        figures=_figures(record),
        notes=record.notes,
        max_lines=tables.MAX_LINES,
        most_notes=_NOTES,
        model=_model(record),
        kept_plot=plots.kept(record.groups) if record.groups else None,
        groups=_groups(record),
        groups_summary=_groups_summary(record.groups),
        groups_classes=["muted" if group.protected else "" for group in record.groups],
        layers=layers,
        layers_summary=f"{_counted(len(layers[0].cells), 'layer')} with weights, before → after" if layers else "",
        channels_summary=f"Kept output channels of {_counted(len(record.channels), 'layer')}",
        metric=metric,
        curves_left=max(0, len(curves) - plots.MOST_CURVES),
        curves_plot=plots.curves(curves[: plots.MOST_CURVES], metric) if curves else None,
        curves=_curves(curves),
        channels={name: _ranges(kept) for name, kept in record.channels.items()},
        plan_fields=shown_fields,
        plan_defaults=default_fields,
        json_text=record.model_dump_json(indent=1),
    )


# The result


def _headline(record: PruningRecord) -> str:
    """Returns the method, in the plan's words."""
    plan = record.plan
    pattern = "" if plan.pattern == "unstructured" else f" in the pattern {plan.pattern}"
    model = _KINDS.get(record.kind, record.kind)
    return (
        f"{plan.technique.capitalize()} pruning{pattern} of a {model} by {plan.criterion}, "
        f"allocation {plan.allocation}, schedule {plan.schedule}"
    )


def _statement(record: PruningRecord) -> tuple[str, str]:
    """Returns the achieved sparsity, and how it compares with the requested one."""
    plan = record.plan
    if plan.target == "sparsity":
        quantity, action = f"prunable {_ELEMENTS[plan.technique]}", "removed" if plan.structured else "set to zero"
    else:
        quantity, action = f"model’s {_TARGETS[plan.target]}", "saved"
    achieved, requested = numbers.percent(record.achieved_sparsity), numbers.percent(record.step_sparsity)
    unfinished = plan.first_step_sparsity < plan.sparsity
    step = " at this step" if unfinished else ""
    compared = f"as requested{step}" if achieved == requested else f"{requested} were requested{step}"
    if record.summary.warnings and record.model_sparsity is not None:
        compared += f"; of the whole model it is {numbers.percent(record.model_sparsity)}"
    end = f", {numbers.percent(plan.sparsity)} at the end of the schedule" if unfinished else ""
    return f"{achieved} of the {quantity} are {action}", f"{compared}{end}."


def _figures(record: PruningRecord) -> list[tuple[str, str, str]]:
    """Returns the key figures of the model: name, change and factor."""
    before, after = record.summary.before, record.summary.after
    pairs: list[tuple[str, Any, Any, Callable[[Any], str]]] = [
        ("parameters", before.parameters, after.parameters, _short),
        ("multiply-accumulates", before.macs, after.macs, _known(_short)),
        ("bytes, gzipped", before.bytes_gzip, after.bytes_gzip, numbers.size),
    ]
    figures = [(name, form(was), form(now), _factor(was, now)) for name, was, now, form in pairs if was != 0]
    if before.sparsity or after.sparsity:
        figures.append(("zeros in kernels", numbers.percent(before.sparsity), numbers.percent(after.sparsity), ""))
    return [
        (name, f"{was}, the same" if was == now != "unknown" else _change(was, now), factor)
        for name, was, now, factor in figures
    ]


def _model(record: PruningRecord) -> list[Column]:
    """Returns the table of the model before and after."""
    before, after = record.summary.before, record.summary.after
    counts: list[tuple[str, Any, Any, Callable[[Any], str]]] = [
        ("parameters", before.parameters, after.parameters, numbers.number),
        ("multiply-accumulates", before.macs, after.macs, _known(numbers.number)),
        ("multiply-accumulates of nonzero weights", before.nonzero_macs, after.nonzero_macs, numbers.number),
        ("bytes of the weights", before.bytes, after.bytes, numbers.size),
        ("bytes of the weights, gzipped", before.bytes_gzip, after.bytes_gzip, numbers.size),
    ]
    if (before.nonzero_macs, after.nonzero_macs) == (before.macs, after.macs):
        del counts[2]
    counts = [count for count in counts if count[1] != 0]
    return tables.nonempty_columns(
        tables.text_column("", [*(name for name, *_ in counts), "zeros in kernels"]),
        tables.number_column("before", [*(form(was) for _, was, _, form in counts), numbers.percent(before.sparsity)]),
        tables.number_column("after", [*(form(now) for _, _, now, form in counts), numbers.percent(after.sparsity)]),
        tables.number_column("change", [*(numbers.delta(now, was) for _, was, now, _ in counts), ""]),
    )


# Groups and layers


def _groups_summary(groups: Sequence[GroupResult]) -> str:
    protected = sum(bool(group.protected) for group in groups)
    return _counted(len(groups), "group") + (f", {protected:,} of them protected" if protected else "")


def _groups(record: PruningRecord) -> list[Column]:
    """Returns a table with a line for each group, in the model's order."""
    groups = record.groups

    def scores(position: int) -> list[str]:
        return ["" if group.scores is None else numbers.minus(f"{group.scores[position]:.3g}") for group in groups]

    return tables.nonempty_columns(
        Column("group", [Cell(group.name, _coupled(group)) for group in groups], is_text=True),
        tables.number_column(
            _ELEMENTS[record.plan.technique], [_change(f"{group.elements:,}", f"{group.kept:,}") for group in groups]
        ),
        Column("kept", [Cell(numbers.percent(kept_fraction(group)), share=kept_fraction(group)) for group in groups]),
        tables.number_column("at the end", [_end(group) for group in groups]),
        tables.number_column("least importance", scores(0)),
        tables.number_column("median", scores(1)),
        tables.number_column("most", scores(2)),
        tables.text_column("protected", [group.protected for group in groups]),
    )


def _end(group: GroupResult) -> str:
    """Returns the fraction of a group that is kept at the end of the schedule."""
    return "" if group.protected else numbers.percent(1 - group.target_sparsity)


def _coupled(group: GroupResult) -> str:
    """Returns the layers of a group, unless they are only the one that it is named after."""
    if group.layers in ((), (group.name,)):
        return ""
    more = f" and {len(group.layers) - _NAMES:,} more" if len(group.layers) > _NAMES else ""
    return ", ".join(group.layers[:_NAMES]) + more


def _layers(record: PruningRecord) -> list[Column]:
    """Returns a table with a line for each layer; one that exists only before or after has a dash for the other."""
    before = {layer.name: layer for layer in record.summary.before.layers}
    after = {layer.name: layer for layer in record.summary.after.layers}
    names = list(dict.fromkeys([*before, *after]))
    pairs = [(before.get(name), after.get(name)) for name in names]
    zeros = any(layer is not None and layer.zeros for pair in pairs for layer in pair)

    def counts(field: str) -> list[str]:
        return [_change(*(_count(layer, field) for layer in pair)) for pair in pairs]

    def zero_share(was: LayerSize | None, now: LayerSize | None) -> Cell:
        sparsities = [numbers.percent(layer.sparsity) if layer else "–" for layer in (was, now)]
        return Cell(_change(*sparsities), share=now.sparsity if now else None)

    return tables.nonempty_columns(
        Column(
            "layer", [Cell(name, next(filter(None, pair)).type) for name, pair in zip(names, pairs, strict=True)], True
        ),
        tables.number_column("parameters", counts("parameters")),
        tables.number_column("multiply-accumulates", counts("macs")),
        tables.number_column("zeros", counts("zeros") if zeros else [""] * len(pairs)),
        Column("sparsity", [zero_share(*pair) if zeros else Cell() for pair in pairs]),
    )


def _count(layer: LayerSize | None, field: str) -> str:
    """Returns a number of a layer as text, a dash without a layer; none for the work of weights that are no kernel."""
    if layer is None:
        return "–"
    value = getattr(layer, field)
    return "" if field == "macs" and value == 0 else _known(numbers.number)(value)


# Sensitivity


def _largest_change(curve: SensitivityCurve) -> float:
    """Returns the largest change of the metric; a value that is not finite counts as infinite."""
    changes = [abs(value - curve.values[0]) for value in curve.values]
    return max((change if math.isfinite(change) else math.inf for change in changes), default=0.0)


def _curves(curves: Sequence[SensitivityCurve]) -> list[Column]:
    """Returns a table of the plotted values, with a column for each level."""
    levels = sorted({level for curve in curves for level in curve.levels})
    values = [dict(zip(curve.levels, curve.values, strict=True)) for curve in curves]
    return tables.nonempty_columns(
        tables.text_column("group", [curve.name for curve in curves]),
        *(
            tables.number_column(f"{100 * level:g} %", [numbers.metric(by_level.get(level)) for by_level in values])
            for level in levels
        ),
    )


# Channels and plan


def _ranges(channels: Sequence[int]) -> str:
    """Returns indices as runs: `3 kept: 0, 4–5`."""
    runs = itertools.groupby(enumerate(channels), key=lambda place: place[1] - place[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    return f"{len(channels):,} kept: " + ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in ends)


def _plan(plan: PruningPlan) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the main fields and those that differ from their default, and the other fields."""
    shown = {name: _value(name, value) for name, value in plan.model_dump().items()}
    defaults = {name: field.default for name, field in type(plan).model_fields.items()}
    main = {name for name in shown if name in _MAIN_FIELDS or getattr(plan, name) != defaults[name]}
    return (
        {name: value for name, value in shown.items() if name in main},
        {name: value for name, value in shown.items() if name not in main},
    )


def _value(name: str, value: Any) -> str:
    if name == "rules":
        return "\n".join(f"{rule['layers']}: {rule['sparsity']:g}" for rule in value) or "none"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return "not set" if value is None else str(value)


# Text


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _change(was: str, now: str) -> str:
    return was if was == now else f"{was or '?'} → {now or '?'}"


def _known(form: Callable[[Any], str]) -> Callable[[Any], str]:
    """Returns a function that also has a text for what is unknown."""
    return lambda value: "unknown" if value is None else form(value)


def _factor(was: int | None, now: int | None) -> str:
    return f"{was / now:.2f}×" if was and now and was != now else ""


def _short(count: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:,}"
