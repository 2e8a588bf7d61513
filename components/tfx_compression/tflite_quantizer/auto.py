"""Mode `auto`: a precision for each layer, so that the file is small and the metric drops no more than is allowed."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np

from tfx_compression.errors import ModelError
from tfx_compression.keras_models.metric_names import plain_name, smaller_is_better
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite.modes import PRECISIONS
from tfx_compression.tflite_quantizer import equalization, recipes
from tfx_compression.tflite_quantizer.calibration import Ranges, observe
from tfx_compression.tflite_quantizer.config import AutoPrecision, Quantization
from tfx_compression.tflite_quantizer.devices.judge import judge
from tfx_compression.tflite_quantizer.record import AutoRecord, EqualizedPair, InputRange, TrialRecord

Columns = Mapping[str, np.ndarray]
Assignment = dict[int, str]  # precision by operator

_SENSITIVITY_ROWS = 200  # that a single layer's error is measured on
_OTHERS_DB = 20.0  # that outputs keep which the metric isn't of
_BATCH = 256
_DEMOTIONS = 24  # trials at the end, with one layer smaller each
_BY_LABEL_SHAPE = ("accuracy", "acc", "crossentropy", "ce")  # Keras' names that mean another metric for each kind


class Found(NamedTuple):
    """What a search found.

    Attributes:
      content: the flatbuffer.
      record: what was tried.
      reference: the float model that it was made of, equalized or not.
      pairs: the layers that were equalized in it.
      inputs: what calibration saw of them.
    """

    content: bytes
    record: AutoRecord
    reference: bytes
    pairs: tuple[EqualizedPair, ...]
    inputs: Mapping[str, InputRange]


def search(
    content: bytes,
    config: Quantization,
    calibration: Columns,
    trial: Columns,
    labels: np.ndarray | None,
    step: Callable[[str], None] = lambda _: None,
) -> Found:
    """The smallest file found whose metric drops by at most `config.auto.max_drop`.

    Each layer with weights is quantized alone to each precision that it may and can have, and the error of the model's
    output measured. From the smallest precision everywhere, the steps to larger ones are put in the order of how much
    error they take away for a byte; how many of them are needed is found by bisection, on the metric. The uniform
    models of each precision are tried as well, so the result is no larger than one of them that is good enough, and
    in the end single layers are made smaller again where that does no harm. All layers in float32 lose nothing: that
    is the result where nothing else will do. What doesn't run on the target is not taken, nor what leaves an output
    other than the measured one less than 20 dB above its noise.

    Args:
      content: a float flatbuffer.
      config: `auto`, `equalize`, `io`, `per_channel`, `calibration`, `target` and `max_arena_bytes` of it.
      calibration: by input, [rows, …] values that ranges are measured on.
      trial: by input, [rows, …] values that the metric is measured on.
      labels: [rows, …]; None for the metric `agreement`.
      step: is told what is being done.

    Raises:
      ModelError: where the metric is unknown, or the output or the labels are not what it needs.
    """
    measure = _Measure(content, config.auto, trial, labels)
    variants: list[tuple[str, bytes, tuple[EqualizedPair, ...]]] = []
    if config.equalize is not True:
        variants.append(("", content, ()))
    if config.equalize is not False:
        step("equalizing layers")
        equalized, pairs = equalization.equalize(content)
        if pairs or not variants:
            variants.append(("equalized, ", equalized, pairs))
    trials: list[TrialRecord] = []
    best: _Trial | None = None
    for name, float_content, pairs in variants:
        variant = _Search(float_content, config, calibration, measure, trials, name, step)
        found = variant.run()
        if best is None or variant.rank(found) < variant.rank(best):
            best, chosen = found, (float_content, pairs, variant.inputs)
    if best is None:
        raise AssertionError("there is a variant at least")
    if not np.isfinite(best.drop):
        problems = judge(best.content, config.target, config.max_arena_bytes).problems
        raise ModelError(f"Not even in floats does the model run on target {config.target!r}: {' '.join(problems)}")
    precisions = _by_layer(chosen[0], best.assignment)
    record = AutoRecord(
        metric=config.auto.metric,
        baseline=measure.baseline,
        value=best.value,
        drop=best.drop,
        rows=measure.rows,
        equalized=bool(chosen[1]),
        precisions=precisions,
        trials=tuple(trials),
    )
    return Found(best.content, record, *chosen)


class _Trial(NamedTuple):
    assignment: Assignment
    content: bytes
    value: float
    drop: float

    @property
    def size(self) -> int:
        return len(self.content)


class _Option(NamedTuple):
    """A precision that a layer may have: bytes of the file with it alone, and the error of the output."""

    precision: str
    size: int
    error: float


class _Search:
    """The search on one float model."""

    def __init__(
        self,
        content: bytes,
        config: Quantization,
        calibration: Columns,
        measure: "_Measure",
        trials: list[TrialRecord],
        name: str,
        step: Callable[[str], None],
    ):
        self._content = content
        self._config = config
        self._measure = measure
        self._trials = trials
        self._name = name
        self._step = step
        self._graph = recipes.Graph(content)
        ranges = Ranges({}, {})
        if any(PRECISIONS[name].calibrated for name in config.auto.precisions):
            step(f"{name}calibrating")
            ranges = observe(content, calibration, config.calibration)
        self._ranges, self.inputs = ranges.tensors, ranges.inputs
        self._tried: dict[tuple[tuple[int, str], ...], _Trial] = {}

    def run(self) -> _Trial:
        """The best trial."""
        options = {index: _hull(self._options(index)) for index in self._graph.kernels}
        promotions = list(_promotions(options))
        start: Assignment = {index: hull[0].precision for index, hull in options.items()}
        best = self._bisected(start, promotions)
        for precision in self._config.auto.precisions:
            uniform = self._uniform(precision)
            if uniform is not None:
                best = min(best, self._tried_with(uniform, f"{precision} wherever possible"), key=self.rank)
        return self._demoted(best, options)

    def _options(self, index: int) -> Iterator[_Option]:
        """The precisions of a layer, measured with all other layers in float32."""
        operator = self._graph.operators[index]
        self._step(f"{self._name}measuring {operator.layer}")
        possible = recipes.allowed(self._graph, index, self._config.per_channel)
        for precision in self._config.auto.precisions:
            if precision in possible and precision != "float32":
                made = self._quantized({index: precision})
                if self._runs(made):
                    yield _Option(precision, len(made), self._measure.error(made))
        yield _Option("float32", len(self._content), 0.0)

    def _bisected(self, start: Assignment, promotions: list[tuple[int, str]]) -> _Trial:
        """The trial with the fewest promotions that is good enough; what is behind all of them is the float model."""

        def promoted(count: int) -> _Trial:
            if count > len(promotions):  # a layer that nothing was measured to harm has none to float32
                return self._tried_with(dict.fromkeys(start, "float32"), "float32 everywhere")
            assignment = {**start, **dict(promotions[:count])}
            return self._tried_with(assignment, f"{count} of {len(promotions)} promotions")

        low, high = 0, len(promotions) + 1
        while low < high:
            middle = (low + high) // 2
            if self._accepted(promoted(middle)):
                high = middle
            else:
                low = middle + 1
        return promoted(high)

    def _uniform(self, precision: str) -> Assignment | None:
        """The mode of that name, as far as the layers may have what it gives them; None where no layer has it."""
        choices = recipes.uniform(self._content, precision, per_channel=self._config.per_channel)
        may = (*self._config.auto.precisions, "float32")
        assignment: Assignment = {
            index: choices[index].precision if choices[index].precision in may else "float32"
            for index in self._graph.kernels
        }
        return assignment if precision in assignment.values() else None

    def _runs(self, content: bytes) -> bool:
        return judge(content, self._config.target, self._config.max_arena_bytes).runs

    def _demoted(self, best: _Trial, options: Mapping[int, list[_Option]]) -> _Trial:
        """The best trial with layers made smaller, one at a time and those that save most first, while that does."""
        smaller = []
        for index, hull in options.items():
            sizes = {option.precision: option.size for option in hull}
            now = sizes.get(best.assignment[index], len(self._content))
            smaller += [(option.size - now, index, option.precision) for option in hull if option.size < now]
        done: set[int] = set()
        for _, index, precision in sorted(smaller)[:_DEMOTIONS]:
            if index not in done:
                layer = self._graph.operators[index].layer
                made = self._tried_with({**best.assignment, index: precision}, f"{layer} in {precision} after all")
                if self.rank(made) < self.rank(best):
                    best = made
                    done.add(index)
        return best

    def rank(self, trial: _Trial) -> tuple[bool, int, float]:
        """The smaller, the better."""
        return not self._accepted(trial), trial.size, trial.drop

    def _accepted(self, trial: _Trial) -> bool:
        return trial.drop <= self._config.auto.max_drop

    def _tried_with(self, assignment: Assignment, what: str) -> _Trial:
        key = tuple(sorted(assignment.items()))
        if key not in self._tried:
            self._step(f"{self._name}trying {what}")
            made = self._quantized(assignment)
            value, drop = self._measure.metric(made)
            if not (np.isfinite(drop) and self._runs(made)):
                drop = np.inf
            trial = self._tried[key] = _Trial(assignment, made, value, drop)
            self._trials.append(
                TrialRecord(
                    step=f"{self._name}{what}",
                    metric=value if np.isfinite(value) else None,
                    bytes=trial.size,
                    accepted=self._accepted(trial),
                )
            )
        return self._tried[key]

    def _quantized(self, assignment: Assignment) -> bytes:
        return recipes.quantize_layers(
            self._content,
            {index: recipes.Choice(precision) for index, precision in assignment.items()},
            self._ranges,
            io=self._config.io,
            per_channel=self._config.per_channel,
        )


def _hull(options: Iterator[_Option]) -> list[_Option]:
    """The options on the lower convex hull of error over size, the smallest one first: each step does more for a byte
    than the next one. Of options of the same size and error the first one stays.
    """
    hull: list[_Option] = []
    for option in sorted(options, key=lambda option: (option.size, option.error)):
        if not np.isfinite(option.error) or (hull and option.error >= hull[-1].error):
            continue
        while len(hull) > 1 and _gain(hull[-1], option) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _gain(small: _Option, large: _Option) -> float:
    """Error that is taken away for each byte."""
    return (small.error - large.error) / max(large.size - small.size, 1)


def _promotions(options: Mapping[int, list[_Option]]) -> Iterator[tuple[int, str]]:
    """The steps to larger precisions of all layers, the most effective one first; a layer's own stay in order."""
    steps = [
        (-_gain(small, large), index, place, large.precision)
        for index, hull in options.items()
        for place, (small, large) in enumerate(itertools.pairwise(hull))
    ]
    for _, index, _, precision in sorted(steps):
        yield index, precision


def _by_layer(content: bytes, assignment: Assignment) -> dict[str, str]:
    """The precisions by the layer's name; a second layer of the same name has its place in the graph behind it."""
    graph = recipes.Graph(content)
    found: dict[str, str] = {}
    for index, precision in assignment.items():
        layer = graph.operators[index].layer
        found[f"{layer}/{index}" if layer in found else layer] = precision
    return found


class _Measure:
    """The metric of models on the trial rows, and the error of their outputs on a part of them.

    Attributes:
      rows: of the trial.
      baseline: the float model's metric.
    """

    def __init__(self, content: bytes, config: AutoPrecision, trial: Columns, labels: np.ndarray | None):
        self._config = config
        self._trial = trial
        self.rows = len(next(iter(trial.values())))
        self._part = {name: values[:_SENSITIVITY_ROWS] for name, values in trial.items()}
        self._output = _output(content, config.output)
        predicted = self._predicted(content, trial)
        self._float = predicted.pop(self._output)
        self._others = {name: values for name, values in predicted.items() if values.dtype.kind == "f"}
        self._labels = None if config.metric == "agreement" else _require_labels(config, labels, self._float)
        self._sign = 1.0 if config.metric != "agreement" and smaller_is_better(config.metric) else -1.0
        if config.metric == "agreement" and self._float.shape[-1] < 2:
            raise ModelError(
                f"The metric 'agreement' compares largest outputs; the output {self._output!r} has shape "
                f"{self._float.shape}, one number a row. Remedy: a metric against labels."
            )
        self._keras = None if self._labels is None else _keras_metric(config.metric, self._float, self._labels)
        self.baseline = self._value(self._float)
        if not np.isfinite(self.baseline):
            raise ModelError(f"The float model's {config.metric!r} on {self.rows} rows is {self.baseline}.")

    def metric(self, content: bytes) -> tuple[float, float]:
        """The metric of a model, and by how much it is worse than the float model's."""
        predicted = self._predicted(content, self._trial)
        value = self._value(predicted[self._output])
        kept = all(_snr(floats, predicted[name]) >= _OTHERS_DB for name, floats in self._others.items())
        return value, self._sign * (value - self.baseline) if kept else np.inf

    def error(self, content: bytes) -> float:
        """The mean squared error of a model's outputs by the variance of the float model's, the sum of all outputs."""
        predicted = self._predicted(content, self._part)
        return sum(
            float(np.mean((predicted[name] - floats[:_SENSITIVITY_ROWS].astype(np.float64)) ** 2)) / _variance(floats)
            for name, floats in {self._output: self._float, **self._others}.items()
        )

    def _value(self, outputs: np.ndarray) -> float:
        if self._keras is not None:
            return self._keras(outputs)
        return float(np.mean(outputs.argmax(axis=-1) == self._float.argmax(axis=-1)))

    def _predicted(self, content: bytes, columns: Columns) -> dict[str, np.ndarray]:
        model = Interpreter(content, num_threads=os.cpu_count() or 1, trusted=True)
        rows = len(next(iter(columns.values())))
        parts = [
            model.predict({name: values[start : start + _BATCH] for name, values in columns.items()})
            for start in range(0, rows, _BATCH)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _variance(values: np.ndarray) -> float:
    return float(np.var(values[:_SENSITIVITY_ROWS].astype(np.float64))) or 1.0


def _snr(signal: np.ndarray, other: np.ndarray) -> float:
    """The signal-to-noise ratio in decibels."""
    signal = signal.astype(np.float64)
    noise = float(np.sum((other - signal) ** 2))
    return 10 * np.log10(max(float(np.sum(signal**2)), 1e-300) / noise) if noise else np.inf


def _output(content: bytes, wanted: str | None) -> str:
    """The name of the output that is measured."""
    names = list(Interpreter(content).outputs)
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names:
        return str(wanted)
    asked = "auto.output is not given" if wanted is None else f"auto.output is {wanted!r}"
    raise ModelError(f"{asked}; the model's outputs are: {', '.join(names)}. Remedy: name one of them.")


def _require_labels(config: AutoPrecision, labels: np.ndarray | None, outputs: np.ndarray) -> np.ndarray:
    """Labels as the metric takes them: one for each number of the output, or the number of the class."""
    if labels is None:
        raise ModelError(
            f"The metric {config.metric!r} needs labels. Remedy: auto.label_key, or the metric 'agreement', which "
            "needs none."
        )
    _require_known(config.metric)
    labels = np.asarray(labels)
    if labels.shape == outputs.shape or (labels.shape == outputs.shape[:-1] and outputs.shape[-1] == 1):
        return labels.reshape(outputs.shape)
    classes = "sparse" in plain_name(config.metric) or plain_name(config.metric) in _BY_LABEL_SHAPE
    if classes and outputs.shape[-1] > 1 and labels.shape in (outputs.shape[:-1], (*outputs.shape[:-1], 1)):
        return labels.reshape(*outputs.shape[:-1], 1)
    raise ModelError(
        f"The labels have shape {labels.shape}, which doesn't fit the output's {outputs.shape} and the metric "
        f"{config.metric!r}. Remedy: auto.label_key, auto.output, or another metric (with 'sparse' in its name where a "
        "label is the number of a class)."
    )


def _require_known(metric: str) -> None:
    import tf_keras

    # `get` returns a name that it doesn't know as it is.
    if plain_name(metric) not in _BY_LABEL_SHAPE and not callable(tf_keras.metrics.get(metric)):
        raise ModelError(
            f"Keras has no metric {metric!r}. Remedy: auto.metric is one of tf.keras.metrics by name, or 'agreement'."
        )


def _keras_metric(name: str, outputs: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], float]:
    """What computes a Keras metric of outputs; Keras says itself which accuracy is meant."""
    import tensorflow as tf
    import tf_keras

    answers = tf_keras.Input(outputs.shape[1:])
    identity = tf_keras.Model(answers, tf_keras.layers.Activation("linear")(answers))
    identity.compile(metrics=[name], run_eagerly=True)

    def value(outputs: np.ndarray) -> float:
        try:
            logs = identity.evaluate(outputs, labels, batch_size=len(labels), verbose=0, return_dict=True)
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            raise ModelError(
                f"Keras can't compute the metric {name!r} of outputs of shape {outputs.shape} and labels of shape "
                f"{labels.shape}: {error}. Remedy: auto.metric is one of tf.keras.metrics by name, or 'agreement'."
            ) from error
        (metric,) = (number for key, number in logs.items() if key != "loss")
        return float(np.mean(metric))

    return value
