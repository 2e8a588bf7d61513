"""Proof by example that two functions answer alike, and the tolerance of that.

Two places rewrite signatures: `feature_signatures` cuts a signature where its parsing or its Transform layer ends, and
`rebuilt_signatures` puts another network into a signature. Both keep a rewritten signature only if it answers like the
original on everything that `probes` draws: the plain draw, and a draw for each kind of values that the code around a
network may treat differently. A draw that the original doesn't answer, such as an index out of range, proves nothing;
it is repeated for each input alone. Outputs must have the same shapes and types. Floating-point values may differ by
the rounding in TOLERANCES; everything else must be equal.

NaN needs care: TensorFlow fuses operations, and some fused operations turn NaN into 0. Two functions are compared on
NaN only if TensorFlow fuses the same operations in both.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfx_compression.errors import ModelError
from tfx_compression.saved_models import probes
from tfx_compression.saved_models.probes import FREE_SIZES, PROBES, SignatureInputs
from tfx_compression.saved_models.saved_model import SavedModel

# What a signature raises for inputs that it doesn't take.
CALL_FAILURES = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, tf.errors.OpError)
Feeds = dict[str, tf.Tensor]
Function = Callable[..., Mapping[str, tf.Tensor]]


class Tolerance(NamedTuple):
    """How far values of a type may differ.

    Attributes:
      relative: Part of the expected value.
      absolute: Part of the largest finite expected value, or of 1 if that is larger, since sums of large values round
        by more.
    """

    relative: float
    absolute: float


TOLERANCES = {
    "float64": Tolerance(1e-4, 1e-5),  # often cast from float32
    "float32": Tolerance(1e-4, 1e-5),
    "float16": Tolerance(2e-3, 2e-3),  # 2 units in the last place
    "bfloat16": Tolerance(2e-2, 2e-2),
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the original function answers to a draw.

    Attributes:
      feeds: The arguments, by name.
      answers: The outputs, by name.
    """

    feeds: Feeds
    answers: dict[str, np.ndarray]


def draw_references(
    function: Function, inputs: SignatureInputs, words: Sequence[bytes] = (), fused_alike: Function | None = None
) -> list[Reference]:
    """Calls the original function on all draws, and returns the answers.

    Args:
      function: The original, from tensors by name.
      inputs: Its inputs.
      words: Words that the model may know.
      fused_alike: A copy of the original in which TensorFlow fuses the same operations as in the function to compare;
        it answers the draws with NaN that the original answers too. By default the original does.

    Raises:
      ModelError: If it answers no draw.
    """
    references: list[Reference] = []
    failures: list[Exception] = []

    def answers(chosen: Mapping[str, str], free_size: int) -> bool:
        feeds = inputs.draw(chosen, words, free_size)
        try:
            outputs = function(**feeds)
            if fused_alike is not None and probes.NAN in chosen.values():
                outputs = fused_alike(**feeds)
            references.append(Reference(feeds, arrays(outputs)))
        except CALL_FAILURES as error:
            failures.append(error)
            return False
        return True

    answered = [size for size in inputs.free_sizes if answers({}, size)]
    free_size = next(iter(answered), FREE_SIZES[0])
    for names, probe in _probed(inputs):
        if not answers(dict.fromkeys(names, probe), free_size) and len(names) > 1:
            for name in names:
                answers({name: probe}, free_size)
    if not references:
        raise ModelError(
            f"The signature {inputs.place} doesn't answer drawn inputs: {str(failures[0]).rstrip(' .')}.",
            code="no-answer",
        ) from failures[0]
    return references


def difference(references: Sequence[Reference], function: Callable[[Feeds], Mapping[str, np.ndarray]]) -> str | None:
    """Returns how a function answers differently from references, or None if it answers alike."""
    for reference in references:
        try:
            answers = function(reference.feeds)
        except CALL_FAILURES as error:
            return failure_summary(error)
        for name, expected in reference.answers.items():
            if name not in answers or not alike(answers[name], expected):
                return f"its output {name!r} is different"
    return None


def alike(answer: np.ndarray, expected: np.ndarray) -> bool:
    """Returns whether an output is what is expected, within the tolerance of its type."""
    if answer.shape != expected.shape or answer.dtype != expected.dtype:
        return False
    tolerance = TOLERANCES.get(expected.dtype.name)
    if tolerance is None:
        return bool((answer == expected).all())
    values, wanted = answer.astype(np.float64), expected.astype(np.float64)
    largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=1.0)
    return np.allclose(values, wanted, tolerance.relative, tolerance.absolute * largest, equal_nan=True)


def arrays(outputs: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    """Returns outputs as arrays."""
    return {name: value.numpy() for name, value in outputs.items()}


def failure_summary(error: Exception) -> str:
    """Returns the first line of an error's message, or its class."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def drawn_answers(saved: SavedModel) -> dict[str, dict[str, np.ndarray]]:
    """Returns the outputs of each signature of a SavedModel on the plain draw, by signature and output.

    Signatures that take the same get the same draw.

    Raises:
      ModelError: If a signature doesn't answer.
    """
    answers = {}
    for name, signature in saved.signatures.items():
        place = f"{name!r} of {saved.path}"
        feeds = probes.signature_inputs(place, signature).draw()
        try:
            answers[name] = arrays(signature(**feeds))
        except tf.errors.OpError as error:
            raise ModelError(
                f"The signature {place} doesn't answer drawn inputs: {error.message}", code="no-answer"
            ) from error
    return answers


def _probed(inputs: SignatureInputs) -> Iterator[tuple[list[str], str]]:
    """Yields each probe that applies to inputs, with the names of those."""
    for name, probe in PROBES.items():
        names = [key for key, spec in inputs.probed.items() if probe.applies(spec)]
        if names:
            yield names, name
