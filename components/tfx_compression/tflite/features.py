"""Features in the shapes that models take them."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfx_compression.errors import ModelError


def fit_feature(
    name: str, features: Mapping[str, np.ndarray], shape: Sequence[int], strings: bool, model: str
) -> np.ndarray:
    """Returns a feature, reshaped to the shape of a model's input.

    Args:
      name: Name of the input, which is also the feature's.
      features: By name, [batch, …] real numbers or strings.
      shape: [batch, …] shape of the input. A size of -1 is free and becomes the feature's own.
      strings: Whether the input takes strings.
      model: Name of the model for error messages, such as "TFLite model".

    Raises:
      ModelError: The feature is missing, in all rows (code `missing-feature`) or in some (`incomplete-feature`), or
        doesn't fit the input's type (`feature-type`) or shape (`feature-shape`).
    """
    if name not in features:
        raise ModelError(
            f"The {model} takes {name!r}, which is no feature of the examples; they have: "
            f"{', '.join(sorted(features)) or 'none'}. Remedy: name the signature's arguments after the features.",
            code="missing-feature",
        )
    values = _require_every_row(name, features[name])
    if not values.ndim:
        raise ModelError(
            f"The feature {name!r} is a single value. Remedy: pass a batch, even of one row.", code="feature-shape"
        )
    if is_string(values.dtype) != strings:
        kinds = ("numbers", "strings") if strings else ("strings", "numbers")
        raise ModelError(
            f"The feature {name!r} holds {kinds[0]}, the {model} takes {kinds[1]}. "
            "Remedy: convert the feature, or change the signature's type.",
            code="feature-type",
        )
    own_sizes = values.shape[1:] if values.ndim == len(shape) else ()
    sizes = [feature if size == -1 else size for size, feature in itertools.zip_longest(shape[1:], own_sizes)]
    try:
        return values.reshape(len(values), *(-1 if size is None else size for size in sizes))
    except ValueError as error:
        raise ModelError(
            f"The feature {name!r} has shape {values.shape}, the {model} takes {tuple(shape)}. "
            "Remedy: reshape the feature.",
            code="feature-shape",
        ) from error


def is_string(dtype: np.dtype) -> bool:
    """Returns whether a NumPy dtype holds strings: text, bytes, or objects."""
    return dtype.kind in "OSU"


def pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
    """Returns `rows` with the last one repeated until there are `size`."""
    return rows if len(rows) == size else np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


def _require_every_row(name: str, values: Any) -> np.ndarray:
    """Returns the values of a feature as an array, which has to have the same number of them in each row."""
    # TFMA passes ragged features as named tuples.
    array = None if values is None or hasattr(values, "_fields") else np.asarray(values)
    strings = (
        array is not None and array.dtype == object and all(isinstance(value, bytes | str) for value in array.flat)
    )
    if array is None or (array.dtype == object and not strings):
        raise ModelError(
            f"The feature {name!r}, which the model takes, is missing in some rows or has different numbers of values "
            "in different rows. Remedy: fill it in before the examples are written, or evaluate on rows that have it.",
            code="incomplete-feature",
        )
    return array
