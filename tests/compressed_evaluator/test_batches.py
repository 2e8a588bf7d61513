"""Whole batches give the numbers, the slices and the samples that TFMA's rows give."""

import copy
import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_model_analysis as tfma
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_model_analysis.evaluators import jackknife
from tensorflow_model_analysis.evaluators import metrics_plots_and_validations_evaluator as stock
from tensorflow_model_analysis.extractors import slice_key_extractor
from tensorflow_model_analysis.metrics import metric_specs, metric_types
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.slicer import slicer_lib
from tensorflow_model_analysis.utils import util
from tfx_compression.compressed_evaluator import batch_evaluator, combiners, tfma_results
from tfx_compression.compressed_evaluator.batches import Batch, Rows, Samples, Slice

_NAN = float("nan")
ROWS = 23


def configuration(text: str) -> config_pb2.EvalConfig:
    config = text_format.Parse(text, config_pb2.EvalConfig())
    return tfma.utils.update_eval_config_with_defaults(
        config, has_baseline=any(spec.is_baseline for spec in config.model_specs), rubber_stamp=True
    )


@functools.cache
def computations(text: str) -> list[metric_types.MetricComputation]:
    """What TFMA computes from rows, for an EvalConfig."""
    config = configuration(text)
    whole = metric_specs.to_computations(list(config.metrics_specs), eval_config=config)
    found = stock._filter_and_separate_computations(whole).non_derived_computations
    for each in found:
        each.combiner.setup()
    return found


def extracts(predictions: Any, labels: Any, weights: Any = None, features: Any = None) -> tfma.Extracts:
    first = labels
    while isinstance(first, Mapping):
        first = next(iter(first.values()))
    return {
        tfma.INPUT_KEY: np.array([f"row {row}".encode() for row in range(len(first))], object),
        tfma.FEATURES_KEY: features or {},
        tfma.PREDICTIONS_KEY: predictions,
        tfma.LABELS_KEY: labels,
        **({} if weights is None else {tfma.EXAMPLE_WEIGHTS_KEY: weights}),
    }


def plain(value: Any) -> Any:
    """A metric's value as dicts, lists and numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if dataclasses.is_dataclass(value):
        return plain(vars(value))
    if hasattr(value, "bucket_id"):
        return [value.bucket_id, value.weighted_labels, value.weighted_predictions, value.weighted_examples]
    if hasattr(value, "__slots__"):
        return {name: plain(getattr(value, name)) for name in value.__slots__}
    return value


def require_equal(ours: Any, theirs: Any, place: str = "") -> None:
    """The same to 1e-6, NaN for NaN."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), place
        for key in theirs:
            require_equal(ours[key], theirs[key], f"{place} {key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), place
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            require_equal(*pair, f"{place} [{number}]")
    elif isinstance(theirs, float | int):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6, nan_ok=True), place
    else:
        assert ours == theirs, place


def by_rows(found: Sequence[metric_types.MetricComputation], batch: Batch, index: np.ndarray) -> dict[str, Any]:
    """The metrics by TFMA's own combiners, which take one row at a time."""
    metrics: dict[str, Any] = {}
    for number, computation in enumerate(found):
        held = computation.combiner.create_accumulator()
        for row in Rows(batch, index).inputs(number):
            held = computation.combiner.add_input(held, row)
        metrics |= plain(computation.combiner.extract_output(held))
    return metrics


def by_batches(found: Sequence[metric_types.MetricComputation], *parts: Rows) -> dict[str, Any]:
    """The metrics by ours: each part in an accumulator of its own."""
    metrics: dict[str, Any] = {}
    for number, computation in enumerate(found):
        combiner = combiners.wrap(number, computation)
        held = [combiner.add_rows(combiner.create_accumulator(), part) for part in parts]
        whole = combiner.merge_accumulators([combiner.create_accumulator(), *held])
        metrics |= plain(combiner.extract_output(combiner.compact(whole)))
    return metrics


# Data: predictions in tenths, so that some are a threshold exactly, or as nearly as float32 is


@dataclasses.dataclass(frozen=True)
class Made:
    """Random columns of made rows."""

    generator: np.random.Generator
    rows: int

    def tenths(self, *shape: int, low: int = 0, high: int = 10) -> np.ndarray:
        return (self.generator.integers(low, high + 1, (self.rows, *shape)) / 10).astype(np.float32)

    def uniform(self, *shape: int) -> np.ndarray:
        return self.generator.uniform(0, 1, (self.rows, *shape)).astype(np.float32)

    def classes(self, count: int, *shape: int) -> np.ndarray:
        return self.generator.integers(0, count, (self.rows, *shape))

    def softmax(self, count: int) -> np.ndarray:
        raw = self.generator.uniform(0.1, 1, (self.rows, count))
        return (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)

    def one_hot(self, count: int) -> np.ndarray:
        return np.eye(count, dtype=np.float32)[self.classes(count)]


def _metrics(*names: str, extra: str = "") -> str:
    return f"metrics_specs {{ {' '.join(name if '{' in name else _metric(name) for name in names)} {extra} }}"


def _metric(name: str, config: str = "", module: str = "") -> str:
    settings = f" config: '{config}'" if config else ""
    return f'metrics {{ class_name: "{name}"{settings}{f" module: {module!r}" if module else ""} }}'


_ONE = 'model_specs { label_key: "label" } '
_WEIGHTED = 'model_specs { label_key: "label" example_weight_key: "weight" } '
_TWO = """
    model_specs { name: "a" label_key: "label" example_weight_key: "weight" }
    model_specs { name: "b" label_key: "label" example_weight_key: "weight" is_baseline: true }
"""
_OUTPUTS = """
    model_specs { label_keys { key: "class" value: "class" } label_keys { key: "binary" value: "binary" } }
"""
_BINARY = _metrics(
    "AUC",
    "AUCPrecisionRecall",
    "BinaryAccuracy",
    "BinaryCrossentropy",
    "ExampleCount",
    _metric("Precision", '"thresholds": [0.4]'),
    _metric("Recall", '"thresholds": [0.1, 0.3, 0.7]'),
    _metric("PrecisionAtRecall", '"recall": 0.5'),
)
_LOSSES = ("MeanSquaredError", "Hinge", "Huber", "Poisson", "KLDivergence", "CategoricalHinge", "CosineSimilarity")

_FAST = {
    "binary": (_ONE + _BINARY, lambda made: extracts(made.tenths(1), made.classes(2, 1))),
    "binary, flat": (_ONE + _BINARY, lambda made: extracts(made.tenths(), made.classes(2))),
    "binary, weighted": (
        _WEIGHTED + _BINARY + _metrics("WeightedExampleCount", "AUC", extra="example_weights { weighted: true }"),
        lambda made: extracts(made.tenths(1), made.classes(2, 1), made.uniform(1)),
    ),
    "binary, weighted and not": (
        _WEIGHTED + _metrics("AUC", "BinaryCrossentropy", extra="example_weights { weighted: true unweighted: true }"),
        lambda made: extracts(made.tenths(1), made.classes(2, 1), made.classes(4)),
    ),
    "fractional labels": (_WEIGHTED + _BINARY, lambda made: extracts(made.tenths(1), made.tenths(1), made.uniform(1))),
    "boolean labels": (
        _ONE + _metrics("AUC", "BinaryAccuracy"),
        lambda made: extracts(made.tenths(), made.classes(2) > 0),
    ),
    "predictions beyond 0 to 1": (
        _ONE + _metrics("AUC", "BinaryAccuracy", "Precision"),
        lambda made: extracts(made.tenths(1, low=-20, high=20), made.classes(2, 1)),
    ),
    "infinite predictions": (
        _ONE + _metrics("AUC", "BinaryAccuracy", "BinaryCrossentropy", "MeanAbsoluteError"),
        lambda made: extracts(np.where(made.classes(5, 1) > 0, made.tenths(1), np.inf), made.classes(2, 1)),
    ),
    "classes": (
        _ONE
        + _metrics(
            "SparseCategoricalAccuracy",
            "SparseCategoricalCrossentropy",
            "ExampleCount",
            _metric("SparseTopKCategoricalAccuracy", '"k": 2'),
        ),
        lambda made: extracts(made.softmax(4), made.classes(4, 1)),
    ),
    "classes, weighted": (
        _WEIGHTED + _metrics("SparseCategoricalAccuracy", "SparseCategoricalCrossentropy"),
        lambda made: extracts(made.softmax(4), made.classes(4), made.uniform(1)),
    ),
    "one-hot classes": (
        _WEIGHTED
        + _metrics(
            "CategoricalAccuracy",
            "CategoricalCrossentropy",
            "MeanSquaredError",
            _metric("TopKCategoricalAccuracy", '"k": 2'),
        ),
        lambda made: extracts(made.softmax(3), made.one_hot(3), made.uniform(1)),
    ),
    "each class": (
        _WEIGHTED
        + _metrics(
            "AUC",
            "Precision",
            "BinaryCrossentropy",
            "MeanAbsoluteError",
            extra="binarize { class_ids { values: [0, 2] } }",
        ),
        lambda made: extracts(made.softmax(3), made.classes(3, 1), made.uniform(1)),
    ),
    "each one-hot class": (
        _ONE + _metrics("AUC", "Recall", extra="binarize { class_ids { values: [1] } }"),
        lambda made: extracts(made.tenths(3), made.one_hot(3)),
    ),
    "micro average": (
        _WEIGHTED + _metrics("AUC", "Precision", extra="aggregate { micro_average: true }"),
        lambda made: extracts(made.tenths(3), made.classes(3, 1), made.uniform(1)),
    ),
    "micro average with class weights": (
        _WEIGHTED
        + _metrics(
            "AUC",
            "Precision",
            "MeanSquaredError",
            extra="""aggregate { micro_average: true
              class_weights { key: 0 value: 0.5 } class_weights { key: 2 value: 3.0 } }""",
        ),
        lambda made: extracts(made.tenths(3), made.classes(3, 1), made.uniform(1)),
    ),
    "several labels at once": (
        _ONE + _metrics("AUC", "Recall", "MeanAbsoluteError"),
        lambda made: extracts(made.tenths(3), made.classes(2, 3)),
    ),
    "regression": (
        _WEIGHTED + _metrics("MeanSquaredError", "MeanAbsoluteError", "ExampleCount"),
        lambda made: extracts(made.tenths(1, low=-30, high=90), made.uniform(1) * 7, made.uniform(1)),
    ),
    # Unweighted: TFMA gives a loss's mean over each of its batches the weight of the batch, whichever rows are in it.
    "losses": (
        _ONE + _metrics(*(_metric(name, f'"name": "{name.lower()}_loss"', "tf_keras.src.losses") for name in _LOSSES)),
        lambda made: extracts(made.softmax(3), made.one_hot(3)),
    ),
    "several outputs": (
        _OUTPUTS
        + _metrics("SparseCategoricalAccuracy", extra='output_names: "class"')
        + _metrics("AUC", "BinaryAccuracy", extra='output_names: "binary"')
        + _metrics("ExampleCount", extra='output_names: ["class", "binary"]'),
        lambda made: extracts(
            {"class": made.softmax(3), "binary": made.tenths(1)},
            {"class": made.classes(3, 1), "binary": made.classes(2, 1)},
        ),
    ),
    "two models": (
        _TWO + _metrics("AUC", "BinaryAccuracy", "BinaryCrossentropy", "ExampleCount"),
        lambda made: extracts({"a": made.tenths(1), "b": made.tenths(1)}, made.classes(2, 1), made.uniform(1)),
    ),
    "two models with their own labels": (
        _TWO + _metrics("AUC", "MeanSquaredError", "ExampleCount"),
        lambda made: extracts(
            {"a": made.tenths(1), "b": made.tenths(1)},
            {"a": made.classes(2, 1), "b": made.classes(2, 1)},
            {"a": made.uniform(1), "b": made.uniform(1)},
        ),
    ),
}
_ROW_BY_ROW = {
    "calibration": (
        _WEIGHTED + _metrics("Calibration", "AUC", "MeanAbsolutePercentageError", "SquaredPearsonCorrelation"),
        lambda made: extracts(made.tenths(1), made.classes(2, 1), made.uniform(1)),
    ),
    "top k": (
        _WEIGHTED + _metrics("Precision", "AUC", "Recall", extra="binarize { top_k_list { values: [1, 2] } }"),
        lambda made: extracts(made.softmax(4), made.classes(4, 1), made.uniform(1)),
    ),
    "unknown labels": (
        _ONE + _metrics("AUC", "Precision", extra="aggregate { micro_average: true }"),
        lambda made: extracts(made.tenths(3), made.classes(4, 1) - 1),
    ),
    "unknown labels of each class": (
        _ONE + _metrics("AUC", "Precision", extra="binarize { class_ids { values: [0, 1] } }"),
        lambda made: extracts(made.tenths(3), made.classes(4, 1) - 1),
    ),
    "curves": (
        _ONE + _metrics("MultiClassConfusionMatrixPlot", "SparseCategoricalAccuracy"),
        lambda made: extracts(made.softmax(3), made.classes(3, 1)),
    ),
}


def _both(task: tuple[str, Any], seed: int) -> Batch:
    """Some rows of a batch, a few of them twice, some not: the same metrics both ways. Returns our batch."""
    text, make = task
    generator = np.random.default_rng(seed)
    columns = make(Made(generator, ROWS))
    index = np.sort(generator.integers(0, ROWS, generator.integers(1, ROWS + 1)))
    found = computations(text)
    ours, theirs = Batch(columns, found), Batch(columns, found)
    cut = len(index) // 3
    parts = [Rows(ours, part) for part in (index[:cut], index[cut:]) if len(part)]
    require_equal(by_batches(found, *parts), by_rows(found, theirs, index))
    return ours


@pytest.mark.parametrize("task", _FAST)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_batches_give_tfmas_numbers_without_being_split_into_rows(task, seed):
    assert "rows" not in _both(_FAST[task], seed).__dict__


@pytest.mark.parametrize("task", _ROW_BY_ROW)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_batches_can_not_do_tfma_does_row_by_row(task, seed):
    assert "rows" in _both(_ROW_BY_ROW[task], seed).__dict__


@pytest.mark.parametrize("threshold", ["0.1", "0.3", "0.4", "0.7", "0.9"])
def test_a_prediction_that_is_a_threshold_but_for_float32_is_on_the_side_that_tfma_puts_it(threshold):
    task = _ONE + _metrics(_metric("Precision", f'"thresholds": [{threshold}]'))
    found = computations(task)
    batch = Batch(extracts(np.array([threshold, threshold], np.float32), np.array([0, 1])), found)
    require_equal(by_batches(found, Rows(batch, np.arange(2))), by_rows(found, batch, np.arange(2)))


def test_predictions_that_are_nan_give_tfmas_numbers():
    task = _WEIGHTED + _metrics(
        "BinaryAccuracy",
        "BinaryCrossentropy",
        "MeanSquaredError",
        "MeanAbsoluteError",
        "ExampleCount",
        _metric("Precision", '"thresholds": [0.4]'),
    )
    made = Made(np.random.default_rng(0), ROWS)
    found = computations(task)
    columns = extracts(np.where(made.classes(4, 1) > 0, made.tenths(1), _NAN), made.classes(2, 1), made.uniform(1))
    batch = Batch(columns, found)
    ours = by_batches(found, Rows(batch, np.arange(ROWS)))
    assert "rows" not in batch.__dict__
    require_equal(ours, by_rows(found, batch, np.arange(ROWS)))


def test_classes_that_are_nan_give_tfmas_numbers():
    found = computations(_ONE + _metrics("SparseCategoricalAccuracy", "SparseCategoricalCrossentropy"))
    made = Made(np.random.default_rng(0), ROWS)
    batch = Batch(extracts(np.where(made.classes(9, 3) > 0, made.softmax(3), _NAN), made.classes(3, 1)), found)
    require_equal(by_batches(found, Rows(batch, np.arange(ROWS))), by_rows(found, batch, np.arange(ROWS)))


def test_predictions_that_are_nan_are_above_no_threshold_where_tfma_fails_at_them():
    found = computations(_ONE + _metrics("AUC"))
    labels, rows = np.array([0, 1, 1, 0]), np.arange(4)
    batch = Batch(extracts(np.array([0.25, _NAN, 0.75, _NAN], np.float32), labels), found)
    with pytest.raises(ValueError, match="NaN"):
        by_rows(found, batch, rows)
    ours, low = (
        next(iter(by_batches(found, Rows(each, rows)).values()))
        for each in (batch, Batch(extracts(np.array([0.25, -1, 0.75, -1], np.float32), labels), found))
    )
    require_equal([[number, label, weight] for number, label, _, weight in ours], [[n, y, w] for n, y, _, w in low])


@pytest.mark.parametrize("weights", [np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([2, 3])])
def test_examples_count_by_their_weights_whatever_their_shape(weights):
    found = computations(_WEIGHTED + _metrics("WeightedExampleCount"))
    batch = Batch(extracts(np.array([0.25, 0.75]), np.array([0, 1]), weights), found)
    require_equal(by_batches(found, Rows(batch, np.arange(2))), by_rows(found, batch, np.arange(2)))


# Slices

_SLICES = """
    slicing_specs {}
    slicing_specs { feature_keys: "colour" }
    slicing_specs { feature_keys: "size" }
    slicing_specs { feature_keys: "tags" }
    slicing_specs { feature_keys: "price" }
    slicing_specs { feature_keys: "rare" }
    slicing_specs { feature_keys: "colour" feature_keys: "size" }
    slicing_specs { feature_keys: "tags" feature_keys: "rare" }
    slicing_specs { feature_values { key: "colour" value: "red" } }
    slicing_specs { feature_keys: "tags" feature_values { key: "size" value: "1" } }
    slicing_specs { feature_values { key: "tags" value: "x" } feature_values { key: "colour" value: "blue" } }
    slicing_specs { feature_keys: "nowhere" }
    slicing_specs { feature_keys: "colour" }
    cross_slicing_specs {
      baseline_spec { feature_values { key: "size" value: "2" } } slicing_specs { feature_keys: "price" }
    }
"""


def _features(generator: np.random.Generator, rows: int) -> Mapping[str, Any]:
    """Features as tf.Examples give them: of one value or any number of them, and missing in some rows."""

    def some(values: Sequence[Any], fewest: int, most: int, missing: float = 0.0) -> list[list[Any] | None]:
        return [
            None
            if generator.uniform() < missing
            else generator.choice(values, generator.integers(fewest, most + 1)).tolist()
            for _ in range(rows)
        ]

    columns = {
        "colour": pa.array(some([b"red", b"green", b"blue"], 1, 1), pa.list_(pa.binary())),
        "size": pa.array(some([0, 1, 2], 1, 1), pa.list_(pa.int64())),
        "tags": pa.array(some([b"x", b"y", b"z"], 0, 3, 0.2), pa.list_(pa.binary())),
        "price": pa.array(some([0.5, 1.5], 1, 1), pa.list_(pa.float32())),
        "rare": pa.array(some([7, 8], 1, 1, 0.7), pa.list_(pa.int64())),
    }
    return util.record_batch_to_tensor_values(pa.RecordBatch.from_pydict(columns), {})


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 12))
def test_slices_are_tfmas(seed, rows):
    config = configuration(_ONE + _metrics("ExampleCount") + _SLICES)
    generator = np.random.default_rng(seed)
    columns = extracts(np.zeros(rows), np.zeros(rows), features=_features(generator, rows))
    ours: dict[Any, list[int]] = {}
    for key, part in Slice(config, ()).process(columns):
        assert key not in ours
        ours[key] = part.index.tolist()
    specs = [slicer_lib.SingleSliceSpec(spec=spec) for spec in config.slicing_specs]
    for cross in config.cross_slicing_specs:
        specs += [slicer_lib.SingleSliceSpec(spec=spec) for spec in (cross.baseline_spec, *cross.slicing_specs)]
    extract = slice_key_extractor.ExtractSliceKeysFn(config, materialize=False)
    theirs: dict[Any, list[int]] = {}
    for number, row in enumerate(util.split_extracts(columns)):
        (found,) = extract.process(row, specs)
        for key in found[tfma.SLICE_KEY_TYPES_KEY]:
            theirs.setdefault(tuple(map(tuple, key)), []).append(number)
    assert ours == theirs
    assert list(ours[()]) == list(range(rows))


def test_without_slicing_specs_there_is_the_whole_split():
    found = list(Slice(configuration(_ONE), ()).process(extracts(np.zeros(3), np.zeros(3))))
    assert [(key, rows.index.tolist()) for key, rows in found] == [((), [0, 1, 2])]


# Samples


@given(st.integers(1, 300), st.integers(2, 20))
@settings(max_examples=30, deadline=None)
def test_the_jackknifes_parts_are_a_balanced_partition(rows, count):
    batch = Batch(extracts(np.zeros(rows), np.zeros(rows)))
    parts = Samples("jackknife", count).split(Rows(batch, np.arange(rows)))
    assert sorted(np.concatenate([part.index for _, part in parts]).tolist()) == list(range(rows))
    sizes = [len(part.index) for _, part in parts]
    assert set(sizes) <= {rows // count, rows // count + 1}
    assert len(parts) == len({number for number, _ in parts}) == min(rows, count)


def test_small_batches_are_spread_over_all_parts():
    sizes = np.zeros(20)
    for number in range(400):
        columns = extracts(np.zeros(2), np.zeros(2))
        columns[tfma.INPUT_KEY] = np.array([f"{number} {row}".encode() for row in range(2)], object)
        for part, rows in Samples("jackknife", 20).split(Rows(Batch(columns), np.arange(2))):
            sizes[part] += len(rows.index)
    assert sizes.sum() == 800
    assert sizes.min() > 15 and sizes.max() < 75  # 40 each, by chance


@pytest.mark.parametrize("method", ["jackknife", "bootstrap"])
def test_a_row_is_in_the_same_samples_for_every_slice_and_on_every_worker(method):
    samples = Samples(method, 20)
    columns = extracts(np.zeros(200), np.zeros(200))
    batch = Batch(columns)
    whole = dict(samples.split(Rows(batch, np.arange(200))))
    for each in (batch, Batch(columns)):
        odd = dict(samples.split(Rows(each, np.arange(1, 200, 2))))
        for number, part in odd.items():
            assert part.index.tolist() == [row for row in whole[number].index if row % 2]


def test_the_bootstrap_draws_each_row_as_often_as_a_poisson_distribution_of_mean_one():
    rows = 1000
    drawn = dict(Samples("bootstrap", 20).split(Rows(Batch(extracts(np.zeros(rows), np.zeros(rows))), np.arange(rows))))
    assert drawn.pop(0).index.tolist() == list(range(rows))
    counts = np.stack([np.bincount(part.index, minlength=rows) for part in drawn.values()])
    assert counts.shape == (20, rows)
    for times in range(4):
        assert np.mean(counts == times) == pytest.approx(math.exp(-1) / math.factorial(times), abs=0.02)
    assert np.abs(np.corrcoef(counts) - np.eye(20)).max() < 0.15


_SAMPLED = _TWO + _metrics(
    "AUC", "BinaryAccuracy", "BinaryCrossentropy", "ExampleCount", extra="example_weights { weighted: true }"
)


def _sampled(rows: int, batches: int, same: bool = False) -> list[Batch]:
    found = []
    for number in range(batches):
        made = Made(np.random.default_rng(number), rows)
        a, b = made.tenths(1), made.tenths(1)
        columns = extracts({"a": a, "b": a if same else b}, made.classes(2, 1), made.uniform(1))
        columns[tfma.INPUT_KEY] = np.array([f"{number} {row}".encode() for row in range(rows)], object)
        found.append(Batch(columns, computations(_SAMPLED)))
    return found


def _computed(samples: Samples, parts: Sequence[Rows], workers: int = 1) -> tuple[int, list[dict]]:
    """What the combiner makes of these rows on some workers."""
    compute = batch_evaluator._Compute(computations(_SAMPLED), samples)
    held = [compute.create_accumulator() for _ in range(workers)]
    for number, rows in enumerate(parts):
        held[number % workers] = compute.add_input(held[number % workers], rows)
    count, found = compute.extract_output(compute.compact(compute.merge_accumulators(held)))
    return count, [plain(each) for each in found]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_jackknife_leaves_out_one_part_at_a_time(workers):
    samples = Samples("jackknife", 5)
    batches = _sampled(33, 3)
    whole = [Rows(batch, np.arange(batch.size)) for batch in batches]
    count, (everything, *left_out) = _computed(samples, whole, workers)
    assert (count, len(left_out)) == (99, 5)
    require_equal(everything, _computed(Samples(), whole)[1][0])
    for number, found in enumerate(left_out):
        rest = [
            Rows(batch, np.concatenate([part.index for other, part in samples.split(rows) if other != number]))
            for batch, rows in zip(batches, whole, strict=True)
        ]
        require_equal(found, _computed(Samples(), rest)[1][0], f"without {number}")


def test_leaving_out_changes_no_other_sample():
    samples = Samples("jackknife", 4)
    rows = Rows(_sampled(20, 1)[0], np.arange(20))
    compute = batch_evaluator._Compute(computations(_SAMPLED), samples)
    held = compute.add_input(compute.create_accumulator(), rows)
    first = plain(compute.extract_output(copy.deepcopy(held))[1])
    assert plain(compute.extract_output(held)[1]) == first


def test_the_bootstraps_samples_are_of_the_rows_drawn_and_the_same_for_both_models():
    samples = Samples("bootstrap", 3)
    (batch,) = _sampled(40, 1, same=True)
    rows = Rows(batch, np.arange(40))
    _, found = _computed(samples, [rows])
    drawn = dict(samples.split(rows))
    assert len(found) == 4
    for number, of in enumerate(found):
        require_equal(of, _computed(Samples(), [drawn[number]])[1][0])
        by_model = {
            model: {
                key.replace(f'model_name: "{model}"', ""): value for key, value in of.items() if f'"{model}"' in key
            }
            for model in "ab"
        }
        assert by_model["a"] == by_model["b"]


# Intervals


def _interval(values: Sequence[float]) -> tfma_results.Value:
    """By TFMA's formula: of all rows, then of all but each part."""
    key = metric_types.MetricKey("drop")
    combine = jackknife._JackknifeSampleCombineFn(len(values) - 1)
    held = combine.create_accumulator()
    for number, value in enumerate(values):
        held = combine.add_input(held, jackknife.confidence_intervals_util.SampleMetrics({key: value}, number - 1))
    found = combine.extract_output(held)[key]
    return tfma_results.Value(found.unsampled_value, found.sample_standard_deviation, found.sample_degrees_of_freedom)


def _mean(values: np.ndarray, name: str) -> tfma_results.Value:
    """A mean over rows and its interval by our samples."""
    columns = extracts(values, values)
    columns[tfma.INPUT_KEY] = np.array([f"{name} {row}".encode() for row in range(len(values))], object)
    parts = Samples("jackknife", 20).split(Rows(Batch(columns), np.arange(len(values))))
    sums = np.array([values[part.index].sum() for _, part in parts])
    sizes = np.array([len(part.index) for _, part in parts])
    rest = (sums.sum() - sums) / (sizes.sum() - sizes)
    return _interval([sums.sum() / sizes.sum(), *rest])


@pytest.mark.parametrize(
    ("broken", "mended", "rows"), [(0.08, 0.03, 400), (0.05, 0.05, 1010), (0.15, 0.02, 150), (0.02, 0.0, 2000)]
)
def test_the_upper_bound_of_the_paired_drop_covers_the_true_drop_as_often_as_it_says(broken, mended, rows):
    generator = np.random.default_rng(7)
    covered = 0
    sets = 400
    for number in range(sets):
        drops = generator.choice([1.0, -1.0, 0.0], rows, p=[broken, mended, 1 - broken - mended])
        found = _mean(drops, str(number))
        covered += found.value + found.margin(0.95) >= broken - mended
    assert 0.9 <= covered / sets <= 0.99


def test_the_jackknifes_error_of_a_mean_is_the_standard_error():
    generator = np.random.default_rng(3)
    errors = [_mean(generator.binomial(1, 0.9, 2000).astype(float), str(number)).error for number in range(100)]
    assert np.mean(errors) == pytest.approx(math.sqrt(0.9 * 0.1 / 2000), rel=0.05)
