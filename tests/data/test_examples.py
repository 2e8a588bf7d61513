"""TFRecord files of tf.Examples: serialized rows, and batches with their labels."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.data import examples
from tfx_compression.errors import DataError

from tests.support import helpers
from tests.support.errors import raises


@pytest.fixture
def three_files(tmp_path):
    """The numbers 0 to 29, ten to a file, the second file gzipped."""
    names = [tmp_path / "data-0", tmp_path / "data-1.gz", tmp_path / "data-2"]
    return [
        helpers.write_examples(name, {"number": np.arange(10 * part, 10 * part + 10)})
        for part, name in enumerate(names)
    ]


def numbers(rows) -> list[int]:
    return [tf.train.Example.FromString(row).features.feature["number"].int64_list.value[0] for row in rows]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [([0], range(10)), ([1], range(10, 20)), ([0, 1, 2], range(30)), ([], [])],
    ids=["plain", "gzipped", "both", "none"],
)
def test_records_returns_all_rows_of_plain_and_gzipped_files(three_files, chosen, expected):
    rows = examples.records([three_files[part] for part in chosen]).as_numpy_iterator()
    assert sorted(numbers(rows)) == list(expected)


def test_files_without_rows_are_rejected(tmp_path, three_files):
    empty = helpers.write_examples(tmp_path / "empty", {"number": np.arange(0)})
    examples.require_rows([empty, three_files[1]], "split 'eval'")
    with raises(DataError, code="no-examples", match="split 'eval'"):
        examples.require_rows([empty], "split 'eval'")


def test_files_that_are_not_tfrecords_are_rejected(tmp_path):
    (tmp_path / "data").write_bytes(b"no records " * 10)
    with raises(DataError, code="unreadable-examples", match="split 'eval'"):
        examples.require_rows([str(tmp_path / "data")], "split 'eval'")


def digits_schema(*others: str):
    return helpers.schema(
        {"image": ("FLOAT", helpers.IMAGE), "digit": ("INT", []), **{name: ("FLOAT", []) for name in others}}
    )


def test_the_label_is_the_only_feature_that_is_not_an_input():
    assert examples.resolve_label(digits_schema(), ["image"], None) == "digit"


def test_a_label_key_selects_among_several_features():
    assert examples.resolve_label(digits_schema("weight"), ["image"], "digit") == "digit"


@pytest.mark.parametrize("inputs", [["image"], ["image", "digit", "weight"]], ids=["two candidates", "none"])
def test_an_ambiguous_label_is_rejected(inputs):
    with raises(DataError, code="ambiguous-label", field="label_key"):
        examples.resolve_label(digits_schema("weight"), inputs, None)


def test_a_label_key_that_is_not_in_the_schema_is_rejected():
    with raises(DataError, code="unknown-label", field="label_key", match="'species'.*image, digit"):
        examples.resolve_label(digits_schema(), ["image"], "species")


@pytest.fixture
def image_files(tmp_path):
    images, labels = helpers.images(20)
    weights = np.arange(20, dtype=np.float32)[:, None]
    files = [
        helpers.write_examples(tmp_path / name, {"image": images[rows], "weight": weights[rows]}, labels[rows])
        for name, rows in (("data-0", slice(8)), ("data-1.gz", slice(8, None)))
    ]
    return files, images, labels


def image_schema():
    features = {
        "image": ("FLOAT", helpers.IMAGE),
        "label": ("INT", []),
        "weight": ("FLOAT", [1]),
        "id": ("BYTES", None),
    }
    return helpers.schema({**features, "id": ("BYTES", None)})


def batches(files, inputs=("image",), shuffle=False, **options):
    data = examples.labeled_batches(files, image_schema(), inputs, "label", batch_size=6, shuffle=shuffle, **options)
    return list(data.as_numpy_iterator())


def test_labeled_batches_hold_the_rows_in_order_in_the_schemas_shapes(image_files):
    files, images, labels = image_files
    actual = batches(files)
    assert [len(label) for _, label in actual] == [6, 6, 6, 2]
    assert all(list(features) == ["image"] for features, _ in actual)
    np.testing.assert_array_equal(np.concatenate([features["image"] for features, _ in actual]), images)
    np.testing.assert_array_equal(np.concatenate([label for _, label in actual]), labels)


def test_without_inputs_the_features_are_the_serialized_examples(image_files):
    files, _, labels = image_files
    actual = batches(files, inputs=None)
    rows = [row for serialized, _ in actual for row in serialized]
    assert rows == list(examples.records(files).as_numpy_iterator())
    np.testing.assert_array_equal(np.concatenate([label for _, label in actual]), labels)


@pytest.mark.parametrize("inputs", [["image"], None], ids=["parsed", "serialized"])
def test_weights_are_one_number_for_each_row(image_files, inputs):
    weights = np.concatenate([weight for _, _, weight in batches(image_files[0], inputs, weight="weight")])
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights, np.arange(20))


def test_shuffled_batches_hold_all_rows_in_another_order_in_each_epoch(image_files):
    files, images, _ = image_files
    tf.random.set_seed(1)
    data = examples.labeled_batches(files, image_schema(), ["image"], "label", batch_size=6, shuffle=True)
    epochs = [np.concatenate([features["image"] for features, _ in data.as_numpy_iterator()]) for _ in range(2)]
    assert not np.array_equal(epochs[0], epochs[1])
    for epoch in epochs:
        assert not np.array_equal(epoch, images)
        np.testing.assert_array_equal(np.sort(epoch.sum(axis=(1, 2, 3))), np.sort(images.sum(axis=(1, 2, 3))))


@pytest.mark.parametrize(
    ("inputs", "options", "missing"),
    [(["image_xf"], {}, "image_xf"), (["id"], {}, "id"), (None, {"weight": "id"}, "id")],
    ids=["unknown input", "input without a shape", "weight without a shape"],
)
def test_a_feature_that_the_schema_lacks_in_a_fixed_shape_is_rejected(image_files, inputs, options, missing):
    with raises(DataError, code="missing-features", match=rf"called {missing}\."):
        batches(image_files[0], inputs, **options)
