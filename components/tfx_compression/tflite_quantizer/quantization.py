"""Conversion of a model to TFLite, without a pipeline."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from tfx_compression.models import conversion, keras2, serving, tflite
from tfx_compression.models.errors import ModelError
from tfx_compression.models.interpreter import Interpreter, Tensor
from tfx_compression.tflite_quantizer.config import Quantization

Rows = Sequence[Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A TFLite model and what is in it.

    Attributes:
      content: the flatbuffer.
      inputs, outputs: by name, with dtype, shape, scale and zero point.
      contents: operators and weights.
      calibration_rows: how many rows the ranges were measured on.
    """

    content: bytes
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    contents: tflite.Contents
    calibration_rows: int


def quantize(model: tf_keras.Model | str, config: Quantization, data: tf.data.Dataset | None = None) -> bytes:
    """Converts a model to a TFLite flatbuffer, as `config` says.

    Args:
      model: a Keras 2 model, or the path of a SavedModel or a Keras file. A SavedModel is converted by what its
        `serving_default` does after parsing tf.Examples; a Keras model without signatures by its own inputs.
      config: the mode, and how it is calibrated.
      data: for `int8`, batches of (features, label) or features, where features is a dict by input name or a tensor.

    Raises:
      ModelError: where the converter can't, or `int8` has no data.
    """
    if isinstance(model, str) and tf.saved_model.contains_saved_model(model):
        return quantize_signature(serving.feature_signature(model), config, data).content
    keras = keras2.load(model) if isinstance(model, str) else model
    with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
        keras2.save(keras, folder)
        return quantize_signature(serving.feature_signature(folder), config, data).content


def quantize_signature(
    signature: serving.FeatureSignature, config: Quantization, data: tf.data.Dataset | Rows | None = None
) -> Quantized:
    """Converts a signature; `data` as for `quantize`, or rows as `{feature: [1, …] array}`."""
    rows: Rows = ()
    if config.needs_data:
        strings = [name for name, spec in signature.features.items() if spec.dtype == tf.string]
        if strings:
            raise ModelError(
                f"Mode {config.mode!r} can't calibrate on the string features {', '.join(strings)}. Remedy: look them "
                "up before the model, or choose mode 'dynamic'."
            )
        if data is None:
            raise ModelError(
                f"Quantization mode {config.mode!r} measures activation ranges on data and got none. "
                "Remedy: pass examples (or data), or choose mode 'dynamic' or 'float16'."
            )
        rows = _rows(data, signature, config) if isinstance(data, tf.data.Dataset) else data
    content = conversion.convert(signature, config.mode, config.io, rows)
    interpreter = Interpreter(content)
    return Quantized(content, interpreter.inputs, interpreter.outputs, tflite.contents(content), len(rows))


def _rows(data: tf.data.Dataset, signature: serving.FeatureSignature, config: Quantization) -> Rows:
    """The first rows of `data`: which ones are drawn is the caller's choice, by shuffling it."""
    rows = []
    for batch in data.unbatch().take(config.calibration_rows).as_numpy_iterator():
        features = batch[0] if isinstance(batch, tuple) else batch
        if not isinstance(features, dict):
            features = dict(zip(signature.features, [features], strict=True))
        missing = [name for name in signature.features if name not in features]
        if missing:
            raise ModelError(f"The data lacks {', '.join(missing)}; it has: {', '.join(features) or 'nothing'}.")
        rows.append({name: _row(name, features[name], spec) for name, spec in signature.features.items()})
    if not rows:
        raise ModelError("The data to calibrate on is empty.")
    return rows


def _row(name: str, value: object, spec: tf.TensorSpec) -> np.ndarray:
    """One row's value as the signature takes it, [1, …]."""
    try:
        return np.asarray(value, spec.dtype.as_numpy_dtype).reshape([1, *spec.shape[1:]])
    except (TypeError, ValueError) as error:
        raise ModelError(f"The data's {name!r} of shape {np.shape(value)} doesn't fit the model's {spec}.") from error
