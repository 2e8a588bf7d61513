"""What a student learns from its teachers, against scipy's entropy and softmax."""

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
from tfx_compression.sparsity_fine_tuner import lessons, trainee
from tfx_compression.sparsity_fine_tuner.config import Distillation, FineTuning

from tests.support import helpers, kinds

LIBRARIES = pytest.mark.parametrize("library", [tf_keras, keras], ids=["Keras 2", "Keras 3"])
OWN = 0.75
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def net(library=tf_keras, activation="softmax", loss=None, units=3, seed=1, name="student", hidden=5):
    """Four numbers, `x`, to `y`; compiled where there is a loss."""
    library.utils.set_random_seed(seed)
    x = library.Input((4,), name="x")
    inner = library.layers.Dense(hidden, activation="tanh", name="hidden")(x)
    model = library.Model(x, library.layers.Dense(units, activation=activation, name="y")(inner), name=name)
    if loss is not None:
        model.compile("sgd", loss)
    return model


def teacher(library=tf_keras, seed=2, **more):
    return net(library, seed=seed, name="teacher", **more)


def signature(model, path):
    """The model as a SavedModel that shows no layers."""
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")
    weights = trainee.unique(model.weights)
    return model_handle.load(helpers.save_function(lambda x: {"y": model(x)}, [spec], path, weights=weights))


def outputs(model, x=X):
    return np.float64(tf.convert_to_tensor(model(x)))


def taught(student, teachers, x=X, taps=None, y_pred=None, own=OWN, **config):
    """The loss of a student, and the lesson."""
    student, teachers = model_handle.wrap(student), [model_handle.wrap(each) for each in teachers]
    made = lessons.lesson(Distillation(**config), student, student.network, teachers)
    y_pred = student.model(x) if y_pred is None else y_pred
    return float(made(tf.constant(own), x, y_pred, taps or {}))


def divergence(student, teachers, temperature):
    """The mean KL divergence of softened distributions, from logits."""
    wanted = np.mean([special.softmax(each / temperature, -1) for each in teachers], axis=0)
    return np.mean(stats.entropy(wanted, special.softmax(student / temperature, -1), axis=-1))


def of_units(logits):
    """Each unit as two classes."""
    return np.stack([np.zeros_like(logits), logits], -1)


@LIBRARIES
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_probabilities_are_compared_as_softened_distributions(library, temperature):
    student, other = net(library), teacher(library)
    found = taught(student, [other], temperature=temperature, alpha=0.3)
    far = divergence(np.log(outputs(student)), [np.log(outputs(other))], temperature)
    assert far > 0.005
    np.testing.assert_allclose(found, 0.7 * OWN + 0.3 * temperature**2 * far, rtol=1e-5)


@LIBRARIES
def test_logits_are_told_by_the_loss(library):
    loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
    student, other = net(library, "linear", loss), teacher(library, activation="linear", loss=loss)
    far = divergence(outputs(student), [outputs(other)], 2.0)
    np.testing.assert_allclose(taught(student, [other]), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-5)


@LIBRARIES
def test_each_sigmoid_unit_is_a_distribution(library):
    student, other = net(library, "sigmoid"), teacher(library, activation="sigmoid")
    logits, wanted = (of_units(special.logit(outputs(model))) for model in (student, other))
    far = divergence(logits, [wanted], 2.0)
    np.testing.assert_allclose(taught(student, [other]), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-4)


@LIBRARIES
def test_binary_logits_are_told_by_the_loss(library):
    loss = functools.partial(library.losses.binary_crossentropy, from_logits=True)
    student, other = net(library, "linear", loss, units=1), teacher(library, activation="linear", units=1)
    far = divergence(of_units(outputs(student)), [of_units(outputs(other))], 2.0)
    np.testing.assert_allclose(taught(student, [other]), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-5)


@LIBRARIES
def test_values_are_compared_by_their_squared_difference(library):
    student, others = net(library, "linear", "mse"), [teacher(library, seed, activation="linear") for seed in (2, 3)]
    wanted = np.mean([outputs(other) for other in others], axis=0)
    far = np.mean((outputs(student) - wanted) ** 2)
    np.testing.assert_allclose(taught(student, others), 0.5 * OWN + 0.5 * far, rtol=1e-5)


def test_several_teachers_are_averaged_after_softening():
    student, others = net(), [teacher(), teacher(keras, 3), teacher(seed=4)]
    far = divergence(np.log(outputs(student)), [np.log(outputs(other)) for other in others], 2.0)
    np.testing.assert_allclose(taught(student, others), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-5)


def test_alpha_is_the_share_of_the_teachers():
    assert taught(net(), [teacher()], alpha=0.0) == pytest.approx(OWN)
    whole, half = (taught(net(), [teacher()], own=0.0, alpha=alpha) for alpha in (1.0, 0.5))
    assert whole == pytest.approx(2 * half)
    assert taught(net(), [teacher()], own=99.0, alpha=1.0) == pytest.approx(whole)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "linear"])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(activation):
    same = [net(activation=activation) for _ in range(2)]
    assert taught(same[0], same[1:], alpha=1.0) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("outputs", ["probabilities", "logits"])
@pytest.mark.parametrize("sure", ["softmax", "sigmoid"])
def test_outputs_that_are_quite_sure_give_finite_losses_and_gradients(outputs, sure):
    student, other = model_handle.wrap(net(activation=sure)), model_handle.wrap(teacher(activation=sure))
    made = lessons.lesson(Distillation(outputs=outputs), student, student.network, [other])
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
    np.testing.assert_allclose(taught(student, [other], x), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-5)


def endings(library):
    """Functions of the last layer's input, and the form of what they put out, without a loss."""
    layers = library.layers
    soft = library.activations.softmax if library is keras else tf.nn.softmax
    inner = library.Sequential([library.Input((5,)), layers.Dense(3), layers.Softmax()])
    return {
        "a Softmax layer": (lambda x: layers.Softmax()(layers.Dense(3)(x)), "softmax probabilities"),
        "an Activation": (lambda x: layers.Activation("sigmoid")(layers.Dense(3)(x)), "sigmoid probabilities"),
        "a function": (lambda x: soft(layers.Dense(3)(x)), "softmax probabilities"),
        "another dtype": (
            lambda x: layers.Activation("linear")(layers.Dense(3, "softmax")(x)),
            "softmax probabilities",
        ),
        "a model": (inner, "softmax probabilities"),
        "log_softmax": (layers.Dense(3, activation="log_softmax"), "softmax logits"),
        "linear": (layers.Dense(3), "values"),
        "relu": (layers.Dense(3, activation="relu"), "values"),
    }


@LIBRARIES
@pytest.mark.parametrize("ending", endings(tf_keras))
def test_what_a_model_puts_out_is_told_by_its_last_layer(library, ending):
    last, form = endings(library)[ending]
    x = library.Input((5,))
    model = model_handle.wrap(library.Model(x, last(x)))
    assert lessons._forms(Distillation(), model, model.network) == [form]


@LIBRARIES
def test_what_a_model_puts_out_is_told_by_its_loss(library):
    losses = library.losses
    found = {
        "values": ["mse", losses.Huber(), lambda labels, predicted: predicted, "categorical_crossentropy"],
        "softmax logits": [losses.CategoricalCrossentropy(from_logits=True)],
        "sigmoid logits": [
            losses.BinaryCrossentropy(from_logits=True),
            losses.BinaryFocalCrossentropy(from_logits=True),
        ],
    }
    for form, cases in found.items():
        for loss in cases:
            model = model_handle.wrap(net(library, "linear", loss))
            assert lessons._forms(Distillation(), model, model.network) == [form], loss


@pytest.mark.parametrize(
    ("loss", "form"),
    [("binary_crossentropy", "sigmoid probabilities"), ("mse", "values"), ("bce", "sigmoid probabilities")],
)
def test_where_the_last_layer_has_no_activation_the_loss_tells(loss, form):
    x = tf_keras.Input((4,))
    model = tf_keras.Model(x, tf_keras.layers.Reshape((2, 2))(tf_keras.layers.Dense(4, activation="sigmoid")(x)))
    model.compile("sgd", loss)
    model = model_handle.wrap(model)
    assert lessons._forms(Distillation(), model, model.network) == [form]


@pytest.mark.parametrize(
    ("units", "given", "form"),
    [
        (1, "probabilities", "sigmoid probabilities"),
        (3, "probabilities", "softmax probabilities"),
        (1, "logits", "sigmoid logits"),
        (3, "logits", "softmax logits"),
        (1, "values", "values"),
    ],
)
def test_given_outputs_go_before_what_the_layers_say(units, given, form, tmp_path):
    layered = model_handle.wrap(net(activation="linear", units=units))
    saved = signature(net(activation="linear", units=units), tmp_path / "saved")
    assert lessons._forms(Distillation(outputs=given), layered, layered.network) == [form]
    assert lessons._forms(Distillation(outputs=given), saved, None) == [form]


@pytest.mark.parametrize(("library", "other"), [(tf_keras, keras), (keras, tf_keras)], ids=["2 of 3", "3 of 2"])
def test_student_and_teacher_may_be_of_different_keras(library, other):
    student, master = net(library), teacher(other)
    far = divergence(np.log(outputs(student)), [np.log(outputs(master))], 2.0)
    np.testing.assert_allclose(taught(student, [master]), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-5)


@LIBRARIES
def test_a_saved_model_without_layers_teaches_and_learns(library, tmp_path):
    student, master = net(library), teacher(library)
    wanted = taught(student, [master])
    saved = signature(master, tmp_path / "teacher")
    assert taught(student, [saved]) == pytest.approx(wanted)
    assert taught(student, [saved], x={"x": X.astype(np.float64)}, y_pred=student(X)) == pytest.approx(wanted)
    learner = signature(student, tmp_path / "student")
    y_pred = {"y": tf.convert_to_tensor(student(X))}
    for x in (X, {"x": X, "id": np.arange(6)}):
        assert taught_signature(learner, [saved, model_handle.wrap(master)], x, y_pred) == pytest.approx(wanted)


def taught_signature(student, teachers, x, y_pred, **config):
    made = lessons.lesson(Distillation(outputs="probabilities", **config), student, None, teachers)
    return float(made(tf.constant(OWN), x, y_pred, {}))


def test_a_subclassed_teacher_is_asked_as_the_student_is():
    inner = teacher()

    class Subclassed(tf_keras.Model):
        def call(self, inputs, training=None):
            return inner(inputs, training=training)

    student = net()
    assert taught(student, [Subclassed()]) == pytest.approx(taught(student, [inner]))
    inner = teacher(units=4)
    with pytest.raises(ConfigError, match=r"has the outputs 0 \(6, 4\); the student has y \(None, 3\)"):
        taught(student, [Subclassed()])


def two_inputs(library, form, order=("a", "b"), seed=1):
    """Two different inputs to one output; given as a list or a dict."""
    library.utils.set_random_seed(seed)
    made = {name: library.Input((1,), name=name) for name in ("a", "b")}
    hidden = library.layers.Concatenate()([made["a"], made["b"]])
    y = library.layers.Dense(3, activation="softmax", name="y")(hidden)
    return library.Model([made[name] for name in order] if form == "list" else made, y)


@pytest.mark.parametrize("fed", ["list", "dict"])
@pytest.mark.parametrize("form", ["list", "reversed list", "dict", "SavedModel"])
@pytest.mark.parametrize("library", [tf_keras, keras], ids=["2 of 3", "3 of 2"])
def test_several_inputs_are_fed_by_their_names(library, form, fed, tmp_path):
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
        weights = trainee.unique(plain.weights)
        path = helpers.save_function(lambda a, b: {"y": plain([a, b])}, specs, tmp_path / "it", weights=weights)
        master = model_handle.load(path)
    wanted = np.log(outputs(plain, [rows["a"], rows["b"]]))
    far = divergence(np.log(outputs(student, x)), [wanted], 2.0)
    np.testing.assert_allclose(taught(student, [master], x), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-5)


def two_outputs(library, form, names=("p", "v"), seed=1, loss=None):
    """Probabilities and values, as a list or a dict."""
    library.utils.set_random_seed(seed)
    x = library.Input((4,), name="x")
    made = {
        names[0]: library.layers.Dense(3, activation="softmax", name=names[0])(x),
        names[1]: library.layers.Dense(3, name=names[1])(x),
    }
    model = library.Model(x, made if form == "dict" else [made[name] for name in names])
    model.compile("sgd", loss=loss or {names[0]: "categorical_crossentropy", names[1]: "mse"})
    return model


@LIBRARIES
@pytest.mark.parametrize("student_form", ["list", "dict"])
@pytest.mark.parametrize("teacher_form", ["list", "dict"])
def test_several_outputs_are_matched_by_name_and_added(library, student_form, teacher_form):
    student, master = two_outputs(library, student_form), two_outputs(library, teacher_form, seed=2)
    answer, wanted = (
        model(X) if form == "dict" else dict(zip("pv", model(X), strict=True))
        for model, form in ((student, student_form), (master, teacher_form))
    )
    far = 4.0 * divergence(np.log(np.float64(answer["p"])), [np.log(np.float64(wanted["p"]))], 2.0)
    far += np.mean((np.float64(answer["v"]) - np.float64(wanted["v"])) ** 2)
    np.testing.assert_allclose(taught(student, [master]), 0.5 * OWN + 0.5 * far, rtol=1e-4)


def test_lists_of_outputs_with_other_names_are_matched_in_order():
    student = two_outputs(tf_keras, "list")
    same, named = (two_outputs(tf_keras, "list", names, seed=2) for names in (("p", "v"), ("first", "second")))
    assert taught(student, [named]) == pytest.approx(taught(student, [same]))


@LIBRARIES
def test_losses_of_several_outputs_are_told_apart(library):
    logits = library.losses.BinaryCrossentropy(from_logits=True)
    for loss in ({"p": "categorical_crossentropy", "v": logits}, ["categorical_crossentropy", logits]):
        model = model_handle.wrap(two_outputs(library, "list", loss=loss))
        assert lessons._forms(Distillation(), model, model.network) == ["softmax probabilities", "sigmoid logits"]


@LIBRARIES
def test_the_gradient_is_that_of_the_loss_and_teachers_have_none(library):
    student, master = model_handle.wrap(net(library)), model_handle.wrap(teacher(library))
    made = lessons.lesson(Distillation(alpha=0.7), student, student.network, [master])
    kernel = student.model.get_layer("y").kernel
    variable = kernel if library is tf_keras else kernel.value

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            answer = student.model(X, training=True)
            loss = made(tf.reduce_mean(answer[:, 0]), X, answer, {})
        return loss, tape.gradient(loss, [variable, *trainee.unique(master.model.weights)])

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
def test_a_step_of_training_moves_the_student_only(library):
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
    before = [weight.numpy() for weight in trainee.unique(master.model.weights)]
    first = [np.array(weight) for weight in student.model.get_weights()]
    config = FineTuning(learning_rate=0.1)
    model = trainee.of_network(student, student.network, config, taps=("hidden",))
    count = len(model.weights)
    distillation = Distillation(alpha=1.0, features={"hidden": "hidden"})
    model.lesson = lessons.lesson(distillation, student, model, [master])
    model.teaching = True
    step = tf.function(model.train_step)
    batch = (tf.constant(X), tf.zeros([6, 2]))
    losses = [float(step(batch)["loss"]) for _ in range(2)]
    assert np.isfinite(losses).all()
    assert len(model.weights) == count
    for weight, old in zip(trainee.unique(master.model.weights), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert any((new != old).any() for new, old in zip(student.model.get_weights(), first, strict=True))


@pytest.mark.parametrize(("library", "other"), [(tf_keras, keras), (keras, tf_keras)], ids=["2 of 3", "3 of 2"])
def test_layers_are_compared_by_their_squared_difference(library, other):
    student, master = net(library), teacher(other)
    plain = taught(student, [master, teacher(seed=3)])
    taps = {"hidden": tf.fill([6, 5], 0.25)}
    features = {"features": {"hidden": "hidden"}, "feature_weight": 3.0}
    seen = outputs(other.Model(master.input, master.get_layer("hidden").output))
    found = taught(student, [master, teacher(seed=3)], taps=taps, **features)
    assert found - plain == pytest.approx(3.0 * np.mean((0.25 - seen) ** 2), rel=1e-4)


def test_teachers_that_compute_in_16_bits_are_compared_in_32():
    policy = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        student, master = net(), teacher()
    finally:
        tf_keras.mixed_precision.set_global_policy(policy)
    far = divergence(np.log(outputs(student)), [np.log(outputs(master))], 2.0)
    np.testing.assert_allclose(taught(student, [master]), 0.5 * OWN + 0.5 * 4.0 * far, rtol=1e-3)


def test_on_several_replicas_the_teachers_share_is_divided_as_keras_divides_its_own(monkeypatch):
    student, others = net(), [teacher()]
    alone, features = taught(student, others), {"features": {"y": "y"}, "taps": {"y": tf.ones([6, 3])}}
    guided = taught(student, others, **features)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: types.SimpleNamespace(num_replicas_in_sync=4))
    assert taught(student, others) - 0.5 * OWN == pytest.approx((alone - 0.5 * OWN) / 4, rel=1e-4)
    assert taught(student, others, **features) - 0.5 * OWN == pytest.approx((guided - 0.5 * OWN) / 4, rel=1e-4)


def test_without_a_teacher_there_is_nothing_to_learn():
    with pytest.raises(ConfigError, match="no teacher.*connect teacher_model"):
        taught(net(), [])


def test_a_model_is_not_its_own_teacher():
    student = net()
    with pytest.raises(ConfigError, match="very model that is trained"):
        taught(student, [teacher(), student])


def test_a_saved_model_that_learns_must_say_what_it_puts_out(tmp_path):
    student = signature(net(), tmp_path / "student")
    with pytest.raises(ConfigError, match=r"Distillation.outputs = 'auto'.*student shows none.*'probabilities'"):
        lessons.lesson(Distillation(), student, None, [model_handle.wrap(teacher())])


def test_a_teacher_of_other_outputs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'teacher', has the outputs y \(None, 4\); the student has y \(None, 3\)"):
        taught(net(), [teacher(units=4)])
    with pytest.raises(ConfigError, match="has the outputs p .*, v .*; the student has y"):
        taught(net(), [two_outputs(keras, "dict")])
    with pytest.raises(ConfigError, match="has the outputs a .*, b .*; the student has p .*, v"):
        taught(two_outputs(keras, "dict"), [two_outputs(keras, "dict", ("a", "b"))])
    with pytest.raises(ConfigError, match=r"SavedModel in .*saved, has the outputs y \(None, 4\)"):
        taught(net(), [signature(net(units=4), tmp_path / "saved")])


def test_a_teacher_of_other_inputs_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"has the inputs a \(None, 1\), b \(None, 1\); the student has x \(None, 4\)"
    ):
        taught(net(units=2, activation="linear"), [kinds.two_features(keras)])
    path = helpers.save_with_examples_signature(helpers.small_cnn(), tmp_path / "examples")
    examples = model_handle.ModelHandle("saved_model", saved_model.load(path), path)
    student = helpers.small_cnn()
    with pytest.raises(
        ConfigError, match="inputs examples .*; the student has image .*a teacher with the student's inputs"
    ):
        taught(student, [examples], np.zeros([2, *helpers.IMAGE], np.float32))


def test_a_teacher_that_puts_out_something_else_is_refused():
    logits = tf_keras.losses.CategoricalCrossentropy(from_logits=True)
    with pytest.raises(ConfigError, match="puts out softmax logits, the student softmax probabilities"):
        taught(net(), [teacher(activation="linear", loss=logits)])


def test_data_that_lacks_an_input_is_refused():
    student = two_inputs(tf_keras, "list")
    with pytest.raises(ConfigError, match=r"tensors are a \(None, 1\), b \(None, 1\), but the data has a, other"):
        taught(student, [two_inputs(keras, "list")], {"a": X[:, :1], "other": X[:, :1]}, y_pred=tf.ones([6, 3]) / 3)


def test_features_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'hidden' gives \(None, 5\), the teacher's 'hidden' \(None, 8\)"):
        taught(net(), [teacher(hidden=8)], features={"hidden": "hidden"})
    with pytest.raises(ConfigError, match="'none', which 'teacher' has not; its layers: hidden, y"):
        taught(net(), [teacher()], features={"hidden": "none"})
    saved = signature(net(), tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"first teacher, the SavedModel in .*, shows none"):
        taught(net(), [saved, teacher()], features={"hidden": "hidden"})
    with pytest.raises(ConfigError, match=r"the student, the SavedModel in .*, shows none"):
        taught_signature(saved, [model_handle.wrap(teacher())], X, None, features={"hidden": "hidden"})
