"""How candidates answer beside the baseline, counted in the same pass as the metrics."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma

from tfx_compression.compressed_evaluator.evaluation import Behaviour, Change

SECONDS = "tfx_compression.seconds"  # where the extracts say how long each model took
_CHANGES, _KEPT = 50, 10_000


@dataclasses.dataclass
class _Answers:
    """How two models answered; `known` as long as every row seen could be read so, whatever batch it came in."""

    known: bool = True
    same: int = 0
    broken: int = 0
    mended: int = 0
    changes: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "_Answers") -> None:
        self.known = self.known and other.known
        self.same += other.same
        self.broken += other.broken
        self.mended += other.mended
        self.changes.update(other.changes)
        if len(self.changes) > 2 * _KEPT:
            self.changes = collections.Counter(dict(self.changes.most_common(_KEPT)))


def _unknown() -> _Answers:
    return _Answers(known=False)


@dataclasses.dataclass
class _Counts:
    """Of one output of one candidate; its answers are one class for each row, or several labels at once."""

    rows: int = 0
    difference: float = 0.0
    baseline: float = 0.0
    classes: _Answers = dataclasses.field(default_factory=_Answers)
    several: _Answers = dataclasses.field(default_factory=_Answers)

    def add(self, other: "_Counts") -> None:
        self.rows += other.rows
        self.difference += other.difference
        self.baseline += other.baseline
        self.classes.add(other.classes)
        self.several.add(other.several)

    def behaviour(self) -> Behaviour:
        divergence = self.difference / self.baseline if self.baseline else None
        answers = self.classes if self.classes.known else self.several
        if not answers.known or not self.rows:
            return Behaviour(divergence=divergence)
        changes = [Change(label=of, baseline=b, candidate=c, count=n) for (of, b, c), n in answers.changes.items()]
        changes.sort(key=lambda change: (-change.count, change.label, change.baseline, change.candidate))
        return Behaviour(
            agreement=answers.same / self.rows,
            divergence=divergence,
            broken=answers.broken,
            mended=answers.mended,
            changes=tuple(changes[:_CHANGES]),
        )


@dataclasses.dataclass
class Observed:
    """What a pass saw beside the metrics.

    Attributes:
      rows: number of examples.
      weight, squares: sum of the example weights, and of their squares.
      not_finite: by model, the number of rows with NaN or infinity among the predictions.
      seconds: by model, the time spent in its own runtime.
      counts: by candidate and output.
    """

    rows: int = 0
    weight: float = 0.0
    squares: float = 0.0
    not_finite: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    seconds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    counts: dict[tuple[str, str], _Counts] = dataclasses.field(default_factory=dict)

    def add(self, other: "Observed") -> None:
        """Adds what another part of the pass saw."""
        self.rows += other.rows
        self.weight += other.weight
        self.squares += other.squares
        self.not_finite.update(other.not_finite)
        self.seconds.update(other.seconds)
        for key, counts in other.counts.items():
            self.counts.setdefault(key, _Counts()).add(counts)

    @property
    def effective_rows(self) -> int:
        """How many rows of one weight tell as much as these (Kish 1965): square of the sum over sum of the squares."""
        return int(self.weight**2 / self.squares) if self.squares else 0

    def behaviour(self, candidate: str) -> dict[str, Behaviour]:
        """Of a candidate, by output."""
        return {output: counts.behaviour() for (name, output), counts in self.counts.items() if name == candidate}


class Observe(beam.CombineFn):
    """From batched extracts to one Observed.

    Args:
      models: their names.
      baseline: the name of the one that the others are compared with, or None.
    """

    def __init__(self, models: Iterable[str], baseline: str | None):
        self._models = list(models)
        self._baseline = baseline

    def create_accumulator(self) -> Observed:
        return Observed()

    def add_input(self, accumulator: Observed, extracts: tfma.Extracts) -> Observed:
        rows = len(extracts[tfma.INPUT_KEY])
        predictions = {name: _outputs(extracts, name, len(self._models) > 1) for name in self._models}
        labels = extracts.get(tfma.LABELS_KEY)
        seen = Observed(rows, seconds=collections.Counter(extracts[SECONDS]))
        weights = _weights(extracts, self._models[0], rows)
        seen.weight, seen.squares = float(weights.sum()), float((weights**2).sum())
        for name, outputs in predictions.items():
            bad = np.zeros(rows, bool)
            for values in outputs.values():
                if values.dtype.kind == "f":
                    bad |= ~np.isfinite(values).reshape(rows, -1).all(axis=1)
            seen.not_finite[name] += int(bad.sum())
        against = predictions.pop(self._baseline) if self._baseline is not None else {}
        for name, outputs in predictions.items() if against else ():
            for output, values in outputs.items():
                truth = part_of(part_of(labels, name), output)
                seen.counts[name, output] = _compare(against[output], values, truth)
        accumulator.add(seen)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Observed]) -> Observed:
        whole = Observed()
        for accumulator in accumulators:
            whole.add(accumulator)
        return whole

    def extract_output(self, accumulator: Observed) -> Observed:
        return accumulator


def _outputs(extracts: tfma.Extracts, model: str, several: bool) -> dict[str, np.ndarray]:
    found = extracts[tfma.PREDICTIONS_KEY]
    own = found[model] if several else found
    return dict(own) if isinstance(own, Mapping) else {"": own}


def _weights(extracts: tfma.Extracts, model: str, rows: int) -> np.ndarray:
    """Each row's weight; of a model whose outputs have weights of their own, the first one's."""
    found = part_of(extracts.get(tfma.EXAMPLE_WEIGHTS_KEY), model)
    if isinstance(found, Mapping):
        found = next(iter(found.values()), None)
    return np.ones(rows) if found is None else np.asarray(found, np.float64).reshape(rows, -1).mean(axis=1)


def part_of(value: Any, name: str) -> Any:
    """What a value holds for a model or output of that name; the value itself where it is not told apart by these."""
    return value[name] if isinstance(value, Mapping) and name in value else value


def _compare(baseline: np.ndarray, candidate: np.ndarray, labels: Any) -> _Counts:
    """The counts of one batch of one output."""
    rows = len(baseline)
    if baseline.dtype.kind not in "biuf":
        return _Counts(rows, classes=_unknown(), several=_unknown())
    finite = np.isfinite(baseline)  # one infinity would make the difference of all others nothing beside it
    wide = baseline[finite].astype(np.float64)
    difference, size = float(np.nansum(np.abs(candidate[finite] - wide))), float(np.abs(wide).sum())
    if baseline.ndim > 2 or not isinstance(labels, np.ndarray) or labels.dtype.kind not in "biuf":
        return _Counts(rows, difference, size, _unknown(), _unknown())
    outputs = (baseline.reshape(rows, -1), candidate.reshape(rows, -1))
    truth = labels.reshape(rows, -1)
    return _Counts(rows, difference, size, _classes(*outputs, truth), _several(*outputs, truth))


def _classes(baseline: np.ndarray, candidate: np.ndarray, labels: np.ndarray) -> _Answers:
    """Of outputs [rows, classes], or [rows, 1] where the labels are 0 and 1, and labels that are classes or one-hot."""
    zero_or_one = bool(np.isin(labels, (0, 1)).all())
    if labels.shape[1] == 1:
        known = zero_or_one if baseline.shape[1] == 1 else np.array_equal(labels, np.floor(labels))
        truth = labels[:, 0]
    else:
        known = labels.shape == baseline.shape and zero_or_one and bool((labels.sum(axis=1) == 1).all())
        truth = labels.argmax(axis=1)
    if not known:
        return _unknown()
    if baseline.shape[1] == 1 and not _fractions(baseline, candidate):
        return _unknown()
    before, after = (each.argmax(axis=1) if each.shape[1] > 1 else each[:, 0] > 0.5 for each in (baseline, candidate))
    answers = _judged(before, after, before == truth, after == truth)
    differ = before != after
    changed = zip(truth[differ], before[differ], after[differ], strict=True)
    answers.changes.update((int(label), int(was), int(now)) for label, was, now in changed)
    return answers


def _several(baseline: np.ndarray, candidate: np.ndarray, labels: np.ndarray) -> _Answers:
    """Of outputs and labels [rows, labels], any number of which may be 1."""
    if labels.shape != baseline.shape or not np.isin(labels, (0, 1)).all() or not _fractions(baseline, candidate):
        return _unknown()
    before, after = baseline > 0.5, candidate > 0.5
    right = ((each == labels).all(axis=1) for each in (before, after))
    return _judged(before, after, *right)


def _fractions(*outputs: np.ndarray) -> bool:
    """Whether all are from 0 to 1 (or NaN), to be cut at a half; where logits are cut, only the metric knows."""
    return not any(((each < 0) | (each > 1)).any() for each in outputs)


def _judged(before: np.ndarray, after: np.ndarray, was_right: np.ndarray, is_right: np.ndarray) -> _Answers:
    same = (before == after).reshape(len(before), -1).all(axis=1)
    return _Answers(
        same=int(same.sum()), broken=int((was_right & ~is_right).sum()), mended=int((~was_right & is_right).sum())
    )
