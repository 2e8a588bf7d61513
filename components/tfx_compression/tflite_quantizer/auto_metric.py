"""The metric of mode `auto`: how much worse a quantized model is than the float model, on rows."""

import os
from collections.abc import Callable, Mapping

import numpy as np

from tfx_compression.errors import ConfigError, DataError, ModelError
from tfx_compression.keras_models.metric_names import plain_name, smaller_is_better
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer.config import AutoPrecision

Columns = Mapping[str, np.ndarray]

_ERROR_ROWS = 200  # for the error of a single layer
_MIN_SNR_DB = 20.0  # of the outputs that the metric doesn't measure
_BATCH = 256
_BY_LABEL_SHAPE = ("accuracy", "acc", "crossentropy", "ce")  # Keras' names for a metric that depends on the labels


class SearchMetric:
    """The metric of models on the trial rows, and the error of their outputs on some of these rows.

    Args:
      content: The float model.
      config: `metric` and `output` are used.
      trial: [rows, …] values by input.
      labels: [rows, …] labels; None for the metric `agreement`.

    Attributes:
      rows: Number of trial rows.
      baseline: The float model's metric.

    Raises:
      ConfigError: If the metric or the output is unknown, or doesn't fit the other.
      DataError: If labels are missing or don't fit the output.
      ModelError: If the float model's metric isn't finite.
    """

    def __init__(self, content: bytes, config: AutoPrecision, trial: Columns, labels: np.ndarray | None):
        self._trial = trial
        self.rows = len(next(iter(trial.values())))
        self._error_rows = {name: values[:_ERROR_ROWS] for name, values in trial.items()}
        self._output = _choose_output(content, config.output)
        predictions = _predict(content, trial)
        self._float = predictions.pop(self._output)
        self._other_floats = {name: values for name, values in predictions.items() if values.dtype.kind == "f"}
        self._sign = -1.0
        self._keras_metric = None
        if config.metric == "agreement":
            _require_classes(self._float, self._output)
        else:
            fitted = _fit_labels(config.metric, labels, self._float)
            self._sign = 1.0 if smaller_is_better(config.metric) else -1.0
            self._keras_metric = _keras_metric(config.metric, self._float, fitted)
        self.baseline = self._value(self._float)
        if not np.isfinite(self.baseline):
            raise ModelError(
                f"The float model's {config.metric!r} on {self.rows} rows is {self.baseline}. Remedy: another metric, "
                "or a model and rows on which it is finite.",
                code="metric-not-finite",
            )

    def measure(self, content: bytes) -> tuple[float, float]:
        """Returns the metric of a model, and how much worse it is than the float model's.

        The loss is infinite if the noise in another output is above -20 dB.
        """
        predictions = _predict(content, self._trial)
        value = self._value(predictions[self._output])
        kept = all(_snr_db(floats, predictions[name]) >= _MIN_SNR_DB for name, floats in self._other_floats.items())
        return value, self._sign * (value - self.baseline) if kept else np.inf

    def output_error(self, content: bytes) -> float:
        """Returns the mean squared error of a model's outputs over the float model's variance, summed over outputs."""
        predictions = _predict(content, self._error_rows)
        return sum(
            float(np.mean((predictions[name] - floats[:_ERROR_ROWS].astype(np.float64)) ** 2)) / _variance(floats)
            for name, floats in {self._output: self._float, **self._other_floats}.items()
        )

    def _value(self, outputs: np.ndarray) -> float:
        if self._keras_metric is not None:
            return self._keras_metric(outputs)
        return float(np.mean(outputs.argmax(axis=-1) == self._float.argmax(axis=-1)))


def _predict(content: bytes, columns: Columns) -> dict[str, np.ndarray]:
    model = Interpreter(content, num_threads=os.cpu_count() or 1, trusted=True)
    rows = len(next(iter(columns.values())))
    batches = [
        model.predict({name: values[start : start + _BATCH] for name, values in columns.items()})
        for start in range(0, rows, _BATCH)
    ]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _variance(values: np.ndarray) -> float:
    return float(np.var(values[:_ERROR_ROWS].astype(np.float64))) or 1.0


def _snr_db(signal: np.ndarray, other: np.ndarray) -> float:
    """Returns the signal-to-noise ratio in decibels."""
    signal = signal.astype(np.float64)
    noise = float(np.sum((other - signal) ** 2))
    return 10 * np.log10(max(float(np.sum(signal**2)), 1e-300) / noise) if noise else np.inf


def _choose_output(content: bytes, requested: str | None) -> str:
    """Returns the name of the output that is measured."""
    names = list(Interpreter(content).outputs)
    if requested is None and len(names) == 1:
        return names[0]
    if requested in names:
        return str(requested)
    raise ConfigError(
        f"auto.output is {'missing' if requested is None else repr(requested)}; the model's outputs are: "
        f"{', '.join(names)}. Remedy: name one of them.",
        field="AutoPrecision.output",
        code="unknown-output",
    )


def _require_classes(outputs: np.ndarray, name: str) -> None:
    if outputs.shape[-1] < 2:
        raise ConfigError(
            f"The metric 'agreement' compares largest outputs, but the output {name!r} has shape {outputs.shape}, one "
            "number per row. Remedy: a metric against labels.",
            field="AutoPrecision.metric",
            code="no-classes",
        )


def _fit_labels(metric: str, labels: np.ndarray | None, outputs: np.ndarray) -> np.ndarray:
    """Returns labels as the metric takes them: one for each number of the output, or the number of the class."""
    if labels is None:
        raise DataError(
            f"The metric {metric!r} needs labels. Remedy: auto.label_key, or the metric 'agreement', which needs none.",
            field="AutoPrecision.label_key",
            code="missing-labels",
        )
    _require_keras_metric(metric)
    labels = np.asarray(labels)
    if labels.shape == outputs.shape or (labels.shape == outputs.shape[:-1] and outputs.shape[-1] == 1):
        return labels.reshape(outputs.shape)
    classes = "sparse" in plain_name(metric) or plain_name(metric) in _BY_LABEL_SHAPE
    if classes and outputs.shape[-1] > 1 and labels.shape in (outputs.shape[:-1], (*outputs.shape[:-1], 1)):
        return labels.reshape(*outputs.shape[:-1], 1)
    raise DataError(
        f"The labels have shape {labels.shape}, which doesn't fit the output's {outputs.shape} and the metric "
        f"{metric!r}. Remedy: auto.label_key, auto.output, or another metric (with 'sparse' in its name if a label is "
        "the number of a class).",
        field="AutoPrecision.metric",
        code="label-shape",
    )


def _require_keras_metric(metric: str) -> None:
    import tf_keras

    # `get` returns a name that it doesn't know as it is.
    if plain_name(metric) not in _BY_LABEL_SHAPE and not callable(tf_keras.metrics.get(metric)):
        raise ConfigError(
            f"Keras has no metric {metric!r}. Remedy: auto.metric names one of tf.keras.metrics, or 'agreement'.",
            field="AutoPrecision.metric",
            code="unknown-metric",
        )


def _keras_metric(name: str, outputs: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], float]:
    """Returns a function that computes a Keras metric of outputs. Keras itself decides which accuracy is meant."""
    import tensorflow as tf
    import tf_keras

    predictions = tf_keras.Input(outputs.shape[1:])
    identity = tf_keras.Model(predictions, tf_keras.layers.Activation("linear")(predictions))
    identity.compile(metrics=[name], run_eagerly=True)

    def value(outputs: np.ndarray) -> float:
        try:
            logs = identity.evaluate(outputs, labels, batch_size=len(labels), verbose=0, return_dict=True)
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            raise ConfigError(
                f"Keras can't compute the metric {name!r} for outputs of shape {outputs.shape} and labels of shape "
                f"{labels.shape}: {error}. Remedy: auto.metric names one of tf.keras.metrics, or 'agreement'.",
                field="AutoPrecision.metric",
                code="metric-not-computable",
            ) from error
        (metric,) = (number for key, number in logs.items() if key != "loss")
        return float(np.mean(metric))

    return value
