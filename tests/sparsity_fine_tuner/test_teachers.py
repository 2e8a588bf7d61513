"""Teachers of every kind: how their inputs and outputs are matched with the student's, and mismatches."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.errors import ConfigError
from tfx_compression.saved_models import saved_model
from tfx_compression.sparsity_fine_tuner.variables import unique

from tests.support import helpers, kinds
from tests.support.distillation_nets import (
    LIBRARIES,
    STUDENT_LOSS,
    X,
    distilled,
    distilled_signature,
    divergence,
    net,
    outputs,
    signature,
    teacher,
    two_inputs,
    two_outputs,
)
from tests.support.errors import raises


@LIBRARIES
def test_saved_model_without_layers_teaches_and_learns(library, tmp_path):
    student, master = net(library), teacher(library)
    expected = distilled(student, [master])
    saved = signature(master, tmp_path / "teacher")
    assert distilled(student, [saved]) == pytest.approx(expected)
    assert distilled(student, [saved], x={"x": X.astype(np.float64)}, y_pred=student(X)) == pytest.approx(expected)
    learner = signature(student, tmp_path / "student")
    y_pred = {"y": tf.convert_to_tensor(student(X))}
    for x in (X, {"x": X, "id": np.arange(6)}):
        assert distilled_signature(learner, [saved, model_handle.wrap(master)], x, y_pred) == pytest.approx(expected)


def test_subclassed_teacher():
    inner = teacher()

    class Subclassed(tf_keras.Model):
        def call(self, inputs, training=None):
            return inner(inputs, training=training)

    student = net()
    assert distilled(student, [Subclassed()]) == pytest.approx(distilled(student, [inner]))
    inner = teacher(units=4)
    with raises(ConfigError, code="teacher-outputs-mismatch", match=r"0 \(6, 4\).*y \(None, 3\)"):
        distilled(student, [Subclassed()])


@pytest.mark.parametrize("fed", ["list", "dict"])
@pytest.mark.parametrize("form", ["list", "reversed list", "dict", "SavedModel"])
@pytest.mark.parametrize("library", [tf_keras, keras], ids=["2 of 3", "3 of 2"])
def test_several_inputs_are_matched_by_name(library, form, fed, tmp_path):
    other = keras if library is tf_keras else tf_keras
    student = two_inputs(library, fed)
    rows = {name: X[:, place : place + 1] for place, name in enumerate("ab")}
    x = rows if fed == "dict" else [rows["a"], rows["b"]]
    plain = two_inputs(other, "list", seed=2)
    master = plain
    if form == "dict":
        master = two_inputs(other, "dict", seed=2)
    elif form == "reversed list":
        master = two_inputs(other, "list", ("b", "a"), seed=2)
    elif form == "SavedModel":
        specs = [tf.TensorSpec([None, 1], tf.float32, name=name) for name in "ab"]
        weights = unique(plain.weights)
        path = helpers.save_function(lambda a, b: {"y": plain([a, b])}, specs, tmp_path / "it", weights=weights)
        master = model_handle.load(path)
    expected = np.log(outputs(plain, [rows["a"], rows["b"]]))
    distance = divergence(np.log(outputs(student, x)), [expected], 2.0)
    np.testing.assert_allclose(distilled(student, [master], x), 0.5 * STUDENT_LOSS + 0.5 * 4.0 * distance, rtol=1e-5)


@LIBRARIES
@pytest.mark.parametrize("student_form", ["list", "dict"])
@pytest.mark.parametrize("teacher_form", ["list", "dict"])
def test_several_outputs_are_matched_by_name_and_added(library, student_form, teacher_form):
    student, master = (
        two_outputs(library, student_form),
        two_outputs(library, teacher_form, seed=2),
    )
    answer, expected = (
        model(X) if form == "dict" else dict(zip("pv", model(X), strict=True))
        for model, form in ((student, student_form), (master, teacher_form))
    )
    distance = 4.0 * divergence(np.log(np.float64(answer["p"])), [np.log(np.float64(expected["p"]))], 2.0)
    distance += np.mean((np.float64(answer["v"]) - np.float64(expected["v"])) ** 2)
    np.testing.assert_allclose(distilled(student, [master]), 0.5 * STUDENT_LOSS + 0.5 * distance, rtol=1e-4)


def test_lists_of_outputs_with_other_names_are_matched_in_order():
    student = two_outputs(tf_keras, "list")
    same, named = (two_outputs(tf_keras, "list", names, seed=2) for names in (("p", "v"), ("first", "second")))
    assert distilled(student, [named]) == pytest.approx(distilled(student, [same]))


@pytest.mark.parametrize(("library", "other"), [(tf_keras, keras), (keras, tf_keras)], ids=["2 of 3", "3 of 2"])
def test_student_and_teacher_of_different_keras(library, other):
    student, master = net(library), teacher(other)
    distance = divergence(np.log(outputs(student)), [np.log(outputs(master))], 2.0)
    np.testing.assert_allclose(distilled(student, [master]), 0.5 * STUDENT_LOSS + 0.5 * 4.0 * distance, rtol=1e-5)


def test_teacher_of_other_outputs_is_refused(tmp_path):
    with raises(ConfigError, code="teacher-outputs-mismatch", match=r"'teacher'.*y \(None, 4\).*y \(None, 3\)"):
        distilled(net(), [teacher(units=4)])
    with raises(ConfigError, code="teacher-outputs-mismatch", match="p .*, v .*; .* y"):
        distilled(net(), [two_outputs(keras, "dict")])
    with raises(ConfigError, code="teacher-outputs-mismatch", match="a .*, b .*; .* p .*, v"):
        distilled(two_outputs(keras, "dict"), [two_outputs(keras, "dict", ("a", "b"))])
    with raises(ConfigError, code="teacher-outputs-mismatch", match=r"saved, .*y \(None, 4\)"):
        distilled(net(), [signature(net(units=4), tmp_path / "saved")])


def test_teacher_of_other_inputs_is_refused(tmp_path):
    with raises(ConfigError, code="teacher-inputs-mismatch", match=r"a \(None, 1\), b \(None, 1\); .* x \(None, 4\)"):
        distilled(net(units=2, activation="linear"), [kinds.two_features(keras)])
    spec = tf.TensorSpec([None], tf.string, name="examples")
    path = helpers.save_function(lambda examples: {"y": tf.strings.length(examples)}, [spec], tmp_path / "examples")
    examples = model_handle.ModelHandle("saved_model", saved_model.load(path), path)
    student = helpers.small_cnn()
    with raises(ConfigError, code="teacher-inputs-mismatch", match="examples .*; .* image "):
        distilled(student, [examples], np.zeros([2, *helpers.IMAGE], np.float32))


def test_data_without_an_input_is_refused():
    student = two_inputs(tf_keras, "list")
    with raises(ConfigError, code="distillation-features-mismatch", match=r"a \(None, 1\), b \(None, 1\), .* a, other"):
        distilled(
            student,
            [two_inputs(keras, "list")],
            {"a": X[:, :1], "other": X[:, :1]},
            y_pred=tf.ones([6, 3]) / 3,
        )
