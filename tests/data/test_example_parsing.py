"""What graphs parse from tf.Examples, and serialized tf.Examples from arrays and to arrays.

The independent reference is tf.io.parse_example.
"""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.data import example_parsing
from tfx_compression.errors import DataError

from tests.support import helpers
from tests.support.errors import raises

ROWS = 3
SPEC = {
    "required": tf.io.FixedLenFeature([2], tf.float32),
    "default": tf.io.FixedLenFeature([1, 2], tf.int64, [[3, 4]]),
    "scalar": tf.io.FixedLenFeature([], tf.string, b"none"),
    "sequence": tf.io.FixedLenSequenceFeature([2], tf.float32, allow_missing=True, default_value=-1.0),
    "padded": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
    "sparse": tf.io.VarLenFeature(tf.string),
    "ragged": tf.io.RaggedFeature(tf.float32),
}
RAGGED = {name for name, feature in SPEC.items() if isinstance(feature, tf.io.RaggedFeature)}


def parsers_of(function) -> list[tf.Operation]:
    traced = tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec([None], tf.string))
    return example_parsing.find_parsers(traced.graph.get_operations())


@pytest.fixture(scope="module")
def parsers() -> list[tf.Operation]:
    return parsers_of(lambda rows: tf.io.parse_example(rows, SPEC))


@pytest.fixture(scope="module")
def rows() -> list[bytes]:
    """Rows with all features, with the required one only, and with longer sequences."""
    whole = {
        "required": np.ones([1, 2], np.float32),
        "default": np.array([[[7, 8]]]),
        "scalar": np.array([b"word"]),
        "sequence": np.ones([1, 3, 2], np.float32),
        "padded": np.array([[1, 2]]),
        "sparse": np.array([[b"x", b"y"]]),
        "ragged": np.ones([1, 4], np.float32),
    }
    longer = {**whole, "sequence": np.ones([1, 5, 2], np.float32), "padded": np.array([[5, 6, 7]])}
    return [row for part in (whole, {"required": whole["required"]}, longer) for row in helpers.serialized(part)]


def assert_same_parsed(parsed, expected) -> None:
    for name, values in expected.items():
        for one, other in zip(
            *(tf.nest.flatten(each, expand_composites=True) for each in (parsed[name], values)), strict=True
        ):
            np.testing.assert_array_equal(one, other, name)


def test_features_of_a_graph_parse_rows_as_the_graph_does(parsers, rows):
    features = example_parsing.parsed_features(parsers)
    assert {name: type(feature) for name, feature in features.items()} == {
        name: type(feature) for name, feature in SPEC.items()
    }
    assert_same_parsed(tf.io.parse_example(rows, features), tf.io.parse_example(rows, SPEC))


def test_tensors_of_a_graph_are_the_parts_of_its_features(parsers):
    tensors = example_parsing.parsed_tensors(parsers)
    assert {name: [len(place) for place in places] for name, places in tensors.items()} == {
        name: [3 if name == "sparse" else 2 if name in RAGGED else 1] for name in SPEC
    }
    ((required,),) = tensors["required"]
    assert required.shape.as_list() == [None, 2]


def test_a_feature_that_is_parsed_twice_has_two_places():
    spec = {"x": tf.io.FixedLenFeature([], tf.float32)}
    twice = parsers_of(lambda rows: [tf.io.parse_example(rows, spec), tf.io.parse_example(rows, spec)])
    places = example_parsing.parsed_tensors(twice)["x"]
    assert len(places) == 2
    assert len(example_parsing.tensor_names({"x": places})) == 2


def test_other_parsers_of_protocol_buffers_are_found():
    assert [op.type for op in parsers_of(lambda rows: tf.io.parse_tensor(rows[0], tf.float32))] == ["ParseTensor"]


def test_optional_features_are_those_that_parse_an_empty_example(parsers):
    for name, feature in example_parsing.parsed_features(parsers).items():
        try:
            tf.io.parse_example([b""], {name: feature})
        except tf.errors.InvalidArgumentError:
            assert not example_parsing.is_optional(feature), name
        else:
            assert example_parsing.is_optional(feature), name


def test_a_default_that_the_graph_computes_is_its_tensor():
    def parse(rows):
        default = tf.cast(tf.shape(rows)[:1], tf.float32)
        spec = {"computed": tf.io.FixedLenFeature([1], tf.float32, default), "plain": tf.io.VarLenFeature(tf.float32)}
        return tf.io.parse_example(rows, spec)

    features = example_parsing.parsed_features(parsers_of(parse))
    assert example_parsing.has_computed_default(features["computed"])
    assert example_parsing.is_optional(features["computed"])
    assert not example_parsing.has_computed_default(features["plain"])


def test_required_features_are_those_on_the_way_back(parsers):
    tensors = example_parsing.parsed_tensors(parsers)
    names = example_parsing.tensor_names(tensors)
    with parsers[0].graph.as_default():
        end = tensors["required"][0][0][:, 0] + tf.cast(tf.size(tensors["sparse"][0][1]), tf.float32)
    assert set(example_parsing.required_features(tensors, [end], names)) == {"required", "sparse"}
    assert example_parsing.required_features(tensors, [end], {end.name}) == {}


def test_serialized_rows_parse_to_the_columns():
    columns = {
        "x": np.arange(6, dtype=np.float64).reshape(ROWS, 2),
        "count": np.arange(ROWS, dtype=np.uint8),
        "flag": np.array([True, False, True]),
        "word": [b"a", b"", "ß".encode()],
        "words": np.array([[b"a", b"b"]] * ROWS, object),
    }
    spec = {
        "x": tf.io.FixedLenFeature([2], tf.float32),
        "count": tf.io.FixedLenFeature([], tf.int64),
        "flag": tf.io.FixedLenFeature([], tf.int64),
        "word": tf.io.FixedLenFeature([], tf.string),
        "words": tf.io.FixedLenFeature([2], tf.string),
    }
    parsed = tf.io.parse_example(example_parsing.serialize(columns), spec)
    for name, values in columns.items():
        np.testing.assert_array_equal(parsed[name], values)


def test_rows_can_lack_a_feature():
    rows = example_parsing.serialize({"x": [np.ones(1), None, np.ones(1)], "y": np.zeros(ROWS, int)})
    spec = {"x": tf.io.FixedLenFeature([], tf.float32, 9.0), "y": tf.io.FixedLenFeature([], tf.int64)}
    np.testing.assert_array_equal(tf.io.parse_example(rows, spec)["x"], [1, 9, 1])


def test_columns_have_the_shapes_and_dtypes_that_the_model_takes():
    columns = {
        "x": np.arange(6, dtype=np.float32).reshape(ROWS, 2),
        "count": np.arange(ROWS),
        "flag": np.array([True, False, True]),
        "word": np.array([b"a", b"b", b""], object),
    }
    specs = {
        "x": tf.TensorSpec([None, 2], tf.float64),
        "count": tf.TensorSpec([None], tf.int32),
        "flag": tf.TensorSpec([None], tf.bool),
        "word": tf.TensorSpec([None], tf.string),
    }
    parsed = example_parsing.parse_columns(helpers.serialized(columns), specs)
    for name, values in columns.items():
        assert parsed[name].dtype == specs[name].dtype.as_numpy_dtype
        np.testing.assert_array_equal(parsed[name], values)


def test_rows_that_lack_a_feature_of_the_model_are_rejected_on_one_line():
    rows = helpers.serialized({"x": np.ones([1, 2])})
    with raises(DataError, code="unreadable-row") as caught:
        example_parsing.parse_columns(rows, {"y": tf.TensorSpec([None], tf.int64)})
    assert "\n" not in str(caught.value)


def test_features_of_free_size_are_rejected():
    with raises(DataError, code="free-size", match="x"):
        example_parsing.parse_columns([b""], {"x": tf.TensorSpec([None, None], tf.float32)})
