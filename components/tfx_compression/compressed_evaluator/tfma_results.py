"""What TFMA wrote, read back: metrics by slice, differences with their confidence bounds, thresholds."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import scipy.stats
import tensorflow_model_analysis as tfma

from tfx_compression.compressed_evaluator.budget import Verdict, counts_examples, metric_drop
from tfx_compression.compressed_evaluator.evaluation import Drop
from tfx_compression.errors import ConfigError

COUNT = "example_count"
_SUB_KEYS = {"class_id": "classId", "k": "k", "top_k": "topK"}  # as TFMA prints them


@dataclasses.dataclass(frozen=True)
class Value:
    """A metric, and how far it may be off: a one-sided confidence bound is `value` ± `t` of `freedom` times `error`."""

    value: float
    error: float | None = None
    freedom: float = 0.0

    def margin(self, confidence: float) -> float | None:
        """How much more it may be, at a one-sided confidence; None where no error was estimated."""
        if self.error is None or math.isnan(self.error):
            return None
        return float(scipy.stats.t.ppf(confidence, self.freedom) * self.error)


@dataclasses.dataclass(frozen=True)
class Results:
    """The metrics of all models.

    Attributes:
      values: by model, by slice (empty for the whole split), by metric.
      differences: the same of the metrics' differences from the baseline.
    """

    values: Mapping[str, Mapping[str, Mapping[str, Value]]]
    differences: Mapping[str, Mapping[str, Mapping[str, Value]]]

    def metrics(self, model: str) -> dict[str, float]:
        """On the whole split."""
        return {name: value.value for name, value in self.values.get(model, {}).get("", {}).items()}

    def slices(self, model: str) -> dict[str, dict[str, float]]:
        """By slice, the whole split left out."""
        return {
            key: {name: value.value for name, value in values.items()}
            for key, values in self.values.get(model, {}).items()
            if key
        }

    def drops(self, model: str, baseline: str, confidence: float | None) -> dict[str, dict[str, Drop]]:
        """By slice (empty for the whole split), by metric: how much worse than the baseline."""
        return {
            key: {
                name: self._drop(model, baseline, key, name, confidence)
                for name in values
                if not counts_examples(name) and name in self.values[baseline].get(key, {})
            }
            for key, values in self.values.get(model, {}).items()
        }

    def _drop(self, model: str, baseline: str, key: str, name: str, confidence: float | None) -> Drop:
        before, after = self.values[baseline][key][name].value, self.values[model][key][name].value
        value = metric_drop(name, before, after)
        difference = self.differences.get(model, {}).get(key, {}).get(name)
        margin = difference.margin(confidence) if difference is not None and confidence is not None else None
        upper = None if margin is None else value + margin
        counted = self.values[model][key]
        count = counted.get(COUNT) or next((counted[of] for of in counted if of.endswith(f"/{COUNT}")), None)
        return Drop(
            value=value,
            upper=upper,
            relative=value / abs(before) if before else None,
            relative_upper=upper / abs(before) if before and upper is not None else None,
            rows=int(count.value) if count is not None else 0,
        )


def read(output_path: str, models: list[str]) -> Results:
    """Reads what TFMA wrote of `models`.

    Raises:
      ConfigError: where no metric was computed on the whole split: nothing could be compared.
    """
    values: dict[str, dict[str, dict[str, Value]]] = {}
    differences: dict[str, dict[str, dict[str, Value]]] = {}
    for entry in tfma.load_metrics(output_path):
        if entry.HasField("cross_slice_key"):
            continue
        key = slice_name(entry.slice_key)
        twice = _twice(item.key for item in entry.metric_keys_and_values)
        for item in entry.metric_keys_and_values:
            value = _value(item)
            if value is not None:
                model = item.key.model_name or models[0]
                kind = differences if item.key.is_diff else values
                name = _name(item.key)
                if name in twice:
                    if name.split("/")[-1] == COUNT and item.key.example_weighted.value:
                        continue  # rows are counted, not their weights
                    if not counts_examples(name) and not item.key.example_weighted.value:
                        name += ", unweighted" if "@" in name else "@unweighted"
                kind.setdefault(model, {}).setdefault(key, {})[name] = value
    if all(counts_examples(name) for of in values.values() for name in of.get("", {})):
        raise ConfigError(
            "The eval_config computes no metric on the whole split, so there is nothing to compare. "
            "Remedy: add a SlicingSpec() without features, and metrics that return a number."
        )
    return Results(values, differences)


def _twice(keys: Iterable[Any]) -> set[str]:
    """The names of the metrics that were computed both with and without example weights."""
    names: dict[bool, set[str]] = {True: set(), False: set()}
    for key in keys:
        names[key.example_weighted.value].add(_name(key))
    return names[True] & names[False]


def _value(item: Any) -> Value | None:
    kind = item.value.WhichOneof("type")
    if kind not in ("double_value", "bounded_value"):
        return None
    value = float(getattr(item.value, kind).value)
    interval = item.confidence_interval
    if not interval.HasField("standard_error"):
        return Value(value)
    return Value(value, interval.standard_error.double_value.value, interval.degrees_of_freedom.value)


def _name(key: Any) -> str:
    """`output/metric@sub-key`, what there is of it."""
    name = f"{key.output_name}/{key.name}" if key.output_name else key.name
    sub_key = ", ".join(f"{_SUB_KEYS[field.name]}:{value.value}" for field, value in key.sub_key.ListFields())
    return f"{name}@{sub_key}" if sub_key else str(name)


def slice_name(key: Any) -> str:
    """`feature=value`, crosses joined by `, `; empty for the whole split."""
    return ", ".join(f"{part.column}={_shown(part)}" for part in key.single_slice_keys)


def _shown(part: Any) -> object:
    kind = part.WhichOneof("kind")
    value = getattr(part, kind) if kind else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def thresholds(output_path: str, models: list[str]) -> dict[str, list[Verdict]]:
    """The thresholds of the eval_config that were missed, by model; TFMA's own verdict is one bit for all models."""
    result = tfma.load_validation_result(output_path)
    failures: dict[str, list[Verdict]] = {}
    for missing in result.missing_slices:
        wanted = " ".join(str(missing).split())
        verdict = Verdict(
            limit=f"threshold for the slice {wanted}", bound=None, measured=None, held=False, note="no example is in it"
        )
        for model in models:
            failures.setdefault(model, []).append(verdict)
    for by_slice in result.metric_validations_per_slice:
        keys = slice_name(by_slice.slice_key)
        for failure in by_slice.failures:
            text = " ".join(str(failure.metric_threshold).split()) or failure.message
            value = failure.metric_value.double_value.value if failure.metric_value.HasField("double_value") else None
            verdict = Verdict(
                limit=f"threshold on {_name(failure.metric_key)}{f' for {keys}' if keys else ''} ({text})",
                bound=None,
                measured=value,
                held=False,
                note=failure.message,
            )
            failures.setdefault(failure.metric_key.model_name or models[0], []).append(verdict)
    return failures
