"""Loading a model of any kind: what kind it is, and errors that name the file."""

import os
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import kernels, model_handle
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune

from tests.support import helpers, kinds
from tests.support.errors import raises


def test_a_keras_2_saved_model_has_layers(tmp_path):
    path = helpers.save_with_examples_signature(helpers.small_dense(), tmp_path / "model", "x", (4,))
    handle = model_handle.load(path)
    assert (handle.kind, list(handle.kernels), handle.path) == ("keras2", ["hidden", "y"], path)
    assert "keras_metadata.pb" in handle.notes[0]


def test_a_keras_file_beside_a_saved_model_with_layers_is_not_used(tmp_path):
    helpers.small_dense().save(tmp_path / "model", save_format="tf")
    kinds.keras3_dense().save(tmp_path / "model" / "net.keras")
    handle = model_handle.load(str(tmp_path / "model"))
    assert handle.kind == "keras2"
    assert "net.keras" in handle.notes[1]


def test_a_keras_file_beside_any_other_folder_than_format_serving_is_not_used(tmp_path):
    kinds.module(tmp_path / "model")
    kinds.keras3_dense().save(tmp_path / "unrelated.keras")
    assert model_handle.load(str(tmp_path / "model")).kind == "saved_model"


def test_a_subclassed_keras_file_beside_a_saved_model_adds_no_layers(tmp_path):
    @keras.saving.register_keras_serializable("test_loading")
    class Subclassed(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = keras.layers.Dense(2)

        def call(self, inputs):
            return self.inner(inputs)

    model = Subclassed()
    model(np.ones([1, 4], np.float32))
    model.export(str(tmp_path / "model"), verbose=False)
    model.save(tmp_path / "model" / "net.keras")
    handle = model_handle.load(str(tmp_path / "model"))
    assert handle.kind == "saved_model"
    assert any("net.keras is subclassed" in note for note in handle.notes)


def test_several_keras_files_are_refused(tmp_path):
    folder = kinds.artifact(tmp_path)
    kinds.module(folder)
    for path in (os.path.join(folder, "one.keras"), str(tmp_path / "two.keras")):
        with zipfile.ZipFile(path, "w"):
            pass
    with raises(ModelError, code="several-keras-files", match=r"one\.keras.*two\.keras"):
        model_handle.load(folder)


def test_models_in_memory_are_recognized():
    handle = model_handle.wrap(helpers.small_dense())
    assert handle.kind == "keras2"
    assert model_handle.wrap(handle) is handle
    assert model_handle.wrap(kinds.keras3_dense()).kind == "keras3"
    with raises(ModelError, code="unknown-format", match=r"builtins\.int"):
        model_handle.wrap(1)


@pytest.mark.parametrize(
    ("content", "code"),
    [("nothing", "missing-model"), ("an empty folder", "missing-model"), ("a text file", "unknown-format")],
)
def test_a_path_without_a_model_is_refused(tmp_path, content, code):
    path = tmp_path / "model"
    if content == "an empty folder":
        path.mkdir()
    if content == "a text file":
        path.write_text("no model")
    with raises(ModelError, code=code, match=str(path)):
        model_handle.load(str(path))


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_file_that_is_no_model_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"not a model")
    with raises(ModelError, code="unreadable-model", match=name):
        model_handle.load(str(tmp_path / name))


@pytest.mark.parametrize(
    "metadata", ["[]", '{"keras_version": null}', '{"keras_version": "2.1"}', '{"keras_version": "3.1"}']
)
def test_a_damaged_keras_file_is_refused(tmp_path, metadata):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("metadata.json", metadata)
    with raises(ModelError, code="unreadable-model", match=r"m\.keras"):
        model_handle.load(str(tmp_path / "m.keras"))


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
def test_a_damaged_saved_model_is_refused(tmp_path, file, content, layers):
    path = tmp_path / "m"
    if layers:
        helpers.small_dense().save(path, save_format="tf")
    else:
        kinds.module(path)
    (path / file).write_bytes(content)
    with pytest.raises(ModelError, match=rf"(?s){path}.*Remedy"):
        model_handle.load(str(path))


def test_custom_objects_without_names_are_refused(tmp_path):
    for model in (tmp_path, object()):
        with raises(ConfigError, code="not-a-mapping", field="custom_objects", match="list"):
            model_handle.wrap(model, [tf_keras.layers.Dense])


def test_an_unknown_file_system_is_refused():
    with raises(ModelError, code="unknown-file-system", match="foo://x/y"):
        model_handle.load("foo://x/y")


def test_custom_layers_of_keras_3_load_by_name(tmp_path):
    class Doubled(keras.layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    x, _ = helpers.points(7)
    model = keras.Sequential([keras.Input((4,)), Doubled(2, name="doubled")])
    model.save(tmp_path / "model.keras")
    handle = model_handle.load(str(tmp_path / "model.keras"), {"Doubled": Doubled})
    np.testing.assert_allclose(handle.network(x), model(x), rtol=1e-6)
    assert list(kernels.find_kernels(handle.network)) == ["doubled"]


@pytest.mark.parametrize("library", [tf_keras, keras])
@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_an_unknown_class_is_named(tmp_path, library, ending):
    class Doubled(library.layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    path = str(tmp_path / f"model{ending}")
    library.Sequential([library.Input((4,)), Doubled(2)]).save(path)
    with raises(ModelError, code="unknown-class", field="custom_objects", match="{'Doubled': Doubled}"):
        model_handle.wrap(path)
    assert len(model_handle.wrap(path, {"Doubled": Doubled}).kernels) == 1


@pytest.mark.parametrize(
    ("library", "name"), [(tf_keras, "weights.h5"), (tf_keras, "m.weights.h5"), (keras, "m.weights.h5")]
)
def test_weights_without_a_model_are_refused(tmp_path, library, name):
    model = library.Sequential([library.Input((4,)), library.layers.Dense(2)])
    model.save_weights(str(tmp_path / name))
    with raises(ModelError, code="weights-only", match="load_weights"):
        model_handle.load(str(tmp_path / name))


@pytest.mark.slow
def test_the_result_of_a_step_is_a_model(tmp_path):
    path = str(tmp_path / "model")
    helpers.small_cnn().save(path, save_format="tf")
    sparse = prune(path, PruningPlan(sparsity=0.5))
    assert model_handle.wrap(sparse) is sparse.handle
    narrow = PruningPlan(technique="filter", sparsity=0.5, protect=())
    with raises(ModelError, code="changed-graph", match="result.save"):
        model_handle.wrap(prune(path, narrow))
    from_memory = prune(helpers.small_cnn(), narrow)
    assert model_handle.wrap(from_memory).model is from_memory.model


@pytest.mark.slow
@pytest.mark.parametrize("library", [tf_keras, keras])
@pytest.mark.parametrize("ending", [".keras", ".h5", ".hdf5"])
def test_a_keras_file_loads_in_the_keras_that_wrote_it_and_saves_again(tmp_path, library, ending):
    x, _ = helpers.points(7)
    model = helpers.small_dense() if library is tf_keras else kinds.keras3_dense()
    model.save(tmp_path / f"model{ending}")
    handle = model_handle.load(str(tmp_path / f"model{ending}"))
    assert handle.kind == ("keras2" if library is tf_keras else "keras3")
    np.testing.assert_allclose(handle.network(x), model(x), rtol=1e-6)
    kinds.zero_half(handle)
    handle.save(str(tmp_path / "pruned"))
    answer = helpers.answers(str(tmp_path / "pruned"), x=x)
    np.testing.assert_allclose(answer["y"], handle.network(x), atol=1e-6)
    again = model_handle.load(str(tmp_path / "pruned"))
    assert (again.kind, again.measure().sparsity) == (handle.kind, handle.measure().sparsity)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["tf.saved_model.save", "model.export", "keras 3 export", "tf.Module", "subclassed"])
def test_a_saved_model_without_layers_has_variables_and_saves_again(tmp_path, how):
    x, _ = helpers.points(7)
    path = str(tmp_path / "model")
    if how == "tf.saved_model.save":
        model = helpers.small_dense()
        serve = tf.function(model).get_concrete_function(tf.TensorSpec([None, 4], name="x"))
        tf.saved_model.save(model, path, signatures=serve)
    elif how == "model.export":
        helpers.small_dense().export(path)
    elif how == "keras 3 export":
        kinds.keras3_dense().export(path, verbose=False)
    elif how == "tf.Module":
        kinds.module(path)
    else:
        model = kinds.Subclassed()
        model(x)
        model.save(path, save_format="tf")
    handle = model_handle.load(path)
    assert (handle.kind, handle.network, handle.keras_model) == ("saved_model", None, None)
    assert len(handle.kernels) == (1 if how == "subclassed" else 2)
    assert {id(kernel.variable) for kernel in handle.kernels.values()} <= {id(weight) for weight in handle.weights}
    assert any(("subclassed" if how == "subclassed" else "no Keras metadata") in note for note in handle.notes)
    feed = {next(iter(handle.model.loaded.signatures["serving_default"].structured_input_signature[1])): x}
    before = helpers.answers(path, **feed)
    kinds.zero_half(handle)
    expected = {name: value.numpy() for name, value in handle.model.signatures["serving_default"](**feed).items()}
    handle.save(str(tmp_path / "pruned"))
    after = helpers.answers(str(tmp_path / "pruned"), **feed)
    for name, value in after.items():
        np.testing.assert_array_equal(value, expected[name])
        assert np.abs(value - before[name]).max() > 1e-3
    assert model_handle.load(str(tmp_path / "pruned")).measure().sparsity == handle.measure().sparsity > 0.4
