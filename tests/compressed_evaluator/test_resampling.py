"""Samples of rows, the metrics of each, and confidence intervals."""

import copy
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_model_analysis.evaluators import jackknife
from tensorflow_model_analysis.metrics import metric_types
from tfx_compression.compressed_evaluator.batches import RowBatch, RowSelection
from tfx_compression.compressed_evaluator.resampling import ComputeSamples, Resampling
from tfx_compression.compressed_evaluator.tfma_results import MetricValue

from tests.support.extracts import (
    TWO_MODELS,
    RandomColumns,
    computations,
    extracts,
    metrics,
    plain,
    require_equal,
)

# Samples


@given(st.integers(1, 300), st.integers(2, 20))
@settings(max_examples=30, deadline=None)
def test_the_parts_of_the_jackknife_are_a_balanced_partition(rows, count):
    batch = RowBatch(extracts(np.zeros(rows), np.zeros(rows)))
    parts = Resampling("jackknife", count).split(RowSelection(batch, np.arange(rows)))
    assert sorted(np.concatenate([part.index for _, part in parts]).tolist()) == list(range(rows))
    sizes = [len(part.index) for _, part in parts]
    assert set(sizes) <= {rows // count, rows // count + 1}
    assert len(parts) == len({number for number, _ in parts}) == min(rows, count)


def test_small_batches_are_spread_over_all_parts():
    sizes = np.zeros(20)
    for number in range(400):
        batch = RowBatch(extracts(np.zeros(2), np.zeros(2), name=str(number)))
        for part, rows in Resampling("jackknife", 20).split(RowSelection(batch, np.arange(2))):
            sizes[part] += len(rows.index)
    assert sizes.sum() == 800
    assert sizes.min() > 15 and sizes.max() < 75  # 40 each, by chance


@pytest.mark.parametrize("method", ["jackknife", "bootstrap"])
def test_a_row_is_in_the_same_samples_for_every_slice_and_on_every_worker(method):
    resampling = Resampling(method, 20)
    columns = extracts(np.zeros(200), np.zeros(200))
    batch = RowBatch(columns)
    samples = dict(resampling.split(RowSelection(batch, np.arange(200))))
    for each in (batch, RowBatch(columns)):
        odd = dict(resampling.split(RowSelection(each, np.arange(1, 200, 2))))
        for number, part in odd.items():
            assert part.index.tolist() == [row for row in samples[number].index if row % 2]


def test_the_bootstrap_draws_each_row_as_often_as_a_poisson_distribution_of_mean_one():
    rows = 1000
    batch = RowBatch(extracts(np.zeros(rows), np.zeros(rows)))
    drawn = dict(Resampling("bootstrap", 20).split(RowSelection(batch, np.arange(rows))))
    assert drawn.pop(0).index.tolist() == list(range(rows))
    counts = np.stack([np.bincount(part.index, minlength=rows) for part in drawn.values()])
    assert counts.shape == (20, rows)
    for times in range(4):
        assert np.mean(counts == times) == pytest.approx(math.exp(-1) / math.factorial(times), abs=0.02)
    assert np.abs(np.corrcoef(counts) - np.eye(20)).max() < 0.15


# Metrics of samples


_SAMPLED = TWO_MODELS + metrics(
    "AUC", "BinaryAccuracy", "BinaryCrossentropy", "ExampleCount", extra="example_weights { weighted: true }"
)


def random_batches(rows: int, count: int, equal_models: bool = False) -> list[RowBatch]:
    batches = []
    for number in range(count):
        columns = RandomColumns(np.random.default_rng(number), rows)
        a, b = columns.tenths(1), columns.tenths(1)
        predictions = {"a": a, "b": a if equal_models else b}
        batch = extracts(predictions, columns.classes(2, 1), columns.uniform(1), name=str(number))
        batches.append(RowBatch(batch, computations(_SAMPLED)))
    return batches


def compute(resampling: Resampling, parts: Sequence[RowSelection], workers: int = 1) -> tuple[int, list[dict]]:
    """The number of rows, and the metrics of each sample, computed by some workers."""
    combine = ComputeSamples(computations(_SAMPLED), resampling)
    accumulators = [combine.create_accumulator() for _ in range(workers)]
    for number, rows in enumerate(parts):
        accumulators[number % workers] = combine.add_input(accumulators[number % workers], rows)
    count, samples = combine.extract_output(combine.compact(combine.merge_accumulators(accumulators)))
    return count, [plain(sample) for sample in samples]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_jackknife_leaves_out_one_part_at_a_time(workers):
    resampling = Resampling("jackknife", 5)
    batches = random_batches(33, 3)
    everything = [RowSelection(batch, np.arange(batch.size)) for batch in batches]
    count, (all_rows, *left_out) = compute(resampling, everything, workers)
    assert (count, len(left_out)) == (99, 5)
    require_equal(all_rows, compute(Resampling(), everything)[1][0])
    for number, sample in enumerate(left_out):
        rest = [
            RowSelection(
                batch, np.concatenate([part.index for other, part in resampling.split(rows) if other != number])
            )
            for batch, rows in zip(batches, everything, strict=True)
        ]
        require_equal(sample, compute(Resampling(), rest)[1][0], f"without {number}")


def test_extracting_the_samples_does_not_change_the_accumulator():
    rows = RowSelection(random_batches(20, 1)[0], np.arange(20))
    combine = ComputeSamples(computations(_SAMPLED), Resampling("jackknife", 4))
    accumulator = combine.add_input(combine.create_accumulator(), rows)
    first = plain(combine.extract_output(copy.deepcopy(accumulator))[1])
    assert plain(combine.extract_output(accumulator)[1]) == first


def test_the_bootstrap_draws_the_same_rows_for_both_models():
    resampling = Resampling("bootstrap", 3)
    (batch,) = random_batches(40, 1, equal_models=True)
    rows = RowSelection(batch, np.arange(40))
    _, samples = compute(resampling, [rows])
    drawn = dict(resampling.split(rows))
    assert len(samples) == 4
    for number, sample in enumerate(samples):
        require_equal(sample, compute(Resampling(), [drawn[number]])[1][0])
        by_model = {
            model: {
                key.replace(f'model_name: "{model}"', ""): value for key, value in sample.items() if f'"{model}"' in key
            }
            for model in "ab"
        }
        assert by_model["a"] == by_model["b"]


# Intervals of the jackknife


def interval(values: Sequence[float]) -> MetricValue:
    """A metric by TFMA's formula, from its value for all rows and for all but each part."""
    key = metric_types.MetricKey("drop")
    combine = jackknife._JackknifeSampleCombineFn(len(values) - 1)
    accumulator = combine.create_accumulator()
    for number, value in enumerate(values):
        sample = jackknife.confidence_intervals_util.SampleMetrics({key: value}, number - 1)
        accumulator = combine.add_input(accumulator, sample)
    result = combine.extract_output(accumulator)[key]
    return MetricValue(result.unsampled_value, result.sample_standard_deviation, result.sample_degrees_of_freedom)


def mean(values: np.ndarray, name: str) -> MetricValue:
    """A mean over rows and its interval by our samples."""
    batch = RowBatch(extracts(values, values, name=name))
    parts = Resampling("jackknife", 20).split(RowSelection(batch, np.arange(len(values))))
    sums = np.array([values[part.index].sum() for _, part in parts])
    sizes = np.array([len(part.index) for _, part in parts])
    rest = (sums.sum() - sums) / (sizes.sum() - sizes)
    return interval([sums.sum() / sizes.sum(), *rest])


@pytest.mark.parametrize(
    ("broken", "mended", "rows"), [(0.08, 0.03, 400), (0.05, 0.05, 1010), (0.15, 0.02, 150), (0.02, 0.0, 2000)]
)
def test_the_upper_bound_of_a_paired_drop_covers_the_true_drop_as_often_as_it_claims(broken, mended, rows):
    generator = np.random.default_rng(7)
    covered = 0
    repeats = 250
    for number in range(repeats):
        drops = generator.choice([1.0, -1.0, 0.0], rows, p=[broken, mended, 1 - broken - mended])
        drop = mean(drops, str(number))
        covered += drop.value + drop.margin(0.95) >= broken - mended
    assert 0.9 <= covered / repeats <= 0.99


def test_the_jackknife_error_of_a_mean_is_its_standard_error():
    generator = np.random.default_rng(3)
    errors = [mean(generator.binomial(1, 0.9, 2000).astype(float), str(number)).error for number in range(100)]
    assert np.mean(errors) == pytest.approx(math.sqrt(0.9 * 0.1 / 2000), rel=0.05)
