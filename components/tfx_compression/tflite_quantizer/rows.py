"""The rows that a conversion uses: to calibrate, to check ranges, and to search precisions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.data.iteration import numpy_elements
from tfx_compression.errors import ConfigError, DataError
from tfx_compression.saved_models.feature_signatures import FeatureSignature
from tfx_compression.tflite_quantizer.config import Quantization

Columns = Mapping[str, np.ndarray]
Signatures = Mapping[str, FeatureSignature]  # by name


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows for a conversion. Columns are [rows, …] values by feature, as the TFLite model takes them.

    Attributes:
      calibration: Rows that activation ranges are measured on, and layers compared with the float model's.
      check: Rows that are compared with those ranges.
      trial: Rows that the search of mode `auto` measures its metric on.
      labels: [rows] labels of the trial rows.
      strata: Number of calibration rows by value of the feature that was stratified by.
      notes: Facts about the rows that a user should know.
    """

    calibration: Columns = dataclasses.field(default_factory=dict)
    check: Columns = dataclasses.field(default_factory=dict)
    trial: Columns = dataclasses.field(default_factory=dict)
    labels: np.ndarray | None = None
    strata: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


RowReader = Callable[[Signatures], Rows]


def raw_features(signatures: Signatures) -> dict[str, tf.TensorSpec]:
    """Returns the features that all signatures read, by name.

    Raises:
      DataError: If two signatures read a feature differently.
    """
    specs: dict[str, tf.TensorSpec] = {}
    for signature in signatures.values():
        for name, spec in signature.raw_features.items():
            if name in specs and (specs[name].dtype != spec.dtype or specs[name].shape[1:] != spec.shape[1:]):
                raise DataError(
                    f"Two signatures take {name!r} differently: {specs[name]} and {spec}. Remedy: convert them apart.",
                    code="conflicting-features",
                )
            specs[name] = spec
    return specs


def read_examples(signatures: Signatures, examples: Sequence[bytes]) -> Columns:
    """Returns the columns that all signatures take, read from serialized tf.Examples."""
    raw_features(signatures)
    return {
        name: values for signature in signatures.values() for name, values in signature.read_examples(examples).items()
    }


def first_rows(data: tf.data.Dataset, config: Quantization) -> RowReader:
    """Returns a reader of the first rows of a dataset, as `quantize` describes. Callers shuffle to choose others."""
    return lambda signatures: _read_dataset(data, signatures, config)


def _read_dataset(data: tf.data.Dataset, signatures: Signatures, config: Quantization) -> Rows:
    if config.calibration.stratify_by is not None:
        raise ConfigError(
            f"calibration.stratify_by={config.calibration.stratify_by!r} needs examples in files, which "
            "TFLiteQuantizer reads; a dataset's first rows are used as they are. Remedy: stratify the dataset, and "
            "stratify_by=None.",
            field="Calibration.stratify_by",
            code="inapplicable-field",
        )
    calibration_rows = config.calibration.rows
    count = calibration_rows + (config.auto.rows if config.searches else 0)
    features, labels = _collect(data.unbatch().take(count), raw_features(signatures))
    columns = {name: _stack(name, values) for name, values in features.items() if values}
    if not columns:
        raise DataError("The dataset to calibrate on is empty. Remedy: pass rows.", code="no-examples")
    columns = {
        name: values
        for signature in signatures.values()
        for name, values in signature.preprocess({key: columns[key] for key in signature.raw_features}).items()
    }
    rows = len(next(iter(columns.values())))
    if config.searches and (rows <= calibration_rows or (config.needs_labels and len(labels) < rows)):
        raise DataError(
            f"Mode {config.mode!r} calibrates on the first {calibration_rows} rows of the dataset and tries precisions "
            f"on the rest. There are {rows} rows, {len(labels)} with a label. Remedy: more rows of (features, label), "
            "fewer calibration.rows, or auto.metric='agreement', which needs no labels.",
            code="too-few-rows",
        )
    return Rows(
        calibration={name: values[:calibration_rows] for name, values in columns.items()},
        trial={name: values[calibration_rows:] for name, values in columns.items()} if config.searches else {},
        labels=np.asarray(labels[calibration_rows:]) if config.needs_labels else None,
    )


def _collect(data: tf.data.Dataset, specs: Mapping[str, tf.TensorSpec]) -> tuple[dict[str, list[np.ndarray]], list]:
    """Returns the values of each feature and the labels, row by row."""
    features: dict[str, list[np.ndarray]] = {name: [] for name in specs}
    labels = []
    for row in numpy_elements(data):
        values = row[0] if isinstance(row, tuple) else row
        if isinstance(row, tuple) and len(row) > 1:
            labels.append(row[1])
        if not isinstance(values, dict):
            if isinstance(values, tuple) or len(specs) != 1:
                raise DataError(
                    f"The dataset's features have no names, and the model takes {', '.join(specs)}. Remedy: batches of "
                    "(dict by name, label).",
                    code="unnamed-features",
                )
            values = dict(zip(specs, [values], strict=True))
        missing = [name for name in specs if name not in values]
        if missing:
            raise DataError(
                f"The dataset lacks {', '.join(missing)}; it has: {', '.join(values) or 'nothing'}. Remedy: name the "
                "features as the model's inputs.",
                code="missing-feature",
            )
        for name, spec in specs.items():
            features[name].append(_row_value(name, values[name], spec))
    return features, labels


def _row_value(name: str, value: Any, spec: tf.TensorSpec) -> np.ndarray:
    """Returns a row's value in the type and shape of a feature, without the batch."""
    shape = spec.shape[1:]
    try:
        array = np.asarray(value, spec.dtype.as_numpy_dtype)
        if shape.is_compatible_with(array.shape):
            return array
        if array.ndim > 1 and [size for size in array.shape if size > 1] != [size for size in shape if size != 1]:
            raise ValueError("another layout")
        return array.reshape(shape)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The dataset's {name!r} of shape {np.shape(value)} doesn't fit the model's {spec}. Remedy: reshape it.",
            code="feature-shape",
        ) from error


def _stack(name: str, values: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise DataError(
            f"The dataset's {name!r} has several shapes, {', '.join(map(str, sorted(shapes)))}, but calibration needs "
            "one. Remedy: resize or pad the rows.",
            code="feature-shape",
        )
    return np.stack(values)
