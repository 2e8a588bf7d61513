"""Every kind of model that a Trainer writes is told apart, and answers as before once it is pruned and saved."""

import os
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression
from tfx_compression import kernels, model_handle
from tfx_compression.errors import ModelError

from tests.support import (
    helpers,  # first: sets which Keras tf.keras is
    kinds,
)


class Subclassed(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = tf_keras.layers.Dense(2, name="inner")

    def call(self, inputs):
        return self.inner(inputs)


def prune(model: model_handle.ModelHandle, fraction: float = 0.5) -> None:
    """Zeroes the smallest weights of every kernel in place."""
    for kernel in model.kernels.values():
        size = np.abs(kernel.values)
        kernel.variable.assign(kernel.values * (size > np.quantile(size, fraction)))


@pytest.fixture(scope="module")
def x():
    return helpers.points(7)[0]


def test_a_keras_2_saved_model_is_seen_by_its_layers(tmp_path):
    path = helpers.save_with_examples_signature(helpers.small_dense(), tmp_path / "model", "x", (4,))
    model = model_handle.load(path)
    assert (model.kind, list(model.kernels), model.path) == ("keras2", ["hidden", "y"], path)
    assert "keras_metadata.pb" in model.notes[0]


@pytest.mark.parametrize("library", [tf_keras, keras])
@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_keras_file_is_of_the_keras_that_wrote_it(tmp_path, library, ending, x):
    made = helpers.small_dense() if library is tf_keras else kinds.keras3_dense()
    made.save(tmp_path / f"model{ending}")
    model = model_handle.load(str(tmp_path / f"model{ending}"))
    assert model.kind == ("keras2" if library is tf_keras else "keras3")
    np.testing.assert_allclose(model.network(x), made(x), rtol=1e-6)
    prune(model)
    model.save(str(tmp_path / "pruned"))
    answer = helpers.answers(str(tmp_path / "pruned"), x=x)
    np.testing.assert_allclose(answer["y"], model.network(x), atol=1e-6)
    again = model_handle.load(str(tmp_path / "pruned"))
    assert (again.kind, again.measure().sparsity) == (model.kind, model.measure().sparsity)


@pytest.mark.parametrize("how", ["tf.saved_model.save", "model.export", "keras 3 export", "tf.Module", "subclassed"])
def test_a_saved_model_without_layers_is_seen_by_its_variables(tmp_path, how, x):
    path = str(tmp_path / "model")
    if how == "tf.saved_model.save":
        made = helpers.small_dense()
        tf.saved_model.save(
            made, path, signatures=tf.function(made).get_concrete_function(tf.TensorSpec([None, 4], name="x"))
        )
    elif how == "model.export":
        helpers.small_dense().export(path)
    elif how == "keras 3 export":
        kinds.keras3_dense().export(path, verbose=False)
    elif how == "tf.Module":
        kinds.module(path)
    else:
        made = Subclassed()
        made(x)
        made.save(path, save_format="tf")
    model = model_handle.load(path)
    assert (model.kind, model.network) == ("saved_model", None)
    assert len(model.kernels) == (1 if how == "subclassed" else 2)
    assert any(("subclassed" if how == "subclassed" else "no Keras metadata") in note for note in model.notes)
    feed = {next(iter(model.model.loaded.signatures["serving_default"].structured_input_signature[1])): x}
    before = helpers.answers(path, **feed)
    prune(model)
    expected = {name: value.numpy() for name, value in model.model.signatures["serving_default"](**feed).items()}
    model.save(str(tmp_path / "pruned"))
    after = helpers.answers(str(tmp_path / "pruned"), **feed)
    for name, value in after.items():
        np.testing.assert_array_equal(value, expected[name])
        assert np.abs(value - before[name]).max() > 1e-3
    assert model_handle.load(str(tmp_path / "pruned")).measure().sparsity == model.measure().sparsity > 0.4


def test_a_subclassed_keras_2_model_stays_loadable_in_keras(tmp_path, x):
    made = Subclassed()
    made(x)
    made.save(tmp_path / "model", save_format="tf")
    model = model_handle.load(str(tmp_path / "model"))
    prune(model)
    model.save(str(tmp_path / "pruned"))
    (kernel,) = model.kernels.values()
    np.testing.assert_array_equal(tf_keras.models.load_model(tmp_path / "pruned").inner.kernel, kernel.values)


@pytest.mark.parametrize("library", [tf_keras, keras])
@pytest.mark.parametrize("where", ["inside", "beside"])
def test_a_keras_file_and_the_saved_model_that_was_written_with_it_are_one_model(tmp_path, library, where, x):
    folder = kinds.artifact(tmp_path / "trained")
    made = helpers.small_dense() if library is tf_keras else kinds.keras3_dense()
    made.export(folder)
    made.save(os.path.join(folder if where == "inside" else os.path.dirname(folder), "net.keras"))
    model = model_handle.load(folder)
    assert (model.kind, list(model.kernels)) == ("keras2" if library is tf_keras else "keras3", ["hidden", "y"])
    prune(model)
    output = kinds.artifact(tmp_path / "pruned")
    model.save(output)
    (feed,) = tf.saved_model.load(folder).signatures["serving_default"].structured_input_signature[1]
    (answer,) = helpers.answers(output, **{feed: x}).values()
    np.testing.assert_allclose(answer, model.network(x), atol=1e-6)
    again = model_handle.load(output)
    assert again.kind == model.kind
    np.testing.assert_array_equal(again.kernels["hidden"].values, model.kernels["hidden"].values)


def test_a_keras_file_of_another_model_than_the_saved_model_is_refused_when_saving(tmp_path):
    kinds.keras3_dense().export(str(tmp_path / "model"), verbose=False)
    kinds.keras3_dense(seed=2).save(tmp_path / "model" / "net.keras")
    model = model_handle.load(str(tmp_path / "model"))
    with pytest.raises(ModelError, match=r"not of the Keras model beside it.*hidden/kernel.*signatures_fn"):
        model.save(str(tmp_path / "pruned"))


@pytest.mark.parametrize("named", [True, False])
def test_weights_that_were_equal_are_told_apart_by_name_or_refused(tmp_path, named):
    """Biases start as zeros, all alike; the SavedModel of a Trainer may call them as it likes."""
    made = kinds.keras3_dense(units=2)
    names = [weight.path if named else None for weight in made.weights]
    copies = [tf.Variable(weight.numpy(), name=name) for weight, name in zip(made.weights, names, strict=True)]
    kernel, bias, last, offset = copies

    def serve(x):
        return {"y": tf.nn.relu(x @ kernel + bias) @ last + offset}

    specs = [tf.TensorSpec([None, 4], tf.float32, name="x")]
    helpers.save_function(serve, specs, tmp_path / "model", copies=copies)
    made.save(tmp_path / "model" / "net.keras")
    model = model_handle.load(str(tmp_path / "model"))
    model.save(str(tmp_path / "unchanged"))  # as long as they are equal it doesn't matter
    model.model.get_layer("hidden").bias.assign([1.0, 2.0])
    if named:
        model.save(str(tmp_path / "changed"))
        x, _ = helpers.points(3)
        np.testing.assert_allclose(helpers.answers(str(tmp_path / "changed"), x=x)["y"], model.network(x), atol=1e-6)
    else:
        with pytest.raises(ModelError, match=r"'hidden/bias' and 'y/bias' had the same values.*signatures_fn"):
            model.save(str(tmp_path / "changed"))


def test_two_keras_files_are_refused_by_name(tmp_path):
    folder = kinds.artifact(tmp_path)
    kinds.keras3_dense().export(folder, verbose=False)
    kinds.keras3_dense().save(os.path.join(folder, "one.keras"))
    kinds.keras3_dense().save(str(tmp_path / "two.keras"))
    with pytest.raises(ModelError, match=r"one\.keras.*two\.keras.*Remedy"):
        model_handle.load(folder)


def test_a_keras_file_in_the_parent_of_any_other_folder_is_not_looked_at(tmp_path):
    kinds.module(tmp_path / "model")
    kinds.keras3_dense().save(tmp_path / "unrelated.keras")
    assert model_handle.load(str(tmp_path / "model")).kind == "saved_model"


def test_models_in_memory_are_told_apart():
    assert model_handle.wrap(helpers.small_dense()).kind == "keras2"
    assert model_handle.wrap(kinds.keras3_dense()).kind == "keras3"
    with pytest.raises(ModelError, match="builtins.int"):
        model_handle.wrap(1)


@pytest.mark.parametrize("made", ["nothing", "an empty folder", "a text file"])
def test_where_there_is_no_model_the_error_names_the_place(tmp_path, made):
    path = tmp_path / "model"
    if made == "an empty folder":
        path.mkdir()
    if made == "a text file":
        path.write_text("no model")
    with pytest.raises(ModelError, match=str(path)):
        model_handle.load(str(path))


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_file_that_is_no_model_is_refused_by_its_path(tmp_path, name):
    (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(ModelError, match=name):
        model_handle.load(str(tmp_path / name))


@pytest.mark.parametrize("library", [tf_keras, keras])
def test_frozen_and_tied_kernels_are_named(library):
    x = library.Input((4,))
    first, second = library.layers.Dense(4, name="first"), library.layers.Dense(4, name="second")
    model = library.Model(x, second(first(x)))
    first.trainable = False
    assert model_handle.wrap(model).frozen == ("first",)
    assert model_handle.wrap(model).tied == {}
    if library is tf_keras:
        second.kernel = first.kernel
        assert model_handle.wrap(model).tied == {"second": "first"}


def test_a_frozen_variable_of_a_saved_model_is_named(tmp_path):
    made = tf.Module()
    made.weight = tf.Variable(np.ones([4, 2], np.float32), trainable=False, name="weight")
    helpers.save_function(
        lambda x: {"y": x @ made.weight}, [tf.TensorSpec([None, 4], name="x")], tmp_path / "m", made=made
    )
    assert model_handle.load(str(tmp_path / "m")).frozen == ("weight",)


def test_the_same_model_has_the_same_size_whatever_it_is_saved_as(tmp_path):
    made = kinds.keras3_dense()
    made.export(str(tmp_path / "model"), verbose=False)
    layers, variables = model_handle.wrap(made).measure(), model_handle.load(str(tmp_path / "model")).measure()
    assert (layers.parameters, layers.macs, layers.bytes) == (variables.parameters, variables.macs, variables.bytes)
    assert layers.macs == 4 * 16 + 16 * 2


def test_custom_layers_of_keras_3_load_where_they_are_named(tmp_path, x):
    class Doubled(keras.layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    made = keras.Sequential([keras.Input((4,)), Doubled(2, name="doubled")])
    made.save(tmp_path / "model.keras")
    model = model_handle.load(str(tmp_path / "model.keras"), {"Doubled": Doubled})
    np.testing.assert_allclose(model.network(x), made(x), rtol=1e-6)
    assert list(kernels.find_kernels(model.network)) == ["doubled"]
    with pytest.raises(ModelError, match="custom_objects"):
        model_handle.load(str(tmp_path / "model.keras"))


@pytest.mark.parametrize("kind", ["saved_model", "keras3"])
def test_a_folder_with_another_keras_file_is_refused(tmp_path, kind):
    made = (
        model_handle.load(kinds.module(tmp_path / "model"))
        if kind == "saved_model"
        else model_handle.wrap(kinds.keras3_dense())
    )
    target = tmp_path / "target"
    target.mkdir()
    kinds.keras3_dense(seed=2).save(target / "other.keras")
    with pytest.raises(ModelError, match=r"other\.keras\. Remedy: an empty folder"):
        made.save(str(target))
    (target / "other.keras").unlink()
    made.save(str(target))
    made.save(str(target))  # over what it wrote itself


@pytest.mark.parametrize("kind", ["saved_model", "keras2", "keras3"])
def test_a_place_that_can_not_be_written_is_named(tmp_path, kind):
    (tmp_path / "file").write_text("in the way")
    model = {
        "saved_model": lambda: kinds.module(tmp_path / "model"),
        "keras2": helpers.small_dense,
        "keras3": kinds.keras3_dense,
    }[kind]()
    with pytest.raises(ModelError, match=rf"can't be written to {tmp_path / 'file'}.*\. Remedy"):
        model_handle.wrap(model).save(str(tmp_path / "file"))


@pytest.mark.parametrize("technique", ["weight", "neuron"])
def test_an_adapted_normalization_beside_an_export_may_be_constant(tmp_path, technique):
    numbers = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    normalization = keras.layers.Normalization(name="norm")
    normalization.adapt(numbers)
    layers = [keras.layers.Dense(16, name="hidden"), keras.layers.Dense(16, name="more"), keras.layers.Dense(2)]
    made = keras.Sequential([keras.Input((4,), name="x"), normalization, *layers])
    made.export(str(tmp_path / "model"), verbose=False)
    made.save(tmp_path / "model" / "net.keras")
    pruned = tfx_compression.prune(
        str(tmp_path / "model"), tfx_compression.PruningPlan(technique=technique, protect=())
    )
    pruned.save(str(tmp_path / "pruned"))
    (feed,) = tf.saved_model.load(str(tmp_path / "pruned")).signatures["serving_default"].structured_input_signature[1]
    (answer,) = helpers.answers(str(tmp_path / "pruned"), **{feed: numbers}).values()
    np.testing.assert_allclose(answer, pruned.model(numbers), atol=1e-5)


def test_losses_and_metrics_of_the_users_own_go_over_to_a_keras_3_network(x):
    class Own(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return 2 * keras.ops.mean((y_true - y_pred) ** 2, -1)

    def metric(y_true, y_pred):
        return keras.ops.mean(y_pred, -1)

    class Descent(keras.optimizers.SGD):
        pass

    made, network = kinds.keras3_dense(), kinds.keras3_dense(units=3)
    made.compile(Descent(0.5), Own(), loss_weights=[2.0], metrics=[metric, "mae"])
    y = np.ones((len(x), 2), np.float32)
    made.fit(x, y, verbose=0)
    model_handle.copy_compilation(made, network)
    assert (type(network.optimizer), float(network.optimizer.learning_rate)) == (Descent, 0.5)
    expected = 2 * 2 * np.mean((np.asarray(network(x)) - y) ** 2)
    found = network.evaluate(x, y, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert {"metric", "mae"} <= set(found)


@pytest.mark.parametrize("library", [tf_keras, keras])
def test_the_network_takes_and_returns_the_structures_of_the_model(tmp_path, library, x):
    inputs = {"x": library.Input((4,), name="x")}
    heads = {
        "score": library.layers.Dense(1, name="b")(inputs["x"]),
        "kind": library.layers.Dense(3, name="a")(inputs["x"]),
    }
    model = library.Model(inputs, heads)
    found = model_handle.wrap(model).network({"x": x})
    expected = model({"x": x})
    assert set(found) == {"score", "kind"}
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert model_handle.wrap(model).measure().macs == 4 * 4


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("saved_model.pb", b""),
        ("saved_model.pb", b"garbage"),
        ("variables/variables.data-00000-of-00001", b"zz"),
        ("variables/variables.index", b"zz"),
    ],
)
@pytest.mark.parametrize("layers", [True, False])
def test_a_damaged_saved_model_is_refused_by_its_path(tmp_path, file, content, layers):
    model = helpers.small_dense()
    if layers:
        model.save(tmp_path / "m", save_format="tf")
    else:
        model.export(str(tmp_path / "m"))
    (tmp_path / "m" / file).write_bytes(content)
    with pytest.raises(ModelError, match=rf"(?s){tmp_path / 'm'}.*\. Remedy"):
        model_handle.load(str(tmp_path / "m"))


@pytest.mark.parametrize(
    "metadata", ["[]", '{"keras_version": null}', '{"keras_version": "2.1"}', '{"keras_version": "3.1"}']
)
def test_a_damaged_keras_file_is_refused_by_its_path(tmp_path, metadata):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("metadata.json", metadata)
    with pytest.raises(ModelError, match=r"m\.keras.*\. Remedy"):
        model_handle.load(str(tmp_path / "m.keras"))


def test_a_file_system_that_is_not_known_is_named():
    with pytest.raises(ModelError, match=r"foo://x/y.*\. Remedy"):
        model_handle.load("foo://x/y")


def test_the_table_of_a_lookup_layer_comes_with_a_keras_3_network(tmp_path):
    word = keras.Input((1,), dtype="string", name="word")
    found = keras.layers.StringLookup(vocabulary=["red", "green"], output_mode="one_hot")(word)
    model = keras.Model(word, keras.layers.Dense(2, name="y")(found))
    model_handle.wrap(model).save(str(tmp_path / "model"))
    words = tf.constant([["red"], ["green"], ["none"]])
    np.testing.assert_allclose(helpers.answers(str(tmp_path / "model"), word=words)["y"], model(words), atol=1e-6)
