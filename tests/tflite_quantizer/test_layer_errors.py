"""Each layer's error, against a hand computation."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import interpreter as litert
from tfx_compression.errors import ModelError
from tfx_compression.tflite_quantizer import layer_errors

from tests.support import helpers

pytestmark = pytest.mark.slow  # converts models


@pytest.fixture(scope="module")
def images():
    return {"image": helpers.images(50)[0] / helpers.LARGEST}  # more than a batch, and no whole number of them


@pytest.fixture(scope="module")
def cnn(images):
    """By mode, the same network."""
    model = helpers.small_cnn()
    return {mode: helpers.to_tflite(model, mode, images["image"]) for mode in ("float32", "float16", "int8")}


def dequantized(interpreter: Any, name: str, x: np.ndarray) -> np.ndarray:
    """A tensor of an int8 model that runs row by row."""
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    details = interpreter.get_tensor_details()
    details = [detail for detail in details if detail["name"].startswith(name) and detail["dtype"] == np.int8]
    (found,) = [detail for detail in details if list(detail["shape"][:1]) == [1]]  # the kernel may be called so too
    rows = []
    for row in x:
        scale, zero_point = given["quantization"]
        stored = np.clip(np.round(row / scale) + zero_point, -128, 127).astype(np.int8)
        interpreter.set_tensor(given["index"], stored[None])
        interpreter.invoke()
        scale, zero_point = found["quantization"]
        rows.append((interpreter.get_tensor(found["index"])[0].astype(np.float64) - zero_point) * scale)
    return np.stack(rows)


def test_of_two_layers_the_errors_are_those_by_hand():
    model, x = helpers.small_dense(), helpers.points(70)[0]
    float32, int8 = helpers.to_tflite(model, "float32"), helpers.to_tflite(model, "int8", x)
    hidden = np.maximum(x.astype(np.float64) @ model.get_layer("hidden").kernel.numpy(), 0)
    outputs = hidden @ model.get_layer("y").kernel.numpy()
    found = layer_errors.compare(float32, int8, {"x": x})
    assert [(error.layer, error.op, error.precision) for error in found] == [
        ("small_dense/hidden", "FULLY_CONNECTED", "int8"),
        ("y", "FULLY_CONNECTED", "int8"),
    ]
    device = litert.Interpreter(model_content=int8, experimental_preserve_all_tensors=True)
    reference = tf.lite.Interpreter(
        model_content=int8,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_REF,
    )
    for error, real, name in zip(found, (hidden, outputs), ("small_dense/hidden/", "StatefulPartitioned"), strict=True):
        for interpreter, decibels in ((device, 0.01), (reference, 0.5)):  # reference kernels round some by a step
            stored = dequantized(interpreter, name, x)
            noise = np.square(real - stored).sum()
            assert error.snr_db == pytest.approx(10 * np.log10(np.square(real).sum() / noise), abs=decibels)
            cosine = (real * stored).sum() / np.linalg.norm(real) / np.linalg.norm(stored)
            assert error.cosine == pytest.approx(cosine, abs=1e-5)
        assert error.max_error == pytest.approx(np.abs(real - dequantized(device, name, x)).max(), rel=1e-3)
        assert 25 < error.snr_db < 60


def test_a_model_differs_in_nothing_from_itself(cnn, images):
    found = layer_errors.compare(cnn["float32"], cnn["float32"], images)
    assert len(found) == 8
    assert {(error.snr_db, error.max_error) for error in found} == {(None, 0.0)}
    assert all(error.cosine == pytest.approx(1.0) for error in found)
    assert {error.precision for error in found} == {"float32"}


def test_fewer_bits_are_more_noise_in_every_layer(cnn, images):
    fine, coarse = (layer_errors.compare(cnn["float32"], cnn[mode], images) for mode in ("float16", "int8"))
    assert [error.layer for error in fine] == [error.layer for error in coarse]
    for more, less in zip(fine, coarse, strict=True):
        assert more.snr_db > less.snr_db + 20
    assert {error.precision for error in fine if "CO" in error.op} == {"float16"}
    assert {error.precision for error in coarse} == {"int8"}


@pytest.fixture(scope="module")
def by_recipe(cnn, tmp_path_factory):
    """By recipe, the network in 4 bits by ai-edge-quantizer."""
    import numpy.typing  # noqa: F401  # which ai-edge-quantizer 0.10 takes for granted
    from ai_edge_quantizer import qtyping, quantizer, recipe

    path = str(tmp_path_factory.mktemp("float") / "tflite")
    with open(path, "wb") as file:
        file.write(cnn["float32"])
    blocks = quantizer.Quantizer(path)
    blocks.add_dynamic_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.FULLY_CONNECTED,
        num_bits=4,
        granularity=qtyping.QuantGranularity.BLOCKWISE_32,
    )
    recipes = {"dynamic": recipe.dynamic_wi4_afp32(), "weight_only": recipe.weight_only_wi4_afp32()}
    made = {name: quantizer.Quantizer(path, steps).quantize() for name, steps in recipes.items()}
    return {name: bytes(found.quantized_model) for name, found in {**made, "blocks": blocks.quantize()}.items()}


@pytest.mark.parametrize(
    ("recipe", "precision"),
    [("dynamic", "int4_dynamic"), ("weight_only", "int4_weight_only"), ("blocks", "int4_dynamic")],
)
def test_four_bits_are_told_by_how_they_are_used_and_computed_right(cnn, by_recipe, images, recipe, precision):
    found = layer_errors.compare(cnn["float32"], by_recipe[recipe], images)
    assert len(found) == 8
    dense = [error for error in found if error.op == "FULLY_CONNECTED"]
    assert {error.precision for error in dense} == {precision}
    assert all(10 < error.snr_db < 30 for error in dense)  # blocks without XNNPACK: 0 dB
    assert {error.precision for error in found if error.op in ("MAX_POOL_2D", "SOFTMAX")} == {"float32"}


def test_a_fixed_batch_is_filled(cnn, images, tmp_path):
    model = helpers.small_cnn()
    helpers.save_function(
        lambda x: {"probabilities": model(x)}, [tf.TensorSpec([16, 8, 8, 1], name="image")], tmp_path, w=model.weights
    )
    content = bytes(tf.lite.TFLiteConverter.from_saved_model(str(tmp_path)).convert())
    found = layer_errors.compare(cnn["float32"], content, images)
    assert found[-1].op == "SOFTMAX"
    assert all(error.max_error < 1e-5 for error in found)


def test_other_rows_are_refused_by_name(cnn):
    with pytest.raises(ModelError, match="takes 'image', which is no feature"):
        layer_errors.compare(cnn["float32"], cnn["int8"], {"picture": np.zeros((2, 8, 8, 1), np.float32)})


def test_a_layer_that_overflows_is_named():
    model = helpers.small_dense()
    contents = []
    for weight in (1.0, 3e38):
        model.get_layer("hidden").kernel.assign(np.full((4, 16), weight, np.float32))
        contents.append(helpers.to_tflite(model, "float32"))
    x = {"x": np.ones((2, 4), np.float32)}
    with pytest.raises(ModelError, match="'small_dense/hidden' returns values that are no finite numbers"):
        layer_errors.compare(*contents, x)
    assert layer_errors.compare(*reversed(contents), x) == ()  # nothing to compare with


def test_a_float_layer_of_zeros_has_no_cosine():
    model = helpers.small_dense()
    contents = []
    for weight in (0.0, 0.5):
        model.get_layer("hidden").kernel.assign(np.full((4, 16), weight, np.float32))
        contents.append(helpers.to_tflite(model, "float32"))
    hidden = layer_errors.compare(*contents, {"x": np.ones((2, 4), np.float32)})[0]
    assert (hidden.snr_db, hidden.max_error, hidden.cosine) == (-999.0, 2.0, None)
