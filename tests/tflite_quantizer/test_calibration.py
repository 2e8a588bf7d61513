"""Ranges of a float TFLite model's tensors, against TensorFlow's interpreter and NumPy."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import DataError, ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite_quantizer.calibration import input_ranges, measure_ranges, share_outside
from tfx_compression.tflite_quantizer.config import Calibration

from tests.support import helpers
from tests.support.conversions import converted_function, normal, squared_rounding_error
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models

BIN = 2**-6  # the largest width of a bin, relative to its values


@pytest.fixture(scope="module")
def images(pictures):
    return pictures["image"][:40]


@pytest.fixture(scope="module")
def activations(float_cnn, images):
    return tensor_values(float_cnn, {"image": images})


def tensor_values(content: bytes, columns) -> dict[str, np.ndarray]:
    """Returns [rows, …] values of every float tensor that is an input or computed, by TensorFlow's interpreter."""
    interpreter = tf.lite.Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    runner = interpreter.get_signature_runner("serving_default")
    parsed = flatbuffer.parse(content)
    outputs = {index for operator in flatbuffer.operators(parsed) for index in operator.outputs}
    computed = outputs | set(parsed.subgraphs[0].inputs)
    values: dict[str, list[np.ndarray]] = {}
    for row in range(len(next(iter(columns.values())))):
        runner(**{name: column[row : row + 1] for name, column in columns.items()})
        for detail in interpreter.get_tensor_details():
            if detail["dtype"] == np.float32 and detail["index"] in computed:
                values.setdefault(detail["name"], []).append(interpreter.get_tensor(detail["index"]).copy())
    return {name: np.stack(rows) for name, rows in values.items()}


def test_min_max_is_what_tensorflow_and_the_quantizer_record(float_cnn, images, activations):
    import numpy.typing  # noqa: F401 - litert_quantizer 0.11 doesn't import it
    from litert_quantizer import calibrator, recipe, recipe_manager
    from litert_quantizer.utils import qsv_utils

    ranges = measure_ranges(float_cnn, {"image": images}, Calibration())
    assert set(ranges.tensors) == set(activations)
    for name, ends in ranges.tensors.items():
        expected = (activations[name].min(), activations[name].max())
        np.testing.assert_allclose(ends, expected, rtol=1e-5, atol=1e-6)
    quantizers = calibrator.Calibrator(float_cnn, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    quantizers.calibrate({"serving_default": [{"image": row[None]} for row in images]}, manager)
    recorded = {name: ends for name, ends in quantizers.get_model_qsvs().items() if name in ranges.tensors}
    assert len(recorded) >= 5
    for name, ends in recorded.items():
        expected = (ends["min"].item(), ends["max"].item())
        np.testing.assert_allclose(ranges.tensors[name], expected, rtol=1e-4, atol=1e-5)
    assert (ranges.inputs["image"].minimum, ranges.inputs["image"].maximum) == (images.min(), images.max())


@pytest.mark.parametrize("percentile", [60.0, 95.0, 99.99, 100.0])
def test_percentiles_are_numpys_for_values_other_than_zero(float_cnn, images, activations, percentile):
    calibration = Calibration(ranges="percentile", percentile=percentile)
    ranges = measure_ranges(float_cnn, {"image": images}, calibration)
    signs = set()
    for name, all_values in activations.items():
        values = all_values[all_values != 0]
        signs.add((bool((values < 0).any()), bool((values > 0).any())))
        shares = (0.0, percentile) if (values > 0).all() else (50 - percentile / 2, 50 + percentile / 2)
        low, high = np.percentile(values, shares)
        assert ranges.tensors[name][1] == pytest.approx(high, rel=BIN, abs=1e-6), name
        if (values > 0).all() or percentile == 100.0:  # zeros of a ReLU stay in the range
            assert ranges.tensors[name][0] <= low + 1e-6
        else:
            assert ranges.tensors[name][0] == pytest.approx(low, rel=BIN, abs=1e-6), name
    assert signs == {(False, True), (True, True)}


def test_mse_is_close_to_the_best_range_for_the_values(float_cnn, images, activations):
    ranges = measure_ranges(float_cnn, {"image": images}, Calibration(ranges="mse"))
    for name, values in activations.items():
        lows = np.unique(min(float(values.min()), 0.0) * np.linspace(0.05, 1, 25))
        highs = np.unique(max(float(values.max()), 0.0) * np.linspace(0.05, 1, 25))
        best = min(squared_rounding_error(values, low, high) for low in lows for high in highs)
        assert squared_rounding_error(values, *ranges.tensors[name]) <= 1.05 * best + 1e-9, name


def test_an_outlier_dominates_min_max_only(float_cnn, images):
    """A pixel of one row is 1,000 times as bright."""
    spoiled = np.concatenate([images] * 5)
    spoiled[17, 3, 4, 0] *= 1000
    clean = measure_ranges(float_cnn, {"image": images}, Calibration())
    settings = {
        "min_max": Calibration(),
        "percentile": Calibration(ranges="percentile", percentile=99.0),
        "mse": Calibration(ranges="mse"),
    }
    ranges = {name: measure_ranges(float_cnn, {"image": spoiled}, setting) for name, setting in settings.items()}
    assert ranges["min_max"].inputs["image"].maximum == ranges["mse"].inputs["image"].maximum == spoiled.max()
    for name, (low, high) in clean.tensors.items():
        if name == next(iter(clean.tensors)) or "conv" in name or "separable" in name:
            widths = {setting: each.tensors[name][1] - each.tensors[name][0] for setting, each in ranges.items()}
            assert widths["min_max"] > 20 * (high - low), name
            assert 0.3 * (high - low) < widths["percentile"] < 1.1 * (high - low), (name, widths, high - low)
            assert 0.5 * (high - low) < widths["mse"] < 1.5 * (high - low), (name, widths, high - low)


def test_the_share_outside_counts_values_that_saturate(images):
    ranges = input_ranges({"image": images, "count": np.arange(3)})
    assert list(ranges) == ["image"]
    assert share_outside(ranges, {"image": images}) == {"image": 0.0}
    others = images.copy()
    others[:10] += 10.0
    others[10, 0] = -1.0
    others[10, 1] = np.nan
    assert share_outside(ranges, {"image": others})["image"] == pytest.approx((10 * 64 + 16) / (40 * 64))
    with raises(DataError, code="missing-feature", match="'image'"):
        share_outside(ranges, {})


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A model with an int and a float input, a constant output, and a tensor that is always positive."""
    table = tf.Variable(normal(10, 3))

    def function(word, x):
        product = tf.gather(table, word) * x
        return {"sum": product + 7.0, "same": tf.minimum(tf.nn.relu(x) + 3.0, 3.0), "far": tf.nn.relu(x) + 5.0}

    specs = [tf.TensorSpec([None], tf.int32, name="word"), tf.TensorSpec([None, 3], tf.float32, name="x")]
    return converted_function(function, specs, tmp_path_factory.mktemp("mixed"), table=table)


def mixed_columns(rows=30):
    return {"word": np.random.default_rng(1).integers(0, 10, rows), "x": normal(rows, 3, seed=1)}


@pytest.mark.parametrize("ranges", ["min_max", "percentile", "mse"])
def test_integers_have_no_range_and_constants_have_their_value(mixed, ranges):
    columns = mixed_columns()
    measured = measure_ranges(mixed, columns, Calibration(ranges=ranges, percentile=100.0))
    assert list(measured.inputs) == ["x"]
    assert measured.inputs["x"].minimum == pytest.approx(columns["x"].min())
    assert share_outside(measured.inputs, columns)["x"] <= 0.05
    assert (3.0, 3.0) in measured.tensors.values()
    assert 5.0 in {low for low, _ in measured.tensors.values()}  # without zero, which no row has
    assert all(low <= high for low, high in measured.tensors.values())


def test_the_range_of_an_input_includes_zero(mixed):
    columns = {**mixed_columns(), "x": np.full((30, 3), 4.0) + np.arange(30)[:, None] / 30}
    measured = measure_ranges(mixed, columns, Calibration())
    assert measured.inputs["x"].minimum == 4.0
    assert measured.inputs["x"].range[0] == 0.0


def test_a_fixed_batch_gives_the_same_ranges(trained_cnn, float_cnn, images, tmp_path):
    spec = tf.TensorSpec([8, *helpers.IMAGE], tf.float32, name="image")
    fixed = converted_function(
        lambda x: {"probabilities": trained_cnn(x)}, [spec], tmp_path / "fixed", weights=trained_cnn.weights
    )
    rows = {"image": images[:21]}
    free_ranges, fixed_ranges = (measure_ranges(content, rows, Calibration()) for content in (float_cnn, fixed))
    assert fixed_ranges.inputs == free_ranges.inputs
    assert len(fixed_ranges.tensors) == len(free_ranges.tensors)
    ends = (sorted(each.tensors.values()) for each in (fixed_ranges, free_ranges))
    np.testing.assert_allclose(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_refused(float_cnn, images, value):
    spoiled = images.copy()
    spoiled[3, 0, 0, 0] = value
    with raises(DataError, code="not-finite", match=r"'image'.* 1 of 40 .*row 3"):
        measure_ranges(float_cnn, {"image": spoiled}, Calibration())


def test_a_layer_that_returns_infinity_is_refused(tmp_path):
    content = converted_function(
        lambda x: {"y": tf.math.log(x) * 2.0}, [tf.TensorSpec([None, 2], tf.float32, name="x")], tmp_path / "log"
    )
    with raises(ModelError, code="not-finite"):
        measure_ranges(content, {"x": np.array([[1.0, 2.0], [0.0, 1.0]])}, Calibration())


def test_rows_that_do_not_fit_are_refused(float_cnn, images, mixed):
    with raises(ModelError, code="missing-feature", match="'image'"):
        measure_ranges(float_cnn, {"picture": images}, Calibration())
    with raises(DataError, code="rows"):
        measure_ranges(float_cnn, {"image": images[:0]}, Calibration())
    with raises(DataError, code="rows"):
        measure_ranges(mixed, {**mixed_columns(), "word": np.arange(5)}, Calibration())


def test_tensors_inside_a_loop_have_no_range(tmp_path):
    tf_keras.utils.set_random_seed(0)
    x = tf_keras.Input((4, 3), name="x")
    model = tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(tf_keras.layers.GRU(5, name="gru")(x)))
    spec = tf.TensorSpec([1, 4, 3], tf.float32, name="x")
    content = converted_function(lambda x: {"y": model(x)}, [spec], tmp_path / "gru", weights=model.weights)
    rows = normal(20, 4, 3)
    assert len(flatbuffer.parse(content).subgraphs) > 1
    ranges = measure_ranges(content, {"x": rows}, Calibration())
    expected = model.predict(rows, verbose=0)
    assert any(np.allclose(ends, (expected.min(), expected.max()), atol=1e-4) for ends in ranges.tensors.values())
    assert ranges.inputs["x"].maximum == rows.max()
