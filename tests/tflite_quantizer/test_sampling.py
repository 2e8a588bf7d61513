"""Samples of the rows of tf.Examples in files."""

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

pytestmark = pytest.mark.slow  # each sample is a Beam pipeline

NUMBER = {"number": tf.TensorSpec([None], tf.int64)}
SIZES = (5, 16, 9)  # rows of the three files


@pytest.fixture
def three_files(tmp_path):
    """The numbers 0 to 29 in files of different sizes, the second one gzipped."""
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
    """The steps that Beam runs, without it, on files that are read once: hundreds of samples in a second."""

    def __init__(self, files, stratify_by=None):
        self._parts = [(list(sampling._read(file, stratify_by)), name) for file, name in sampling._names(files)]
        self._numbers = {row: number(row) for batches, _ in self._parts for rows, _ in batches for row in rows}

    def drawn(self, quotas, seed) -> list[int]:
        combine = sampling._Smallest(quotas)
        parts = [sampling._smallest(batches, quotas, seed, name) for batches, name in self._parts]
        return [self._numbers[row] for row in combine.extract_output(combine.merge_accumulators(parts))]


def test_every_row_of_every_file_has_the_same_chance_and_so_has_every_pair(three_files):
    """Chi-square over 2,000 seeds. Without replacement, rows * (1 - rows / all) / (all - 1) is a count's variance."""
    seeds, rows, everything = 2000, 7, sum(SIZES)
    counts, together = np.zeros(everything), 0
    steps = Steps(three_files)
    for seed in range(seeds):
        found = steps.drawn({"": rows}, seed)
        assert len(set(found)) == rows
        counts[found] += 1
        together += len({0, 5} & set(found)) == 2  # the first rows of two files: their numbers must not be the same
    expected = seeds * rows / everything
    statistic = ((counts - expected) ** 2).sum() / (expected * (1 - rows / everything)) * (1 - 1 / everything)
    assert stats.chi2.sf(statistic, everything - 1) > 1e-4, counts
    chance = rows * (rows - 1) / (everything * (everything - 1))
    assert abs(together - seeds * chance) < 4 * np.sqrt(seeds * chance)


def test_rows_of_files_of_the_same_base_name_are_drawn_independently(tmp_path):
    """As in the spans of an ExampleGen."""
    files = [
        helpers.write_examples(tmp_path / f"span-{span}" / "data", {"number": np.arange(10 * span, 10 * span + 10)})
        for span in range(2)
    ]
    whole = [drawn(files, 10, seed) for seed in range(2)]
    assert any(
        {number % 10 for number in found if number < 10} != {n % 10 for n in found if n >= 10} for found in whole
    )
    assert all(len(set(found)) == 10 for found in whole)


def test_beam_draws_what_its_two_steps_do_however_it_bundles(three_files):
    expected = Steps(three_files).drawn({"": 12}, 3)
    assert drawn(three_files, 12, 3) == expected
    assert drawn(three_files[::-1], 12, 3) == expected

    def workers() -> beam.Pipeline:
        return beam.Pipeline(
            options=PipelineOptions(["--direct_running_mode=multi_threading", "--direct_num_workers=3"])
        )

    assert drawn(three_files, 12, 3, pipeline=workers) == expected


def test_another_seed_is_another_sample_and_none_has_a_row_twice(three_files):
    first, other = drawn(three_files, 20, 1), drawn(three_files, 20, 2)
    assert len(set(first)) == len(set(other)) == 20
    assert set(first) != set(other)


def test_the_folder_of_the_workers_is_left_empty(three_files, tmp_path):
    shared = tmp_path / "shared"
    assert len(drawn(three_files, 4, temp=str(shared))) == 4
    assert os.listdir(shared) == []


def test_where_there_are_fewer_rows_than_asked_for_the_sample_is_all_of_them(three_files):
    assert sorted(drawn(three_files, 100)) == list(range(30))


def test_rows_with_the_same_content_are_drawn_one_by_one(tmp_path):
    path = helpers.write_examples(tmp_path / "data", {"number": np.repeat([7, 8], 50)})
    counts = collections.Counter(drawn([path], 60))
    assert sum(counts.values()) == 60
    assert 20 <= counts[7] <= 40


LETTERS = {"a": 40, "b": 3, "c": 12, "d": 25}


@pytest.fixture
def letters(tmp_path):
    """Rows of four letters, as unequal as LETTERS has it, over two files."""
    words = np.array([letter for letter, count in LETTERS.items() for _ in range(count)])
    columns = {"number": np.arange(len(words)), "word": words, "class": np.array([ord(word) - 97 for word in words])}
    columns["real"] = columns["class"].astype(np.float32)
    order = np.random.default_rng(0).permutation(len(words))
    return [
        helpers.write_examples(tmp_path / name, {key: values[part] for key, values in columns.items()})
        for name, part in (("data-0", order[:50]), ("data-1.gz", order[50:]))
    ], words


def test_strata_are_of_the_same_size_as_far_as_there_are_rows(letters):
    """40 rows: b has 3 of its 10; of the other 37 c, of 12, all of them, and d and a 12 and 13."""
    files, words = letters
    found = sampling.sample(files, NUMBER, 40, 0, stratify_by="word")
    assert found.strata == {"a": 13, "b": 3, "c": 12, "d": 12}
    assert collections.Counter(words[found.columns["number"]].tolist()) == found.strata
    assert len(set(found.columns["number"].tolist())) == 40


@pytest.mark.parametrize("feature", ["class", "real"])
def test_whole_numbers_of_either_type_stratify(letters, feature):
    files, words = letters
    found = sampling.sample(files, NUMBER, 8, 0, stratify_by=feature, label=feature)
    assert found.strata == {"0": 2, "1": 2, "2": 2, "3": 2}
    assert collections.Counter(words[found.columns["number"]].tolist()) == {"a": 2, "b": 2, "c": 2, "d": 2}
    np.testing.assert_array_equal(found.labels, [ord(word) - 97 for word in words[found.columns["number"]]])


def test_within_a_stratum_every_row_has_the_same_chance(letters):
    files, words = letters
    counts: collections.Counter[int] = collections.Counter()
    steps = Steps(files, "word")
    for seed in range(400):
        counts.update(steps.drawn({"a": 4, "b": 1, "c": 0, "d": 2}, seed))
    of_a = np.array([counts[number] for number in np.flatnonzero(words == "a").tolist()])
    assert of_a.sum() == 1600
    statistic = ((of_a - 40) ** 2).sum() / (40 * 0.9) * (39 / 40)
    assert stats.chi2.sf(statistic, 39) > 1e-4, of_a
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
def test_shares_are_equal_and_what_is_short_goes_to_the_others(counts, rows, expected):
    assert sampling.shares(counts, rows) == expected


def test_a_remainder_below_one_row_each_leaves_values_out_and_says_so(letters):
    found = sampling.sample(letters[0], NUMBER, 2, 0, stratify_by="word")
    assert sum(found.strata.values()) == len(found.columns["number"]) == 2


def test_sampled_rows_have_the_shapes_and_types_that_the_model_takes(tmp_path):
    images, labels = helpers.images(3)
    columns = {"image": images, "word": np.array(["a", "b", "c"]), "flag": labels > 0, "small": labels}
    path = helpers.write_examples(tmp_path / "data", {**columns, "pair": np.arange(6.0).reshape(3, 2)}, labels)
    specs = {
        "image": tf.TensorSpec([None, 8, 8, 1], tf.float32),
        "word": tf.TensorSpec([None], tf.string),
        "flag": tf.TensorSpec([None, 1], tf.bool),
        "small": tf.TensorSpec([None], tf.int32),
    }
    found = sampling.sample([path], specs, 3, seed=0, label="pair")
    assert {name: (values.shape, values.dtype.kind, values.itemsize) for name, values in found.columns.items()} == {
        "image": ((3, 8, 8, 1), "f", 4),
        "word": ((3,), "O", 8),
        "flag": ((3, 1), "b", 1),
        "small": ((3,), "i", 4),
    }
    order = [b"abc".index(word) for word in found.columns["word"]]
    np.testing.assert_array_equal(found.columns["image"], images[order])
    np.testing.assert_array_equal(found.columns["small"], labels[order])
    np.testing.assert_array_equal(found.columns["flag"][:, 0], labels[order] > 0)
    np.testing.assert_array_equal(found.labels, np.arange(6.0).reshape(3, 2)[order])
    assert sampling.sample([path], specs, 3, seed=0, label="word").labels.tolist() == found.columns["word"].tolist()
    assert sampling.sample([path], specs, 3, seed=0).labels is None


def test_a_row_without_a_feature_that_the_model_takes_is_refused_by_the_features_name(three_files):
    with pytest.raises(DataError, match="picture"):
        sampling.sample(three_files, {"picture": tf.TensorSpec([None, 4], tf.float32)}, 5, seed=0)


def test_a_split_without_a_row_is_refused_with_the_remedy(tmp_path):
    empty = helpers.write_examples(tmp_path / "empty", {"number": np.arange(0)})
    for options in ({}, {"stratify_by": "number"}):
        with pytest.raises(DataError, match=r"not one tf.Example in .*empty.*Remedy"):
            sampling.sample([empty], NUMBER, 5, 0, **options)


def test_a_file_that_is_cut_off_or_none_of_tfrecords_is_refused_by_its_name(tmp_path, three_files):
    whole = Path(three_files[0]).read_bytes()
    for name, content in (("cut", whole[:-10]), ("none", b"number\n1\n2\n3\n4\n5\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} can't be read as TFRecords.*Remedy"):
            sampling.sample([three_files[2], str(tmp_path / name)], NUMBER, 5, 0)


def test_what_can_not_be_stratified_by_is_refused_by_its_name(tmp_path, three_files):
    many = helpers.write_examples(tmp_path / "many", {"number": np.arange(1001), "real": np.arange(1001) / 2})
    cases = [
        ([many], "number", "'number' has more than 1000 values.*Remedy"),
        ([many], "real", "'real'.*no whole numbers.*Remedy"),
        (three_files, "word", "no 'word'; it has: number. Remedy"),
    ]
    for files, feature, message in cases:
        with pytest.raises(DataError, match=message):
            sampling.sample(files, NUMBER, 5, 0, stratify_by=feature)
    some = tmp_path / "some"
    with tf.io.TFRecordWriter(str(some)) as writer:
        for row in (*helpers.serialized({"word": np.array(["a"])}), *helpers.serialized({"number": np.arange(1)})):
            writer.write(row)
    with pytest.raises(DataError, match="some has tf.Examples without the one value of 'word'.*Remedy"):
        sampling.sample([str(some)], {}, 5, 0, stratify_by="word")


def test_labels_that_differ_in_number_are_refused(tmp_path):
    path = tmp_path / "data"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in (*helpers.serialized({"y": np.ones((1, 2))}), *helpers.serialized({"y": np.ones((1, 3))})):
            writer.write(row)
    with pytest.raises(DataError, match="'y' has not the same number of values.*2 of float32, 3 of float32"):
        sampling.sample([str(path)], {}, 5, 0, label="y")


def test_memory_does_not_grow_with_the_data(tmp_path):
    """The larger file is 54 MB more, and what Beam and TensorFlow hold varies by some 10."""
    command = [sys.executable, "-m", "tests.support.sampled", str(tmp_path), "20000", "200000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    grown = json.loads(done.stdout.splitlines()[-1])
    assert grown["200000"] - grown["20000"] < 40, grown
