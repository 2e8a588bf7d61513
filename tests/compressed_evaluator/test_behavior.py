"""How candidates answer compared with the baseline: counted by hand, and independent of how rows are split."""

import collections
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow_model_analysis as tfma
from hypothesis import given, settings
from hypothesis import strategies as st
from tfx_compression.compressed_evaluator import behavior
from tfx_compression.compressed_evaluator.behavior import SECONDS, CollectStatistics, PassStatistics
from tfx_compression.compressed_evaluator.records import AnswerChange, OutputComparison

_NAN, _INF = float("nan"), float("inf")


def extracts(predictions: Any, labels: Any = None, seconds: Mapping[str, float] | None = None) -> tfma.Extracts:
    """A batch of extracts, as the pass makes it."""
    first = predictions
    while isinstance(first, Mapping):
        first = next(iter(first.values()))
    batch = {
        tfma.INPUT_KEY: np.array([str(row).encode() for row in range(len(first))], object),
        tfma.PREDICTIONS_KEY: predictions,
        SECONDS: dict(seconds or {}),
    }
    return batch if labels is None else {**batch, tfma.LABELS_KEY: labels}


def observe(batches: Sequence[tfma.Extracts], models: Sequence[str], baseline: str | None) -> PassStatistics:
    """The statistics that Beam collects from the batches on one worker."""
    combine = CollectStatistics(models, baseline)
    accumulator = combine.create_accumulator()
    for batch in batches:
        accumulator = combine.add_input(accumulator, batch)
    return combine.extract_output(accumulator)


def compared(baseline: Any, candidate: Any, labels: Any = None) -> OutputComparison:
    """The comparison of a candidate of one output with the baseline."""
    predictions = {"int8": np.asarray(candidate), "baseline": np.asarray(baseline)}
    labels = None if labels is None else np.asarray(labels)
    return observe([extracts(predictions, labels)], ["int8", "baseline"], "baseline").behavior("int8")[""]


# Classes, counted by hand: the baseline answers 0, 1, 2, 0, 1 and the candidate 0, 2, 2, 1, 0

_BEFORE = np.array([[7, 1, 0], [2, 6, 0], [1, 2, 5], [4, 3, 1], [1, 6, 1]], np.float32) / 8
_AFTER = np.array([[6, 2, 0], [1, 3, 4], [1, 2, 5], [3, 4, 1], [5, 2, 1]], np.float32) / 8
_LABELS = np.array([0, 1, 2, 1, 2])
_EXPECTED = OutputComparison(
    agreement=2 / 5,
    divergence=(2 + 8 + 0 + 2 + 8) / (5 * 8),
    broken=1,  # the second row
    mended=1,  # the fourth
    changes=(
        AnswerChange(label=1, baseline=0, candidate=1, count=1),
        AnswerChange(label=1, baseline=1, candidate=2, count=1),
        AnswerChange(label=2, baseline=1, candidate=0, count=1),
    ),
)


@pytest.mark.parametrize(
    "labels",
    [
        _LABELS,
        _LABELS[:, None],
        _LABELS.astype(np.float32)[:, None],
        np.eye(3)[_LABELS],
        np.eye(3, dtype=np.int64)[_LABELS],
        np.eye(3, dtype=bool)[_LABELS],
    ],
    ids=["numbers", "a column", "floats", "one-hot", "one-hot integers", "one-hot booleans"],
)
def test_classes_are_compared_for_every_form_of_labels(labels):
    assert compared(_BEFORE, _AFTER, labels) == _EXPECTED


def test_a_copy_of_the_baseline_agrees_in_every_row():
    assert compared(_BEFORE, _BEFORE, _LABELS) == OutputComparison(agreement=1, divergence=0, broken=0, mended=0)


def test_changed_answers_are_counted_even_if_the_accuracy_is_equal():
    before, after = np.eye(2)[[0, 1, 0, 1]], np.eye(2)[[1, 0, 0, 1]]
    comparison = compared(before, after, [0, 0, 1, 1])
    assert (comparison.agreement, comparison.broken, comparison.mended) == (0.5, 1, 1)


def test_the_most_frequent_changes_come_first_and_at_most_fifty():
    classes = 60
    labels = np.concatenate([np.arange(classes), [7, 7, 9]])
    before = np.eye(classes)[labels]
    after = np.eye(classes)[(labels + 1) % classes]
    changes = compared(before, after, labels).changes
    assert changes[0] == AnswerChange(label=7, baseline=7, candidate=8, count=3)
    assert changes[1] == AnswerChange(label=9, baseline=9, candidate=10, count=2)
    assert [change.label for change in changes[2:]] == [label for label in range(52) if label not in (7, 9)][:48]
    assert len(changes) == 50


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("kind", [np.int64, np.float32, bool])
def test_one_output_with_binary_labels_is_a_class_above_one_half(shape, kind):
    before = np.array([0.25, 0.75, 0.75, 0.5]).reshape(shape)
    after = np.array([0.75, 0.75, 0.25, 0.75]).reshape(shape)
    assert compared(before, after, np.array([0, 1, 1, 1], kind).reshape(shape)) == OutputComparison(
        agreement=0.25,
        divergence=1.25 / 2.25,
        broken=2,
        mended=1,
        changes=(
            AnswerChange(label=0, baseline=0, candidate=1, count=1),
            AnswerChange(label=1, baseline=0, candidate=1, count=1),
            AnswerChange(label=1, baseline=1, candidate=0, count=1),
        ),
    )


def test_several_labels_agree_if_all_of_them_agree():
    labels = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    before = np.array([[0.75, 0.25, 0.75], [0.25, 0.25, 0.75], [0.25, 0.75, 0.25]])
    after = np.array([[0.75, 0.25, 0.25], [0.25, 0.25, 0.25], [0.125, 0.875, 0.25]])
    comparison = compared(before, after, labels)
    assert (comparison.agreement, comparison.broken, comparison.mended, comparison.changes) == (1 / 3, 1, 1, ())


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        ([[0.5], [2.0]], [[0.25], [1.5]]),
        ([[0.5, 1.0], [2.0, 3.0]], [[0.25, 1.0], [1.5, 2.0]]),
        ([[0.5, 1.0], [2.0, 3.0]], [[0.0, 4.0], [1.0, 0.0]]),
        ([[0.5], [2.0]], [[3], [1]]),
        ([[0.875, 0.125], [0.25, 0.75]], [[0.7, 0.3], [0.4, 0.6]]),
        ([[0.875, 0.125], [0.25, 0.75]], [[0.5], [1.0]]),
        (np.ones([2, 4, 4]), np.ones([2, 4, 4])),
        ([[0.875, 0.125], [0.25, 0.75]], np.array([[b"cat"], [b"dog"]], object)),
        ([[0.875, 0.125], [0.25, 0.75]], None),
    ],
    ids=[
        "a number",
        "two numbers",
        "two integers",
        "a count",
        "soft labels",
        "half a class",
        "an image",
        "strings",
        "none",
    ],
)
def test_outputs_without_classes_have_only_a_divergence(outputs, labels):
    candidate = np.asarray(outputs) * 1.5
    assert compared(outputs, candidate, labels) == OutputComparison(divergence=0.5)


def test_outputs_that_are_not_numbers_are_not_compared():
    words = np.array([[b"cat"], [b"dog"]], object)
    predictions = {"int8": words, "baseline": words}
    statistics = observe([extracts(predictions, np.array([0, 1]))], ["int8", "baseline"], "baseline")
    assert statistics.behavior("int8") == {"": OutputComparison()}
    assert (statistics.rows, statistics.not_finite["int8"]) == (2, 0)


def test_a_baseline_of_zeros_has_no_divergence():
    assert compared(np.zeros([3, 1]), np.ones([3, 1]), [[0.5]] * 3) == OutputComparison()


def test_integers_do_not_overflow():
    before, after = np.array([[250], [5]], np.uint8), np.array([[5], [250]], np.uint8)
    assert compared(before, after).divergence == 490 / 255


# Not finite


def test_rows_with_nan_or_infinity_are_counted_once_for_each_model():
    predictions = {
        "baseline": np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [_NAN, 0.5]]),
        "int8": np.array([[_NAN, _NAN], [0.5, _INF], [0.5, 0.5], [-_INF, 0.5]]),
    }
    statistics = observe([extracts(predictions, np.zeros(4, int))], ["baseline", "int8"], "baseline")
    assert dict(statistics.not_finite) == {"baseline": 1, "int8": 3}


def test_rows_are_counted_if_any_output_is_not_finite():
    predictions = {"a": np.array([[0.5], [_NAN], [0.5]]), "b": np.array([[_INF, 1.0], [_NAN, 1.0], [0.5, 0.5]])}
    statistics = observe([extracts(predictions)], ["only"], None)
    assert (statistics.rows, statistics.not_finite["only"], statistics.counts) == (3, 2, {})


def test_infinity_in_the_baseline_does_not_hide_other_differences():
    before, after = np.array([[-_INF, 1.0], [2.0, 1.0]]), np.array([[-_INF, 3.0], [2.0, 1.0]])
    assert compared(before, after, [0, 0]).divergence == 0.5


def test_infinity_in_the_candidate_is_an_infinite_divergence():
    assert compared([[0.5, 1.0]], [[0.5, _INF]], [0]).divergence == _INF


# Several outputs and models


def test_every_output_of_every_candidate_is_compared():
    predictions = {
        "a": {"class": _AFTER, "amount": np.full([5, 1], 1.5)},
        "baseline": {"class": _BEFORE, "amount": np.full([5, 1], 1.0)},
        "b": {"class": _BEFORE, "amount": np.full([5, 1], 1.25)},
    }
    labels = {"class": _LABELS, "amount": np.full([5], 0.75)}
    statistics = observe([extracts(predictions, labels)], ["a", "baseline", "b"], "baseline")
    assert statistics.behavior("a") == {"class": _EXPECTED, "amount": OutputComparison(divergence=0.5)}
    assert statistics.behavior("b")["class"].agreement == 1
    assert statistics.behavior("b")["amount"] == OutputComparison(divergence=0.25)
    assert statistics.behavior("baseline") == {}


def test_each_model_may_have_labels_of_its_own():
    predictions = {"int8": _AFTER, "baseline": _BEFORE}
    labels = {"int8": _LABELS, "baseline": _LABELS}
    statistics = observe([extracts(predictions, labels)], ["int8", "baseline"], "baseline")
    assert statistics.behavior("int8") == {"": _EXPECTED}


def test_without_a_baseline_nothing_is_compared():
    statistics = observe([extracts({"a": _AFTER, "b": _BEFORE}, _LABELS)], ["a", "b"], None)
    assert (statistics.rows, statistics.counts) == (5, {})


def test_the_time_of_each_model_is_added_up():
    batch = extracts({"a": _AFTER, "b": _BEFORE}, _LABELS, {"a": 0.25, "b": 1.0})
    assert dict(observe([batch, batch], ["a", "b"], None).seconds) == {"a": 0.5, "b": 2.0}


# Merging


def _kinds(generator: np.random.Generator, rows: int) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """By task, the outputs of two models and the labels, as multiples of 1/8, which add up exactly."""

    def outputs(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        return tuple((generator.integers(0, 9, (rows, *shape)) / 8).astype(np.float32) for _ in range(2))

    return {
        "classes": (*outputs(3), generator.integers(0, 3, (rows, 1))),
        "one-hot": (*outputs(3), np.eye(3)[generator.integers(0, 3, rows)]),
        "binary": (*outputs(1), generator.integers(0, 2, rows)),
        "several labels": (*outputs(3), generator.integers(0, 2, (rows, 3))),
        "regression": (*outputs(1), generator.integers(0, 5, (rows, 1)) / 2),
        "numbers, two of them": (*outputs(2), generator.integers(0, 3, (rows, 2)) / 2),
    }


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(1, 11), max_size=5, unique=True).map(sorted),
    halves=st.integers(0, 6),
)
def test_the_result_does_not_depend_on_how_rows_are_split_and_merged(seed, cuts, halves):
    rows = 12
    for task, (before, after, labels) in _kinds(np.random.default_rng(seed), rows).items():
        after[seed % rows, 0] = _NAN
        combine = CollectStatistics(["int8", "baseline"], "baseline")
        expected = observe(
            [extracts({"int8": after, "baseline": before}, labels, {"int8": 0.5})], ["int8", "baseline"], "baseline"
        )
        parts = [combine.create_accumulator()]
        for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, rows], strict=True)):
            batch = extracts(
                {"int8": after[start:stop], "baseline": before[start:stop]},
                labels[start:stop],
                {"int8": 0.5 / (len(cuts) + 1)},
            )
            if number < halves:
                parts[-1] = combine.add_input(parts[-1], batch)
            else:
                parts.append(combine.add_input(combine.create_accumulator(), batch))
        merged = combine.extract_output(
            combine.merge_accumulators(pickle.loads(pickle.dumps(part)) for part in reversed(parts))
        )
        assert merged.behavior("int8") == expected.behavior("int8"), task
        assert (merged.rows, merged.not_finite) == (expected.rows, expected.not_finite)
        assert merged.seconds["int8"] == pytest.approx(0.5)


def test_a_batch_of_one_label_per_row_is_read_like_the_batches_with_several():
    before = np.array([[0.875, 0.75, 0.25], [0.25, 0.75, 0.875]])
    after = np.array([[0.75, 0.875, 0.25], [0.25, 0.75, 0.875]])
    labels = np.array([[1, 0, 0], [0, 1, 1]])
    parts = [extracts({"int8": after[[n]], "baseline": before[[n]]}, labels[[n]]) for n in (0, 1)]
    comparison = observe(parts, ["int8", "baseline"], "baseline").behavior("int8")[""]
    assert (comparison.agreement, comparison.changes) == (1.0, ())


def test_rare_changes_are_dropped_when_there_are_very_many():
    counts = behavior._AnswerCounts()
    counts.add(behavior._AnswerCounts(changes=collections.Counter({(0, 0, 1): 5})))
    many = collections.Counter({(label, 0, 1): 1 for label in range(1, 2 * behavior._MAX_COUNTED_CHANGES + 1)})
    counts.add(behavior._AnswerCounts(changes=many))
    assert len(counts.changes) == behavior._MAX_COUNTED_CHANGES
    assert counts.changes[0, 0, 1] == 5


def test_weights_of_each_output_are_those_of_the_first():
    batch = extracts({"a": np.zeros([2, 1]), "b": np.zeros([2, 1])})
    batch[tfma.EXAMPLE_WEIGHTS_KEY] = {"a": np.array([[1.0], [3.0]]), "b": np.array([[9.0], [9.0]])}
    statistics = observe([batch], ["only"], None)
    assert (statistics.weight, statistics.squares, statistics.effective_rows) == (4.0, 10.0, 1)
