"""The loss of a student with teachers, against SciPy's entropy and softmax."""

import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from scipy import special, stats
from tfx_compression import model_handle
from tfx_compression.errors import ConfigError
from tfx_compression.saved_models import saved_model
from tfx_compression.sparsity_fine_tuner import training_model
from tfx_compression.sparsity_fine_tuner.config import Distillation, FineTuning
from tfx_compression.sparsity_fine_tuner.distillation import DistillationLoss
from tfx_compression.sparsity_fine_tuner.variables import unique

from tests.support import helpers, kinds
from tests.support.distillation_nets import net, signature, teacher, two_inputs, two_outputs
from tests.support.errors import raises

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


OWN = 0.75


LIBRARIES = pytest.mark.parametrize("library", [tf_keras, keras], ids=["Keras 2", "Keras 3"])


def outputs(model, x=X):
    return np.float64(tf.convert_to_tensor(model(x)))


def distilled(student, teachers, x=X, taps=None, y_pred=None, own=OWN, **config):
    """The loss of a student, and the lesson."""
    student, teachers = model_handle.wrap(student), [model_handle.wrap(each) for each in teachers]
    made = DistillationLoss(Distillation(**config), student, student.network, teachers)
    y_pred = student.model(x) if y_pred is None else y_pred
    return float(made(tf.constant(own), x, y_pred, taps or {}))


def divergence(student, teachers, temperature):
    """The mean KL divergence of softened distributions, from logits."""
    wanted = np.mean([special.softmax(each / temperature, -1) for each in teachers], axis=0)
    return np.mean(stats.entropy(wanted, special.softmax(student / temperature, -1), axis=-1))


def two_classes(logits):
    """Each unit as two classes."""
    return np.stack([np.zeros_like(logits), logits], -1)


@LIBRARIES
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_probabilities_are_compared_as_softened_distributions(library, temperature):
    student, other = net(library), teacher(library)
    found = distilled(student, [other], temperature=temperature, alpha=0.3)
    far = divergence(np.log(outputs(student)), [np.log(outputs(other))], temperature)
    assert far > 0.005
    np.testing.assert_allclose(found, 0.7 * OWN + 0.3 * temperature**2 * far, rtol=1e-5)


@LIBRARIES
def test_logits_are_compared_as_softened_distributions(library):
    loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
    student, other = (
        net(library, "linear", loss),
        teacher(library, activation="linear", loss=loss),
    )
    far = divergence(outputs(student), [outputs(other)], 2.0)
    np.testing.assert_allclose(distilled(student, [other]), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-5)


@LIBRARIES
def test_each_sigmoid_unit_is_a_distribution(library):
    student, other = net(library, "sigmoid"), teacher(library, activation="sigmoid")
    logits, wanted = (two_classes(special.logit(outputs(model))) for model in (student, other))
    far = divergence(logits, [wanted], 2.0)
    np.testing.assert_allclose(distilled(student, [other]), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-4)


@LIBRARIES
def test_binary_logits_are_compared_per_unit(library):
    loss = functools.partial(library.losses.binary_crossentropy, from_logits=True)
    student, other = (
        net(library, "linear", loss, units=1),
        teacher(library, activation="linear", units=1),
    )
    far = divergence(two_classes(outputs(student)), [two_classes(outputs(other))], 2.0)
    np.testing.assert_allclose(distilled(student, [other]), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-5)


@LIBRARIES
def test_values_are_compared_by_their_squared_difference(library):
    student, others = (
        net(library, "linear", "mse"),
        [teacher(library, seed, activation="linear") for seed in (2, 3)],
    )
    wanted = np.mean([outputs(other) for other in others], axis=0)
    far = np.mean((outputs(student) - wanted) ** 2)
    np.testing.assert_allclose(distilled(student, others), 0.5 * OWN + 0.5 * far, rtol=1e-5)


def test_several_teachers_are_averaged_after_softening():
    student, others = (
        net(),
        [teacher(), teacher(keras, 3), teacher(seed=4)],
    )
    far = divergence(np.log(outputs(student)), [np.log(outputs(other)) for other in others], 2.0)
    np.testing.assert_allclose(distilled(student, others), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-5)


def test_alpha_weights_the_teachers():
    assert distilled(net(), [teacher()], alpha=0.0) == pytest.approx(OWN)
    whole, half = (distilled(net(), [teacher()], own=0.0, alpha=alpha) for alpha in (1.0, 0.5))
    assert whole == pytest.approx(2 * half)
    assert distilled(net(), [teacher()], own=99.0, alpha=1.0) == pytest.approx(whole)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "linear"])
def test_student_equal_to_its_teacher_has_no_loss(activation):
    same = [net(activation=activation) for _ in range(2)]
    assert distilled(same[0], same[1:], alpha=1.0) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("outputs", ["probabilities", "logits"])
@pytest.mark.parametrize("sure", ["softmax", "sigmoid"])
def test_extreme_outputs_give_finite_losses_and_gradients(outputs, sure):
    student, other = (
        model_handle.wrap(net(activation=sure)),
        model_handle.wrap(teacher(activation=sure)),
    )
    made = DistillationLoss(Distillation(outputs=outputs), student, student.network, [other])
    other.model.get_layer("y").set_weights([np.zeros([5, 3]), np.array([200.0, -200.0, 0.0])])
    predicted = tf.constant([[0.0, 1.0, 0.0], [1e-30, 1.0, 0.0], [1.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        loss = made(tf.constant(OWN), X[:3], predicted, {})
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, predicted)).all()


def test_positions_of_a_sequence_are_averaged():
    def sequence(seed):
        tf_keras.utils.set_random_seed(seed)
        dense = tf_keras.layers.Dense(3, activation="softmax")
        return tf_keras.Sequential([tf_keras.Input((7, 4)), tf_keras.layers.TimeDistributed(dense)])

    x = np.random.default_rng(1).normal(size=(2, 7, 4)).astype(np.float32)
    student, other = sequence(1), sequence(2)
    far = divergence(np.log(outputs(student, x)), [np.log(outputs(other, x))], 2.0)
    np.testing.assert_allclose(distilled(student, [other], x), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-5)


@pytest.mark.parametrize(("library", "other"), [(tf_keras, keras), (keras, tf_keras)], ids=["2 of 3", "3 of 2"])
def test_student_and_teacher_of_different_keras(library, other):
    student, master = net(library), teacher(other)
    far = divergence(np.log(outputs(student)), [np.log(outputs(master))], 2.0)
    np.testing.assert_allclose(distilled(student, [master]), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-5)


@LIBRARIES
def test_saved_model_without_layers_teaches_and_learns(library, tmp_path):
    student, master = net(library), teacher(library)
    wanted = distilled(student, [master])
    saved = signature(master, tmp_path / "teacher")
    assert distilled(student, [saved]) == pytest.approx(wanted)
    assert distilled(student, [saved], x={"x": X.astype(np.float64)}, y_pred=student(X)) == pytest.approx(wanted)
    learner = signature(student, tmp_path / "student")
    y_pred = {"y": tf.convert_to_tensor(student(X))}
    for x in (X, {"x": X, "id": np.arange(6)}):
        assert distilled_signature(learner, [saved, model_handle.wrap(master)], x, y_pred) == pytest.approx(wanted)


def distilled_signature(student, teachers, x, y_pred, **config):
    made = DistillationLoss(Distillation(outputs="probabilities", **config), student, None, teachers)
    return float(made(tf.constant(OWN), x, y_pred, {}))


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
    wanted = np.log(outputs(plain, [rows["a"], rows["b"]]))
    far = divergence(np.log(outputs(student, x)), [wanted], 2.0)
    np.testing.assert_allclose(distilled(student, [master], x), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-5)


@LIBRARIES
@pytest.mark.parametrize("student_form", ["list", "dict"])
@pytest.mark.parametrize("teacher_form", ["list", "dict"])
def test_several_outputs_are_matched_by_name_and_added(library, student_form, teacher_form):
    student, master = (
        two_outputs(library, student_form),
        two_outputs(library, teacher_form, seed=2),
    )
    answer, wanted = (
        model(X) if form == "dict" else dict(zip("pv", model(X), strict=True))
        for model, form in ((student, student_form), (master, teacher_form))
    )
    far = 4.0 * divergence(np.log(np.float64(answer["p"])), [np.log(np.float64(wanted["p"]))], 2.0)
    far += np.mean((np.float64(answer["v"]) - np.float64(wanted["v"])) ** 2)
    np.testing.assert_allclose(distilled(student, [master]), 0.5 * OWN + 0.5 * far, rtol=1e-4)


def test_lists_of_outputs_with_other_names_are_matched_in_order():
    student = two_outputs(tf_keras, "list")
    same, named = (two_outputs(tf_keras, "list", names, seed=2) for names in (("p", "v"), ("first", "second")))
    assert distilled(student, [named]) == pytest.approx(distilled(student, [same]))


@LIBRARIES
def test_gradients_flow_to_the_student_only(library):
    student, master = (
        model_handle.wrap(net(library)),
        model_handle.wrap(teacher(library)),
    )
    made = DistillationLoss(Distillation(alpha=0.7), student, student.network, [master])
    kernel = student.model.get_layer("y").kernel
    variable = kernel if library is tf_keras else kernel.value

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            answer = student.model(X, training=True)
            loss = made(tf.reduce_mean(answer[:, 0]), X, answer, {})
        return loss, tape.gradient(loss, [variable, *unique(master.model.weights)])

    _, (found, *others) = gradients()
    assert others == [None] * len(master.model.weights)
    values = variable.numpy()

    def loss_at(place, step):
        moved = values.copy()
        moved[place] += step
        variable.assign(moved)
        return float(gradients()[0])

    numeric = [(loss_at(place, 1e-2) - loss_at(place, -1e-2)) / 2e-2 for place in np.ndindex(values.shape)]
    np.testing.assert_allclose(np.ravel(found), numeric, atol=2e-4)


@LIBRARIES
def test_training_step_changes_the_student_only(library):
    def noisy(seed, name):
        library.utils.set_random_seed(seed)
        layers = library.layers
        x = library.Input((4,), name="x")
        hidden = layers.BatchNormalization(name="hidden")(layers.Dense(5)(x))
        y = layers.Dense(2, name="y")(layers.Dropout(0.5)(hidden))
        model = library.Model(x, y, name=name)
        model.compile("sgd", "mse")
        return model_handle.wrap(model)

    student, master = noisy(1, "student"), noisy(2, "teacher")
    before = [weight.numpy() for weight in unique(master.model.weights)]
    first = [np.array(weight) for weight in student.model.get_weights()]
    config = FineTuning(learning_rate=0.1)
    model = training_model.from_network(student, student.network, config, feature_layers=("hidden",))
    count = len(model.weights)
    distillation = Distillation(alpha=1.0, features={"hidden": "hidden"})
    model.distillation_loss = DistillationLoss(distillation, student, model, [master])
    model.training_step = True
    step = tf.function(model.train_step)
    batch = (tf.constant(X), tf.zeros([6, 2]))
    losses = [float(step(batch)["loss"]) for _ in range(2)]
    assert np.isfinite(losses).all()
    assert len(model.weights) == count
    for weight, old in zip(unique(master.model.weights), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert any((new != old).any() for new, old in zip(student.model.get_weights(), first, strict=True))


@pytest.mark.parametrize(("library", "other"), [(tf_keras, keras), (keras, tf_keras)], ids=["2 of 3", "3 of 2"])
def test_layers_are_compared_by_their_squared_difference(library, other):
    student, master = net(library), teacher(other)
    plain = distilled(student, [master, teacher(seed=3)])
    taps = {"hidden": tf.fill([6, 5], 0.25)}
    features = {"features": {"hidden": "hidden"}, "feature_weight": 3.0}
    seen = outputs(other.Model(master.input, master.get_layer("hidden").output))
    found = distilled(student, [master, teacher(seed=3)], taps=taps, **features)
    assert found - plain == pytest.approx(3.0 * np.mean((0.25 - seen) ** 2), rel=1e-4)


def test_models_in_16_bits_are_compared_in_32():
    policy = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        student, master = net(), teacher()
    finally:
        tf_keras.mixed_precision.set_global_policy(policy)
    far = divergence(np.log(outputs(student)), [np.log(outputs(master))], 2.0)
    np.testing.assert_allclose(distilled(student, [master]), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-3)


def test_loss_is_divided_by_the_number_of_replicas(monkeypatch):
    student, others = net(), [teacher()]
    alone, features = distilled(student, others), {"features": {"y": "y"}, "taps": {"y": tf.ones([6, 3])}}
    guided = distilled(student, others, **features)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: types.SimpleNamespace(num_replicas_in_sync=4))
    assert distilled(student, others) - 0.5 * OWN == pytest.approx((alone - 0.5 * OWN) / 4, rel=1e-4)
    assert distilled(student, others, **features) - 0.5 * OWN == pytest.approx((guided - 0.5 * OWN) / 4, rel=1e-4)


# Refusals.


def test_missing_teacher_is_refused():
    with raises(ConfigError, field="FineTuning.distillation", code="teacher-missing"):
        distilled(net(), [])


def test_student_as_its_own_teacher_is_refused():
    student = net()
    with raises(ConfigError, field="FineTuning.distillation", code="teacher-is-student"):
        distilled(student, [teacher(), student])


def test_saved_model_requires_the_form_of_its_outputs(tmp_path):
    student = signature(net(), tmp_path / "student")
    with raises(ConfigError, field="Distillation.outputs", code="unknown-outputs", match="student"):
        DistillationLoss(Distillation(), student, None, [model_handle.wrap(teacher())])


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
    path = helpers.save_with_examples_signature(helpers.small_cnn(), tmp_path / "examples")
    examples = model_handle.ModelHandle("saved_model", saved_model.load(path), path)
    student = helpers.small_cnn()
    with raises(ConfigError, code="teacher-inputs-mismatch", match="examples .*; .* image "):
        distilled(student, [examples], np.zeros([2, *helpers.IMAGE], np.float32))


def test_teacher_of_another_output_form_is_refused():
    logits = tf_keras.losses.CategoricalCrossentropy(from_logits=True)
    with raises(
        ConfigError,
        field="Distillation.outputs",
        code="teacher-form-mismatch",
        match="softmax logits.*softmax probabilities",
    ):
        distilled(net(), [teacher(activation="linear", loss=logits)])


def test_data_without_an_input_is_refused():
    student = two_inputs(tf_keras, "list")
    with raises(ConfigError, code="distillation-features-mismatch", match=r"a \(None, 1\), b \(None, 1\), .* a, other"):
        distilled(
            student,
            [two_inputs(keras, "list")],
            {"a": X[:, :1], "other": X[:, :1]},
            y_pred=tf.ones([6, 3]) / 3,
        )


def test_incomparable_features_are_refused(tmp_path):
    with raises(
        ConfigError, field="Distillation.features", code="feature-shape-mismatch", match=r"\(None, 5\).*\(None, 8\)"
    ):
        distilled(net(), [teacher(hidden=8)], features={"hidden": "hidden"})
    with raises(ConfigError, field="Distillation.features", code="unknown-layer", match="'none'.*'teacher'.*hidden, y"):
        distilled(net(), [teacher()], features={"hidden": "none"})
    saved = signature(net(), tmp_path / "saved")
    with raises(ConfigError, field="Distillation.features", code="no-layers", match="first teacher"):
        distilled(net(), [saved, teacher()], features={"hidden": "hidden"})
    with raises(ConfigError, field="Distillation.features", code="no-layers", match="student"):
        distilled_signature(saved, [model_handle.wrap(teacher())], X, None, features={"hidden": "hidden"})
