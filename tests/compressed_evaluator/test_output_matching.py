"""Outputs of candidates are matched with the baseline's by name or by shape."""

import pytest
from tfx_compression.compressed_evaluator.output_matching import match_outputs
from tfx_compression.errors import ModelError

from tests.support.errors import raises
from tests.support.predictors import saved_model_of_tensors, tflite_model


def test_outputs_of_signatures_match_by_name(tmp_path):
    baseline = saved_model_of_tensors(tmp_path / "baseline", a=4, b=4)
    candidates = {
        "saved": saved_model_of_tensors(tmp_path / "candidate", b=4, a=4),
        "tflite": tflite_model(tmp_path, {"b": 4, "a": 4}, signature=True),
    }
    same = {"a": "a", "b": "b"}
    assert match_outputs(baseline, candidates) == {"saved": same, "tflite": same}


def test_single_outputs_match_whatever_their_names(tmp_path):
    baseline = saved_model_of_tensors(tmp_path / "baseline", probabilities=4)
    candidates = {
        "saved": saved_model_of_tensors(tmp_path / "y", y=4),
        "tflite": tflite_model(tmp_path, {"Identity": 4}),
    }
    assert match_outputs(baseline, candidates) == {
        "saved": {"y": "probabilities"},
        "tflite": {"Identity": "probabilities"},
    }


def test_outputs_without_a_signature_match_by_shape(tmp_path):
    model = saved_model_of_tensors(tmp_path / "saved", wide=5, narrow=4)
    without = tflite_model(tmp_path, {"Identity": 4, "Identity_1": 5})
    assert match_outputs(model, {"c": without}) == {"c": {"Identity": "narrow", "Identity_1": "wide"}}
    assert match_outputs(without, {"c": model}) == {"c": {"narrow": "Identity", "wide": "Identity_1"}}


def test_a_free_size_matches_any_size(tmp_path):
    baseline = tflite_model(tmp_path, {"narrow": 4, "free": -1}, signature=True)
    assert baseline.outputs == {"narrow": (4,), "free": (-1,)}
    candidate = saved_model_of_tensors(tmp_path / "saved", narrow=4, free=5)
    assert match_outputs(baseline, {"c": candidate}) == {"c": {"narrow": "narrow", "free": "free"}}


@pytest.mark.parametrize("sizes", [{"p": 4, "q": 4}, {"p": -1, "q": 4}], ids=["equal", "one free"])
def test_outputs_of_one_shape_without_a_signature_are_refused(tmp_path, sizes):
    baseline = saved_model_of_tensors(tmp_path / "saved", a=4, b=4)
    with raises(ModelError, code="ambiguous-outputs", match=r"'c'.*\(a, b\)"):
        match_outputs(baseline, {"c": tflite_model(tmp_path, sizes)})


@pytest.mark.parametrize(
    "sizes",
    [{"a": 4, "b": 6}, {"a": 4}, {"a": 4, "c": 5}, {"a": 4, "b": 5, "c": 6}],
    ids=["of another size", "one less", "of another name", "one more"],
)
def test_different_outputs_are_refused_with_the_shapes_of_both_models(tmp_path, sizes):
    baseline = saved_model_of_tensors(tmp_path / "saved", a=4, b=5)
    candidate = tflite_model(tmp_path, sizes, signature=True)
    shapes = ", ".join(rf"{name} \[{size}\]" for name, size in sizes.items())
    with raises(ModelError, code="different-outputs", match=rf"'small' \({shapes}\).*\(a \[4\], b \[5\]\)"):
        match_outputs(baseline, {"small": candidate})


def test_different_shapes_without_a_signature_are_refused(tmp_path):
    baseline = saved_model_of_tensors(tmp_path / "saved", a=4, b=5)
    with raises(ModelError, code="different-outputs", match=r"'c' \(p \[4\], q \[6\]\).*\(a \[4\], b \[5\]\)"):
        match_outputs(baseline, {"c": tflite_model(tmp_path, {"p": 4, "q": 6})})
