"""Ranges of a float TFLite model's tensors."""

import tempfile

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite_quantizer import calibration
from tfx_compression.tflite_quantizer.calibration import observe, outside
from tfx_compression.tflite_quantizer.config import Calibration

from tests.support import helpers

pytestmark = pytest.mark.slow

BIN = 2**-6  # the widest a bin is, of its values


@pytest.fixture(scope="module")
def cnn():
    model = helpers.small_cnn()
    return helpers.to_tflite(model, "float32")


@pytest.fixture(scope="module")
def pictures():
    return helpers.images(40)[0] / helpers.LARGEST


def activations(content: bytes, columns) -> dict[str, np.ndarray]:
    """All values of all float tensors that operators return or inputs are, [rows, …], by TensorFlow's interpreter."""
    interpreter = tf.lite.Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    runner = interpreter.get_signature_runner("serving_default")
    parsed = flatbuffer.parse(content)
    computed = {index for operator in flatbuffer.operators(parsed) for index in operator.outputs}
    found: dict[str, list[np.ndarray]] = {}
    for row in range(len(next(iter(columns.values())))):
        runner(**{name: values[row : row + 1] for name, values in columns.items()})
        for detail in interpreter.get_tensor_details():
            if detail["dtype"] == np.float32 and detail["index"] in computed | set(parsed.subgraphs[0].inputs):
                found.setdefault(detail["name"], []).append(interpreter.get_tensor(detail["index"]).copy())
    return {name: np.stack(values) for name, values in found.items()}


def lost(values: np.ndarray, low: float, high: float) -> float:
    """The mean over the rows of the squared error by the sum of squares, by rounding each value to int8 and back."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero_point = np.clip(np.rint(-128 - low / scale), -128, 127)
    rows = values.reshape(len(values), -1).astype(np.float64)
    stored = np.clip(np.rint(rows / scale) + zero_point, -128, 127)
    squares = (rows**2).sum(axis=1)
    errors = (((stored - zero_point) * scale - rows) ** 2).sum(axis=1)
    return float(np.mean(np.divide(errors, squares, out=np.zeros_like(errors), where=squares > 0)))


def test_min_max_is_what_tensorflow_and_the_quantizer_record(cnn, pictures):
    import numpy.typing  # noqa: F401  ai_edge_quantizer needs it on NumPy 1.26
    from ai_edge_quantizer import calibrator, recipe, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    found = observe(cnn, {"image": pictures}, Calibration())
    values = activations(cnn, {"image": pictures})
    assert set(found.tensors) == set(values)
    for name, (low, high) in found.tensors.items():
        np.testing.assert_allclose((low, high), (values[name].min(), values[name].max()), rtol=1e-5, atol=1e-6)
    theirs = calibrator.Calibrator(cnn, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    theirs.calibrate({"serving_default": [{"image": row[None]} for row in pictures]}, manager)
    compared = 0
    for name, recorded in theirs.get_model_qsvs().items():
        if name in found.tensors:
            ours = found.tensors[name]
            np.testing.assert_allclose(ours, (recorded["min"].item(), recorded["max"].item()), rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared >= 5
    assert found.inputs["image"].minimum == pictures.min() and found.inputs["image"].maximum == pictures.max()


@pytest.mark.parametrize("percentile", [60.0, 95.0, 99.0, 99.99, 100.0])
def test_percentiles_are_numpys_of_the_values_other_than_zero_to_within_a_bin(cnn, pictures, percentile):
    found = observe(cnn, {"image": pictures}, Calibration(ranges="percentile", percentile=percentile))
    signs = set()
    for name, held in activations(cnn, {"image": pictures}).items():
        values = held[held != 0]
        signs.add((bool((values < 0).any()), bool((values > 0).any())))
        ends = (0.0, percentile) if (values > 0).all() else (50 - percentile / 2, 50 + percentile / 2)
        low, high = np.percentile(values, ends)
        assert found.tensors[name][1] == pytest.approx(high, rel=BIN, abs=1e-6), name
        if (values > 0).all() or percentile == 100.0:  # of what a ReLU returns only the upper tail goes; zeros stay
            assert found.tensors[name][0] <= low + 1e-6
        else:
            assert found.tensors[name][0] == pytest.approx(low, rel=BIN, abs=1e-6), name
    assert signs == {(False, True), (True, True)}


def squares(content, columns):
    return observe(content, columns, Calibration(ranges="mse"))


def test_mse_loses_no_more_than_the_best_of_all_ranges_tried_on_the_raw_values(cnn, pictures):
    found = squares(cnn, {"image": pictures})
    for name, values in activations(cnn, {"image": pictures}).items():
        lows = min(float(values.min()), 0.0) * np.linspace(0.05, 1, 40)
        highs = max(float(values.max()), 0.0) * np.linspace(0.05, 1, 40)
        best = min(lost(values, low, high) for low in np.unique(lows) for high in np.unique(highs))
        assert lost(values, *found.tensors[name]) <= 1.05 * best + 1e-9, name


@pytest.mark.parametrize("distribution", ["laplace", "normal", "lognormal", "uniform", "negative"])
def test_mse_on_one_tensor_is_the_best_range_whatever_the_distribution(distribution):
    generator = np.random.default_rng(0)
    shape = (50, 2000)
    values = {
        "laplace": lambda: generator.laplace(size=shape),
        "normal": lambda: generator.normal(0.3, 1.0, size=shape),
        "lognormal": lambda: generator.lognormal(0.0, 1.5, size=shape),
        "uniform": lambda: generator.uniform(-3, 5, size=shape),
        "negative": lambda: -generator.gamma(1.0, size=shape),
    }[distribution]().astype(np.float32)
    histogram = calibration._Energies()
    for row in values:
        histogram.add(row)
    found = histogram.range(Calibration(ranges="mse"))
    lows = np.unique(min(float(values.min()), 0.0) * 2.0 ** -np.linspace(0, 4, 33))
    highs = np.unique(max(float(values.max()), 0.0) * 2.0 ** -np.linspace(0, 4, 33))
    best = min(lost(values, low, high) for low in lows for high in highs if high > low)
    assert lost(values, *found) <= 1.02 * best
    if distribution == "uniform":
        np.testing.assert_allclose(found, (values.min(), values.max()), rtol=0.02)
    if distribution in ("laplace", "lognormal"):
        assert found[1] < 0.9 * values.max()


def test_the_expected_error_of_a_bin_is_the_mean_over_the_values_in_it():
    """By hand: levels 0, 1, … 255; from 0.25 to 0.75 the distance is 0.25 to 0.5 and back: its square's mean is
    7/48; from 255 to 257 all are clipped to 255: 4/3; 3.25 alone: 1/16.
    """
    low, high = np.array([0.25, 255.0, 3.25]), np.array([0.75, 257.0, 3.25])
    for weights, expected in (
        ([1, 0, 0], 7 / 48),
        ([0, 1, 0], 4 / 3),
        ([0, 0, 1], 1 / 16),
        ([2, 1, 1], 7 / 24 + 4 / 3 + 1 / 16),
    ):
        assert calibration._error(low, high, np.array(weights), 0.0, 255.0) == pytest.approx(expected)


def test_one_outlier_spoils_min_max_and_neither_percentile_nor_mse(cnn, pictures):
    """A pixel of one row is 1,000 times as bright."""
    spoiled = np.concatenate([pictures] * 5)
    spoiled[17, 3, 4, 0] *= 1000
    clean = observe(cnn, {"image": pictures}, Calibration())
    settings = {
        "min_max": Calibration(),
        "percentile": Calibration(ranges="percentile", percentile=99.0),
        "mse": Calibration(ranges="mse"),
    }
    ranges = {name: observe(cnn, {"image": spoiled}, setting) for name, setting in settings.items()}
    assert ranges["min_max"].inputs["image"].maximum == ranges["mse"].inputs["image"].maximum == spoiled.max()
    for name, (low, high) in clean.tensors.items():
        if name == next(iter(clean.tensors)) or "conv" in name or "separable" in name:
            widths = {setting: found.tensors[name][1] - found.tensors[name][0] for setting, found in ranges.items()}
            assert widths["min_max"] > 20 * (high - low), name
            assert 0.3 * (high - low) < widths["percentile"] < 1.1 * (high - low), (name, widths, high - low)
            assert 0.5 * (high - low) < widths["mse"] < 1.5 * (high - low), (name, widths, high - low)


def test_outside_is_the_share_of_values_that_saturate(cnn, pictures):
    ranges = observe(cnn, {"image": pictures}, Calibration())
    assert outside(ranges, {"image": pictures}) == {"image": 0.0}
    other = pictures.copy()
    other[:10] += 10.0
    other[10, 0] = -1.0
    other[10, 1] = np.nan
    assert outside(ranges, {"image": other})["image"] == pytest.approx((10 * 64 + 16) / (40 * 64))
    with pytest.raises(ModelError, match="'image'"):
        outside(ranges, {})


def converted(function, specs, **tracked) -> bytes:
    """A function as a float TFLite model."""
    with tempfile.TemporaryDirectory() as folder:
        helpers.save_function(function, specs, folder, **tracked)
        return bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


@pytest.fixture(scope="module")
def mixed():
    """An int and a float input; a product, a constant, and a tensor that is always positive."""
    table = tf.Variable(np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32))

    def function(word, x):
        both = tf.gather(table, word) * x
        return {"sum": both + 7.0, "same": tf.minimum(tf.nn.relu(x) + 3.0, 3.0), "far": tf.nn.relu(x) + 5.0}

    specs = [tf.TensorSpec([None], tf.int32, name="word"), tf.TensorSpec([None, 3], tf.float32, name="x")]
    return converted(function, specs, table=table)


def mixed_columns(rows=30):
    generator = np.random.default_rng(1)
    return {"word": generator.integers(0, 10, rows), "x": generator.normal(size=(rows, 3))}


@pytest.mark.parametrize("ranges", ["min_max", "percentile", "mse"])
def test_integers_have_no_range_and_constant_or_far_tensors_have_theirs(mixed, ranges):
    columns = mixed_columns()
    found = observe(mixed, columns, Calibration(ranges=ranges, percentile=100.0))
    assert list(found.inputs) == ["x"]
    assert found.inputs["x"].minimum == pytest.approx(columns["x"].min())
    assert outside(found, columns)["x"] <= 0.05
    assert (3.0, 3.0) in found.tensors.values()
    assert 5.0 in {low for low, _ in found.tensors.values()}  # zero was not seen, so it is not put in
    assert all(low <= high for low, high in found.tensors.values())


def test_what_is_quantized_of_an_input_has_zero_in_it(mixed):
    columns = {**mixed_columns(), "x": np.full((30, 3), 4.0) + np.arange(30)[:, None] / 30}
    found = observe(mixed, columns, Calibration())
    assert found.inputs["x"].minimum == 4.0
    assert found.inputs["x"].range[0] == 0.0


def test_a_model_of_a_fixed_batch_gives_the_same_ranges(pictures):
    model = helpers.small_cnn()
    free = helpers.to_tflite(model, "float32")
    spec = tf.TensorSpec([8, *helpers.IMAGE], tf.float32, name="image")
    fixed = converted(lambda x: {"probabilities": model(x)}, [spec], weights=model.weights)
    rows = {"image": pictures[:21]}
    ours, theirs = (observe(content, rows, Calibration()) for content in (free, fixed))
    assert theirs.inputs == ours.inputs
    assert len(theirs.tensors) == len(ours.tensors)
    np.testing.assert_allclose(sorted(theirs.tensors.values()), sorted(ours.tensors.values()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_refused_by_the_inputs_name(cnn, pictures, value):
    spoiled = pictures.copy()
    spoiled[3, 0, 0, 0] = value
    with pytest.raises(ModelError, match=r"'image' is NaN or infinite in 1 of 40 calibration rows, row 3.*Remedy"):
        observe(cnn, {"image": spoiled}, Calibration())


def test_a_layer_that_returns_infinity_is_refused_by_its_name():
    content = converted(lambda x: {"y": tf.math.log(x) * 2.0}, [tf.TensorSpec([None, 2], tf.float32, name="x")])
    with pytest.raises(ModelError, match=r"tensor '.*' is NaN or infinite.*Remedy"):
        observe(content, {"x": np.array([[1.0, 2.0], [0.0, 1.0]])}, Calibration())


def test_rows_that_do_not_fit_are_refused(cnn, pictures, mixed):
    with pytest.raises(ModelError, match="'image'"):
        observe(cnn, {"picture": pictures}, Calibration())
    with pytest.raises(ModelError, match="rows"):
        observe(cnn, {"image": pictures[:0]}, Calibration())
    with pytest.raises(ModelError, match="rows"):
        observe(mixed, {**mixed_columns(), "word": np.arange(5)}, Calibration())


def test_the_tensors_within_a_loop_are_left_to_the_quantizer():
    tf_keras.utils.set_random_seed(0)
    x = tf_keras.Input((4, 3), name="x")
    model = tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(tf_keras.layers.GRU(5, name="gru")(x)))
    content = converted(
        lambda x: {"y": model(x)}, [tf.TensorSpec([1, 4, 3], tf.float32, name="x")], weights=model.weights
    )
    rows = np.random.default_rng(0).normal(size=(20, 4, 3)).astype(np.float32)
    assert len(flatbuffer.parse(content).subgraphs) > 1
    found = observe(content, {"x": rows}, Calibration())
    expected = model.predict(rows, verbose=0)
    assert any(np.allclose(ends, (expected.min(), expected.max()), atol=1e-4) for ends in found.tensors.values())
    assert found.inputs["x"].maximum == rows.max()
