"""Answers of signatures to drawn rows."""

import numpy as np
import tensorflow as tf

from tfx_compression.errors import ModelError
from tfx_compression.saved_models.rebuilt_signatures import _arguments, _feeds, _parsed
from tfx_compression.saved_models.saved_model import SavedModel


def drawn_answers(saved: SavedModel) -> dict[str, dict[str, np.ndarray]]:
    """Returns the outputs of each signature of a SavedModel on drawn rows, the same rows for the same signature.

    Raises:
      ModelError: If a signature can't be called.
    """
    answers = {}
    for name, signature in saved.signatures.items():
        place = f"{name!r} of {saved.path}"
        arguments = _arguments(place, signature)
        try:
            outputs = signature(**_feeds(arguments, _parsed(place, signature), {}, ()))
        except tf.errors.OpError as error:
            raise ModelError(f"The signature {place} doesn't answer: {error.message}", code="no-answer") from error
        answers[name] = {output: value.numpy() for output, value in outputs.items()}
    return answers
