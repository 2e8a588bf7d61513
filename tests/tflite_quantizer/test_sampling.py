"""Random samples of tf.Examples in files: uniform, reproducible, stratified, and in bounded memory."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions
from scipy import stats
from tfx_compression.errors import DataError
from tfx_compression.tflite_quantizer import sampling

from tests.support import helpers
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # each sample is a Beam pipeline

NUMBER = {"number": tf.TensorSpec([None], tf.int64)}
SIZES = (5, 16, 9)  # rows of the three files


@pytest.fixture
def three_files(tmp_path):
    """Files of different sizes with the numbers 0 to 29, the second one gzipped."""
    names = [tmp_path / "data-0", tmp_path / "data-1.gz", tmp_path / "data-2"]
    starts = np.cumsum((0, *SIZES))
    return [
        helpers.write_examples(name, {"number": np.arange(start, start + size)})
        for name, start, size in zip(names, starts, SIZES, strict=False)
    ]


def drawn(files, rows, seed=0, **options) -> list[int]:
    return sampling.sample(files, NUMBER, rows, seed, **options).columns["number"].tolist()


def number(row: bytes) -> int:
    return tf.train.Example.FromString(row).features.feature["number"].int64_list.value[0]


class Steps:
    """The steps of the pipeline without Beam, on files that are read once: hundreds of samples per second."""

    def __init__(self, files, stratify_by=None):
        self._parts = [(list(sampling._read(file, stratify_by)), name) for file, name in sampling._names(files)]
        self._numbers = {row: number(row) for batches, _ in self._parts for rows, _ in batches for row in rows}

    def drawn(self, quotas, seed) -> list[int]:
        combine = sampling._Smallest(quotas)
        parts = [sampling._smallest(batches, quotas, seed, name) for batches, name in self._parts]
        return [self._numbers[row] for row in combine.extract_output(combine.merge_accumulators(parts))]


def test_every_row_and_every_pair_has_the_same_chance(three_files):
    """A chi-square test over 2,000 seeds; draws are without replacement, which makes the variance smaller."""
    seeds, rows, everything = 2000, 7, sum(SIZES)
    counts, together = np.zeros(everything), 0
    steps = Steps(three_files)
    for seed in range(seeds):
        sample = steps.drawn({"": rows}, seed)
        assert len(set(sample)) == rows
        counts[sample] += 1
        together += len({0, 5} & set(sample)) == 2  # the first rows of two files have different random numbers
    expected = seeds * rows / everything
    statistic = ((counts - expected) ** 2).sum() / (expected * (1 - rows / everything)) * (1 - 1 / everything)
    assert stats.chi2.sf(statistic, everything - 1) > 1e-4, counts
    chance = rows * (rows - 1) / (everything * (everything - 1))
    assert abs(together - seeds * chance) < 4 * np.sqrt(seeds * chance)


def test_files_with_the_same_base_name_are_drawn_independently(tmp_path):
    """Spans of an ExampleGen have the same base names."""
    files = [
        helpers.write_examples(tmp_path / f"span-{span}" / "data", {"number": np.arange(10 * span, 10 * span + 10)})
        for span in range(2)
    ]
    samples = [drawn(files, 10, seed) for seed in range(2)]
    assert any(
        {number % 10 for number in sample if number < 10} != {number % 10 for number in sample if number >= 10}
        for sample in samples
    )
    assert all(len(set(sample)) == 10 for sample in samples)


def test_the_sample_does_not_depend_on_beams_bundles(three_files):
    expected = Steps(three_files).drawn({"": 12}, 3)
    assert drawn(three_files, 12, 3) == expected
    assert drawn(three_files[::-1], 12, 3) == expected

    def workers() -> beam.Pipeline:
        return beam.Pipeline(
            options=PipelineOptions(["--direct_running_mode=multi_threading", "--direct_num_workers=3"])
        )

    assert drawn(three_files, 12, 3, pipeline=workers) == expected


def test_another_seed_draws_other_rows(three_files):
    first, other = drawn(three_files, 20, 1), drawn(three_files, 20, 2)
    assert len(set(first)) == len(set(other)) == 20
    assert set(first) != set(other)


def test_the_shared_folder_is_left_empty(three_files, tmp_path):
    shared = tmp_path / "shared"
    assert len(drawn(three_files, 4, temp=str(shared))) == 4
    assert os.listdir(shared) == []


def test_a_sample_larger_than_the_data_has_all_rows(three_files):
    assert sorted(drawn(three_files, 100)) == list(range(30))


def test_equal_rows_are_drawn_separately(tmp_path):
    path = helpers.write_examples(tmp_path / "data", {"number": np.repeat([7, 8], 50)})
    counts = collections.Counter(drawn([path], 60))
    assert sum(counts.values()) == 60
    assert 20 <= counts[7] <= 40


LETTERS = {"a": 40, "b": 3, "c": 12, "d": 25}


@pytest.fixture
def letters(tmp_path):
    """Two files with rows of four letters, in the counts of LETTERS."""
    words = np.array([letter for letter, count in LETTERS.items() for _ in range(count)])
    columns = {"number": np.arange(len(words)), "word": words, "class": np.array([ord(word) - 97 for word in words])}
    columns["real"] = columns["class"].astype(np.float32)
    order = np.random.default_rng(0).permutation(len(words))
    return [
        helpers.write_examples(tmp_path / name, {key: values[part] for key, values in columns.items()})
        for name, part in (("data-0", order[:50]), ("data-1.gz", order[50:]))
    ], words


def test_strata_have_the_same_size_as_far_as_there_are_rows(letters):
    """Of 40 rows, b has its 3, c its 12, and d and a share the other 25."""
    files, words = letters
    sample = sampling.sample(files, NUMBER, 40, 0, stratify_by="word")
    assert sample.strata == {"a": 13, "b": 3, "c": 12, "d": 12}
    assert collections.Counter(words[sample.columns["number"]].tolist()) == sample.strata
    assert len(set(sample.columns["number"].tolist())) == 40


@pytest.mark.parametrize("feature", ["class", "real"])
def test_whole_numbers_of_both_types_stratify(letters, feature):
    files, words = letters
    sample = sampling.sample(files, NUMBER, 8, 0, stratify_by=feature, label=feature)
    assert sample.strata == {"0": 2, "1": 2, "2": 2, "3": 2}
    assert collections.Counter(words[sample.columns["number"]].tolist()) == {"a": 2, "b": 2, "c": 2, "d": 2}
    np.testing.assert_array_equal(sample.labels, [ord(word) - 97 for word in words[sample.columns["number"]]])


def test_within_a_stratum_every_row_has_the_same_chance(letters):
    files, words = letters
    counts: collections.Counter[int] = collections.Counter()
    steps = Steps(files, "word")
    for seed in range(400):
        counts.update(steps.drawn({"a": 4, "b": 1, "c": 0, "d": 2}, seed))
    counts_of_a = np.array([counts[number] for number in np.flatnonzero(words == "a").tolist()])
    assert counts_of_a.sum() == 1600
    statistic = ((counts_of_a - 40) ** 2).sum() / (40 * 0.9) * (39 / 40)
    assert stats.chi2.sf(statistic, 39) > 1e-4, counts_of_a
    assert not any(counts[number] for number in np.flatnonzero(words == "c").tolist())


@pytest.mark.parametrize(
    ("counts", "rows", "expected"),
    [
        ({"a": 100, "b": 100, "c": 100}, 10, {"a": 3, "b": 3, "c": 4}),
        ({"a": 1, "b": 100, "c": 5}, 20, {"a": 1, "b": 14, "c": 5}),
        ({"a": 2, "b": 3}, 10, {"a": 2, "b": 3}),
        ({"a": 5, "b": 6, "c": 7}, 2, {"a": 0, "b": 1, "c": 1}),
    ],
)
def test_rows_are_shared_equally(counts, rows, expected):
    assert sampling.shares(counts, rows) == expected


def test_fewer_rows_than_values_leave_values_out(letters):
    sample = sampling.sample(letters[0], NUMBER, 2, 0, stratify_by="word")
    assert sum(sample.strata.values()) == len(sample.columns["number"]) == 2


def test_columns_have_the_requested_shapes_and_types(tmp_path):
    images, labels = helpers.images(3)
    columns = {"image": images, "word": np.array(["a", "b", "c"]), "flag": labels > 0, "small": labels}
    path = helpers.write_examples(tmp_path / "data", {**columns, "pair": np.arange(6.0).reshape(3, 2)}, labels)
    specs = {
        "image": tf.TensorSpec([None, 8, 8, 1], tf.float32),
        "word": tf.TensorSpec([None], tf.string),
        "flag": tf.TensorSpec([None, 1], tf.bool),
        "small": tf.TensorSpec([None], tf.int32),
    }
    sample = sampling.sample([path], specs, 3, seed=0, label="pair")
    assert {name: (values.shape, values.dtype.kind, values.itemsize) for name, values in sample.columns.items()} == {
        "image": ((3, 8, 8, 1), "f", 4),
        "word": ((3,), "O", 8),
        "flag": ((3, 1), "b", 1),
        "small": ((3,), "i", 4),
    }
    order = [b"abc".index(word) for word in sample.columns["word"]]
    np.testing.assert_array_equal(sample.columns["image"], images[order])
    np.testing.assert_array_equal(sample.columns["small"], labels[order])
    np.testing.assert_array_equal(sample.columns["flag"][:, 0], labels[order] > 0)
    np.testing.assert_array_equal(sample.labels, np.arange(6.0).reshape(3, 2)[order])
    assert sampling.sample([path], specs, 3, seed=0, label="word").labels.tolist() == sample.columns["word"].tolist()
    assert sampling.sample([path], specs, 3, seed=0).labels is None


def test_a_missing_feature_is_named(three_files):
    with raises(DataError, match="picture"):
        sampling.sample(three_files, {"picture": tf.TensorSpec([None, 4], tf.float32)}, 5, seed=0)


def test_a_split_without_rows_is_refused(tmp_path):
    empty = helpers.write_examples(tmp_path / "empty", {"number": np.arange(0)})
    for options in ({}, {"stratify_by": "number"}):
        with raises(DataError, code="no-examples", match="empty"):
            sampling.sample([empty], NUMBER, 5, 0, **options)


def test_truncated_and_other_files_are_named(tmp_path, three_files):
    whole = Path(three_files[0]).read_bytes()
    for name, content in (("cut", whole[:-10]), ("none", b"number\n1\n2\n3\n4\n5\n")):
        (tmp_path / name).write_bytes(content)
        with raises(DataError, code="unreadable-examples", match=name):
            sampling.sample([three_files[2], str(tmp_path / name)], NUMBER, 5, 0)


def test_a_feature_that_can_not_stratify_is_named(tmp_path, three_files):
    many = helpers.write_examples(tmp_path / "many", {"number": np.arange(1001), "real": np.arange(1001) / 2})
    cases = [
        ([many], "number", "too-many-strata", "'number'.* 1000 "),
        ([many], "real", "no-classes", "'real'"),
        (three_files, "word", "missing-feature", "'word'.*number"),
    ]
    for files, feature, code, match in cases:
        with raises(DataError, code=code, match=match):
            sampling.sample(files, NUMBER, 5, 0, stratify_by=feature)
    some = tmp_path / "some"
    with tf.io.TFRecordWriter(str(some)) as writer:
        for row in (*helpers.serialized({"word": np.array(["a"])}), *helpers.serialized({"number": np.arange(1)})):
            writer.write(row)
    with raises(DataError, code="missing-stratum", match="some.*'word'"):
        sampling.sample([str(some)], {}, 5, 0, stratify_by="word")


def test_labels_of_different_lengths_are_refused(tmp_path):
    path = tmp_path / "data"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in (*helpers.serialized({"y": np.ones((1, 2))}), *helpers.serialized({"y": np.ones((1, 3))})):
            writer.write(row)
    with raises(DataError, code="label-shape", match="'y'.*2 of float32, 3 of float32"):
        sampling.sample([str(path)], {}, 5, 0, label="y")


def test_memory_does_not_grow_with_the_data(tmp_path):
    """The larger file has 54 MB more; the memory of Beam and TensorFlow varies by some 10 MB."""
    command = [sys.executable, "-m", "tests.support.sampled", str(tmp_path), "20000", "200000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    growth = json.loads(done.stdout.splitlines()[-1])
    assert growth["200000"] - growth["20000"] < 40, growth
