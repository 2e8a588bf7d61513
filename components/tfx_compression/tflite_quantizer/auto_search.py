"""Mode `auto`: finds a precision for each layer that makes the file small and keeps the metric within a limit."""

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from tfx_compression import worker
from tfx_compression.errors import ModelError
from tfx_compression.tflite.modes import PRECISIONS
from tfx_compression.tflite_quantizer import equalization
from tfx_compression.tflite_quantizer.auto_metric import Columns, SearchMetric
from tfx_compression.tflite_quantizer.calibration import Ranges, measure_ranges
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.devices.judge import judge
from tfx_compression.tflite_quantizer.layer_quantizer import quantize_layers
from tfx_compression.tflite_quantizer.precision_choice import allowed_precisions, choose_uniform
from tfx_compression.tflite_quantizer.precision_graph import PrecisionGraph
from tfx_compression.tflite_quantizer.recipe import PrecisionChoice
from tfx_compression.tflite_quantizer.record import AutoRecord, EqualizedPair, InputRange, TrialRecord

Assignment = dict[int, str]  # name of a precision by the operator's index

_DEMOTIONS = 24  # trials at the end, each with one layer in a smaller precision


class SearchResult(NamedTuple):
    """The result of a search.

    Attributes:
      content: The flatbuffer.
      record: Record of the search.
      float_model: Float model that it was made from, equalized or not.
      pairs: Layers that were equalized in it.
      input_ranges: Range of each input that calibration measured.
    """

    content: bytes
    record: AutoRecord
    float_model: bytes
    pairs: tuple[EqualizedPair, ...]
    input_ranges: Mapping[str, InputRange]


def search(
    content: bytes, config: Quantization, calibration: Columns, trial: Columns, labels: np.ndarray | None
) -> SearchResult:
    """Returns the smallest file found whose metric drops by at most `config.auto.max_drop`.

    Each layer with weights is quantized alone to each precision that it supports, and the error of the model's output
    is measured. Starting from the smallest precision everywhere, promotions to larger precisions are sorted by the
    error that they remove per byte, and bisection on the metric finds how many are needed. The uniform models of each
    precision are tried as well, so the result is no larger than any of them that is good enough. In the end, single
    layers are demoted again where that does no harm. float32 everywhere loses nothing and is the last resort. Models
    that don't run on the target are rejected, and so are those that leave an output other than the measured one less
    than 20 dB above its noise.

    Args:
      content: A float flatbuffer.
      config: `auto`, `equalize`, `io`, `per_channel`, `calibration`, `target` and `max_arena_bytes` are used.
      calibration: [rows, …] values by input, to measure ranges on.
      trial: [rows, …] values by input, to measure the metric on.
      labels: [rows, …] labels; None for the metric `agreement`.

    Raises:
      ConfigError: If the metric or the output is unknown, or doesn't fit the other.
      DataError: If labels are missing or don't fit the output.
      ModelError: If not even the float model runs on the target.
    """
    metric = SearchMetric(content, config.auto, trial, labels)
    variants: list[tuple[str, bytes, tuple[EqualizedPair, ...]]] = []
    if config.equalize is not True:
        variants.append(("", content, ()))
    if config.equalize is not False:
        worker.step("equalizing layers")
        equalized, pairs = equalization.equalize(content)
        if pairs or not variants:
            variants.append(("equalized, ", equalized, pairs))
    trials: list[TrialRecord] = []
    results = []
    for prefix, float_model, pairs in variants:
        variant = _VariantSearch(float_model, config, calibration, metric, trials, prefix)
        results.append((variant.run(), variant, pairs))
    best, variant, pairs = min(results, key=lambda result: result[1].rank(result[0]))
    if not np.isfinite(best.drop):
        problems = judge(best.content, config.target, config.max_arena_bytes).problems
        raise ModelError(
            f"Not even the float model runs on target {config.target!r}: {' '.join(problems)}",
            field="Quantization.target",
            code="unsupported-by-target",
        )
    record = AutoRecord(
        metric=config.auto.metric,
        baseline=metric.baseline,
        value=best.value,
        drop=best.drop,
        rows=metric.rows,
        equalized=bool(pairs),
        precisions=_by_layer(variant.graph, best.assignment),
        trials=tuple(trials),
    )
    return SearchResult(best.content, record, variant.float_model, pairs, variant.ranges.inputs)


class _Trial(NamedTuple):
    assignment: Assignment
    content: bytes
    value: float
    drop: float

    @property
    def size(self) -> int:
        return len(self.content)


class _Option(NamedTuple):
    """A precision of a layer: bytes of the file with it in that layer alone, and the error of the output."""

    precision: str
    size: int
    error: float


class _VariantSearch:
    """The search on one float model, as converted or equalized."""

    def __init__(
        self,
        float_model: bytes,
        config: Quantization,
        calibration: Columns,
        metric: SearchMetric,
        trials: list[TrialRecord],
        prefix: str,
    ):
        self.float_model = float_model
        self.graph = PrecisionGraph(float_model)
        self._config = config
        self._metric = metric
        self._records = trials
        self._prefix = prefix
        self.ranges = Ranges({}, {})
        if any(PRECISIONS[name].calibrated for name in config.auto.precisions):
            worker.step(f"{prefix}calibrating")
            self.ranges = measure_ranges(float_model, calibration, config.calibration)
        self._trials: dict[tuple[tuple[int, str], ...], _Trial] = {}

    def run(self) -> _Trial:
        """Returns the best trial."""
        options = {index: _lower_hull(self._options(index)) for index in self.graph.kernels}
        start: Assignment = {index: hull[0].precision for index, hull in options.items()}
        best = self._bisect(start, list(_promotions(options)))
        for precision in self._config.auto.precisions:
            uniform = self._uniform(precision)
            if uniform is not None:
                best = min(best, self._try(uniform, f"{precision} wherever possible"), key=self.rank)
        return self._demote(best, options)

    def rank(self, trial: _Trial) -> tuple[bool, int, float]:
        """Returns a key for sorting, best first."""
        return not self._accepts(trial), trial.size, trial.drop

    def _options(self, index: int) -> Iterator[_Option]:
        """Yields the precisions of a layer, measured with all other layers in float32."""
        worker.step(f"{self._prefix}measuring {self.graph.operators[index].layer}")
        allowed = allowed_precisions(self.graph, index, self._config.per_channel)
        for precision in self._config.auto.precisions:
            if precision in allowed and PRECISIONS[precision].quantized:
                content = self._quantize({index: precision})
                if content is not None and self._runs(content):
                    yield _Option(precision, len(content), self._metric.output_error(content))
        yield _Option("float32", len(self.float_model), 0.0)

    def _bisect(self, start: Assignment, promotions: list[tuple[int, str]]) -> _Trial:
        """Returns the acceptable trial with the fewest promotions. After all of them comes the float model."""

        def promoted(count: int) -> _Trial:
            if count > len(promotions):  # A layer that showed no error has no promotion to float32.
                return self._try(dict.fromkeys(start, "float32"), "float32 everywhere")
            assignment = {**start, **dict(promotions[:count])}
            return self._try(assignment, f"{count} of {len(promotions)} promotions")

        low, high = 0, len(promotions) + 1
        while low < high:
            middle = (low + high) // 2
            if self._accepts(promoted(middle)):
                high = middle
            else:
                low = middle + 1
        return promoted(high)

    def _uniform(self, precision: str) -> Assignment | None:
        """Returns a precision wherever it is supported and permitted; None if no layer gets it."""
        choices = choose_uniform(self.float_model, precision, per_channel=self._config.per_channel)
        permitted = (*self._config.auto.precisions, "float32")
        assignment: Assignment = {
            index: choices[index].precision if choices[index].precision in permitted else "float32"
            for index in self.graph.kernels
        }
        return assignment if precision in assignment.values() else None

    def _demote(self, best: _Trial, options: Mapping[int, list[_Option]]) -> _Trial:
        """Returns the best trial with layers made smaller one at a time, those that save most first."""
        smaller = []
        for index, hull in options.items():
            sizes = {option.precision: option.size for option in hull}
            size = sizes.get(best.assignment[index], len(self.float_model))
            smaller += [(option.size - size, index, option.precision) for option in hull if option.size < size]
        demoted: set[int] = set()
        for _, index, precision in sorted(smaller)[:_DEMOTIONS]:
            if index not in demoted:
                layer = self.graph.operators[index].layer
                trial = self._try({**best.assignment, index: precision}, f"{layer} demoted to {precision}")
                if self.rank(trial) < self.rank(best):
                    best = trial
                    demoted.add(index)
        return best

    def _accepts(self, trial: _Trial) -> bool:
        return trial.drop <= self._config.auto.max_drop

    def _try(self, assignment: Assignment, name: str) -> _Trial:
        key = tuple(sorted(assignment.items()))
        if key not in self._trials:
            worker.step(f"{self._prefix}trying {name}")
            content = self._quantize(assignment)
            value, drop = (np.nan, np.inf) if content is None else self._metric.measure(content)
            if content is None or not (np.isfinite(drop) and self._runs(content)):
                drop = np.inf
            trial = self._trials[key] = _Trial(assignment, content or self.float_model, value, drop)
            self._records.append(
                TrialRecord(
                    step=f"{self._prefix}{name}",
                    metric=value if np.isfinite(value) else None,
                    bytes=trial.size,
                    accepted=self._accepts(trial),
                )
            )
        return self._trials[key]

    def _runs(self, content: bytes) -> bool:
        return judge(content, self._config.target, self._config.max_arena_bytes).runs

    def _quantize(self, assignment: Assignment) -> bytes | None:
        """Returns the flatbuffer, or None if the quantizer can't make it."""
        try:
            return quantize_layers(
                self.float_model,
                {index: PrecisionChoice(precision) for index, precision in assignment.items()},
                self.ranges.tensors,
                io=self._config.io,
                per_channel=self._config.per_channel,
            )
        except ModelError as error:
            if error.code != "refused-by-quantizer":
                raise
            return None


def _lower_hull(options: Iterator[_Option]) -> list[_Option]:
    """Returns the options on the lower convex hull of error over size, the smallest first.

    Each step along it removes more error per byte than the next. Of options with the same size and error, the first one
    stays.
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
    """Returns the error that a promotion removes per byte."""
    return (small.error - large.error) / max(large.size - small.size, 1)


def _promotions(options: Mapping[int, list[_Option]]) -> Iterator[tuple[int, str]]:
    """Yields the promotions of all layers, the most effective first; those of a layer stay in order."""
    steps = [
        (-_gain(small, large), index, place, large.precision)
        for index, hull in options.items()
        for place, (small, large) in enumerate(itertools.pairwise(hull))
    ]
    for _, index, _, precision in sorted(steps):
        yield index, precision


def _by_layer(graph: PrecisionGraph, assignment: Assignment) -> dict[str, str]:
    """Returns precisions by layer name. The index is appended to a name that occurs again."""
    precisions: dict[str, str] = {}
    for index, precision in assignment.items():
        layer = graph.operators[index].layer
        precisions[f"{layer}/{index}" if layer in precisions else layer] = precision
    return precisions
