"""The handle of a model: kernels, size and network, and saving it with the same signatures."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression
from tfx_compression import model_handle
from tfx_compression.errors import ModelError

from tests.support import disk, helpers, kinds
from tests.support.errors import raises


@pytest.fixture(scope="module")
def x():
    return helpers.points(7)[0]


def test_a_subclassed_keras_2_model_still_loads_in_keras(tmp_path, x):
    model = kinds.Subclassed()
    model(x)
    model.save(tmp_path / "model", save_format="tf")
    handle = model_handle.load(str(tmp_path / "model"))
    kinds.zero_half(handle)
    handle.save(str(tmp_path / "pruned"))
    (kernel,) = handle.kernels.values()
    np.testing.assert_array_equal(tf_keras.models.load_model(tmp_path / "pruned").inner.kernel, kernel.values)


def test_a_subclassed_model_in_memory_holds_its_weights_itself(tmp_path, x):
    model = kinds.Subclassed()
    model(x)
    handle = model_handle.wrap(model)
    assert (handle.network, handle.keras_model) == (None, model)
    assert [id(weight) for weight in handle.weights] == [id(weight) for weight in model.weights]
    with raises(ModelError, code="subclassed-model"):
        handle.save(str(tmp_path / "m"), signatures_fn=lambda model, transform: {})


@pytest.mark.parametrize("library", [tf_keras, keras])
def test_the_network_shares_the_weights(library, x):
    model = helpers.small_dense() if library is tf_keras else kinds.keras3_dense()
    handle = model_handle.wrap(model)
    assert handle.keras_model is handle.network
    assert [id(weight) for weight in handle.weights] == [id(weight) for weight in model.weights]


@pytest.mark.parametrize("library", [tf_keras, keras])
def test_the_network_has_the_inputs_and_outputs_of_the_model(library, x):
    inputs = {"x": library.Input((4,), name="x")}
    heads = {
        "score": library.layers.Dense(1, name="b")(inputs["x"]),
        "kind": library.layers.Dense(3, name="a")(inputs["x"]),
    }
    model = library.Model(inputs, heads)
    answers = model_handle.wrap(model).network({"x": x})
    expected = model({"x": x})
    assert set(answers) == {"score", "kind"}
    for name, value in expected.items():
        np.testing.assert_array_equal(answers[name], value)
    assert model_handle.wrap(model).measure().macs == 4 * 4


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
    module = tf.Module()
    module.weight = tf.Variable(np.ones([4, 2], np.float32), trainable=False, name="weight")
    path = helpers.save_function(
        lambda x: {"y": x @ module.weight}, [tf.TensorSpec([None, 4], name="x")], tmp_path / "m", module=module
    )
    assert model_handle.load(path).frozen == ("weight",)


def test_a_model_has_the_same_size_in_any_format(tmp_path):
    model = kinds.keras3_dense()
    model.export(str(tmp_path / "model"), verbose=False)
    layers, variables = model_handle.wrap(model).measure(), model_handle.load(str(tmp_path / "model")).measure()
    assert (layers.parameters, layers.macs, layers.bytes) == (variables.parameters, variables.macs, variables.bytes)
    assert layers.macs == 4 * 16 + 16 * 2


@pytest.mark.parametrize("library", [tf_keras, keras])
@pytest.mark.parametrize("where", ["inside", "beside"])
def test_a_keras_file_and_the_saved_model_written_with_it_are_one_model(tmp_path, library, where, x):
    folder = kinds.artifact(tmp_path / "trained")
    model = helpers.small_dense() if library is tf_keras else kinds.keras3_dense()
    model.export(folder)
    model.save(os.path.join(folder if where == "inside" else os.path.dirname(folder), "net.keras"))
    handle = model_handle.load(folder)
    assert (handle.kind, list(handle.kernels)) == ("keras2" if library is tf_keras else "keras3", ["hidden", "y"])
    kinds.zero_half(handle)
    output = kinds.artifact(tmp_path / "pruned")
    handle.save(output)
    (feed,) = tf.saved_model.load(folder).signatures["serving_default"].structured_input_signature[1]
    (answer,) = helpers.answers(output, **{feed: x}).values()
    np.testing.assert_allclose(answer, handle.network(x), atol=1e-6)
    again = model_handle.load(output)
    assert again.kind == handle.kind
    np.testing.assert_array_equal(again.kernels["hidden"].values, handle.kernels["hidden"].values)


@pytest.mark.slow
@pytest.mark.parametrize("technique", ["weight", "neuron"])
def test_an_adapted_normalization_may_be_a_constant_in_the_saved_model(tmp_path, technique):
    numbers = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    normalization = keras.layers.Normalization(name="norm")
    normalization.adapt(numbers)
    layers = [keras.layers.Dense(16, name="hidden"), keras.layers.Dense(16, name="more"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,), name="x"), normalization, *layers])
    model.export(str(tmp_path / "model"), verbose=False)
    model.save(tmp_path / "model" / "net.keras")
    pruned = tfx_compression.prune(
        str(tmp_path / "model"), tfx_compression.PruningPlan(technique=technique, protect=())
    )
    pruned.save(str(tmp_path / "pruned"))
    (feed,) = tf.saved_model.load(str(tmp_path / "pruned")).signatures["serving_default"].structured_input_signature[1]
    (answer,) = helpers.answers(str(tmp_path / "pruned"), **{feed: numbers}).values()
    np.testing.assert_allclose(answer, pruned.model(numbers), atol=1e-5)


@pytest.mark.parametrize("kind", ["saved_model", "keras3"])
def test_a_folder_with_another_keras_file_is_refused(tmp_path, kind):
    model = kinds.module(tmp_path / "model") if kind == "saved_model" else kinds.keras3_dense()
    handle = model_handle.wrap(model)
    target = tmp_path / "target"
    target.mkdir()
    (target / "other.keras").write_bytes(b"")
    with raises(ModelError, code="other-keras-file", match=r"other\.keras"):
        handle.save(str(target))
    (target / "other.keras").unlink()
    handle.save(str(target))
    handle.save(str(target))  # over its own files


@pytest.mark.parametrize("kind", ["saved_model", "keras2", "keras3"])
def test_a_folder_that_can_not_be_written_is_refused(tmp_path, kind):
    (tmp_path / "file").write_text("in the way")
    model = {
        "saved_model": lambda: kinds.module(tmp_path / "model"),
        "keras2": helpers.small_dense,
        "keras3": kinds.keras3_dense,
    }[kind]()
    with raises(ModelError, code="unwritable-folder", match=str(tmp_path / "file")):
        model_handle.wrap(model).save(str(tmp_path / "file"))


def test_a_saved_model_without_layers_takes_no_network(tmp_path):
    handle = model_handle.load(kinds.module(tmp_path / "model"))
    with raises(ModelError, code="no-layers"):
        handle.save(str(tmp_path / "again"), network=kinds.keras3_dense())


def test_a_full_disk_is_an_error_of_its_own(tmp_path):
    handle = model_handle.wrap(helpers.small_dense())
    with disk.largest_file(100), raises(ModelError, code="disk-full", match=str(tmp_path / "full")):
        handle.save(str(tmp_path / "full"))


def test_a_saved_model_is_not_named_like_a_keras_file(tmp_path):
    with raises(ModelError, code="keras-file-name"):
        model_handle.wrap(helpers.small_dense()).save(str(tmp_path / "model.keras"))
