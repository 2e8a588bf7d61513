"""Loading a Keras 2 model that a Trainer wrote, and saving it with the same signatures."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import keras2

from tests.support import helpers
from tests.support.errors import raises


def squared_error(labels, predictions):
    """A loss that Keras doesn't know."""
    return tf.reduce_mean(tf.square(labels - predictions), axis=-1)


def compiled_and_trained(**compile_arguments) -> tf_keras.Model:
    model = helpers.small_dense()
    model.compile(
        **{"optimizer": tf_keras.optimizers.Adam(0.01), "loss": "mse", "run_eagerly": True, **compile_arguments}
    )
    model.fit(helpers.batches(*helpers.points(32)), verbose=0)
    return model


@pytest.mark.parametrize("content", ["nothing", "an empty folder"])
def test_a_path_without_a_model_is_refused(tmp_path, content):
    path = tmp_path / "Format-Serving"
    if content == "an empty folder":
        path.mkdir()
    with raises(ModelError, code="missing-model", match=str(path)):
        keras2.load(str(path))


def test_a_saved_model_without_layers_is_refused_with_the_remedy(tmp_path):
    path = helpers.save_function(lambda x: {"y": 2 * x}, [tf.TensorSpec([None], tf.float32, name="x")], tmp_path)
    with raises(ModelError, code="no-keras-metadata", match=str(path)) as caught:
        keras2.load(path)
    assert 'model.save(fn_args.serving_model_dir, save_format="tf"' in str(caught.value)


@pytest.mark.parametrize("ending", ["", ".keras", ".h5"])
def test_every_format_of_keras_2_loads(tmp_path, ending):
    model = helpers.small_dense()
    path = str(tmp_path / f"model{ending}")
    model.save(path, save_format=None if ending else "tf")
    x, _ = helpers.points(5)
    np.testing.assert_array_equal(keras2.load(path)(x), model(x))


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_file_that_is_no_model_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not a model")
    with raises(ModelError, code="unreadable-model", match=str(path)):
        keras2.load(str(path))


def test_user_classes_load_by_name(tmp_path):
    class Doubled(tf_keras.layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    tf_keras.utils.set_random_seed(1)
    model = tf_keras.Sequential([tf_keras.Input((4,)), Doubled(2)])
    model.save(tmp_path / "model.keras")
    loaded = keras2.load(str(tmp_path / "model.keras"), {"Doubled": Doubled})
    x, _ = helpers.points(5)
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Path of a model that a Trainer behind Transform saved."""
    path = tmp_path_factory.mktemp("trainer") / "Format-Serving"
    return helpers.save_with_examples_signature(helpers.small_dense(), path, "x", (4,))


def test_the_examples_signature_survives_saving(tmp_path, trained):
    keras2.save(keras2.load(trained), str(tmp_path / "again"))
    examples = helpers.serialized({"x": helpers.points(7)[0]})
    before, after = (helpers.answers(path, examples=examples) for path in (trained, str(tmp_path / "again")))
    assert list(after) == ["probabilities"]
    np.testing.assert_array_equal(after["probabilities"], before["probabilities"])


def test_the_saved_signature_uses_the_current_weights(tmp_path, trained):
    """Compression changes weights in place. A signature with the old ones would serve the wrong model."""
    loaded = keras2.load(trained)
    x, _ = helpers.points(7)
    before = loaded(x / helpers.LARGEST).numpy()
    helpers.zero_smallest(loaded, "hidden", 0.8)
    keras2.save(loaded, str(tmp_path / "again"))
    answer = helpers.answers(str(tmp_path / "again"), examples=helpers.serialized({"x": x}))["probabilities"]
    np.testing.assert_allclose(answer, loaded(x / helpers.LARGEST), atol=1e-6)
    assert np.abs(answer - before).max() > 1e-3


def test_all_signatures_survive_saving(tmp_path):
    model = helpers.small_dense()

    def signature(factor):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def serve(x):
            return {"y": factor * model(x)}

        return serve

    signatures = {"serving_default": signature(1.0), "tripled": signature(3.0)}
    model.save(tmp_path / "model", save_format="tf", signatures=signatures)
    keras2.save(keras2.load(str(tmp_path / "model")), str(tmp_path / "again"))
    x, _ = helpers.points(5)
    np.testing.assert_allclose(helpers.answers(str(tmp_path / "again"), x=x)["y"], model(x), rtol=1e-6)
    np.testing.assert_allclose(helpers.answers(str(tmp_path / "again"), "tripled", x=x)["y"], 3 * model(x), rtol=1e-6)


def test_a_model_without_signatures_gets_those_of_keras(tmp_path):
    model = helpers.small_dense()
    keras2.save(model, str(tmp_path / "model"))
    x, _ = helpers.points(5)
    np.testing.assert_allclose(helpers.answers(str(tmp_path / "model"), x=x)["y"], model(x), rtol=1e-6)


def test_compile_arguments_survive_saving_and_the_optimizers_state_does_not(tmp_path):
    model = compiled_and_trained(metrics=["mae"])
    assert len(model.optimizer.variables) > 8
    keras2.save(model, str(tmp_path / "model"))
    loaded = keras2.load(str(tmp_path / "model"))
    assert isinstance(loaded.optimizer, tf_keras.optimizers.Adam)
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.01)
    assert [variable.name for variable in loaded.optimizer.variables] == ["iteration:0"]
    results = loaded.evaluate(helpers.batches(*helpers.points(32)), verbose=0, return_dict=True)
    assert set(results) == {"loss", "mae"}


@pytest.mark.slow
def test_a_model_that_was_not_compiled_stays_so(tmp_path):
    keras2.save(helpers.small_dense(), str(tmp_path / "model"))
    assert keras2.compile_arguments(keras2.load(str(tmp_path / "model"))) == {}


@pytest.mark.slow
def test_a_model_with_a_user_loss_can_be_saved_again(tmp_path):
    compiled_and_trained(loss=squared_error).save(tmp_path / "trained", save_format="tf")
    loaded = keras2.load(str(tmp_path / "trained"), {"squared_error": squared_error})
    keras2.save(loaded, str(tmp_path / "again"))
    x, _ = helpers.points(5)
    np.testing.assert_array_equal(keras2.load(str(tmp_path / "again"), {"squared_error": squared_error})(x), loaded(x))
