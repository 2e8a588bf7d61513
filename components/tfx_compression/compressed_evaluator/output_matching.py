"""Matches the outputs of candidates with the baseline's."""

from collections.abc import Mapping

from tfx_compression.compressed_evaluator.predictors import Predictor, Shape
from tfx_compression.errors import ModelError


def match_outputs(baseline: Predictor, candidates: Mapping[str, Predictor]) -> dict[str, dict[str, str]]:
    """Returns, by candidate, the name of each of its outputs in the baseline.

    If both models have one output, these match. Outputs that a signature names match by name; those of a TFLite model
    without a signature match by shape.

    Raises:
      ModelError: The outputs of a candidate differ from the baseline's, or several have the same shape and no name.
    """
    return {name: _match(name, baseline, candidate) for name, candidate in candidates.items()}


def _match(candidate: str, baseline: Predictor, predictor: Predictor) -> dict[str, str]:
    expected, actual = baseline.outputs, predictor.outputs
    if len(expected) == len(actual) == 1:
        names = dict(zip(actual, expected, strict=True))
    elif len(expected) != len(actual) or (baseline.has_signature and predictor.has_signature):
        names = {output: output for output in actual}
    else:
        names = _match_by_shape(candidate, expected, actual)
    if len(expected) != len(actual) or any(
        target not in expected or not _compatible(expected[target], actual[output]) for output, target in names.items()
    ):
        raise ModelError(
            f"The outputs of candidate {candidate!r} ({_describe(actual)}) differ from the baseline's "
            f"({_describe(expected)}), so their metrics can't be compared. Remedy: compare models of the same task.",
            field="candidates",
            code="different-outputs",
        )
    return names


def _match_by_shape(candidate: str, expected: Mapping[str, Shape], actual: Mapping[str, Shape]) -> dict[str, str]:
    """Returns the baseline's only output with the shape of each of the candidate's outputs; "" if there is none."""
    names = {}
    for output, shape in actual.items():
        targets = [target for target, other in expected.items() if _compatible(shape, other)]
        alike = [other for other in actual if other != output and _compatible(shape, actual[other])]
        if len(targets) > 1 or (targets and alike):
            raise ModelError(
                f"Candidate {candidate!r} or the baseline has no signature, and several outputs have the shape "
                f"{list(shape)}, so the baseline's outputs ({', '.join(expected)}) can't be told apart. Remedy: "
                "convert it from a SavedModel's signature: "
                "tf.lite.TFLiteConverter.from_saved_model(…, signature_keys=[…]).",
                field="candidates",
                code="ambiguous-outputs",
            )
        names[output] = targets[0] if targets else ""
    return names


def _compatible(shape: Shape, other: Shape) -> bool:
    """Returns whether two shapes can be the same; a free size matches any size."""
    return len(shape) == len(other) and all(
        size == other_size or -1 in (size, other_size) for size, other_size in zip(shape, other, strict=True)
    )


def _describe(outputs: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in outputs.items())
