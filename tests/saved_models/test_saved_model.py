"""Kernels of SavedModels without layers: found in the graph, and nothing else changes when they do."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from tfx_compression import kernels
from tfx_compression.errors import ModelError
from tfx_compression.saved_models import saved_model

from tests.support import (
    helpers,  # first: sets which Keras tf.keras is
    kinds,
)


def saved(tmp_path, function, shape, **variables):
    """A SavedModel of `function(x, variables)`, loaded."""
    made = {
        name: tf.Variable(np.random.default_rng(0).normal(size=size), dtype=tf.float32, name=name)
        for name, size in variables.items()
    }
    spec = tf.TensorSpec(shape, tf.float32, name="x")
    path = helpers.save_function(lambda x: {"y": function(x, **made)}, [spec], tmp_path / "model", **made)
    return saved_model.load(path)


def test_a_variable_that_is_used_otherwise_is_left_alone_and_named(tmp_path):
    model = saved_model.load(kinds.module(tmp_path / "model"))
    assert list(model.kernels) == ["first", "second"]
    assert model.unrecognized == ("scale",)


def test_variables_of_the_same_name_are_both_kernels(tmp_path):
    made = [tf.Variable(np.ones([4, 4], np.float32), name="same") for _ in range(2)]
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")
    path = helpers.save_function(lambda x: {"y": x @ made[0] @ made[1]}, [spec], tmp_path / "model", made=made)
    assert list(saved_model.load(path).kernels) == ["same", "same_1"]


def test_the_graph_finds_the_kernels_that_the_layers_have(tmp_path):
    layers = keras.layers
    image = keras.Input((8, 8, 1), name="image")
    x = layers.SeparableConv2D(4, 3, name="separable")(layers.Conv2D(8, 3, name="conv")(image))
    x = layers.Reshape((64, 3))(layers.Conv2DTranspose(3, 2, strides=2, name="transposed")(x))
    x = layers.LSTM(5, name="lstm")(layers.MultiHeadAttention(2, 4, name="attention")(x, x))
    model = keras.Model(image, layers.Dense(3, name="out")(x))
    model.export(str(tmp_path / "model"), verbose=False)
    found = saved_model.load(str(tmp_path / "model")).kernels
    by_shape = {kernel.values.tobytes(): kernel for kernel in found.values()}
    expected = kernels.find_kernels(model)
    assert len(found) == len(expected)
    for kernel in expected.values():
        same = by_shape[kernel.values.tobytes()]
        assert (same.input_axes, same.output_axes) == (kernel.input_axes, kernel.output_axes)


def test_assets_tables_and_other_signatures_survive(tmp_path):
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("one\ntwo\n")
    model = saved_model.load(kinds.module(tmp_path / "model", vocabulary))
    vocabulary.unlink()
    model.kernels["first"].variable.assign(np.zeros([4, 8]))
    model.save(str(tmp_path / "pruned"))
    x, _ = helpers.points(2)
    answer = helpers.answers(str(tmp_path / "pruned"), x=x, word=["two", "none"])
    np.testing.assert_array_equal(answer["word"], [1, -1])
    assert not answer["y"].any()
    assert os.listdir(tmp_path / "pruned" / "assets") == ["words.txt"]
    assert (tmp_path / "pruned" / "saved_model.pb").read_bytes() == (tmp_path / "model" / "saved_model.pb").read_bytes()


def test_saving_over_the_model_that_is_read_is_refused(tmp_path):
    model = saved_model.load(kinds.module(tmp_path / "model"))
    with pytest.raises(ModelError, match="another path"):
        model.save(str(tmp_path / "model"))


def test_a_saved_model_without_signatures_is_refused(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "model"))
    with pytest.raises(ModelError, match="no signatures"):
        saved_model.load(str(tmp_path / "model"))


@pytest.mark.parametrize("how", ["relative", "link", "linked variables"])
def test_no_spelling_of_the_path_destroys_the_model_that_is_read(tmp_path, how, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = saved_model.load(kinds.module(tmp_path / "model"))
    target = "model" if how == "relative" else "other"
    if how == "link":
        (tmp_path / "other").symlink_to(tmp_path / "model")
    if how == "linked variables":
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "variables").symlink_to(tmp_path / "model" / "variables")
    with pytest.raises(ModelError, match="another path"):
        model.save(target)
    assert list(saved_model.load(str(tmp_path / "model")).kernels) == ["first", "second"]


def test_a_file_is_never_copied_onto_itself(tmp_path):
    model = saved_model.load(kinds.module(tmp_path / "model"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "saved_model.pb").symlink_to(tmp_path / "model" / "saved_model.pb")
    model.save(str(tmp_path / "other"))
    for name in ("model", "other"):
        assert list(saved_model.load(str(tmp_path / name)).kernels) == ["first", "second"]


def test_kernels_in_a_branch_before_a_loop_are_found_or_left_alone(tmp_path):
    def function(x, a, b, c):
        x = tf.cond(tf.reduce_sum(x) > 0, lambda: x @ a, lambda: x @ b)
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y @ c[i]), (0, x))[1]

    model = saved(tmp_path, function, [None, 8], a=(8, 8), b=(8, 8), c=(3, 8, 8))
    assert list(model.kernels) == ["a", "b"]
    assert model.unrecognized == ("c",)


def test_whole_numbers_that_multiply_are_left_alone_and_named(tmp_path):
    quantized, table = (tf.Variable(np.ones([4, 4]), dtype=tf.int32, name=name) for name in ("quantized", "table"))
    scaled = tf.Variable(np.ones([4, 4]), dtype=tf.uint8, name="scaled")

    def serve(x):
        y = x @ tf.cast(quantized, tf.float32) @ (tf.cast(scaled, tf.float32) / 255.0)
        return {"y": y, "found": tf.gather(table, tf.cast(x, tf.int32))}

    specs = [tf.TensorSpec([None, 4], tf.float32, name="x")]
    path = helpers.save_function(serve, specs, tmp_path / "model", made=[quantized, table, scaled])
    assert set(saved_model.load(path).unrecognized) == {"quantized", "scaled"}


def test_a_saved_model_of_tensorflow_1_is_refused_when_saving(tmp_path):
    path = str(tmp_path / "model")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="x")
        y = tf.matmul(x, tf.compat.v1.get_variable("w", [4, 4]))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, path, {"x": x}, {"y": y})
    model = saved_model.load(path)
    with pytest.raises(ModelError, match=r"TensorFlow 1.*\. Remedy"):
        model.save(str(tmp_path / "pruned"))


def test_the_ends_are_told_by_the_data_not_by_the_order_of_reading(tmp_path):
    def function(x, last, middle, first):
        read = tf.transpose(tf.transpose(last))
        return tf.nn.relu(x @ first) @ middle @ read

    model = saved(tmp_path, function, [None, 4], last=(8, 2), middle=(8, 8), first=(4, 8))
    assert model.first_and_last_kernels == (("first",), ("last",))
