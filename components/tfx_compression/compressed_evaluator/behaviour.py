"""How candidates answer beside the baseline, counted in the same pass as the metrics."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma

from tfx_compression.compressed_evaluator.record import Behaviour, Change

SECONDS = "tfx_compression.seconds"  # where the extracts say how long each model took
_CHANGES, _KEPT = 50, 10_000


@dataclasses.dataclass
class _Counts:
    """Of one output of one candidate; classes are counted as long as all rows have some."""

    rows: int = 0
    difference: float = 0.0
    baseline: float = 0.0
    judged: bool = True
    same: int = 0
    broken: int = 0
    mended: int = 0
    changes: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "_Counts") -> None:
        self.rows += other.rows
        self.difference += other.difference
        self.baseline += other.baseline
        self.judged = self.judged and other.judged
        self.same += other.same
        self.broken += other.broken
        self.mended += other.mended
        self.changes.update(other.changes)
        if len(self.changes) > 2 * _KEPT:
            self.changes = collections.Counter(dict(self.changes.most_common(_KEPT)))

    def behaviour(self) -> Behaviour:
        changes = [Change(label=of, baseline=b, candidate=c, count=n) for (of, b, c), n in self.changes.items()]
        changes.sort(key=lambda change: (-change.count, change.label, change.baseline, change.candidate))
        return Behaviour(
            agreement=self.same / self.rows if self.judged and self.rows else None,
            divergence=self.difference / self.baseline if self.baseline else None,
            broken=self.broken if self.judged else None,
            mended=self.mended if self.judged else None,
            changes=tuple(changes[:_CHANGES]) if self.judged else (),
        )


@dataclasses.dataclass
class Observed:
    """What a pass saw beside the metrics.

    Attributes:
      rows: number of examples.
      not_finite: by model, the number of rows with NaN or infinity among the predictions.
      seconds: by model, the time spent in its own runtime.
      counts: by candidate and output.
    """

    rows: int = 0
    not_finite: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    seconds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    counts: dict[tuple[str, str], _Counts] = dataclasses.field(default_factory=dict)

    def add(self, other: "Observed") -> None:
        """Adds what another part of the pass saw."""
        self.rows += other.rows
        self.not_finite.update(other.not_finite)
        self.seconds.update(other.seconds)
        for key, counts in other.counts.items():
            self.counts.setdefault(key, _Counts()).add(counts)

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
        for name, outputs in predictions.items():
            bad = np.zeros(rows, bool)
            for values in outputs.values():
                if values.dtype.kind == "f":
                    bad |= ~np.isfinite(values).reshape(rows, -1).all(axis=1)
            seen.not_finite[name] += int(bad.sum())
        against = predictions.pop(self._baseline) if self._baseline is not None else {}
        for name, outputs in predictions.items() if against else ():
            for output, values in outputs.items():
                truth = _of(_of(labels, name), output)
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


def _of(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, Mapping) and name in value else value


def _compare(baseline: np.ndarray, candidate: np.ndarray, labels: Any) -> _Counts:
    """The counts of one batch of one output."""
    rows = len(baseline)
    if baseline.dtype.kind not in "biuf":
        return _Counts(rows, judged=False)
    wide = baseline.astype(np.float64)
    counts = _Counts(rows, float(np.nansum(np.abs(candidate - wide))), float(np.nansum(np.abs(wide))))
    truth = labels.reshape(rows, -1) if isinstance(labels, np.ndarray) and labels.dtype.kind in "biuf" else None
    answers = [_answers(outputs, truth) for outputs in (baseline, candidate)]
    if truth is None or answers[0] is None or answers[1] is None:
        return dataclasses.replace(counts, judged=False)
    if truth.shape != answers[0].shape:
        truth = truth.argmax(axis=1)[:, None]  # one-hot
    right = [np.all(answer == truth, axis=1) for answer in answers]
    differ = (answers[0] != answers[1]).any(axis=1)
    counts.same = int((~differ).sum())
    counts.broken, counts.mended = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    if truth.shape[1] == 1:
        changed = zip(truth[differ, 0], answers[0][differ, 0], answers[1][differ, 0], strict=True)
        counts.changes.update((int(label), int(before), int(after)) for label, before, after in changed)
    return counts


def _answers(outputs: np.ndarray, labels: np.ndarray | None) -> np.ndarray | None:
    """Each row's class [rows, 1], or for several labels at once which of them [rows, labels]; None where it is neither.

    Of one output per row it is a class where the labels are 0 and 1 only.
    """
    if labels is None or outputs.ndim > 2:
        return None
    values = outputs.reshape(len(outputs), -1)
    if values.shape[1] > 1:
        if labels.shape == values.shape and ((labels != 0).sum(axis=1) != 1).any():
            return values > 0.5
        whole = labels.shape[1] in (1, values.shape[1]) and np.array_equal(labels, np.floor(labels))
        return values.argmax(axis=1)[:, None] if whole else None
    binary = labels.shape[1] == 1 and set(np.unique(labels)) <= {0, 1}
    return values > 0.5 if binary else None
