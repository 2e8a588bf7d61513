"""SavedModels of Keras models: the same answers, under the names of the model's inputs and outputs."""

import keras
import numpy as np
import pytest
import tf_keras
from tfx_compression.errors import ModelError
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.tflite_quantizer import sources

from tests.support import helpers, kinds
from tests.support.conversions import normal
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # saves models

ROWS = 6


def two_in_two_out(library):
    inputs = {name: library.Input((3,), name=name) for name in ("left", "right")}
    joined = library.layers.Concatenate()([inputs["left"], inputs["right"]])
    hidden = library.layers.Dense(5, activation="relu")(joined)
    outputs = [library.layers.Dense(2, name="score")(hidden), library.layers.Dense(1, name="risk")(hidden)]
    return library.Model(inputs, outputs)


class Subclassed3(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = keras.layers.Dense(2)

    def call(self, inputs):
        return {"sum": self.inner(inputs["a"]) + self.inner(inputs["b"])}


class Subclassed2(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = tf_keras.layers.Dense(2)

    def call(self, inputs):
        return {"sum": self.inner(inputs["a"]) + self.inner(inputs["b"])}


class Unnamed3(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = keras.layers.Dense(2)

    def call(self, inputs):
        return self.inner(inputs)


def test_a_result_keeps_the_signatures_of_its_original(tmp_path):
    path = helpers.save_with_examples_signature(helpers.small_dense(), tmp_path / "model", "x", (4,))
    narrow = prune(path, PruningPlan(technique="neuron", sparsity=0.5, protect=()))
    saved = sources.as_saved_model(narrow, str(tmp_path / "saved"))
    examples = helpers.serialized({"x": normal(ROWS, 4)})
    (answer,) = helpers.answers(saved, examples=examples).values()
    assert answer.shape == (ROWS, *narrow.model.output_shape[1:])


@pytest.mark.parametrize("library", [tf_keras, keras], ids=["keras2", "keras3"])
@pytest.mark.parametrize("source", ["memory", ".keras", ".h5"])
def test_a_keras_model_keeps_the_names_of_its_inputs_and_outputs(tmp_path, library, source):
    model = saved = two_in_two_out(library)
    if source != "memory":
        saved = str(tmp_path / f"model{source}")
        model.save(saved)
    path = sources.as_saved_model(saved, str(tmp_path / "saved"))
    columns = {"left": normal(ROWS, 3), "right": normal(ROWS, 3, seed=1)}
    score, risk = model(columns)
    answers = helpers.answers(path, **columns)
    np.testing.assert_allclose(answers["score"], score, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answers["risk"], risk, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Subclassed2, Subclassed3])
def test_a_subclassed_model_keeps_the_names_in_its_dicts(tmp_path, kind):
    model = kind()
    columns = {"a": normal(ROWS, 4), "b": normal(ROWS, 4, seed=1)}
    expected = model(columns)["sum"]
    path = sources.as_saved_model(model, str(tmp_path / "saved"))
    np.testing.assert_allclose(helpers.answers(path, **columns)["sum"], expected, rtol=1e-5, atol=1e-6)


def test_a_subclassed_model_without_dicts_has_keras_own_names(tmp_path):
    model, x = Unnamed3(), normal(ROWS, 4)
    expected = model(x)
    path = sources.as_saved_model(model, str(tmp_path / "saved"))
    np.testing.assert_allclose(helpers.answers(path, args_0=x)["output_0"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Subclassed2, Subclassed3])
def test_a_subclassed_model_that_was_never_called_is_refused(tmp_path, kind):
    with raises(ModelError, code="unknown-inputs", match="call it once"):
        sources.as_saved_model(kind(), str(tmp_path / "saved"))


def test_a_saved_model_stays_where_it_is(tmp_path):
    path = kinds.module(tmp_path / "module")
    assert sources.as_saved_model(path, str(tmp_path / "not_written")) == path
    assert not (tmp_path / "not_written").exists()
