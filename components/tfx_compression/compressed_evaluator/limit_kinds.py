"""Kinds of limits: what each measures, how it compares the value with its bound, and the verdict in words.

`Budget` (in `budget.py`) annotates each of its fields that limits something with one of these. The gate, the report and
the documentation read the annotations, so a limit is declared in one place, its field.
"""

import abc
import dataclasses
import enum
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tfx_compression.compressed_evaluator.records import BaselineComparison, LimitVerdict, MetricDrop, ModelMeasurements
from tfx_compression.keras_models.metric_names import smaller_is_better

# The jackknife splits the rows into 20 parts and needs a row in each.
_FEWEST_ROWS = 20
# Metrics are computed in float32, so a drop of exactly its bound may differ from it by this much.
_ROUNDING = 1e-6
_NO_BASELINE = "there is no baseline"


@dataclasses.dataclass(frozen=True)
class LimitContext:
    """What limits are judged on.

    Attributes:
      candidate: Measurements of the candidate.
      baseline: Measurements of the baseline, if there is one.
      comparison: The candidate compared with the baseline; empty if there is no baseline.
      rows: Effective number of rows of the evaluation split.
      confidence: Confidence at which drops of metrics are judged; None to judge the drops themselves.
      min_slice_rows: Fewest rows of a slice that is judged.
    """

    candidate: ModelMeasurements
    baseline: ModelMeasurements | None
    comparison: BaselineComparison
    rows: int
    confidence: float | None
    min_slice_rows: int


class Limit(abc.ABC):
    """A kind of limit.

    Attributes:
      needs_baseline: Whether the limit compares the candidate with the baseline. A first release skips such limits.
      needs_slices: Whether the limit judges slices, which the EvalConfig then has to compute.
    """

    needs_baseline: bool = False
    needs_slices: bool = False

    @abc.abstractmethod
    def verdicts(self, field: str, bound: Any, context: LimitContext) -> Iterator[LimitVerdict]:
        """Yields the verdicts on a candidate.

        Args:
          field: Field of `Budget` that sets the limit.
          bound: Value of the field.
          context: The candidate and what it is compared with.
        """


class Bound(enum.Enum):
    """How a value compares with its bound. NaN holds no bound."""

    AT_MOST = "at most"
    AT_LEAST = "at least"

    def holds(self, measured: float | None, bound: float) -> bool:
        """Returns whether a value is known and within its bound."""
        if measured is None:
            return False
        return measured <= bound if self is Bound.AT_MOST else measured >= bound


@dataclasses.dataclass(frozen=True)
class NumberLimit(Limit):
    """A bound on one number.

    Attributes:
      quantity: Name of the number.
      bound: Whether it is the largest or smallest allowed value.
      measure: Returns the number, or None if it isn't known.
      unit: Unit of the number.
      unknown: Why the number may not be known; `{kind}` stands for the format of the candidate.
      needs_baseline: See `Limit`.
    """

    quantity: str
    bound: Bound
    measure: Callable[[LimitContext], float | None]
    unit: str = ""
    unknown: str = ""
    needs_baseline: bool = False

    def verdicts(self, field: str, bound: float, context: LimitContext) -> Iterator[LimitVerdict]:
        """Yields one verdict."""
        measured = self.measure(context)
        unknown = self.unknown.format(kind=context.candidate.kind)
        if self.needs_baseline and context.baseline is None:
            unknown = _NO_BASELINE
        yield LimitVerdict(
            field=field,
            limit=f"{self.quantity} {self.bound.value}",
            bound=bound,
            measured=measured,
            held=self.bound.holds(measured, bound),
            note=unknown if measured is None else "",
            unit=self.unit,
        )


class OperatorLimit(Limit):
    """The operators that a device supports."""

    def verdicts(self, field: str, bound: Sequence[str], context: LimitContext) -> Iterator[LimitVerdict]:
        """Yields a verdict on the number of unsupported operators, which its note names."""
        is_tflite = context.candidate.kind == "tflite"
        unsupported = sorted(set(context.candidate.ops) - set(bound))
        yield LimitVerdict(
            field=field,
            limit="operators that the device doesn't support at most",
            bound=0,
            measured=len(unsupported) if is_tflite else None,
            held=is_tflite and not unsupported,
            note=", ".join(unsupported) if is_tflite else "it is not a TFLite model",
        )


@dataclasses.dataclass(frozen=True)
class _JudgedDrop:
    """The drop that a limit judges.

    Attributes:
      value: The drop; None if it isn't known.
      upper: Its upper confidence bound; None if it isn't known.
      unknown: Why `value` isn't known.
      slice: Slice that it was measured on; empty for the whole split.
    """

    value: float | None
    upper: float | None
    unknown: str
    slice: str = ""


class MetricDropLimit(Limit):
    """Drops of metrics on the whole split, in the metric's unit: the bound is a dict of the largest drop by metric.

    With a confidence, the upper confidence bound of the drop is judged, and a split that is too small to confirm the
    limit at that confidence does not hold it.
    """

    needs_baseline = True

    def verdicts(self, field: str, bound: Mapping[str, float], context: LimitContext) -> Iterator[LimitVerdict]:
        """Yields, for each metric, a verdict on the number of rows if there are too few, and one on the drop."""
        for metric, allowed in bound.items():
            yield from self._too_few_rows(metric, allowed, context)
            yield self._drop_verdict(field, metric, allowed, context)

    def _drop_verdict(self, field: str, metric: str, allowed: float, context: LimitContext) -> LimitVerdict:
        drop = self._judged(metric, context)
        confidence = "" if context.confidence is None else f" ({_percent(context.confidence)} confidence bound)"
        measured, note, unknown = drop.value, "", drop.unknown
        if context.confidence is not None:
            measured = drop.upper
            if drop.value is not None:
                unknown, note = "its confidence bound could not be computed", f"the drop itself is {drop.value:.4g}"
        return LimitVerdict(
            field=field,
            limit=f"{self._quantity(metric, drop.slice)}{confidence} at most",
            bound=allowed,
            measured=measured,
            held=Bound.AT_MOST.holds(measured, allowed + _ROUNDING),
            note=unknown if measured is None else note,
            metric=metric,
            slice=drop.slice,
        )

    def _too_few_rows(self, metric: str, allowed: float, context: LimitContext) -> Iterator[LimitVerdict]:
        """Yields a verdict that is not held if the split is too small for any drop to be confirmed."""
        needed = _rows_needed(metric, allowed, context.confidence)
        if context.rows < needed:
            yield _too_few_rows_verdict(metric, allowed, needed, context.rows, context)

    def _judged(self, metric: str, context: LimitContext) -> _JudgedDrop:
        drop = context.comparison.drops.get(metric)
        if drop is None:
            return _JudgedDrop(None, None, _missing(context, "the baseline or the candidate lacks this metric"))
        return _JudgedDrop(drop.value, drop.upper, "")

    def _quantity(self, metric: str, slice_name: str) -> str:
        return f"{metric} drop"


class RelativeMetricDropLimit(MetricDropLimit):
    """Drops of metrics on the whole split, as fractions of the baseline's metric."""

    def _too_few_rows(self, metric: str, allowed: float, context: LimitContext) -> Iterator[LimitVerdict]:
        if context.baseline is not None:
            absolute = allowed * abs(context.baseline.metrics.get(metric, 0.0))
            yield from super()._too_few_rows(metric, absolute, context)

    def _judged(self, metric: str, context: LimitContext) -> _JudgedDrop:
        drop = context.comparison.drops.get(metric)
        if drop is None:
            return super()._judged(metric, context)
        return _JudgedDrop(drop.relative, drop.relative_upper, "the baseline's metric is zero")

    def _quantity(self, metric: str, slice_name: str) -> str:
        return f"relative {metric} drop"


class SliceMetricDropLimit(MetricDropLimit):
    """Drops of metrics in the worst slice, in the metric's unit."""

    needs_slices = True

    def _too_few_rows(self, metric: str, allowed: float, context: LimitContext) -> Iterator[LimitVerdict]:
        """As for the whole split, of the smallest slice that is judged."""
        judged = context.comparison.judged_slices(metric, context.min_slice_rows)
        needed = _rows_needed(metric, allowed, context.confidence)
        smallest = min(judged, key=lambda name: judged[name].rows, default=None)
        if smallest is not None and judged[smallest].rows < needed:
            yield _too_few_rows_verdict(metric, allowed, needed, judged[smallest].rows, context, smallest)

    def _judged(self, metric: str, context: LimitContext) -> _JudgedDrop:
        worst = _unknown_slice(metric, context) or context.comparison.worst_slice(metric, context.min_slice_rows)
        if worst is None:
            unknown = _missing(context, f"no slice has {context.min_slice_rows} rows and this metric")
            return _JudgedDrop(None, None, unknown)
        name, drop = worst
        return _JudgedDrop(drop.value, drop.upper, "", name)

    def _quantity(self, metric: str, slice_name: str) -> str:
        return f"{metric} drop in the worst slice{f', {slice_name}' if slice_name else ''}"


def requirement_verdicts(context: LimitContext, limits_drops: bool) -> Iterator[LimitVerdict]:
    """Yields a verdict for each requirement that a candidate doesn't meet, whatever the budget limits.

    A candidate that does not run gets no other verdict.

    Args:
      context: The candidate and what it is compared with.
      limits_drops: Whether the budget limits drops of metrics, for which a confidence bound takes rows.
    """
    if context.candidate.failure:
        yield LimitVerdict(
            field="failure",
            limit="the model runs",
            bound=None,
            measured=None,
            held=False,
            note=context.candidate.failure,
        )
        return
    if context.candidate.not_finite:
        yield LimitVerdict(
            field="not_finite",
            limit="rows with NaN or infinite predictions at most",
            bound=0,
            measured=context.candidate.not_finite,
            held=False,
        )
    if limits_drops and context.confidence is not None and context.rows < _FEWEST_ROWS:
        yield LimitVerdict(
            field="confidence",
            limit="examples for a confidence bound at least",
            bound=_FEWEST_ROWS,
            measured=context.rows,
            held=False,
        )


def _unknown_slice(metric: str, context: LimitContext) -> tuple[str, MetricDrop] | None:
    """Returns the first judged slice whose drop isn't known: no slice can be worse than that."""
    for name, drop in context.comparison.judged_slices(metric, context.min_slice_rows).items():
        measured = drop.value if context.confidence is None else drop.upper
        if measured is None or math.isnan(measured):
            return name, drop
    return None


def _rows_needed(metric: str, allowed: float, confidence: float | None) -> int:
    """Returns the fewest rows that can confirm a drop of at most `allowed`; 0 if any number can.

    Even if none of n rows got worse, a fraction p of all rows may, at confidence c, as long as (1 - p)^n > 1 - c. This
    is the exact binomial bound, n > 3 / p at 95% (the "rule of three"). It applies to metrics that are better when
    larger, which are fractions of rows, and not to a limit of 0 or less, which only equal predictions hold.
    """
    if confidence is None or smaller_is_better(metric) or not 0 < allowed < 1:
        return 0
    return math.ceil(math.log(1 - confidence) / math.log(1 - allowed))


def _too_few_rows_verdict(
    metric: str, allowed: float, needed: int, rows: int, context: LimitContext, slice_name: str = ""
) -> LimitVerdict:
    where = f" in slice {slice_name}" if slice_name else ""
    slices = "a larger min_slice_rows, " if slice_name else ""
    return LimitVerdict(
        field="confidence",
        limit=f"examples{where} to confirm a drop of {allowed:g} in {metric} at least",
        bound=needed,
        measured=rows,
        held=False,
        note=f"for {_percent(context.confidence)} confidence; remedy: more examples, {slices}a larger drop, "
        "or a lower confidence",
        metric=metric,
        slice=slice_name,
    )


def _missing(context: LimitContext, reason: str) -> str:
    return _NO_BASELINE if context.baseline is None else reason


def _percent(confidence: float | None) -> str:
    return "" if confidence is None else f"{100 * confidence:g}%"
