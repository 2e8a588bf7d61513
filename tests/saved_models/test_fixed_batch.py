"""Cut signatures for a fixed number of rows."""

import numpy as np
import tensorflow as tf
from tfx_compression.errors import ModelError
from tfx_compression.saved_models.feature_signatures import feature_signature

from tests.support import helpers
from tests.support.errors import raises
from tests.support.signatures import save_on_examples


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)


def test_a_batch_size_is_in_every_shape(tmp_path):
    spec = {"x": tf.io.FixedLenFeature([4], tf.float32)}
    path = save_on_examples(tmp_path / "model", spec, lambda parsed: {"y": 2 * parsed["x"]})
    signature = feature_signature(path, batch_size=3)
    assert signature.features["x"].shape == [3, 4]
    assert signature.function.get_concrete_function().structured_outputs["y"].shape == [3, 4]


def test_another_batch_size_than_the_signatures_is_rejected(tmp_path):
    specs = [tf.TensorSpec([2, 3], tf.float32, name="x"), tf.TensorSpec([], tf.float32, name="scale")]
    path = helpers.save_function(lambda x, scale: {"y": x * scale}, specs, tmp_path / "model")
    assert feature_signature(path, batch_size=2).features["scale"].shape == []
    with raises(ModelError, code="batch-size", match="2 rows of 'x'"):
        feature_signature(path, batch_size=4)


def collecting(path, element_shape, rows: int | None = None) -> str:
    """A signature whose loop collects its rows in a list, with elements of a shape."""

    def function(x):
        kept = tf.TensorArray(tf.float32, 2, element_shape=element_shape)
        value = (lambda i: x) if rows is None else (lambda i: x[i])
        kept = tf.while_loop(lambda i, _: i < 2, lambda i, kept: (i + 1, kept.write(i, value(i))), (0, kept))[1]
        return {"y": kept.stack()}

    return helpers.save_function(function, [tf.TensorSpec([rows, 3], tf.float32, "x")], path)


def element_shapes(signature) -> set[tuple[int, ...]]:
    definition = signature.function.get_concrete_function().graph.as_graph_def()
    nodes = {node.name: node for node in definition.node}
    shapes = [nodes[node.input[0]] for node in definition.node if node.op == "TensorListReserve"]
    return {tuple(tf.make_ndarray(shape.attr["value"].tensor)) for shape in shapes}


def test_lists_of_rows_get_the_batch_size(tmp_path):
    path = collecting(tmp_path / "model", [None, 3])
    assert element_shapes(feature_signature(path)) == {(-1, 3)}
    signature = feature_signature(path, batch_size=4)
    assert element_shapes(signature) == {(4, 3)}
    x = rows(4)
    np.testing.assert_array_equal(signature.function(x)["y"], [x, x])


def test_lists_of_other_elements_stay_as_they_are(tmp_path):
    """What the loop collects has three numbers, of a size that the graph leaves open: not a batch of two."""
    path = collecting(tmp_path / "model", [None], rows=2)
    signature = feature_signature(path, batch_size=2)
    x = rows(2)
    np.testing.assert_array_equal(signature.function(x)["y"], x)


def test_lists_stay_as_they_are_in_a_signature_that_answers_nothing(tmp_path):
    def function(x):
        rows = tf.TensorArray(tf.float32, 2, element_shape=[None, 3])
        rows = tf.while_loop(lambda i, _: i < 2, lambda i, rows: (i + 1, rows.write(i, x)), (0, rows))[1]
        return {"y": rows.stack() + tf.gather([1.0], tf.cast(tf.abs(x[0, 0]), tf.int32) + 5)}

    path = helpers.save_function(function, [tf.TensorSpec([None, 3], tf.float32, "x")], tmp_path / "model")
    assert element_shapes(feature_signature(path, batch_size=4)) == {(-1, 3)}
