"""A SavedModel written again with other values of its variables, and nothing else changed."""

import os

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.errors import ModelError
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.saved_models import checkpoint, saved_model

from tests.support import helpers, kinds
from tests.support.errors import raises


@pytest.fixture
def model(tmp_path) -> saved_model.SavedModel:
    return saved_model.load(kinds.module(tmp_path / "model"))


def test_assets_tables_and_graph_survive(tmp_path):
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


def test_files_made_from_the_old_values_are_not_copied(tmp_path, model):
    (tmp_path / "model" / "model.keras").write_text("old values")
    model.save(str(tmp_path / "pruned"))
    assert sorted(os.listdir(tmp_path / "pruned")) == ["assets", "saved_model.pb", "variables"]


@pytest.mark.parametrize("spelling", ["same", "relative", "link", "linked variables"])
def test_no_spelling_of_the_path_overwrites_the_model_that_is_read(tmp_path, monkeypatch, model, spelling):
    monkeypatch.chdir(tmp_path)
    target = {"same": str(tmp_path / "model"), "relative": "model"}.get(spelling, "other")
    if spelling == "link":
        (tmp_path / "other").symlink_to(tmp_path / "model")
    if spelling == "linked variables":
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "variables").symlink_to(tmp_path / "model" / "variables")
    with raises(ModelError, code="same-path"):
        model.save(target)
    assert list(saved_model.load(str(tmp_path / "model")).kernels) == ["first", "second"]


def test_a_file_is_never_copied_onto_itself(tmp_path, model):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "saved_model.pb").symlink_to(tmp_path / "model" / "saved_model.pb")
    model.save(str(tmp_path / "other"))
    for name in ("model", "other"):
        assert list(saved_model.load(str(tmp_path / name)).kernels) == ["first", "second"]


def test_remote_paths_are_compared_by_their_names():
    assert checkpoint.same_path("gs://bucket/a/../model/", "gs://bucket/model")
    assert not checkpoint.same_path("gs://bucket/model", "/bucket/model")


def test_a_variable_that_the_checkpoint_lacks_is_named(tmp_path, model):
    with raises(ModelError, code="missing-values", match="another"):
        checkpoint.save_variables(model.loaded, model.path, str(tmp_path / "out"), {"another": tf.Variable(1.0)})
    assert not (tmp_path / "out").exists()


def tensorflow_1(path, partitioner=None):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="x")
        weights = tf.compat.v1.get_variable("layer/w", [4, 4], partitioner=partitioner, use_resource=True)
        y = tf.matmul(x, tf.convert_to_tensor(weights), name="y")
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, path, {"x": x}, {"y": y})
    return path


def test_a_saved_model_of_tensorflow_1_is_saved_with_other_values(tmp_path):
    model = saved_model.load(tensorflow_1(str(tmp_path / "model")))
    model.kernels["layer/w"].variable.assign(2 * np.eye(4))
    model.save(str(tmp_path / "pruned"))
    x, _ = helpers.points(3)
    np.testing.assert_allclose(helpers.answers(str(tmp_path / "pruned"), x=x)["y"], 2 * x, rtol=1e-6)


def test_a_model_that_could_not_be_saved_is_rejected_before_it_is_pruned_and_the_remedy_works(tmp_path):
    path = tensorflow_1(str(tmp_path / "model"), tf.compat.v1.fixed_size_partitioner(2))
    with raises(ModelError, code="missing-values", match=r"layer/w/part_0.*signatures=dict\(loaded.signatures\)"):
        prune(path, PruningPlan(protect=(), sparsity=0.5))
    loaded = tf.saved_model.load(path)
    tf.saved_model.save(loaded, str(tmp_path / "again"), signatures=dict(loaded.signatures))
    saved_model.load(str(tmp_path / "again")).require_savable()
