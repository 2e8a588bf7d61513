"""Models and rows that are not what the modes were made for: what is done about them is right, or said."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression as tfc
from tfx_compression.errors import DataError, ModelError
from tfx_compression.saved_models import feature_signatures
from tfx_compression.tflite import conversion
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer import devices, sources
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.quantize import Rows, quantize_saved_model, rows_of

from tests.support import helpers, kinds

pytestmark = pytest.mark.slow  # converts models, in a process of its own each


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def quantized(path: str, rows: dict[str, np.ndarray] | None = None, labels: np.ndarray | None = None, **fields):
    """The first 40 rows calibrate; `auto` tries on those behind them."""
    config = Quantization(**{"calibration": {"rows": 40}, **fields})
    if rows is None:
        return quantize_saved_model(path, config)
    count = len(next(iter(rows.values())))
    return quantize_saved_model(
        path, config, rows_of(helpers.batches(rows, np.zeros(count) if labels is None else labels), config)
    )


def wide(tmp_path, sparsity: float = 0.9, block: int = 1) -> str:
    """64 numbers to 32 and to 8, most of whose weights are zero."""
    x = tf_keras.Input((64,), name="x")
    y = tf_keras.layers.Dense(8, name="y")(tf_keras.layers.Dense(32, activation="relu", name="hidden")(x))
    model = tf_keras.Model(x, y)
    generator = np.random.default_rng(0)
    for layer in model.layers[1:]:
        inputs, outputs = layer.kernel.shape
        keep = np.repeat(generator.random((inputs // block, outputs)) > sparsity, block, axis=0)
        layer.kernel.assign(layer.kernel * keep)
    return sources.saved_model_of(model, str(tmp_path / "wide"))


# Sparse


@pytest.mark.parametrize("block", [1, 4])
def test_sparse_kernels_are_encoded_and_counted_as_the_dense_ones(tmp_path, block):
    path, rows = wide(tmp_path, block=block), {"x": normal(60, 64)}
    dense = quantized(path, rows, mode="float32")
    sparse = quantized(path, rows, mode="float32", sparse=True)
    assert sparse.record.sparse.encoded and sparse.record.bytes < dense.record.bytes
    assert (sparse.record.parameters, sparse.record.sparsity) == (dense.record.parameters, dense.record.sparsity)
    kernels = [{weight.shape: weight for weight in found.contents.weights.values()} for found in (dense, sparse)]
    assert kernels[0].keys() == kernels[1].keys() == {(32, 64), (8, 32)}
    for shape, kernel in kernels[0].items():
        np.testing.assert_array_equal(kernels[1][shape], kernel)
    expected, found = (Interpreter(each.content).predict(rows)["y"] for each in (dense, sparse))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_weights_of_less_than_a_byte_are_left_dense(tmp_path):
    found = quantized(wide(tmp_path), mode="int4_weight_only", sparse="auto")
    assert not found.record.sparse.encoded and "less than a byte" in found.record.sparse.reason


# Graphs


@pytest.mark.parametrize("mode", ["int8", "int4", "auto"])
def test_a_part_that_nobody_takes_needs_no_remedy(tmp_path, mode):
    kernel = normal(4, 2, seed=1)

    def function(x):
        first, second, _ = tf.split(x, 3, axis=1)
        return {"y": tf.matmul(first, kernel) + tf.reduce_sum(second, axis=1, keepdims=True)}

    path = helpers.save_function(function, [tf.TensorSpec([None, 12], tf.float32, "x")], tmp_path / "split")
    rows = {"x": normal(90, 12)}
    fields = {"auto": {"metric": "agreement", "max_drop": 0.1}} if mode == "auto" else {}
    found = quantized(path, rows, mode=mode, io="float32", calibration={"rows": 40, "ranges": "mse"}, **fields)
    expected = helpers.answers(path, **rows)["y"]
    error = np.sqrt(np.mean((Interpreter(found.content).predict(rows)["y"] - expected) ** 2))
    assert error < (0.1 if mode == "int8" else 0.3) * expected.std()


def test_tensorflows_own_operators_inside_of_loops_are_in_the_runtime(tmp_path):
    def function(x):
        return {"y": tf.while_loop(lambda i, _: i < 2, lambda i, m: (i + 1, tf.linalg.inv(m)), (0, x))[1]}

    path = helpers.save_function(function, [tf.TensorSpec([1, 2, 2], tf.float32, "x")], tmp_path / "loop")
    content = conversion.to_tflite(path, conversion.ConversionOptions("float32", select_tf_ops=True))
    assert "Flex delegate" in devices.judge(content, "cpu").runtime
    assert conversion.flex_operators(content) == {"FlexMatrixInverse": ("while",)}


def test_every_signature_of_several_runs(tmp_path):
    module = tf.Module()
    weight = tf.Variable(normal(4, 2))
    module.weight = weight
    spec = [tf.TensorSpec([None, 4], tf.float32, name="x")]
    module.plain = tf.function(lambda x: {"y": x @ weight}, input_signature=spec)
    module.double = tf.function(lambda x: {"twice": 2 * (x @ weight)}, input_signature=spec)
    path = str(tmp_path / "two")
    tf.saved_model.save(module, path, signatures={"serving_default": module.plain, "double": module.double})
    found = quantized(path, {"x": normal(60, 4)}, signatures=("serving_default", "double"), io="float32")
    assert {signature.name for signature in found.record.signatures} == {"serving_default", "double"}


def test_an_output_that_is_infinite_is_compared(tmp_path):
    path = helpers.save_function(
        lambda x: {"y": tf.math.log(x)}, [tf.TensorSpec([None, 3], tf.float32, "x")], tmp_path / "log"
    )
    found = quantized(path, {"x": np.zeros((5, 3), np.float32)}, mode="float32")
    assert found.record.self_test == {"y": 0.0}


def test_scales_of_blocks_are_read_and_refused_by_the_reference_kernels_that_return_zeros(tmp_path):
    rows = {"x": normal(60, 64)}
    path = wide(tmp_path, sparsity=0.0)
    found = quantized(path, rows, mode="int4_dynamic", block_size=32)
    dense = quantized(path, rows, mode="float32")
    assert found.record.parameters == dense.record.parameters
    hidden = next(name for name, weight in found.contents.weights.items() if weight.shape == (32, 64))
    kernel = next(weight for weight in dense.contents.weights.values() if weight.shape == (32, 64))
    blocks = np.abs(kernel).reshape(32, 2, 32).max(axis=2).repeat(32, axis=1)
    assert np.all(np.abs(found.contents.real_weights(hidden) - kernel) <= 0.55 * blocks / 7)
    with pytest.raises(ModelError, match=r"scales of blocks.*zeros. Remedy: reference_kernels=False"):
        Interpreter(found.content, reference_kernels=True)


@pytest.mark.parametrize("library", [tf_keras, keras], ids=["keras2", "keras3"])
def test_activations_with_gradients_of_their_own_are_converted(library):
    x = library.Input((8,), name="x")
    y = library.layers.Dense(3, name="y")(library.layers.Dense(4, activation="swish")(x))
    model, rows = library.Model(x, y), normal(5, 8)
    content = tfc.quantize(model, tfc.Quantization(mode="float32"))
    np.testing.assert_allclose(Interpreter(content).predict({"x": rows})["y"], model(rows), rtol=1e-4, atol=1e-5)


def test_scalar_constants_in_16_bits_are_no_damage():
    x = tf_keras.Input((16, 3), name="x")
    model, rows = tf_keras.Model(x, tf_keras.layers.Conv1D(4, 3, name="y")(x)), normal(60, 16, 3)
    config = tfc.Quantization(mode="int16x8", io="float32", calibration=tfc.Calibration(rows=60))
    content = tfc.quantize(model, config, helpers.batches({"x": rows}, np.zeros(60)))
    (found,) = Interpreter(content).predict({"x": rows}).values()
    np.testing.assert_allclose(found, model(rows), atol=0.02)


def recurrent(unroll: bool) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(1)
    x = tf_keras.Input((5, 3), name="x")
    return tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(tf_keras.layers.LSTM(4, unroll=unroll)(x)))


@pytest.mark.parametrize(("mode", "unroll"), [("dynamic", False), ("float16", False), ("int8", True)])
def test_recurrent_layers_are_quantized(tmp_path, mode, unroll):
    model, rows = recurrent(unroll), {"x": normal(60, 5, 3)}
    path = sources.saved_model_of(model, str(tmp_path / "lstm"))
    found = quantized(path, rows, mode=mode, batch_size=1, io="float32")
    np.testing.assert_allclose(Interpreter(found.content).predict(rows)["y"], model(rows["x"]), atol=0.08)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_loops_that_are_not_calibrated_have_a_remedy(tmp_path, mode):
    path = sources.saved_model_of(recurrent(False), str(tmp_path / "lstm"))
    with pytest.raises(ModelError, match=r"loops or branches.*Remedy: mode 'dynamic' or 'float16'.*unroll=True"):
        quantized(path, {"x": normal(60, 5, 3)}, mode=mode, batch_size=1)


def embedding(tmp_path) -> str:
    x = tf_keras.Input((6,), dtype=tf.int32, name="x")
    hidden = tf_keras.layers.GlobalAveragePooling1D()(tf_keras.layers.Embedding(64, 32, name="embed")(x))
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, name="last")(hidden))
    return sources.saved_model_of(model, str(tmp_path / "embedding"))


def test_a_table_that_can_not_have_a_precision_is_named(tmp_path):
    rule = tfc.PrecisionRule(layers="embed", precision="int4_dynamic")
    with pytest.raises(ModelError, match=r"embed.*\(GATHER\) can't have precision 'int4_dynamic'"):
        quantized(embedding(tmp_path), mode="mixed", rules=(rule,))


def test_the_last_layer_is_found_by_the_outputs_name(tmp_path):
    rules = (tfc.PrecisionRule(layers="last", precision="int8_weight_only"),)
    found = quantized(embedding(tmp_path), mode="mixed", rules=rules)
    assert {layer.layer: layer.precision for layer in found.record.layers}["last"] == "int8_weight_only"


def test_a_channel_of_small_weights_and_a_large_bias_does_not_get_the_range_to_itself(tmp_path):
    layers, x = tf_keras.layers, tf_keras.Input((8, 8, 3), name="x")
    first = layers.Conv2D(8, 3, activation="relu")
    y = layers.Dense(4, name="y")(layers.Flatten()(layers.Conv2D(8, 3, activation="relu")(first(x))))
    model, rows = tf_keras.Model(x, y), {"x": normal(60, 8, 8, 3)}
    for smallest in (1e-4, 1e-6, 1e-15):
        kernel, bias = first.get_weights()
        kernel[..., 0] *= smallest / np.abs(kernel[..., 0]).max()
        bias[0] = 0.5
        first.set_weights([kernel, bias])
        path = sources.saved_model_of(model, str(tmp_path / f"small-{smallest}"))
        noise = {}
        for equalize in (False, True):
            found = quantized(path, rows, mode="int8", equalize=equalize, io="float32")
            noise[equalize] = np.std(Interpreter(found.content).predict(rows)["y"] - model(rows["x"]))
        assert noise[True] < 1.5 * noise[False]


def test_a_model_that_is_quantization_aware_in_part_is_warned_of(tmp_path):
    x = tf_keras.Input((8,), name="x")
    hidden = tf.quantization.fake_quant_with_min_max_args(tf_keras.layers.Dense(16, activation="relu")(x), -4, 4)
    path = sources.saved_model_of(tf_keras.Model(x, tf_keras.layers.Dense(3, name="y")(hidden)), str(tmp_path / "part"))
    warnings = quantized(path, {"x": normal(60, 8)}, mode="int8").record.warnings
    assert any("2 FULLY_CONNECTED" in warning and "quantization-aware in part" in warning for warning in warnings)
    with pytest.raises(ModelError, match="quantization-aware: equalize=True would move the ranges"):
        quantized(path, {"x": normal(60, 8)}, mode="int8", equalize=True)


def test_a_layer_that_computes_something_else_is_warned_of(tmp_path):
    x = tf_keras.Input((8,), name="x")
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, name="y", use_bias=False)(x))
    model.layers[1].kernel.assign(normal(8, 3) * np.where(np.arange(8) == 0, 1e7, 1.0)[:, None])  # beyond a half
    found = quantized(sources.saved_model_of(model, str(tmp_path / "halves")), {"x": normal(60, 8)}, mode="float16")
    (warning,) = found.record.warnings
    assert "'y' most" in warning and "Remedy: a higher precision" in warning


# Rows


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": np.zeros((5, 8, 8), np.float32)}, "'x' of shape .8, 8. doesn't fit"),
        ((np.zeros((5, 8), np.float32), np.zeros((5, 8), np.float32)), "no names.*Remedy: batches of .dict by name"),
    ],
)
def test_rows_of_another_layout_are_refused(tmp_path, data, message):
    config = Quantization(calibration={"rows": 4})
    read = rows_of(helpers.batches(data, np.zeros(5)), config)
    with pytest.raises(ModelError, match=message):
        quantize_saved_model(wide(tmp_path), config, read)


def test_strata_are_of_examples(tmp_path):
    with pytest.raises(ModelError, match="stratify_by='label' is of examples in files.*Remedy: stratify the data"):
        quantized(wide(tmp_path), {"x": normal(60, 64)}, calibration={"rows": 40, "stratify_by": "label"})


def test_a_row_that_is_no_number_is_named_before_anything_is_converted(tmp_path):
    rows = {"x": normal(60, 64)}
    rows["x"][7, 3] = np.nan
    with pytest.raises(ModelError, match="'x' is NaN or infinite in 1 of 40 calibration rows, row 7 first"):
        quantized(wide(tmp_path), rows, mode="int8")


def test_a_picture_of_any_size_is_calibrated_on_rows_of_one_size(tmp_path):
    kernel = normal(3, 3, 3, 4, seed=1)
    path = helpers.save_function(
        lambda x: {"y": tf.reduce_mean(tf.nn.conv2d(x, kernel, 1, "VALID"), [1, 2])},
        [tf.TensorSpec([None, None, None, 3], tf.float32, "x")],
        tmp_path / "any",
    )
    rows = {"x": normal(50, 8, 8, 3)}
    found = quantized(path, rows, mode="int8", io="float32")
    expected = helpers.answers(path, **rows)["y"]
    error = np.sqrt(np.mean((Interpreter(found.content).predict(rows)["y"] - expected) ** 2))
    assert error < 0.1 * expected.std()
    signature = feature_signatures.feature_signature(path)
    with pytest.raises(DataError, match="any size of x.*Remedy: a serving signature that parses"):
        signature.read_examples(helpers.serialized(rows))


def parsing(path, spec, call) -> str:
    """A signature that parses tf.Examples by `spec` and returns what `call` makes of them."""
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples):
        return {"y": call(tf.io.parse_example(examples, spec))}

    module.serve = serve
    tf.saved_model.save(module, str(path), signatures={"serving_default": serve})
    return str(path)


def test_a_feature_that_a_row_lacks_is_what_serving_takes_for_it(tmp_path):
    spec = {name: tf.io.FixedLenFeature([2], tf.float32, [7.0, 8.0]) for name in ("a", "b")}
    path = parsing(tmp_path / "defaults", spec, lambda parsed: parsed["a"] * parsed["b"])
    signature = feature_signatures.feature_signature(path)
    columns = signature.read_examples(helpers.serialized({"a": normal(3, 2)}))
    np.testing.assert_array_equal(columns["b"], [[7.0, 8.0]] * 3)
    np.testing.assert_array_equal(columns["a"], normal(3, 2))


def test_sparse_features_stay_outside_with_transform(tmp_path):
    """As those of a schema without shapes: TFX's own taxi example."""
    import tensorflow_transform as tft

    transform = kinds.transform_graph(tmp_path / "graph", sparse=True)
    model = kinds.two_features(tf_keras)
    model.tft_layer = tft.TFTransformOutput(transform).transform_features_layer()
    spec = {name: tf.io.VarLenFeature(tf.float32) for name in kinds.FEATURES} | {"word": tf.io.VarLenFeature(tf.string)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples):
        transformed = model.tft_layer(tf.io.parse_example(examples, spec))
        return {"outputs": model([transformed[name] for name in kinds.FEATURES])}

    path = str(tmp_path / "model")
    model.save(path, save_format="tf", signatures={"serving_default": serve})
    rows = helpers.serialized({name: normal(6, 1, seed=index) for index, name in enumerate(kinds.FEATURES)})
    with pytest.raises(ModelError, match="no fixed shape: a, b"):
        feature_signatures.feature_signature(path)
    signature = feature_signatures.feature_signature(path, transform="outside")
    columns = signature.read_examples(rows)
    assert set(columns) == set(signature.example_features) == {"a", "b"}
    with pytest.raises(ModelError, match="no fixed shape"):
        signature.preprocess({})
    config = Quantization(mode="int8", transform="outside", io="float32", calibration={"rows": 6})
    found = quantize_saved_model(
        path, config, lambda signatures: Rows(signatures["serving_default"].read_examples(rows))
    )
    expected = helpers.answers(path, examples=rows)["outputs"]
    np.testing.assert_allclose(Interpreter(found.content).predict(columns)["outputs"], expected, atol=0.05)


# What auto is told and tells


def test_labels_that_are_strings_are_refused_with_the_remedy(tmp_path):
    labels = np.array([b"cat", b"dog"] * 30, object)
    with pytest.raises(ModelError, match="labels are strings.*Remedy: auto.label_key"):
        quantized(wide(tmp_path), {"x": normal(60, 64)}, labels, mode="auto")


def test_weights_beyond_float16_are_a_trial_that_failed_and_not_the_end(tmp_path):
    x = tf_keras.Input((8,), name="x")
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, name="y", use_bias=False)(x))
    model.layers[1].kernel.assign(1e5 * normal(8, 3))
    path = sources.saved_model_of(model, str(tmp_path / "large"))
    rows = {"x": normal(90, 8, seed=1)}
    settings = {"metric": "mean_squared_error", "max_drop": 1e9, "precisions": ("float16", "int8_weight_only")}
    found = quantized(path, rows, model.predict(rows["x"], verbose=0), mode="auto", auto=settings)
    (failed,) = (trial for trial in found.record.auto.trials if trial.step.startswith("float16"))
    assert failed.metric is None and not failed.accepted
    assert set(found.record.auto.precisions.values()) <= {"int8_weight_only", "float32"}


def test_outputs_that_auto_does_not_measure_are_kept(tmp_path):
    layers, x = tf_keras.layers, tf_keras.Input((20,), name="x")
    trunk = layers.Dense(64, activation="relu")(x)
    a = layers.Dense(3, activation="softmax", name="a")(layers.Dense(32, activation="relu")(trunk))
    b = layers.Dense(1, name="b")(layers.Dense(64, activation="relu")(trunk))
    path = sources.saved_model_of(tf_keras.Model(x, {"a": a, "b": b}), str(tmp_path / "two"))
    rows = {"x": normal(240, 20)}
    found = quantized(path, rows, mode="auto", auto={"metric": "agreement", "max_drop": 0.1, "output": "a"})
    expected = helpers.answers(path, x=rows["x"])["b"]
    noise = Interpreter(found.content).predict(rows)["b"] - expected
    assert 10 * np.log10(np.sum(expected[40:] ** 2) / np.sum(noise[40:] ** 2)) >= 20
    assert found.record.bytes < 0.5 * quantized(path, rows, mode="float32").record.bytes


def test_auto_returns_what_it_accepted(tmp_path):
    """The rows on which single layers are measured are all alike: nothing seems to do harm."""
    layers, x = tf_keras.layers, tf_keras.Input((20,), name="x")
    y = layers.Dense(3, activation="softmax", name="y")(layers.Dense(64, activation="relu")(x))
    path = sources.saved_model_of(tf_keras.Model(x, y), str(tmp_path / "alike"))
    rows = {"x": normal(700, 20)}
    rows["x"][40:300] = 0
    settings = {"metric": "agreement", "max_drop": 0.001, "precisions": ("int2_dynamic",)}
    record = quantized(path, rows, mode="auto", auto=settings).record
    assert record.auto.drop <= 0.001
    assert any(trial.accepted and trial.bytes == record.bytes for trial in record.auto.trials)


def test_a_model_that_fits_no_target_in_any_precision_is_refused_with_the_reason(tmp_path):
    path = sources.saved_model_of(helpers.small_cnn(), str(tmp_path / "cnn"))
    rows = {"image": helpers.images(60)[0] / helpers.LARGEST}
    with pytest.raises(ModelError, match=r"Not even in floats.*target 'cpu'.*10 are allowed .max_arena_bytes"):
        quantized(path, rows, mode="auto", auto={"metric": "agreement"}, max_arena_bytes=10)


def test_auto_stays_within_the_arena_where_a_smaller_file_would_not(tmp_path):
    path = sources.saved_model_of(helpers.small_cnn(), str(tmp_path / "cnn"))
    rows = {"image": helpers.images(90)[0] / helpers.LARGEST}
    fields = {"mode": "auto", "auto": {"metric": "agreement", "max_drop": 0.5}}
    anywhere = quantized(path, rows, **fields)
    limit = quantized(path, rows, mode="int8").record.arena_bytes
    assert anywhere.record.arena_bytes > limit
    found = quantized(path, rows, max_arena_bytes=limit, **fields)
    assert found.record.arena_bytes <= limit and found.record.bytes >= anywhere.record.bytes


def test_ranges_in_the_record_are_those_that_were_used_and_of_inputs_that_are_rounded(tmp_path):
    path = wide(tmp_path, sparsity=0.0)
    rows = {"x": normal(90, 64)}
    floats = tfc.PrecisionRule(layers="hidden", precision="float16")
    integers = tfc.PrecisionRule(layers=".", precision="int8")
    calibration = {"rows": 40, "ranges": "percentile", "percentile": 90.0}
    mixed = quantized(path, rows, mode="mixed", rules=(integers, floats), calibration=calibration)
    assert mixed.record.calibration.inputs == ()  # the layer behind them takes floats
    fields = {"mode": "auto", "auto": {"metric": "agreement", "max_drop": 0.5, "precisions": ("int8",)}}
    (seen,) = quantized(path, rows, calibration=calibration, **fields).record.calibration.inputs
    assert seen.range[1] < 0.8 * seen.maximum
