"""Drawn inputs: each kind of values that the code around a network may change."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.errors import ModelError
from tfx_compression.saved_models import probes
from tfx_compression.saved_models.probes import PROBES, ROWS, SignatureInputs

from tests.support.errors import raises

FLOATS, INTEGERS, STRINGS = (tf.TensorSpec([None, 3], dtype, "x") for dtype in (tf.float32, tf.int64, tf.string))


def draw(spec, probe: str = "", words=(), free_size: int = 3) -> np.ndarray:
    inputs = SignatureInputs("'s' of m", {"x": spec})
    return inputs.draw({"x": probe} if probe else {}, words, free_size)["x"].numpy()


def draw_examples(feature, probe: str = "", free_size: int = 3, rows: int | None = None) -> list[tf.train.Feature]:
    """The feature `x` of each row that is drawn."""
    inputs = SignatureInputs("'s' of m", {"examples": tf.TensorSpec([rows], tf.string)}, {"x": feature})
    rows = inputs.draw({"x": probe} if probe else {}, (), free_size)["examples"].numpy()
    return [tf.train.Example.FromString(row).features.feature["x"] for row in rows]


def test_plain_draws_are_between_0_and_1():
    values = draw(FLOATS)
    assert values.shape == (ROWS, 3) and values.dtype == np.float32
    assert values.min() >= 0 and values.max() <= 1 and values.std() > 0.1
    assert set(draw(INTEGERS).ravel()) == {0, 1}
    assert set(draw(STRINGS).ravel()) == {b"0", b"1"}
    assert set(draw(tf.TensorSpec([None, 3], tf.bool)).ravel()) == {False, True}


@pytest.mark.parametrize(
    ("spec", "probe", "condition"),
    [
        (FLOATS, "negative", lambda values: (values < -10).any() and (abs(values) < 0.2).any() and (values > 1).any()),
        (FLOATS, "large", lambda values: (values > 200).any() and (values >= 0).all()),
        (FLOATS, "nan", lambda values: np.isnan(values).any() and np.isfinite(values).any()),
        (INTEGERS, "minus one", lambda values: set(values.ravel()) == {-1, 0, 1}),
        (INTEGERS, "small integers", lambda values: set(values.ravel()) == {0, 1, 2, 7}),
        (INTEGERS, "hundred", lambda values: set(values.ravel()) == {-1, 0, 1, 7, 100}),
        (STRINGS, "texts", lambda values: {b"A", b"a", b" a ", b""} <= set(values.ravel())),
    ],
)
def test_each_probe_has_its_values(spec, probe, condition):
    assert PROBES[probe].applies(spec)
    assert condition(draw(spec, probe))


def test_words_of_the_model_are_drawn():
    words = [b"red", b"RED"]
    assert set(words) <= set(draw(STRINGS, "words", words).ravel())


def test_probes_apply_to_their_types_only():
    applying = {
        spec.dtype.name: {name for name, probe in PROBES.items() if probe.applies(spec)}
        for spec in (FLOATS, INTEGERS, STRINGS, tf.TensorSpec([None], tf.bool))
    }
    assert applying == {
        "float32": {"negative", "large", "nan"},
        "int64": {"minus one", "small integers", "hundred"},
        "string": {"texts", "words"},
        "bool": set(),
    }


@pytest.mark.parametrize(
    ("feature", "optional"),
    [
        (tf.io.FixedLenFeature([1], tf.float32), False),
        (tf.io.FixedLenFeature([1], tf.float32, 0.5), True),
        (tf.io.VarLenFeature(tf.int64), True),
        (tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True), True),
        (tf.io.RaggedFeature(tf.float32), True),
    ],
)
def test_every_second_row_lacks_an_optional_feature(feature, optional):
    assert PROBES["absent"].applies(feature) == optional
    present = [bool(value.WhichOneof("kind")) for value in draw_examples(feature, "absent")]
    assert present == [True, False] * (ROWS // 2)
    assert not draw_examples(feature, "absent", rows=1)[0].WhichOneof("kind")


@pytest.mark.parametrize(
    ("feature", "size"),
    [
        (tf.io.FixedLenFeature([2, 2], tf.float32), 4),
        (tf.io.VarLenFeature(tf.float32), 5),
        (tf.io.FixedLenSequenceFeature([2], tf.float32, allow_missing=True), 10),
        (tf.io.RaggedFeature(tf.float32), 5),
    ],
)
def test_examples_hold_as_many_values_as_the_feature_takes(feature, size):
    assert [len(value.float_list.value) for value in draw_examples(feature, free_size=5)] == [size] * ROWS


def test_free_sizes_matter_only_where_a_size_is_free():
    features = {"x": tf.io.FixedLenFeature([2], tf.float32)}
    arguments = {"examples": tf.TensorSpec([None], tf.string)}
    assert len(SignatureInputs("", arguments, features).free_sizes) == 1
    assert len(SignatureInputs("", {"x": FLOATS}).free_sizes) == 1
    assert SignatureInputs("", arguments, {"x": tf.io.VarLenFeature(tf.float32)}).free_sizes == probes.FREE_SIZES
    assert SignatureInputs("", {"x": tf.TensorSpec([None, None], tf.float32)}).free_sizes == probes.FREE_SIZES


@pytest.mark.parametrize(("shape", "drawn"), [([], ()), ([None], (ROWS,)), ([4, None], (4, 3)), ([2, 1], (2, 1))])
def test_draws_have_the_shape_of_the_argument(shape, drawn):
    for probe in ("", "negative", "nan"):
        assert draw(tf.TensorSpec(shape, tf.float32), probe).shape == drawn


def test_examples_have_as_many_rows_as_the_argument_takes():
    inputs = SignatureInputs("", {"rows": tf.TensorSpec([4], tf.string)}, {"x": tf.io.FixedLenFeature([], tf.int64)})
    assert inputs.draw()["rows"].shape == [4]


def test_arguments_beside_examples_are_drawn_too():
    arguments = {"examples": tf.TensorSpec([None], tf.string), "scale": tf.TensorSpec([], tf.float32)}
    feeds = SignatureInputs("", arguments, {"x": tf.io.FixedLenFeature([], tf.int64)}).draw()
    assert (feeds["examples"].shape, feeds["scale"].shape, feeds["scale"].dtype) == ([ROWS], [], tf.float32)


def test_draws_repeat_and_differ_between_inputs():
    inputs = SignatureInputs("", {"x": FLOATS, "y": FLOATS})
    first, again = inputs.draw(), inputs.draw()
    np.testing.assert_array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], first["y"])


def test_an_argument_of_any_number_of_dimensions_is_rejected():
    with raises(ModelError, code="any-shape", match="'s' of m takes 'x'"):
        draw(tf.TensorSpec(None, tf.float32, "x"))


def test_known_words_come_from_vocabularies_and_assets_in_several_spellings(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "vocabulary.txt").write_text("Cat\n\n[UNK]\nDog\n")
    words = probes.known_words(str(tmp_path), [["[UNK]", "Red"]])
    assert {b"Red", b"rED", b" Red ", b"red", b"RED", b"Cat", b"cat"} <= set(words)
    assert b"[UNK]" not in words and b"" not in words
    assert probes.known_words("") == []


def save_and_load(path, function, *specs):
    module = tf.Module()
    module.serve = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
    return tf.saved_model.load(str(path)).signatures["serving_default"]


def test_inputs_of_a_signature_are_what_its_graph_parses(tmp_path):
    spec = {"x": tf.io.FixedLenFeature([2], tf.float32), "y": tf.io.VarLenFeature(tf.int64)}

    def serve(examples):
        parsed = tf.io.parse_example(examples, spec)
        return {"z": parsed["x"] + tf.cast(tf.size(parsed["y"].values), tf.float32)}

    signature = save_and_load(tmp_path, serve, tf.TensorSpec([None], tf.string, "examples"))
    inputs = probes.signature_inputs("s", signature)
    assert list(inputs.arguments) == ["examples"]
    assert inputs.features == spec
    assert signature(**inputs.draw())["z"].shape == [ROWS, 2]


def test_a_signature_that_parses_otherwise_is_rejected(tmp_path):
    def serve(tensors):
        return {"z": tf.map_fn(lambda row: tf.io.parse_tensor(row, tf.float32), tensors, tf.float32)}

    signature = save_and_load(tmp_path, serve, tf.TensorSpec([None], tf.string, "tensors"))
    with raises(ModelError, code="unsupported-parsing", match="ParseTensor"):
        probes.signature_inputs("s", signature)


def test_a_signature_without_arguments_is_rejected(tmp_path):
    with raises(ModelError, code="no-arguments"):
        probes.signature_inputs("s", save_and_load(tmp_path, lambda: {"z": tf.constant(1.0)}))
