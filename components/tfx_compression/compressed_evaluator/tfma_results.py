"""Reads what TFMA wrote: metrics by slice, differences with their confidence bounds, and missed thresholds."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import scipy.stats
import tensorflow_model_analysis as tfma

from tfx_compression.compressed_evaluator.records import LimitVerdict, MetricDrop
from tfx_compression.errors import ConfigError
from tfx_compression.keras_models.metric_names import is_example_count

_EXAMPLE_COUNT = "example_count"
_SUB_KEYS = {"class_id": "classId", "k": "k", "top_k": "topK"}  # as TFMA prints them


@dataclasses.dataclass(frozen=True)
class MetricValue:
    """A metric and its standard error.

    Attributes:
      value: The metric.
      error: Its standard error; None if it wasn't estimated.
      freedom: Degrees of freedom of Student's t distribution of the error.
    """

    value: float
    error: float | None = None
    freedom: float = 0.0

    def margin(self, confidence: float) -> float | None:
        """Returns the distance to the one-sided confidence bound; None if no error was estimated."""
        if self.error is None or math.isnan(self.error):
            return None
        return float(scipy.stats.t.ppf(confidence, self.freedom) * self.error)


@dataclasses.dataclass(frozen=True)
class MetricResults:
    """The metrics of all models.

    Attributes:
      values: By model, slice (empty for the whole split) and name, a metric.
      differences: Likewise, its difference from the baseline's.
    """

    values: Mapping[str, Mapping[str, Mapping[str, MetricValue]]]
    differences: Mapping[str, Mapping[str, Mapping[str, MetricValue]]]

    def metrics(self, model: str) -> dict[str, float]:
        """Returns the metrics of a model on the whole split."""
        return {name: value.value for name, value in self.values.get(model, {}).get("", {}).items()}

    def slices(self, model: str) -> dict[str, dict[str, float]]:
        """Returns the metrics of a model by slice, without the whole split."""
        return {
            key: {name: value.value for name, value in values.items()}
            for key, values in self.values.get(model, {}).items()
            if key
        }

    def drops(self, model: str, baseline: str, confidence: float | None) -> dict[str, dict[str, MetricDrop]]:
        """Returns by slice (empty for the whole split) the drop of each metric that both models have.

        Args:
          model: Name of the candidate.
          baseline: Name of the baseline.
          confidence: Confidence of the upper bounds; None for no bounds.
        """
        return {
            key: {
                name: self._drop(model, baseline, key, name, confidence)
                for name in values
                if not is_example_count(name) and name in self.values[baseline].get(key, {})
            }
            for key, values in self.values.get(model, {}).items()
        }

    def _drop(self, model: str, baseline: str, key: str, name: str, confidence: float | None) -> MetricDrop:
        values = self.values[model][key]
        difference = self.differences.get(model, {}).get(key, {}).get(name)
        # A model of several outputs may have the count only by output.
        counts = [values[metric] for metric in values if metric.split("/")[-1] == _EXAMPLE_COUNT]
        count = values.get(_EXAMPLE_COUNT) or next(iter(counts), None)
        return MetricDrop.between(
            name,
            self.values[baseline][key][name].value,
            values[name].value,
            rows=int(count.value) if count is not None else 0,
            margin=difference.margin(confidence) if difference is not None and confidence is not None else None,
        )


def read(output_path: str, models: Sequence[str]) -> MetricResults:
    """Reads the metrics that TFMA wrote.

    Args:
      output_path: Folder of TFMA's files.
      models: Names of the models.

    Raises:
      ConfigError: No metric was computed on the whole split, so there is nothing to compare.
    """
    values: dict[str, dict[str, dict[str, MetricValue]]] = {}
    differences: dict[str, dict[str, dict[str, MetricValue]]] = {}
    for entry in tfma.load_metrics(output_path):
        if entry.HasField("cross_slice_key"):
            continue
        key = _slice_name(entry.slice_key)
        computed_twice = _names_with_and_without_weights(item.key for item in entry.metric_keys_and_values)
        for item in entry.metric_keys_and_values:
            value = _value(item)
            name = _result_name(item.key, computed_twice)
            if value is not None and name is not None:
                model = item.key.model_name or models[0]
                target = differences if item.key.is_diff else values
                target.setdefault(model, {}).setdefault(key, {})[name] = value
    if all(is_example_count(name) for slices in values.values() for name in slices.get("", {})):
        raise ConfigError(
            "The eval_config computes no metric on the whole split, so there is nothing to compare. "
            "Remedy: add a SlicingSpec() without features, and metrics that return a number.",
            field="eval_config.metrics_specs",
            code="no-metrics",
        )
    return MetricResults(values, differences)


def _names_with_and_without_weights(keys: Iterable[Any]) -> set[str]:
    """Returns the names of the metrics that were computed both with and without example weights."""
    names: dict[bool, set[str]] = {True: set(), False: set()}
    for key in keys:
        names[key.example_weighted.value].add(_metric_name(key))
    return names[True] & names[False]


def _result_name(key: Any, computed_twice: set[str]) -> str | None:
    """Returns the name of a metric; None if another one has it: rows are counted, not their weights."""
    name = _metric_name(key)
    if name not in computed_twice:
        return name
    if name.split("/")[-1] == _EXAMPLE_COUNT and key.example_weighted.value:
        return None
    if not is_example_count(name) and not key.example_weighted.value:
        return name + (", unweighted" if "@" in name else "@unweighted")
    return name


def _value(item: Any) -> MetricValue | None:
    kind = item.value.WhichOneof("type")
    if kind not in ("double_value", "bounded_value"):
        return None
    value = float(getattr(item.value, kind).value)
    interval = item.confidence_interval
    if not interval.HasField("standard_error"):
        return MetricValue(value)
    return MetricValue(value, interval.standard_error.double_value.value, interval.degrees_of_freedom.value)


def _metric_name(key: Any) -> str:
    """Returns `output/metric@sub-key`, as far as the key has these parts."""
    name = f"{key.output_name}/{key.name}" if key.output_name else key.name
    sub_key = ", ".join(f"{_SUB_KEYS[field.name]}:{value.value}" for field, value in key.sub_key.ListFields())
    return f"{name}@{sub_key}" if sub_key else str(name)


def _slice_name(key: Any) -> str:
    """Returns `feature=value`, crosses joined by `, `; empty for the whole split."""
    return ", ".join(f"{part.column}={_slice_value(part)}" for part in key.single_slice_keys)


def _slice_value(part: Any) -> object:
    kind = part.WhichOneof("kind")
    value = getattr(part, kind) if kind else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def missed_thresholds(output_path: str, models: Sequence[str]) -> dict[str, list[LimitVerdict]]:
    """Returns by model a verdict for each missed threshold of the eval_config.

    TFMA's own `validation_ok` is one bit for all models.
    """
    result = tfma.load_validation_result(output_path)
    missed: dict[str, list[LimitVerdict]] = {}
    for missing in result.missing_slices:
        spec = " ".join(str(missing).split())
        verdict = LimitVerdict(
            field="eval_config",
            limit=f"threshold for the slice {spec}",
            bound=None,
            measured=None,
            held=False,
            note="no example is in it",
            slice=spec,
        )
        for model in models:
            missed.setdefault(model, []).append(verdict)
    for by_slice in result.metric_validations_per_slice:
        slice_name = _slice_name(by_slice.slice_key)
        for failure in by_slice.failures:
            metric = _metric_name(failure.metric_key)
            threshold = " ".join(str(failure.metric_threshold).split()) or failure.message
            has_value = failure.metric_value.HasField("double_value")
            verdict = LimitVerdict(
                field="eval_config",
                limit=f"threshold on {metric}{f' for {slice_name}' if slice_name else ''} ({threshold})",
                bound=None,
                measured=failure.metric_value.double_value.value if has_value else None,
                held=False,
                note=failure.message,
                metric=metric,
                slice=slice_name,
            )
            missed.setdefault(failure.metric_key.model_name or models[0], []).append(verdict)
    return missed
