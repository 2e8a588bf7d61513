"""TFMA's metrics computed from arrays equal TFMA's own, computed row by row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_model_analysis.metrics import metric_types
from tfx_compression.compressed_evaluator import combiners
from tfx_compression.compressed_evaluator.batches import RowBatch, RowSelection

from tests.support.extracts import (
    ONE_MODEL,
    TWO_MODELS,
    WEIGHTED_MODEL,
    RandomColumns,
    computations,
    extracts,
    metric,
    metrics,
    plain,
    require_equal,
)

_NAN = float("nan")
ROWS = 23


def by_rows(steps: Sequence[metric_types.MetricComputation], batch: RowBatch, index: np.ndarray) -> dict[str, Any]:
    """The metrics by TFMA's own combiners, which take one row at a time."""
    values: dict[str, Any] = {}
    for number, computation in enumerate(steps):
        state = computation.combiner.create_accumulator()
        for row in RowSelection(batch, index).inputs(number):
            state = computation.combiner.add_input(state, row)
        values |= plain(computation.combiner.extract_output(state))
    return values


def by_batches(steps: Sequence[metric_types.MetricComputation], *parts: RowSelection) -> dict[str, Any]:
    """The metrics by ours, with each part in an accumulator of its own."""
    values: dict[str, Any] = {}
    for number, computation in enumerate(steps):
        combiner = combiners.wrap(number, computation)
        states = [combiner.add_rows(combiner.create_accumulator(), part) for part in parts]
        merged = combiner.merge_accumulators([combiner.create_accumulator(), *states])
        values |= plain(combiner.extract_output(combiner.compact(merged)))
    return values


_OUTPUTS = """
    model_specs { label_keys { key: "class" value: "class" } label_keys { key: "binary" value: "binary" } }
"""
_BINARY = metrics(
    "AUC",
    "AUCPrecisionRecall",
    "BinaryAccuracy",
    "BinaryCrossentropy",
    "ExampleCount",
    metric("Precision", '"thresholds": [0.4]'),
    metric("Recall", '"thresholds": [0.1, 0.3, 0.7]'),
    metric("PrecisionAtRecall", '"recall": 0.5'),
)
_LOSSES = ("MeanSquaredError", "Hinge", "Huber", "Poisson", "KLDivergence", "CategoricalHinge", "CosineSimilarity")

_AS_ARRAYS = {
    "binary": (ONE_MODEL + _BINARY, lambda columns: extracts(columns.tenths(1), columns.classes(2, 1))),
    "binary, flat": (ONE_MODEL + _BINARY, lambda columns: extracts(columns.tenths(), columns.classes(2))),
    "binary, weighted": (
        WEIGHTED_MODEL + _BINARY + metrics("WeightedExampleCount", "AUC", extra="example_weights { weighted: true }"),
        lambda columns: extracts(columns.tenths(1), columns.classes(2, 1), columns.uniform(1)),
    ),
    "binary, weighted and not": (
        WEIGHTED_MODEL
        + metrics("AUC", "BinaryCrossentropy", extra="example_weights { weighted: true unweighted: true }"),
        lambda columns: extracts(columns.tenths(1), columns.classes(2, 1), columns.classes(4)),
    ),
    "fractional labels": (
        WEIGHTED_MODEL + _BINARY,
        lambda columns: extracts(columns.tenths(1), columns.tenths(1), columns.uniform(1)),
    ),
    "boolean labels": (
        ONE_MODEL + metrics("AUC", "BinaryAccuracy"),
        lambda columns: extracts(columns.tenths(), columns.classes(2) > 0),
    ),
    "predictions beyond 0 to 1": (
        ONE_MODEL + metrics("AUC", "BinaryAccuracy", "Precision"),
        lambda columns: extracts(columns.tenths(1, low=-20, high=20), columns.classes(2, 1)),
    ),
    "infinite predictions": (
        ONE_MODEL + metrics("AUC", "BinaryAccuracy", "BinaryCrossentropy", "MeanAbsoluteError"),
        lambda columns: extracts(np.where(columns.classes(5, 1) > 0, columns.tenths(1), np.inf), columns.classes(2, 1)),
    ),
    "classes": (
        ONE_MODEL
        + metrics(
            "SparseCategoricalAccuracy",
            "SparseCategoricalCrossentropy",
            "ExampleCount",
            metric("SparseTopKCategoricalAccuracy", '"k": 2'),
        ),
        lambda columns: extracts(columns.softmax(4), columns.classes(4, 1)),
    ),
    "classes, weighted": (
        WEIGHTED_MODEL + metrics("SparseCategoricalAccuracy", "SparseCategoricalCrossentropy"),
        lambda columns: extracts(columns.softmax(4), columns.classes(4), columns.uniform(1)),
    ),
    "one-hot classes": (
        WEIGHTED_MODEL
        + metrics(
            "CategoricalAccuracy",
            "CategoricalCrossentropy",
            "MeanSquaredError",
            metric("TopKCategoricalAccuracy", '"k": 2'),
        ),
        lambda columns: extracts(columns.softmax(3), columns.one_hot(3), columns.uniform(1)),
    ),
    "each class": (
        WEIGHTED_MODEL
        + metrics(
            "AUC",
            "Precision",
            "BinaryCrossentropy",
            "MeanAbsoluteError",
            extra="binarize { class_ids { values: [0, 2] } }",
        ),
        lambda columns: extracts(columns.softmax(3), columns.classes(3, 1), columns.uniform(1)),
    ),
    "each one-hot class": (
        ONE_MODEL + metrics("AUC", "Recall", extra="binarize { class_ids { values: [1] } }"),
        lambda columns: extracts(columns.tenths(3), columns.one_hot(3)),
    ),
    "micro average": (
        WEIGHTED_MODEL + metrics("AUC", "Precision", extra="aggregate { micro_average: true }"),
        lambda columns: extracts(columns.tenths(3), columns.classes(3, 1), columns.uniform(1)),
    ),
    "micro average with class weights": (
        WEIGHTED_MODEL
        + metrics(
            "AUC",
            "Precision",
            "MeanSquaredError",
            extra="""aggregate { micro_average: true
              class_weights { key: 0 value: 0.5 } class_weights { key: 2 value: 3.0 } }""",
        ),
        lambda columns: extracts(columns.tenths(3), columns.classes(3, 1), columns.uniform(1)),
    ),
    "several labels at once": (
        ONE_MODEL + metrics("AUC", "Recall", "MeanAbsoluteError"),
        lambda columns: extracts(columns.tenths(3), columns.classes(2, 3)),
    ),
    "regression": (
        WEIGHTED_MODEL + metrics("MeanSquaredError", "MeanAbsoluteError", "ExampleCount"),
        lambda columns: extracts(columns.tenths(1, low=-30, high=90), columns.uniform(1) * 7, columns.uniform(1)),
    ),
    # Without weights: TFMA weighs a loss's mean over one of its batches by the weight of the batch.
    "losses": (
        ONE_MODEL
        + metrics(*(metric(name, f'"name": "{name.lower()}_loss"', "tf_keras.src.losses") for name in _LOSSES)),
        lambda columns: extracts(columns.softmax(3), columns.one_hot(3)),
    ),
    "several outputs": (
        _OUTPUTS
        + metrics("SparseCategoricalAccuracy", extra='output_names: "class"')
        + metrics("AUC", "BinaryAccuracy", extra='output_names: "binary"')
        + metrics("ExampleCount", extra='output_names: ["class", "binary"]'),
        lambda columns: extracts(
            {"class": columns.softmax(3), "binary": columns.tenths(1)},
            {"class": columns.classes(3, 1), "binary": columns.classes(2, 1)},
        ),
    ),
    "a prediction key": (
        'model_specs { label_key: "label" prediction_key: "score" } ' + metrics("AUC", "BinaryAccuracy"),
        lambda columns: extracts({"score": columns.tenths(1), "other": columns.tenths(2)}, columns.classes(2, 1)),
    ),
    "two models": (
        TWO_MODELS + metrics("AUC", "BinaryAccuracy", "BinaryCrossentropy", "ExampleCount"),
        lambda columns: extracts(
            {"a": columns.tenths(1), "b": columns.tenths(1)}, columns.classes(2, 1), columns.uniform(1)
        ),
    ),
    "two models with their own labels": (
        TWO_MODELS + metrics("AUC", "MeanSquaredError", "ExampleCount"),
        lambda columns: extracts(
            {"a": columns.tenths(1), "b": columns.tenths(1)},
            {"a": columns.classes(2, 1), "b": columns.classes(2, 1)},
            {"a": columns.uniform(1), "b": columns.uniform(1)},
        ),
    ),
}
_ROW_BY_ROW = {
    "calibration": (
        WEIGHTED_MODEL + metrics("Calibration", "AUC", "MeanAbsolutePercentageError", "SquaredPearsonCorrelation"),
        lambda columns: extracts(columns.tenths(1), columns.classes(2, 1), columns.uniform(1)),
    ),
    "top k": (
        WEIGHTED_MODEL + metrics("Precision", "AUC", "Recall", extra="binarize { top_k_list { values: [1, 2] } }"),
        lambda columns: extracts(columns.softmax(4), columns.classes(4, 1), columns.uniform(1)),
    ),
    "unknown labels": (
        ONE_MODEL + metrics("AUC", "Precision", extra="aggregate { micro_average: true }"),
        lambda columns: extracts(columns.tenths(3), columns.classes(4, 1) - 1),
    ),
    "unknown labels of each class": (
        ONE_MODEL + metrics("AUC", "Precision", extra="binarize { class_ids { values: [0, 1] } }"),
        lambda columns: extracts(columns.tenths(3), columns.classes(4, 1) - 1),
    ),
    "curves": (
        ONE_MODEL + metrics("MultiClassConfusionMatrixPlot", "SparseCategoricalAccuracy"),
        lambda columns: extracts(columns.softmax(3), columns.classes(3, 1)),
    ),
}


def compare(task: tuple[str, Any], seed: int) -> RowBatch:
    """Asserts equal metrics of some rows, some of them repeated, by both ways. Returns the batch that ours used."""
    text, make = task
    generator = np.random.default_rng(seed)
    batch = make(RandomColumns(generator, ROWS))
    index = np.sort(generator.integers(0, ROWS, generator.integers(1, ROWS + 1)))
    steps = computations(text)
    ours, theirs = RowBatch(batch, steps), RowBatch(batch, steps)
    cut = len(index) // 3
    parts = [RowSelection(ours, part) for part in (index[:cut], index[cut:]) if len(part)]
    require_equal(by_batches(steps, *parts), by_rows(steps, theirs, index))
    return ours


@pytest.mark.parametrize("task", _AS_ARRAYS)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_arrays_give_tfmas_numbers_without_splitting_the_batch(task, seed):
    assert "rows" not in compare(_AS_ARRAYS[task], seed).__dict__


@pytest.mark.parametrize("task", _ROW_BY_ROW)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_other_metrics_get_the_rows_one_by_one(task, seed):
    assert "rows" in compare(_ROW_BY_ROW[task], seed).__dict__


@pytest.mark.parametrize("threshold", ["0.1", "0.3", "0.4", "0.7", "0.9"])
def test_a_prediction_that_equals_a_threshold_in_float32_counts_as_in_tfma(threshold):
    task = ONE_MODEL + metrics(metric("Precision", f'"thresholds": [{threshold}]'))
    steps = computations(task)
    batch = RowBatch(extracts(np.array([threshold, threshold], np.float32), np.array([0, 1])), steps)
    require_equal(by_batches(steps, RowSelection(batch, np.arange(2))), by_rows(steps, batch, np.arange(2)))


def test_nan_predictions_give_tfmas_numbers():
    task = WEIGHTED_MODEL + metrics(
        "BinaryAccuracy",
        "BinaryCrossentropy",
        "MeanSquaredError",
        "MeanAbsoluteError",
        "ExampleCount",
        metric("Precision", '"thresholds": [0.4]'),
    )
    columns = RandomColumns(np.random.default_rng(0), ROWS)
    steps = computations(task)
    extracted = extracts(
        np.where(columns.classes(4, 1) > 0, columns.tenths(1), _NAN), columns.classes(2, 1), columns.uniform(1)
    )
    batch = RowBatch(extracted, steps)
    ours = by_batches(steps, RowSelection(batch, np.arange(ROWS)))
    assert "rows" not in batch.__dict__
    require_equal(ours, by_rows(steps, batch, np.arange(ROWS)))


def test_nan_predictions_of_classes_give_tfmas_numbers():
    steps = computations(ONE_MODEL + metrics("SparseCategoricalAccuracy", "SparseCategoricalCrossentropy"))
    columns = RandomColumns(np.random.default_rng(0), ROWS)
    batch = RowBatch(
        extracts(np.where(columns.classes(9, 3) > 0, columns.softmax(3), _NAN), columns.classes(3, 1)), steps
    )
    require_equal(by_batches(steps, RowSelection(batch, np.arange(ROWS))), by_rows(steps, batch, np.arange(ROWS)))


def test_nan_predictions_are_above_no_threshold_in_histograms_where_tfma_fails():
    steps = computations(ONE_MODEL + metrics("AUC"))
    labels, rows = np.array([0, 1, 1, 0]), np.arange(4)
    batch = RowBatch(extracts(np.array([0.25, _NAN, 0.75, _NAN], np.float32), labels), steps)
    with pytest.raises(ValueError, match="NaN"):
        by_rows(steps, batch, rows)
    ours, low = (
        next(iter(by_batches(steps, RowSelection(each, rows)).values()))
        for each in (batch, RowBatch(extracts(np.array([0.25, -1, 0.75, -1], np.float32), labels), steps))
    )
    require_equal([[number, label, weight] for number, label, _, weight in ours], [[n, y, w] for n, y, _, w in low])


@pytest.mark.parametrize("weights", [np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([2, 3])])
def test_weights_of_any_shape_are_counted(weights):
    steps = computations(WEIGHTED_MODEL + metrics("WeightedExampleCount"))
    batch = RowBatch(extracts(np.array([0.25, 0.75]), np.array([0, 1]), weights), steps)
    require_equal(by_batches(steps, RowSelection(batch, np.arange(2))), by_rows(steps, batch, np.arange(2)))


def test_many_values_of_a_histogram_are_added_up_early():
    buckets = combiners.HistogramBuckets()
    numbers = np.arange(40_000) % 3
    for _ in range(3):
        buckets.add(numbers, np.ones([3, 40_000]))
    assert buckets._pending < buckets._MAX_PENDING
    unique, sums = buckets.sums()
    assert unique.tolist() == [0, 1, 2]
    assert sums.tolist() == [[3 * np.sum(numbers == number) for number in range(3)]] * 3
