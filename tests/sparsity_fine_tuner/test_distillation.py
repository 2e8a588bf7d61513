"""The loss of a student with teachers, against SciPy's entropy and softmax."""

import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from scipy import special
from tfx_compression import model_handle
from tfx_compression.errors import ConfigError
from tfx_compression.sparsity_fine_tuner import training_model
from tfx_compression.sparsity_fine_tuner.config import Distillation, FineTuning
from tfx_compression.sparsity_fine_tuner.distillation import DistillationLoss
from tfx_compression.sparsity_fine_tuner.variables import unique

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
)
from tests.support.errors import raises


def two_classes(logits):
    """Returns the logits of two classes for each unit."""
    return np.stack([np.zeros_like(logits), logits], -1)


@LIBRARIES
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_probabilities_are_compared_as_softened_distributions(library, temperature):
    student, other = net(library), teacher(library)
    loss = distilled(student, [other], temperature=temperature, alpha=0.3)
    distance = divergence(np.log(outputs(student)), [np.log(outputs(other))], temperature)
    assert distance > 0.005
    np.testing.assert_allclose(loss, 0.7 * STUDENT_LOSS + 0.3 * temperature**2 * distance, rtol=1e-5)


@LIBRARIES
def test_logits_are_compared_as_softened_distributions(library):
    loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
    student, other = (
        net(library, "linear", loss),
        teacher(library, activation="linear", loss=loss),
    )
    distance = divergence(outputs(student), [outputs(other)], 2.0)
    np.testing.assert_allclose(distilled(student, [other]), 0.5 * STUDENT_LOSS + 0.5 * 4.0 * distance, rtol=1e-5)


@LIBRARIES
def test_each_sigmoid_unit_is_a_distribution(library):
    student, other = net(library, "sigmoid"), teacher(library, activation="sigmoid")
    logits, expected = (two_classes(special.logit(outputs(model))) for model in (student, other))
    distance = divergence(logits, [expected], 2.0)
    np.testing.assert_allclose(distilled(student, [other]), 0.5 * STUDENT_LOSS + 0.5 * 4.0 * distance, rtol=1e-4)


@LIBRARIES
def test_binary_logits_are_compared_per_unit(library):
    loss = functools.partial(library.losses.binary_crossentropy, from_logits=True)
    student, other = (
        net(library, "linear", loss, units=1),
        teacher(library, activation="linear", units=1),
    )
    distance = divergence(two_classes(outputs(student)), [two_classes(outputs(other))], 2.0)
    np.testing.assert_allclose(distilled(student, [other]), 0.5 * STUDENT_LOSS + 0.5 * 4.0 * distance, rtol=1e-5)


@LIBRARIES
def test_values_are_compared_by_their_squared_difference(library):
    student, others = (
        net(library, "linear", "mse"),
        [teacher(library, seed, activation="linear") for seed in (2, 3)],
    )
    expected = np.mean([outputs(other) for other in others], axis=0)
    distance = np.mean((outputs(student) - expected) ** 2)
    np.testing.assert_allclose(distilled(student, others), 0.5 * STUDENT_LOSS + 0.5 * distance, rtol=1e-5)


def test_several_teachers_are_averaged_after_softening():
    student, others = (
        net(),
        [teacher(), teacher(keras, 3), teacher(seed=4)],
    )
    distance = divergence(np.log(outputs(student)), [np.log(outputs(other)) for other in others], 2.0)
    np.testing.assert_allclose(distilled(student, others), 0.5 * STUDENT_LOSS + 0.5 * 4.0 * distance, rtol=1e-5)


def test_alpha_weights_the_teachers():
    assert distilled(net(), [teacher()], alpha=0.0) == pytest.approx(STUDENT_LOSS)
    full, half = (distilled(net(), [teacher()], student_loss=0.0, alpha=alpha) for alpha in (1.0, 0.5))
    assert full == pytest.approx(2 * half)
    assert distilled(net(), [teacher()], student_loss=99.0, alpha=1.0) == pytest.approx(full)


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
    distillation_loss = DistillationLoss(Distillation(outputs=outputs), student, student.network, [other])
    other.model.get_layer("y").set_weights([np.zeros([5, 3]), np.array([200.0, -200.0, 0.0])])
    predicted = tf.constant([[0.0, 1.0, 0.0], [1e-30, 1.0, 0.0], [1.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        loss = distillation_loss(tf.constant(STUDENT_LOSS), X[:3], predicted, {})
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, predicted)).all()


def test_positions_of_a_sequence_are_averaged():
    def sequence(seed):
        tf_keras.utils.set_random_seed(seed)
        dense = tf_keras.layers.Dense(3, activation="softmax")
        return tf_keras.Sequential([tf_keras.Input((7, 4)), tf_keras.layers.TimeDistributed(dense)])

    x = np.random.default_rng(1).normal(size=(2, 7, 4)).astype(np.float32)
    student, other = sequence(1), sequence(2)
    distance = divergence(np.log(outputs(student, x)), [np.log(outputs(other, x))], 2.0)
    np.testing.assert_allclose(distilled(student, [other], x), 0.5 * STUDENT_LOSS + 0.5 * 4.0 * distance, rtol=1e-5)


@LIBRARIES
def test_gradients_flow_to_the_student_only(library):
    student, master = (
        model_handle.wrap(net(library)),
        model_handle.wrap(teacher(library)),
    )
    distillation_loss = DistillationLoss(Distillation(alpha=0.7), student, student.network, [master])
    kernel = student.model.get_layer("y").kernel
    variable = kernel if library is tf_keras else kernel.value

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            answer = student.model(X, training=True)
            loss = distillation_loss(tf.reduce_mean(answer[:, 0]), X, answer, {})
        return loss, tape.gradient(loss, [variable, *unique(master.model.weights)])

    _, (gradient, *others) = gradients()
    assert others == [None] * len(master.model.weights)
    values = variable.numpy()

    def loss_at(place, step):
        moved = values.copy()
        moved[place] += step
        variable.assign(moved)
        return float(gradients()[0])

    numeric = [(loss_at(place, 1e-2) - loss_at(place, -1e-2)) / 2e-2 for place in np.ndindex(values.shape)]
    np.testing.assert_allclose(np.ravel(gradient), numeric, atol=2e-4)


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
    layer_outputs = {"hidden": tf.fill([6, 5], 0.25)}
    features = {"features": {"hidden": "hidden"}, "feature_weight": 3.0}
    seen = outputs(other.Model(master.input, master.get_layer("hidden").output))
    loss = distilled(student, [master, teacher(seed=3)], layer_outputs=layer_outputs, **features)
    assert loss - plain == pytest.approx(3.0 * np.mean((0.25 - seen) ** 2), rel=1e-4)


def test_models_in_16_bits_are_compared_in_32():
    policy = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        student, master = net(), teacher()
    finally:
        tf_keras.mixed_precision.set_global_policy(policy)
    distance = divergence(np.log(outputs(student)), [np.log(outputs(master))], 2.0)
    np.testing.assert_allclose(distilled(student, [master]), 0.5 * STUDENT_LOSS + 0.5 * 4.0 * distance, rtol=1e-3)


def test_loss_is_divided_by_the_number_of_replicas(monkeypatch):
    student, others = net(), [teacher()]
    alone, features = distilled(student, others), {"features": {"y": "y"}, "layer_outputs": {"y": tf.ones([6, 3])}}
    guided = distilled(student, others, **features)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: types.SimpleNamespace(num_replicas_in_sync=4))
    assert distilled(student, others) - 0.5 * STUDENT_LOSS == pytest.approx((alone - 0.5 * STUDENT_LOSS) / 4, rel=1e-4)
    assert distilled(student, others, **features) - 0.5 * STUDENT_LOSS == pytest.approx(
        (guided - 0.5 * STUDENT_LOSS) / 4, rel=1e-4
    )


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


def test_teacher_of_another_output_form_is_refused():
    logits = tf_keras.losses.CategoricalCrossentropy(from_logits=True)
    with raises(
        ConfigError,
        field="Distillation.outputs",
        code="teacher-form-mismatch",
        match="softmax logits.*softmax probabilities",
    ):
        distilled(net(), [teacher(activation="linear", loss=logits)])


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
