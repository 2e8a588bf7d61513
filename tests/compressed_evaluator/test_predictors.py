"""Any model on a batch of tf.Examples, and whose output is whose."""

import os

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.compressed_evaluator import predictors
from tfx_compression.errors import ModelError

from tests.support import by_hand, helpers
from tests.support.by_hand import Graph, Op, Type

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
EXAMPLES = np.array(helpers.serialized({"x": X}), object)


def raw_model(path, **outputs) -> predictors.Predictor:
    """A SavedModel of `x`, [rows, 3], that returns a multiple of it padded to each of the sizes of `outputs`."""
    spec = tf.TensorSpec([None, 3], tf.float32, name="x")

    def function(x):
        return {name: tf.pad(2 * x, [[0, 0], [0, size - 3]]) for name, size in outputs.items()}

    return predictors.load(helpers.save_function(function, [spec], path))


def parsing_model(path, features) -> predictors.Predictor:
    def function(examples):
        return {"y": 2 * tf.add_n(list(tf.io.parse_example(examples, features).values()))}

    return predictors.load(helpers.save_function(function, [tf.TensorSpec([None], tf.string, name="examples")], path))


def tflite_model(
    path, sizes: dict[str, int], signature: bool = False, dtype: int = Type.FLOAT32
) -> predictors.Predictor:
    """A TFLite model whose outputs, copies of inputs of their own, have these sizes."""
    graph = Graph()
    for name, size in sizes.items():
        graph.inputs.append(graph.tensor(f"from_{name}", [-1, size], dtype))
        graph.outputs.append(graph.apply(Op.FLOOR, [graph.inputs[-1]], [graph.tensor(name, [-1, size], dtype)]))
    names = {f"from_{name}": index for name, index in zip(sizes, graph.inputs, strict=True)}
    signatures = {"serving_default": (0, names, dict(zip(sizes, graph.outputs, strict=True)))} if signature else {}
    path = os.path.join(path, f"{'_'.join(sizes)}.tflite")
    with open(path, "wb") as file:
        file.write(by_hand.model(graph, signatures=signatures))
    return predictors.load(path)


def test_a_saved_model_of_examples_is_fed_the_examples(tmp_path):
    model = parsing_model(tmp_path, {"x": tf.io.FixedLenFeature([3], tf.float32)})
    assert (model.kind, model.outputs) == ("saved_model", {"y": (3,)})
    np.testing.assert_array_equal(model.predict(EXAMPLES, {})["y"], 2 * X)
    np.testing.assert_array_equal(model.prepare(EXAMPLES, {})()["y"], 2 * X)
    assert model.seconds > 0


def test_a_feature_with_a_default_value_may_be_missing(tmp_path):
    model = parsing_model(
        tmp_path,
        {
            "x": tf.io.FixedLenFeature([3], tf.float32),
            "offset": tf.io.FixedLenFeature([3], tf.float32, default_value=[1.0, 2.0, 3.0]),
        },
    )
    np.testing.assert_array_equal(model.predict(EXAMPLES, {"x": X})["y"], 2 * (X + np.float32([1, 2, 3])))


def test_a_required_feature_that_an_example_lacks_is_named(tmp_path):
    model = parsing_model(tmp_path, {"colour": tf.io.FixedLenFeature([3], tf.float32)})
    with pytest.raises(ModelError, match=r"(?s)batch of 7 rows: .*colour .*is required"):
        model.predict(EXAMPLES, {"x": X})


def test_a_saved_model_of_tensors_is_fed_the_features_by_name(tmp_path):
    model = raw_model(tmp_path, y=3)
    for same in (X, X.astype(np.float64), X.reshape(7, 1, 3)):
        np.testing.assert_array_equal(model.predict(EXAMPLES, {"x": same, "unused": X})["y"], 2 * X)


def test_sizes_that_are_free_follow_the_features(tmp_path):
    spec = tf.TensorSpec([None, None], tf.int64, name="tokens")
    path = helpers.save_function(lambda tokens: {"total": tf.reduce_sum(tokens, 1)}, [spec], tmp_path)
    model = predictors.load(path)
    for shape in ((3, 5), (2, 1)):
        found = model.predict(EXAMPLES, {"tokens": np.ones(shape, np.int64)})["total"]
        assert found.tolist() == [shape[1]] * shape[0]


def test_a_saved_model_of_strings_is_fed_the_feature_of_that_name_and_never_the_examples(tmp_path):
    spec = tf.TensorSpec([None], tf.string, name="text")
    model = predictors.load(helpers.save_function(lambda text: {"length": tf.strings.length(text)}, [spec], tmp_path))
    texts = np.array([b"a", b"bcd"], object)
    assert model.predict(EXAMPLES[:2], {"text": texts})["length"].tolist() == [1, 3]
    with pytest.raises(ModelError, match="takes 'text', which is no feature of the examples; they have: x"):
        model.predict(EXAMPLES, {"x": X})


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"z": X}, r"SavedModel takes 'x', which is no feature of the examples; they have: z"),
        ({"x": np.array([X[0], None], object)}, r"'x', which the model takes, is missing in some rows"),
        ({"x": None}, r"'x', which the model takes, is missing in some rows"),
        ({"x": np.zeros([2, 4])}, r"'x' has shape \(2, 4\), the SavedModel takes \(-1, 3\)"),
        ({"x": np.zeros([4, 6])}, r"'x' has shape \(4, 6\)"),
        ({"x": np.array([[b"a", b"b", b"c"]], object)}, r"'x' holds strings, the SavedModel takes numbers"),
    ],
    ids=["missing", "missing in a row", "of no row", "of another shape", "of twice the size", "strings"],
)
def test_a_feature_that_does_not_fit_is_named(tmp_path, features, message):
    with pytest.raises(ModelError, match=message):
        raw_model(tmp_path, y=3).predict(EXAMPLES, features)


def test_a_saved_model_without_serving_default_is_refused_with_the_signatures_that_it_has(tmp_path):
    spec = tf.TensorSpec([None, 3], tf.float32, name="x")
    path = helpers.save_function(lambda x: {"y": x}, [spec], tmp_path, signature="score")
    with pytest.raises(ModelError, match=r"no signature 'serving_default', only: score"):
        predictors.load(path)


def test_what_can_not_be_loaded_is_told_with_its_path(tmp_path):
    with pytest.raises(ModelError, match=str(tmp_path)):
        predictors.load(str(tmp_path))
    (tmp_path / "model.tflite").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"model\.tflite: Not a TFLite model"):
        predictors.load(str(tmp_path / "model.tflite"))


def test_outputs_of_signatures_go_by_name(tmp_path):
    baseline = raw_model(tmp_path / "baseline", a=4, b=4)
    candidates = {
        "saved": raw_model(tmp_path / "candidate", b=4, a=4),
        "tflite": tflite_model(tmp_path, {"b": 4, "a": 4}, signature=True),
    }
    same = {"a": "a", "b": "b"}
    assert predictors.same_outputs(baseline, candidates) == {"saved": same, "tflite": same}


def test_a_single_output_is_the_others_single_output_whatever_it_is_called(tmp_path):
    baseline = raw_model(tmp_path / "baseline", probabilities=4)
    candidates = {"saved": raw_model(tmp_path / "y", y=4), "tflite": tflite_model(tmp_path, {"Identity": 4})}
    assert predictors.same_outputs(baseline, candidates) == {
        "saved": {"y": "probabilities"},
        "tflite": {"Identity": "probabilities"},
    }


def test_outputs_without_a_signature_go_by_shape(tmp_path):
    model = raw_model(tmp_path / "saved", wide=5, narrow=4)
    without = tflite_model(tmp_path, {"Identity": 4, "Identity_1": 5})
    assert predictors.same_outputs(model, {"c": without}) == {"c": {"Identity": "narrow", "Identity_1": "wide"}}
    assert predictors.same_outputs(without, {"c": model}) == {"c": {"narrow": "Identity", "wide": "Identity_1"}}


def test_a_free_size_is_the_same_as_any(tmp_path):
    baseline = tflite_model(tmp_path, {"narrow": 4, "free": -1}, signature=True)
    assert baseline.outputs == {"narrow": (4,), "free": (-1,)}
    candidate = raw_model(tmp_path / "saved", narrow=4, free=5)
    assert predictors.same_outputs(baseline, {"c": candidate}) == {"c": {"narrow": "narrow", "free": "free"}}


@pytest.mark.parametrize("sizes", [{"p": 4, "q": 4}, {"p": -1, "q": 4}], ids=["equal", "one free"])
def test_outputs_without_a_signature_that_shape_does_not_tell_apart_are_refused(tmp_path, sizes):
    baseline = raw_model(tmp_path / "saved", a=4, b=4)
    with pytest.raises(ModelError, match=r"'c'.* no signature, and several outputs of the shape.*\(a, b\).*Remedy"):
        predictors.same_outputs(baseline, {"c": tflite_model(tmp_path, sizes)})


@pytest.mark.parametrize(
    "sizes",
    [{"a": 4, "b": 6}, {"a": 4}, {"a": 4, "c": 5}, {"a": 4, "b": 5, "c": 6}],
    ids=["of another size", "one less", "of another name", "one more"],
)
def test_outputs_that_differ_are_refused_with_both_models_shapes(tmp_path, sizes):
    baseline = raw_model(tmp_path / "saved", a=4, b=5)
    candidate = tflite_model(tmp_path, sizes, signature=True)
    theirs = ", ".join(rf"{name} \[{size}\]" for name, size in sizes.items())
    with pytest.raises(ModelError, match=rf"'small' \({theirs}\) differ from the baseline's \(a \[4\], b \[5\]\)"):
        predictors.same_outputs(baseline, {"small": candidate})


def test_outputs_without_a_signature_of_other_shapes_are_refused(tmp_path):
    baseline = raw_model(tmp_path / "saved", a=4, b=5)
    with pytest.raises(ModelError, match=r"'c' \(p \[4\], q \[6\]\) differ from the baseline's \(a \[4\], b \[5\]\)"):
        predictors.same_outputs(baseline, {"c": tflite_model(tmp_path, {"p": 4, "q": 6})})


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, 1, 8), (8, 3, 2), (2, 8, 1), (8, 0, 8), (None, 1, 1)])
def test_all_workers_threads_together_take_each_core_once(monkeypatch, cores, workers, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert predictors.threads(workers) == threads
