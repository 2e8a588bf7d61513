"""The graph of layers of Keras models, and the network between inputs and outputs."""

import keras
import numpy as np
import pytest
import tf_keras
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph, keras2, library

from tests.support import helpers, kinds
from tests.support.errors import raises


def test_the_network_shares_the_weights_and_leaves_transforms_layer_out(tmp_path):
    path = helpers.save_with_examples_signature(helpers.small_dense(), tmp_path / "model", "x", (4,))
    loaded = keras2.load(path)
    network = graph.extract_network(loaded)
    assert "transform_features_layer" in [layer.name for layer in loaded.layers]
    assert "transform_features_layer" not in [layer.name for layer in network.layers]
    assert [id(weight) for weight in network.weights] == [id(weight) for weight in loaded.weights]


@pytest.mark.parametrize("reloaded", [False, True])
def test_a_subclassed_keras_2_model_has_no_network(tmp_path, reloaded):
    model = kinds.Subclassed()
    model(np.ones([1, 4], np.float32))
    if reloaded:
        model.save(tmp_path / "model", save_format="tf")
        model = keras2.load(str(tmp_path / "model"))
    with raises(ModelError, code="subclassed-model", match=r"tf_keras\.Sequential"):
        graph.extract_network(model)


def test_a_subclassed_keras_3_model_has_no_network():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    with raises(ModelError, code="subclassed-model", match=r"build it with keras\.Sequential"):
        graph.extract_network(Subclassed())


@pytest.mark.parametrize("keras_library", [tf_keras, keras])
def test_calls_come_in_an_order_in_which_they_can_be_executed(keras_library):
    layers = keras_library.layers
    inputs = {name: keras_library.Input((4,), name=name) for name in ("b", "a")}
    nested = keras_library.Sequential([keras_library.Input((4,)), layers.Dense(3, name="inside")], name="nested")
    joined = layers.Concatenate(name="joined")([nested(inputs["b"]), inputs["a"]])
    model = keras_library.Model(inputs, {"y": layers.Dense(2, name="y")(joined)})
    calls = {call.layer.name: call for call in graph.calls(model)}
    assert list(calls) == ["nested", "joined", "y"]
    assert calls["joined"].inputs[0] is calls["nested"].outputs[0]
    assert [tensor.shape[-1] for tensor in calls["joined"].inputs] == [3, 4]
    assert graph.is_functional(nested)
    assert not graph.is_functional(calls["y"].layer)
    structures = graph.io_structures(model)
    assert (set(structures[0]), set(structures[1])) == ({"a", "b"}, {"y"})
    assert [tensor.name.split(":")[0] for tensor in graph.flat_tensors(structures[0])] == ["a", "b"]
    assert graph.map_tensors(structures, lambda tensor: tensor.shape[-1]) == ({"a": 4, "b": 4}, {"y": 2})


def test_an_object_belongs_to_the_library_of_its_class():
    assert library.keras_library(tf_keras.layers.Dense(1)) is tf_keras
    assert library.keras_library(keras.layers.Dense(1)) is keras
    assert library.is_keras3(keras.layers.Dense(1))
    assert not library.is_keras3(tf_keras.layers.Dense(1))


def test_keras_3_on_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with raises(ModelError, code="keras-backend", match="'jax'"):
        library.import_keras3()
