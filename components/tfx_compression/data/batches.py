"""Batches of rows from what users have in memory: arrays, or a `tf.data.Dataset`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.errors import DataError

BATCH_ROWS = 32  # Keras' own default
_PARTS = 3  # features, labels and weights


def as_batches(data: Any, batch_size: int = BATCH_ROWS) -> tf.data.Dataset:
    """Returns batches of features, of (features, labels) or of (features, labels, weights).

    Args:
      data: A batched `tf.data.Dataset`, which is returned itself; a list of batches, which are tuples of
        arrays and are batched anew; an array of features, [rows, …]; a dict of such arrays by input name; or a list
        or tuple of features (one of these, or a list of arrays), labels and, where there are any, weights. What NumPy
        reads as an array is one. 64-bit floats become 32-bit floats, as in Keras.
      batch_size: Number of rows of a batch of arrays.

    Raises:
      DataError: If the data is none of these (code `unknown-data`), a dataset of single rows (`not-batches`), holds no
        rows (`no-examples`), or its arrays have different numbers of rows (`rows`).
    """
    if isinstance(data, tf.data.Dataset):
        if any(isinstance(spec, tf.TensorSpec) and spec.shape.rank == 0 for spec in tf.nest.flatten(data.element_spec)):
            raise DataError("The dataset's elements are single rows. Remedy: data.batch(32).", code="not-batches")
        return data
    if isinstance(data, list) and data and all(isinstance(batch, tuple) for batch in data):
        data = _joined(data)
    if isinstance(data, tuple | list):
        if not 1 <= len(data) <= _PARTS or not all(map(_is_part, data)):
            raise _unknown(data)
        parts: Any = tuple(_arrays(part) for part in data)
        parts = parts if len(parts) > 1 else parts[0]
    else:
        parts = _arrays(data)
    lengths = {len(array) for array in tf.nest.flatten(parts)}
    if len(lengths) != 1:
        raise DataError(
            f"The arrays have {', '.join(map(str, sorted(lengths)))} rows. Remedy: features, labels and weights with "
            "one entry per row.",
            code="rows",
        )
    if lengths == {0}:
        raise DataError("The arrays have no rows. Remedy: pass at least one.", code="no-examples")
    return tf.data.Dataset.from_tensor_slices(parts).batch(batch_size)


def _joined(batches: Sequence[tuple]) -> tuple:
    """Returns the arrays of all batches together."""
    try:
        return tuple(tf.nest.map_structure(lambda *parts: np.concatenate(parts), *batches))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The batches in the list don't fit together: {error}. Remedy: batches of arrays of the same structure, "
            "types and shapes, the number of rows excepted.",
            code="rows",
        ) from error


def _is_part(part: Any) -> bool:
    """Returns whether a list's element can be features, labels or weights, and not a row or a number."""
    if isinstance(part, tuple | list):
        return bool(part) and all(hasattr(each, "__array__") and np.ndim(each) for each in part)
    return isinstance(part, Mapping) or (hasattr(part, "__array__") and np.ndim(part) > 0)


def _arrays(part: Any) -> Any:
    """Returns arrays in the structure of features, labels or weights."""
    if isinstance(part, Mapping):
        return {name: _arrays(values) for name, values in part.items()}
    if isinstance(part, tuple | list) and part and all(hasattr(each, "__array__") and np.ndim(each) for each in part):
        return tuple(_arrays(each) for each in part)
    if not hasattr(part, "__array__") and not isinstance(part, tuple | list):
        raise _unknown(part)
    try:
        array = np.asarray(part)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{_description(part)} is not an array: {error}. Remedy: pad the rows.", code="rows") from error
    if not array.ndim:
        raise _unknown(part)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _unknown(data: Any) -> DataError:
    return DataError(
        f"{_description(data)} is not data that can be used. Remedy: a batched tf.data.Dataset, an array of features, "
        "a dict of arrays by input name, or a tuple (features, labels) of these.",
        code="unknown-data",
    )


def _description(data: Any) -> str:
    kind = f"{type(data).__module__}.{type(data).__qualname__}".removeprefix("builtins.")
    if isinstance(data, tuple | list):
        return f"A {kind} of {', '.join(type(each).__name__ for each in data[:_PARTS]) or 'nothing'}"
    return f"An object of class {kind}"
