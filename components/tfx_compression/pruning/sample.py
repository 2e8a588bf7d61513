"""A sample of a dataset that stays in memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.data.iteration import elements
from tfx_compression.errors import DataError
from tfx_compression.keras_models import execution


def finite_inputs(model: Any, features: Any, rows_before: int = 0) -> list[Any]:
    """Returns the values of a functional model's inputs for a batch of features.

    Args:
      model: The model.
      features: The batch.
      rows_before: Number of rows in the batches before, for the error.

    Raises:
      DataError: A value is NaN or infinite.
    """
    values = execution.input_values(model, features)
    for tensor, value in zip(model.inputs, values, strict=True):
        if not tf.is_tensor(value) or not hasattr(value, "numpy") or not value.dtype.is_floating:
            continue
        rows = value.numpy().reshape(len(value), -1)
        bad = np.flatnonzero(~np.isfinite(rows.astype(np.float64)).all(axis=1))
        if bad.size:
            raise DataError(
                f"The input {tensor.name!r} is NaN or infinite in {bad.size} of the data's first "
                f"{rows_before + len(rows)} rows, row {rows_before + bad[0]} first. Remedy: clean or fill in the "
                "feature, or another split.",
                field="data",
                code="not-finite",
            )
    return values


class Sample:
    """The first rows of a dataset.

    They are read only once: another pass over shuffled data would give other rows, and a sensitivity that is noise.

    Args:
      data: Batches; None has no rows.
      rows: Number of rows.
      batch_size: Rows per batch.
      model: Name of the model, for the error message.

    Attributes:
      data: The sample, in batches.
    """

    def __init__(self, data: tf.data.Dataset | None, rows: int, batch_size: int, model: str):
        self.data = None if data is None else data.unbatch().take(rows).batch(batch_size).cache()
        self._model_name = model

    def batches(self) -> Iterator[Any]:
        """Yields the sample in batches.

        Raises:
          DataError: There are no rows.
        """
        empty = True
        for batch in elements(self.data) if self.data is not None else ():
            empty = False
            yield batch
        if empty:
            raise DataError(
                f"The statistics of the model {self._model_name!r} can't be computed: the data has no rows. "
                "Remedy: a split or dataset with rows.",
                code="no-rows",
            )

    def rows(self) -> Iterator[Any]:
        """Yields the sample in batches of one row."""
        for batch in self.batches():
            yield from elements(tf.data.Dataset.from_tensors(batch).unbatch().batch(1))
