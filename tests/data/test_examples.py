"""Rows of tf.Examples in files."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.data import examples
from tfx_compression.errors import DataError

from tests.support import helpers


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
def test_records_are_all_rows_of_all_files_plain_or_gzipped(three_files, chosen, expected):
    found = numbers(examples.records([three_files[part] for part in chosen]).as_numpy_iterator())
    assert sorted(found) == list(expected)


def test_files_without_a_row_are_refused_by_the_place(tmp_path, three_files):
    empty = helpers.write_examples(tmp_path / "empty", {"number": np.arange(0)})
    examples.require_rows([empty, three_files[1]], "split 'eval'")
    with pytest.raises(DataError, match=r"split 'eval'.*Remedy"):
        examples.require_rows([empty], "split 'eval'")


def test_the_label_is_the_one_feature_that_is_no_input():
    schema = helpers.schema({"image": ("FLOAT", helpers.IMAGE), "digit": ("INT", [])})
    assert examples.label_of(schema, ["image"], None) == "digit"


def test_a_label_that_is_named_need_not_be_the_only_one():
    schema = helpers.schema({"image": ("FLOAT", helpers.IMAGE), "digit": ("INT", []), "weight": ("FLOAT", [])})
    assert examples.label_of(schema, ["image"], "digit") == "digit"


def test_a_label_that_can_not_be_told_is_asked_for():
    schema = helpers.schema({"image": ("FLOAT", helpers.IMAGE), "digit": ("INT", []), "weight": ("FLOAT", [])})
    with pytest.raises(DataError, match=r"digit.*weight.*label_key"):
        examples.label_of(schema, ["image"], None)
    with pytest.raises(DataError, match="label_key"):
        examples.label_of(schema, ["image", "digit", "weight"], None)


def test_a_label_that_the_schema_has_not_is_refused_with_the_names_that_it_has():
    schema = helpers.schema({"image": ("FLOAT", helpers.IMAGE), "digit": ("INT", [])})
    with pytest.raises(DataError, match=r"'species'.*image, digit"):
        examples.label_of(schema, ["image"], "species")


@pytest.fixture
def labelled_images(tmp_path):
    images, labels = helpers.images(20)
    files = [
        helpers.write_examples(tmp_path / "data-0", {"image": images[:8]}, labels[:8]),
        helpers.write_examples(tmp_path / "data-1.gz", {"image": images[8:]}, labels[8:]),
    ]
    return files, images, labels


def image_schema():
    return helpers.schema({"image": ("FLOAT", helpers.IMAGE), "label": ("INT", []), "id": ("BYTES", None)})


def test_labelled_batches_are_the_rows_in_order_in_the_schemas_shapes(labelled_images):
    files, images, labels = labelled_images
    data = examples.labelled(files, image_schema(), ["image"], "label", batch_size=6, shuffle=False)
    found = list(data.as_numpy_iterator())
    assert [len(label) for _, label in found] == [6, 6, 6, 2]
    assert all(list(features) == ["image"] for features, _ in found)
    np.testing.assert_array_equal(np.concatenate([features["image"] for features, _ in found]), images)
    np.testing.assert_array_equal(np.concatenate([label for _, label in found]), labels)


def test_shuffled_batches_are_all_rows_in_another_order_each_epoch(labelled_images):
    files, images, _ = labelled_images
    tf.random.set_seed(1)
    data = examples.labelled(files, image_schema(), ["image"], "label", batch_size=6, shuffle=True)
    epochs = [np.concatenate([features["image"] for features, _ in data.as_numpy_iterator()]) for _ in range(2)]
    assert not np.array_equal(epochs[0], epochs[1])
    for epoch in epochs:
        assert not np.array_equal(epoch, images)
        np.testing.assert_array_equal(np.sort(epoch.sum(axis=(1, 2, 3))), np.sort(images.sum(axis=(1, 2, 3))))


@pytest.mark.parametrize("name", ["image_xf", "id"])
def test_an_input_that_the_schema_has_not_with_a_fixed_shape_is_refused_with_the_remedy(labelled_images, name):
    files, _, _ = labelled_images
    with pytest.raises(DataError, match=rf"needs {name}, .*it has: image, label.*Remedy"):
        examples.labelled(files, image_schema(), [name], "label", batch_size=6, shuffle=False)
