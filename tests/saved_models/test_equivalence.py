"""Two functions answer alike: what counts as alike, and on which draws."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.errors import ModelError
from tfx_compression.saved_models import equivalence, saved_model
from tfx_compression.saved_models.equivalence import TOLERANCES
from tfx_compression.saved_models.probes import SignatureInputs

from tests.support import helpers
from tests.support.errors import raises

FLOATS = SignatureInputs("'s' of m", {"x": tf.TensorSpec([None, 2], tf.float32)})
INTEGERS = SignatureInputs("'s' of m", {"x": tf.TensorSpec([None], tf.int64)})
WORDS = SignatureInputs("'s' of m", {"x": tf.TensorSpec([None], tf.string)})


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_floats_may_differ_by_the_tolerance_of_their_type(dtype):
    tolerance = TOLERANCES[dtype]
    numpy_dtype = tf.dtypes.as_dtype(dtype).as_numpy_dtype
    expected = np.array([0.0, 1.0, 300.0], np.float64)
    bound = tolerance.relative * expected + tolerance.absolute * 300
    assert equivalence.alike((expected + 0.4 * bound).astype(numpy_dtype), expected.astype(numpy_dtype))
    for index in range(3):
        off = expected.copy()
        off[index] += 2.5 * bound[index]
        assert not equivalence.alike(off.astype(numpy_dtype), expected.astype(numpy_dtype))


def test_tolerances_are_no_finer_than_their_type():
    for dtype, tolerance in TOLERANCES.items():
        epsilon = ml_dtypes.finfo(tf.dtypes.as_dtype(dtype).as_numpy_dtype).eps
        assert 2 * float(epsilon) <= tolerance.relative


@pytest.mark.parametrize("values", [[1, 2], [b"a", b"b"], [True, False]], ids=["integers", "strings", "bools"])
def test_everything_else_must_be_equal(values):
    expected = np.array(values)
    assert equivalence.alike(expected.copy(), expected)
    assert not equivalence.alike(expected[::-1], expected)


def test_shapes_and_types_must_be_the_same():
    ones = np.ones([2, 1], np.float32)
    assert not equivalence.alike(ones[:, 0], ones)
    assert not equivalence.alike(ones.astype(np.float64), ones)


def test_nan_and_infinity_are_like_themselves():
    values = np.array([np.nan, np.inf, 1.0], np.float32)
    assert equivalence.alike(values.copy(), values)
    assert not equivalence.alike(np.array([0.0, np.inf, 1.0], np.float32), values)
    assert not equivalence.alike(np.array([np.nan, -np.inf, 1.0], np.float32), values)


def identity(x):
    return {"y": x}


def difference(original, changed, inputs, words=()) -> str | None:
    references = equivalence.draw_references(lambda x: {"y": original(x)}, inputs, words)
    return equivalence.difference(references, lambda feeds: {"y": changed(feeds["x"]).numpy()})


@pytest.mark.parametrize(
    ("inputs", "changed"),
    [
        (FLOATS, lambda x: tf.where(x < 0, 0.5, x)),
        (FLOATS, lambda x: tf.where((x < 0) & (x > -0.5), 0.0, x)),
        (FLOATS, lambda x: tf.minimum(x, 1.0)),
        (FLOATS, lambda x: tf.maximum(x, -50.0)),
        (FLOATS, lambda x: tf.where(tf.math.is_nan(x), 0.5, x)),
        (FLOATS, lambda x: x / 255.0 if tf.reduce_max(x) > 100 else x),
        (INTEGERS, lambda x: tf.minimum(x, 1)),
        (INTEGERS, lambda x: tf.maximum(x, 0)),
        (INTEGERS, lambda x: tf.minimum(x, 50)),
        (WORDS, tf.strings.lower),
        (WORDS, tf.strings.strip),
        (WORDS, lambda x: tf.where(x == b"Red", b"", x)),
    ],
)
def test_a_change_of_some_values_only_is_a_difference(inputs, changed):
    words = (b"Red",)
    assert difference(tf.identity, tf.identity, inputs, words) is None
    assert difference(tf.identity, changed, inputs, words) == "its output 'y' is different"


def test_a_change_of_absent_features_is_a_difference():
    arguments = {"x": tf.TensorSpec([None], tf.string)}
    features = {"a": tf.io.FixedLenFeature([], tf.float32, 777.0)}

    def parse(rows):
        return tf.io.parse_example(rows, features)["a"]

    inputs = SignatureInputs("", arguments, features)
    assert difference(parse, parse, inputs) is None
    assert difference(parse, lambda rows: tf.where(parse(rows) == 777.0, 0.0, parse(rows)), inputs) is not None


def test_a_failure_or_a_missing_output_is_a_difference():
    references = equivalence.draw_references(identity, FLOATS)

    def fail(feeds):
        raise ValueError("no answer\nat all")

    assert equivalence.difference(references, fail) == "no answer"
    assert equivalence.difference(references, lambda feeds: {}) == "its output 'y' is different"


def test_errors_without_a_message_are_called_by_their_class():
    assert equivalence.failure_summary(KeyError()) == "KeyError"


def test_draws_that_the_original_does_not_answer_prove_nothing():
    def lookup(place, x):
        return {"y": tf.gather([1.0, 2.0], place) + x[:, 0]}

    arguments = {"place": tf.TensorSpec([None], tf.int64), "x": tf.TensorSpec([None, 2], tf.float32)}
    references = equivalence.draw_references(lookup, SignatureInputs("", arguments))
    places = {int(place) for reference in references for place in reference.feeds["place"]}
    assert places == {0, 1}
    assert any((reference.feeds["x"].numpy() < 0).any() for reference in references)


def test_a_probe_that_fails_for_all_inputs_is_repeated_for_each():
    """The original takes negative numbers in one of its inputs only."""

    def root(a, b):
        return {"y": tf.debugging.check_numerics(tf.sqrt(a), "negative") + b}

    spec = tf.TensorSpec([None], tf.float32)
    references = equivalence.draw_references(root, SignatureInputs("", {"a": spec, "b": spec}))
    assert all((reference.feeds["a"].numpy() >= 0).all() for reference in references)
    assert any((reference.feeds["b"].numpy() < 0).any() for reference in references)


def test_features_that_must_have_one_value_get_one():
    def single(x):
        return {"y": tf.reshape(tf.ensure_shape(x, [None, 1]), [-1])}

    inputs = SignatureInputs("", {"x": tf.TensorSpec([None, None], tf.float32)})
    references = equivalence.draw_references(single, inputs)
    assert len(references) == 4  # plain, and three probes
    assert all(reference.feeds["x"].shape[1] == 1 for reference in references)


def test_dimensions_of_any_size_are_drawn_with_one_value_and_with_several():
    inputs = SignatureInputs("", {"x": tf.TensorSpec([None, None], tf.float32)})
    references = equivalence.draw_references(identity, inputs)
    assert {reference.feeds["x"].shape[1] for reference in references} == {1, 3}


def test_an_original_that_answers_nothing_is_rejected():
    def fail(x):
        raise ValueError("an image is expected")

    with raises(ModelError, code="no-answer", match="'s' of m .*an image is expected"):
        equivalence.draw_references(fail, FLOATS)


def test_nan_is_answered_by_the_function_that_is_fused_alike():
    """As a fused matrix product and ReLU do, which turn NaN into 0."""
    references = equivalence.draw_references(
        lambda x: {"y": tf.where(tf.math.is_nan(x), 0.0, x)}, FLOATS, fused_alike=identity
    )
    assert equivalence.difference(references, lambda feeds: {"y": feeds["x"].numpy()}) is None


def test_drawn_answers_are_those_of_each_signature(tmp_path):
    path = helpers.save_function(
        lambda examples: {"y": 2 * tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]},
        [tf.TensorSpec([None], tf.string, name="examples")],
        tmp_path / "model",
    )
    loaded = saved_model.load(path)
    answers = equivalence.drawn_answers(loaded)
    assert list(answers) == ["serving_default"]
    assert answers["serving_default"]["y"].std() > 0.1
    again = equivalence.drawn_answers(loaded)
    np.testing.assert_array_equal(again["serving_default"]["y"], answers["serving_default"]["y"])


def test_drawn_answers_of_a_signature_that_fails_are_rejected(tmp_path):
    path = helpers.save_function(
        lambda images: {"y": tf.map_fn(tf.io.decode_png, images, tf.uint8)},
        [tf.TensorSpec([None], tf.string, name="images")],
        tmp_path / "model",
    )
    with raises(ModelError, code="no-answer", match="serving_default"):
        equivalence.drawn_answers(saved_model.load(path))
