"""Counts how candidates answer compared with the baseline, in the same pass as the metrics."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma

from tfx_compression.compressed_evaluator.records import AnswerChange, OutputComparison

# Key of the extracts that holds the time that each model took.
SECONDS = "tfx_compression.seconds"
_MAX_CHANGES = 50  # in the result
_MAX_COUNTED_CHANGES = 10_000  # while counting


@dataclasses.dataclass
class _AnswerCounts:
    """Answers of two models, counted under one reading of their outputs.

    Attributes:
      known: Whether every row so far can be read that way.
      same: Number of rows with the same answer.
      broken: Number of rows that only the baseline answers correctly.
      mended: Number of rows that only the candidate answers correctly.
      changes: Number of rows by label, the baseline's class and the candidate's class.
    """

    known: bool = True
    same: int = 0
    broken: int = 0
    mended: int = 0
    changes: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "_AnswerCounts") -> None:
        self.known = self.known and other.known
        self.same += other.same
        self.broken += other.broken
        self.mended += other.mended
        self.changes.update(other.changes)
        if len(self.changes) > 2 * _MAX_COUNTED_CHANGES:
            self.changes = collections.Counter(dict(self.changes.most_common(_MAX_COUNTED_CHANGES)))


def _unknown() -> _AnswerCounts:
    return _AnswerCounts(known=False)


@dataclasses.dataclass
class _OutputCounts:
    """Counts of one output of one candidate.

    Attributes:
      rows: Number of rows.
      difference: Sum of the absolute differences from the baseline's outputs.
      baseline: Sum of the baseline's absolute outputs.
      classes: Answers, read as one class per row.
      labels: Answers, read as several binary labels per row.
    """

    rows: int = 0
    difference: float = 0.0
    baseline: float = 0.0
    classes: _AnswerCounts = dataclasses.field(default_factory=_AnswerCounts)
    labels: _AnswerCounts = dataclasses.field(default_factory=_AnswerCounts)

    def add(self, other: "_OutputCounts") -> None:
        self.rows += other.rows
        self.difference += other.difference
        self.baseline += other.baseline
        self.classes.add(other.classes)
        self.labels.add(other.labels)

    def comparison(self) -> OutputComparison:
        divergence = self.difference / self.baseline if self.baseline else None
        answers = self.classes if self.classes.known else self.labels
        if not answers.known or not self.rows:
            return OutputComparison(divergence=divergence)
        changes = [
            AnswerChange(label=label, baseline=before, candidate=after, count=count)
            for (label, before, after), count in answers.changes.items()
        ]
        changes.sort(key=lambda change: (-change.count, change.label, change.baseline, change.candidate))
        return OutputComparison(
            agreement=answers.same / self.rows,
            divergence=divergence,
            broken=answers.broken,
            mended=answers.mended,
            changes=tuple(changes[:_MAX_CHANGES]),
        )


@dataclasses.dataclass
class PassStatistics:
    """What a pass over the examples counts beside the metrics.

    Attributes:
      rows: Number of examples.
      weight: Sum of the example weights.
      squares: Sum of the squared example weights.
      not_finite: By model, the number of rows with NaN or infinity among the predictions.
      seconds: By model, the time spent in its runtime.
      counts: Counts by candidate and output.
    """

    rows: int = 0
    weight: float = 0.0
    squares: float = 0.0
    not_finite: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    seconds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    counts: dict[tuple[str, str], _OutputCounts] = dataclasses.field(default_factory=dict)

    def add(self, other: "PassStatistics") -> None:
        """Adds the statistics of another part of the pass."""
        self.rows += other.rows
        self.weight += other.weight
        self.squares += other.squares
        self.not_finite.update(other.not_finite)
        self.seconds.update(other.seconds)
        for key, counts in other.counts.items():
            self.counts.setdefault(key, _OutputCounts()).add(counts)

    @property
    def effective_rows(self) -> int:
        """Number of rows of equal weight with the same variance: squared sum over sum of squares (Kish 1965)."""
        return int(self.weight**2 / self.squares) if self.squares else 0

    def behavior(self, candidate: str) -> dict[str, OutputComparison]:
        """Returns the comparison of each output of a candidate with the baseline's."""
        return {output: counts.comparison() for (name, output), counts in self.counts.items() if name == candidate}


class CollectStatistics(beam.CombineFn):
    """Combines batched extracts into one PassStatistics.

    Args:
      models: Names of the models.
      baseline: Name of the model that the others are compared with, or None.
    """

    def __init__(self, models: Iterable[str], baseline: str | None):
        self._models = list(models)
        self._baseline = baseline

    def create_accumulator(self) -> PassStatistics:
        return PassStatistics()

    def add_input(self, accumulator: PassStatistics, extracts: tfma.Extracts) -> PassStatistics:
        rows = len(extracts[tfma.INPUT_KEY])
        outputs = {name: _outputs(extracts, name, len(self._models) > 1) for name in self._models}
        batch = PassStatistics(rows, seconds=collections.Counter(extracts[SECONDS]))
        weights = _weights(extracts, self._models[0], rows)
        batch.weight, batch.squares = float(weights.sum()), float((weights**2).sum())
        for name, values in outputs.items():
            batch.not_finite[name] += _count_not_finite(values, rows)
        reference = outputs.pop(self._baseline) if self._baseline is not None else {}
        labels = extracts.get(tfma.LABELS_KEY)
        for name in outputs if reference else ():
            for output, candidate in outputs[name].items():
                truth = select(select(labels, name), output)
                batch.counts[name, output] = _compare(reference[output], candidate, truth)
        accumulator.add(batch)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[PassStatistics]) -> PassStatistics:
        merged = PassStatistics()
        for accumulator in accumulators:
            merged.add(accumulator)
        return merged

    def extract_output(self, accumulator: PassStatistics) -> PassStatistics:
        return accumulator


def select(value: Any, name: str) -> Any:
    """Returns the part of a value that belongs to a model or output, or the value itself if it isn't split by name."""
    return value[name] if isinstance(value, Mapping) and name in value else value


def _outputs(extracts: tfma.Extracts, model: str, several: bool) -> dict[str, np.ndarray]:
    predictions = extracts[tfma.PREDICTIONS_KEY]
    outputs = predictions[model] if several else predictions
    return dict(outputs) if isinstance(outputs, Mapping) else {"": outputs}


def _weights(extracts: tfma.Extracts, model: str, rows: int) -> np.ndarray:
    """Returns the weight of each row; the first output's if each output has weights."""
    weights = select(extracts.get(tfma.EXAMPLE_WEIGHTS_KEY), model)
    if isinstance(weights, Mapping):
        weights = next(iter(weights.values()), None)
    return np.ones(rows) if weights is None else np.asarray(weights, np.float64).reshape(rows, -1).mean(axis=1)


def _count_not_finite(outputs: Mapping[str, np.ndarray], rows: int) -> int:
    bad = np.zeros(rows, bool)
    for values in outputs.values():
        if values.dtype.kind == "f":
            bad |= ~np.isfinite(values).reshape(rows, -1).all(axis=1)
    return int(bad.sum())


def _compare(baseline: np.ndarray, candidate: np.ndarray, labels: Any) -> _OutputCounts:
    """Returns the counts of one batch of one output."""
    rows = len(baseline)
    if baseline.dtype.kind not in "biuf":
        return _OutputCounts(rows, classes=_unknown(), labels=_unknown())
    finite = np.isfinite(baseline)  # one infinity would hide all other differences
    wide = baseline[finite].astype(np.float64)
    difference, size = float(np.nansum(np.abs(candidate[finite] - wide))), float(np.abs(wide).sum())
    if baseline.ndim > 2 or not isinstance(labels, np.ndarray) or labels.dtype.kind not in "biuf":
        return _OutputCounts(rows, difference, size, _unknown(), _unknown())
    outputs = (baseline.reshape(rows, -1), candidate.reshape(rows, -1))
    truth = labels.reshape(rows, -1)
    return _OutputCounts(rows, difference, size, _count_classes(*outputs, truth), _count_labels(*outputs, truth))


def _count_classes(baseline: np.ndarray, candidate: np.ndarray, labels: np.ndarray) -> _AnswerCounts:
    """Counts answers that are one class per row.

    Args:
      baseline: Outputs, [rows, classes], or [rows, 1] if the labels are 0 and 1.
      candidate: Outputs of the same shape.
      labels: Classes, [rows, 1], or one-hot, [rows, classes].
    """
    binary = bool(np.isin(labels, (0, 1)).all())
    if labels.shape[1] == 1:
        known = binary if baseline.shape[1] == 1 else np.array_equal(labels, np.floor(labels))
        truth = labels[:, 0]
    else:
        known = labels.shape == baseline.shape and binary and bool((labels.sum(axis=1) == 1).all())
        truth = labels.argmax(axis=1)
    if not known:
        return _unknown()
    if baseline.shape[1] == 1 and not _are_fractions(baseline, candidate):
        return _unknown()
    before, after = (each.argmax(axis=1) if each.shape[1] > 1 else each[:, 0] > 0.5 for each in (baseline, candidate))
    answers = _count_answers(before, after, before == truth, after == truth)
    differ = before != after
    changed = zip(truth[differ], before[differ], after[differ], strict=True)
    answers.changes.update((int(label), int(was), int(now)) for label, was, now in changed)
    return answers


def _count_labels(baseline: np.ndarray, candidate: np.ndarray, labels: np.ndarray) -> _AnswerCounts:
    """Counts answers that are several binary labels per row; all arrays are [rows, labels]."""
    if labels.shape != baseline.shape or not np.isin(labels, (0, 1)).all() or not _are_fractions(baseline, candidate):
        return _unknown()
    before, after = baseline > 0.5, candidate > 0.5
    right = ((each == labels).all(axis=1) for each in (before, after))
    return _count_answers(before, after, *right)


def _are_fractions(*outputs: np.ndarray) -> bool:
    """Returns whether all values are in [0, 1] or NaN, so that 0.5 is the threshold.

    Only the metric knows the threshold of logits.
    """
    return not any(((each < 0) | (each > 1)).any() for each in outputs)


def _count_answers(before: np.ndarray, after: np.ndarray, was_right: np.ndarray, is_right: np.ndarray) -> _AnswerCounts:
    same = (before == after).reshape(len(before), -1).all(axis=1)
    return _AnswerCounts(
        same=int(same.sum()), broken=int((was_right & ~is_right).sum()), mended=int((~was_right & is_right).sum())
    )
