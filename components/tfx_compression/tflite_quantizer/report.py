"""The report on a conversion to TFLite: a single HTML file that works offline."""

import json
import math
from collections.abc import Sequence

from tfx_compression.page import numbers, tables, template
from tfx_compression.page.tables import Cell, Column
from tfx_compression.tflite_quantizer import plots
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.devices.verdicts import DelegateVerdict, OperatorVerdict
from tfx_compression.tflite_quantizer.record import (
    AutoRecord,
    CalibrationRecord,
    LayerError,
    OutputError,
    QuantizationRecord,
    TensorRecord,
    TrialRecord,
)

# Shown above the other fields, whether they are set or not.
_MAIN_FIELDS = ("mode", "target")


def render(record: QuantizationRecord, title: str = "Quantization report") -> str:
    """Returns the report on a conversion as HTML, with its style, scripts and data inside.

    Args:
      record: The conversion.
      title: Title of the page.
    """
    layers = sorted(record.layers, key=_snr)
    verdict, auto = record.verdict, record.auto
    main_fields, default_fields = _config(record.config)
    return template.render(
        __package__,
        title,
        headline=f"Mode {record.config.mode}: {record.config.mode_spec.label}",
        statement=_statement(record),
        runs=verdict is None or verdict.runs,
        problems=verdict.problems if verdict else (),
        figures=_figures(record),
        warnings=record.warnings,
        notes=record.notes,
        max_lines=tables.MAX_LINES,
        signatures={signature.name: _tensors(signature.inputs, signature.outputs) for signature in record.signatures},
        outputs=_outputs(record.outputs) if record.outputs else None,
        layers=_layers(layers) if layers else None,
        layers_plot=plots.errors([layer for layer in layers if layer.snr_db is not None][: plots.MOST_LAYERS])
        if any(layer.snr_db is not None for layer in layers)
        else None,
        layers_left=max(0, sum(layer.snr_db is not None for layer in layers) - plots.MOST_LAYERS),
        verdict=verdict,
        delegates=_delegates(verdict.delegates) if verdict and verdict.delegates else None,
        unmapped={
            f"{delegate.name}: {_counted(len(left), 'operator')} left out": _unmapped(left)
            for delegate in (verdict.delegates if verdict else ())
            if (left := [op for op in delegate.ops if not op.mapped])
        },
        auto=auto,
        auto_statement=_auto_statement(auto) if auto else "",
        trials_plot=plots.trials(auto) if auto and auto.trials else None,
        trials=_trials(auto) if auto and auto.trials else None,
        precisions=_precisions(auto) if auto and auto.precisions else None,
        calibration=_calibration_facts(record.calibration) if record.calibration else None,
        ranges=_ranges(record.calibration, record.config.calibration.max_outside)
        if record.calibration and record.calibration.inputs
        else None,
        equalization=_equalization(record) if record.equalization else None,
        sparse=record.sparse,
        ops=_ops(record),
        select_tf_ops={name: ", ".join(layers) or "unknown" for name, layers in record.select_tf_ops.items()},
        made_with=record.versions,
        seconds={step: f"{seconds:.1f} s" for step, seconds in record.seconds.items()},
        config_main=main_fields,
        config_default=default_fields,
        json_text=record.model_dump_json(indent=1),
    )


# Top of the page


def _statement(record: QuantizationRecord) -> tuple[str, str]:
    """Returns whether the model runs on its target, and what that needs."""
    needs = f" Needs {record.runtime}." if record.runtime else ""
    if record.verdict is None:
        return f"Converted to {numbers.size(record.bytes)}.", needs
    verdict = record.verdict
    return f"{'Runs' if verdict.runs else 'Does not run'} on {verdict.target}.", needs


def _figures(record: QuantizationRecord) -> list[tuple[str, str, str]]:
    """Returns the figures of the file: name, number and remark."""
    floats = 4 * record.parameters
    against = f"weights in float32: {numbers.size(floats)}" if floats else ""
    limit = record.verdict.max_arena_bytes if record.verdict else None
    figures = [
        ("file", numbers.size(record.bytes), against),
        ("gzipped", numbers.size(record.bytes_gzip), ""),
        ("as zstd", numbers.size(record.bytes_zstd), ""),
        ("arena", numbers.size(record.arena_bytes), f"limit {numbers.size(limit)}" if limit else "one row"),
        ("parameters", numbers.number(record.parameters), ""),
        ("zeros in weights", numbers.percent(record.sparsity), ""),
    ]
    if record.self_test:
        differences = {name: math.inf if value is None else value for name, value in record.self_test.items()}
        worst = max(differences, key=lambda name: differences[name])
        remark = f"in {worst}, on the rows of the self-test"
        figures.append(("largest difference from float", f"{differences[worst]:.3g}", remark))
    return figures


def _tensors(inputs: Sequence[TensorRecord], outputs: Sequence[TensorRecord]) -> list[Column]:
    tensors = (*inputs, *outputs)
    return tables.nonempty_columns(
        tables.text_column("", ["input"] * len(inputs) + ["output"] * len(outputs)),
        tables.text_column("name", [tensor.name for tensor in tensors]),
        tables.text_column("type", [tensor.dtype for tensor in tensors]),
        tables.text_column("shape", [_shape(tensor.shape) for tensor in tensors]),
        tables.number_column("scale", [f"{tensor.scale:.6g}" if tensor.scale else "" for tensor in tensors]),
        tables.number_column(
            "zero point", [numbers.number(tensor.zero_point) if tensor.scale else "" for tensor in tensors]
        ),
    )


def _shape(sizes: Sequence[int]) -> str:
    return " × ".join("any" if size == -1 else str(size) for size in sizes) or "one value"


# Outputs and layers


def _outputs(outputs: Sequence[OutputError]) -> list[Column]:
    return tables.nonempty_columns(
        tables.text_column("signature", [error.signature for error in outputs]),
        tables.text_column("output", [error.output for error in outputs]),
        tables.number_column("cosine", ["" if error.cosine is None else _cosine(error.cosine) for error in outputs]),
        tables.number_column(
            "less the mean",
            ["" if error.centered_cosine is None else _cosine(error.centered_cosine) for error in outputs],
        ),
        tables.number_column(
            "largest difference",
            ["not finite" if error.max_error is None else f"{error.max_error:.3g}" for error in outputs],
        ),
        tables.number_column("rows", [f"{error.rows:,}" for error in outputs]),
    )


def _cosine(value: float) -> str:
    return numbers.minus(f"{value:.6f}")


def _snr(layer: LayerError) -> float:
    return math.inf if layer.snr_db is None else layer.snr_db


def _layers(layers: Sequence[LayerError]) -> list[Column]:
    return tables.nonempty_columns(
        Column("layer", [Cell(layer.layer, layer.op) for layer in layers], is_text=True),
        tables.text_column("precision", [layer.precision or "" for layer in layers]),
        tables.number_column(
            "SNR in dB", ["exact" if layer.snr_db is None else _decibels(layer.snr_db) for layer in layers]
        ),
        tables.number_column("largest error", [numbers.minus(f"{layer.max_error:.3g}") for layer in layers]),
        tables.number_column("cosine", ["" if layer.cosine is None else _cosine(layer.cosine) for layer in layers]),
    )


def _decibels(value: float) -> str:
    return numbers.minus(f"{value:.1f}")


# The target


def _delegates(delegates: Sequence[DelegateVerdict]) -> list[Column]:
    return tables.nonempty_columns(
        Column("", [Cell(delegate.name) for delegate in delegates], is_text=True),
        Column(
            "operators mapped",
            [
                Cell(
                    f"{delegate.mapped:,} of {len(delegate.ops):,}",
                    share=delegate.mapped / len(delegate.ops) if delegate.ops else None,
                )
                for delegate in delegates
            ],
        ),
        tables.number_column("segments", [f"{delegate.segments:,}" for delegate in delegates]),
        tables.text_column("first operator left out", [delegate.cut for delegate in delegates]),
        Column("rules", [Cell(delegate.source, delegate.source_date) for delegate in delegates], is_text=True),
    )


def _unmapped(ops: Sequence[OperatorVerdict]) -> list[Column]:
    return tables.nonempty_columns(
        tables.number_column("", [f"{op.index}" for op in ops]),
        Column("operator", [Cell(op.op, op.layer) for op in ops], is_text=True),
        tables.text_column("reason", [op.reason for op in ops]),
    )


# Search


def _auto_statement(auto: AutoRecord) -> str:
    accepted, metric = sum(trial.accepted for trial in auto.trials), auto.metric.replace("_", " ")
    return (
        f"{metric} {numbers.metric(auto.value)}, the float model’s {numbers.metric(auto.baseline)}, "
        f"on {_counted(auto.rows, 'row')}; {_counted(len(auto.trials), 'trial')}, {accepted:,} of them accepted"
        f"{'; equalized' if auto.equalized else ''}."
    )


def _metric(trial: TrialRecord) -> str:
    return "no number" if trial.metric is None else numbers.metric(trial.metric)


def _trials(auto: AutoRecord) -> list[Column]:
    return tables.nonempty_columns(
        tables.text_column("step", [trial.step for trial in auto.trials]),
        tables.number_column(auto.metric.replace("_", " "), [_metric(trial) for trial in auto.trials]),
        tables.number_column("bytes", [numbers.number(trial.bytes) for trial in auto.trials]),
        Column(
            "",
            [Cell("accepted", tone="good") if trial.accepted else Cell("refused", tone="bad") for trial in auto.trials],
            is_text=True,
        ),
    )


def _precisions(auto: AutoRecord) -> list[Column]:
    return tables.nonempty_columns(
        tables.text_column("layer", auto.precisions), tables.text_column("precision", list(auto.precisions.values()))
    )


# How it was made


def _calibration_facts(calibration: CalibrationRecord) -> dict[str, str]:
    facts = {"rows": f"{calibration.rows:,}", "ranges": calibration.method.replace("_", "/")}
    if calibration.checked_rows:
        facts["rows checked"] = f"{calibration.checked_rows:,}"
    if calibration.strata:
        facts["rows per value"] = ", ".join(f"{value}: {rows:,}" for value, rows in calibration.strata.items())
    return facts


def _ranges(calibration: CalibrationRecord, limit: float) -> list[Column]:
    def outside(share: float | None) -> Cell:
        if share is None:
            return Cell()
        beyond = share > limit
        return Cell(numbers.percent(share), f"more than {100 * limit:g} %" if beyond else "", "bad" if beyond else "")

    def span(low: float, high: float) -> str:
        return numbers.minus(f"{low:.4g} to {high:.4g}")

    return tables.nonempty_columns(
        tables.text_column("input", [seen.input for seen in calibration.inputs]),
        tables.number_column("seen", [span(seen.minimum, seen.maximum) for seen in calibration.inputs]),
        tables.number_column("quantized", [span(*seen.range) for seen in calibration.inputs]),
        Column("checked values outside", [outside(seen.outside) for seen in calibration.inputs]),
    )


def _equalization(record: QuantizationRecord) -> list[Column]:
    return tables.nonempty_columns(
        tables.text_column("layer", [pair.first for pair in record.equalization]),
        tables.text_column("next layer", [pair.second for pair in record.equalization]),
        tables.number_column("spread before", [f"{pair.spread_before:,.1f}×" for pair in record.equalization]),
        tables.number_column("after", [f"{pair.spread_after:,.1f}×" for pair in record.equalization]),
    )


def _ops(record: QuantizationRecord) -> list[Column]:
    names = sorted(record.ops, key=lambda name: (-record.ops[name], name))
    return tables.nonempty_columns(
        tables.text_column("operator", names),
        tables.number_column("count", [f"{record.ops[name]:,}" for name in names]),
        tables.number_column("returning floats", [f"{record.float_ops.get(name, 0):,}" for name in names]),
    )


def _config(config: Quantization) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the main fields and those that were set, and the fields that have their default."""
    values = config.model_dump(mode="json")
    defaults = Quantization.model_construct().model_dump(mode="json")
    main = {name for name in values if name in _MAIN_FIELDS or values[name] != defaults[name]}
    return (
        {name: _value(value) for name, value in values.items() if name in main},
        {name: _value(value) for name, value in values.items() if name not in main},
    )


def _value(value: object) -> str:
    """Returns text as it is, and other values as JSON."""
    if value in (None, [], {}):
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
