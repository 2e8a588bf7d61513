"""Importance scores of kernels: applies a criterion to every kernel and averages its results over the data."""

import dataclasses
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.kernels import Kernel
from tfx_compression.pruning import stored_scores
from tfx_compression.pruning.criteria import Criterion, CriterionFn, CriterionInputs
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.statistics import Statistics

ChannelAxes = Mapping[str, Sequence[int]]
Inputs = dict[str, np.ndarray]  # fields of CriterionInputs beside the weights


def score(
    kernels: Mapping[str, Kernel],
    names: Sequence[str],
    plan: PruningPlan,
    criterion: Criterion,
    statistics: Statistics | None = None,
    axes: ChannelAxes | None = None,
) -> dict[str, np.ndarray]:
    """Returns the importance of kernels by a criterion; larger is more important.

    Args:
      kernels: All kernels of the model, by name.
      names: Names of the kernels to score.
      plan: Plan, whose technique, scores and seed are used.
      criterion: Criterion to apply.
      statistics: Statistics, for a criterion that requires them.
      axes: Channel axes of kernels, by name; `channel_axes` for the others.

    Returns:
      For technique `weight`, an array in each kernel's shape; otherwise one score per channel, [channels], with several
      axes flattened. Kernels on which the statistics have nothing (without normalization, or inside a layer) are left
      out, as kernels coupled with them may have scores. `unscored` is the error if none has.

    Raises:
      ConfigError: The criterion doesn't fit the technique, requires data that isn't there, or returns scores of a wrong
        shape or that are not finite.
      ModelError: Gradients or activations are not finite.
    """
    layouts = {name: _Layout(kernels[name], _axes_of(kernels[name], plan, axes or {})) for name in names}
    function = _function_of(criterion, plan)
    if statistics is None and criterion.requires_statistics:
        raise ConfigError(
            f"PruningPlan.criterion = {criterion.name!r} requires {criterion.requires.replace('_', ' ')}, and there is "
            "no data. Remedy: connect examples to Pruner, or a criterion of the weights alone: magnitude, l2.",
            field="PruningPlan.criterion",
            code="criterion-without-data",
        )
    if criterion.requires == "scores":
        samples: Iterable[tuple[str, Inputs]] = _stored(plan, kernels, layouts)
    else:
        samples = _samples(criterion, statistics, names, plan.structured)
    total: dict[str, np.ndarray] = {}
    weight: dict[str, float] = {}
    for name, inputs in samples:
        result, times = _apply(function, criterion, layouts[name], plan, inputs)
        total[name] = total[name] + result * times if name in total else result * times
        weight[name] = weight.get(name, 0.0) + times
    return {name: layouts[name].restored(total[name] / weight[name], plan) for name in names if name in total}


def unscored(criterion: Criterion, layer: str) -> ConfigError:
    """Returns the error for a layer that a criterion can't score."""
    reasons = {"scale": "no normalization with a scale follows it", "activations": "its output is not visible"}
    return ConfigError(
        f"PruningPlan.criterion = {criterion.name!r} can't score {layer!r}: "
        f"{reasons.get(criterion.requires, 'it has no kernel')}. Remedy: another criterion, or "
        f"rules=[LayerRule(layers={layer!r}, sparsity=0)].",
        field="PruningPlan.criterion",
        code="unscored-layer",
    )


def normalize(scores: np.ndarray) -> np.ndarray:
    """Returns scores with a mean magnitude of 1, so that those of different groups can be ranked together.

    They are divided by the mean of their magnitudes, as by Torch-Pruning's normalizer `mean` (Fang et al. 2023,
    arXiv:2301.12900). Scores that are all zero are returned as they are.
    """
    mean = np.abs(scores).mean(dtype=np.float64)
    return scores / scores.dtype.type(mean) if mean > 0 else scores


def channel_axes(kernel: Kernel) -> tuple[int, ...]:
    """Returns the axes that index a kernel's output channels.

    These are the last axis; for a transposed convolution the last but one; for a depthwise kernel input and multiplier;
    for an einsum all axes that are not summed over. The gates of a recurrent kernel lie side by side in the last axis,
    each with a column per unit.
    """
    return kernel.output_axes if kernel.kind != "embedding" else kernel.output_axes[-1:]


@dataclasses.dataclass(frozen=True)
class _Layout:
    """A kernel and the axes of its channels."""

    kernel: Kernel
    axes: tuple[int, ...]

    @property
    def _order(self) -> tuple[int, ...]:
        return (*(axis for axis in range(len(self.kernel.shape)) if axis not in self.axes), *self.axes)

    @property
    def channels(self) -> int:
        return int(np.prod([self.kernel.shape[axis] for axis in self.axes]))

    def matrix(self, values: np.ndarray) -> np.ndarray:
        """Returns values in the kernel's shape as [weights of a channel, channels]."""
        return values.transpose(self._order).reshape(-1, self.channels)

    def restored(self, scores: np.ndarray, plan: PruningPlan) -> np.ndarray:
        """Returns the scores of weights in the kernel's shape, and the scores of channels unchanged."""
        if plan.structured:
            return scores
        return scores.reshape([self.kernel.shape[axis] for axis in self._order]).transpose(np.argsort(self._order))


def _axes_of(kernel: Kernel, plan: PruningPlan, axes: ChannelAxes) -> tuple[int, ...]:
    return tuple(axes.get(kernel.name, channel_axes(kernel))) if plan.structured else channel_axes(kernel)


def _function_of(criterion: Criterion, plan: PruningPlan) -> CriterionFn:
    if plan.structured:
        return criterion.channels or _summed(criterion.weights)
    return criterion.require_weights()


def _summed(weights: Any) -> CriterionFn:
    return lambda inputs: weights(inputs).sum(axis=0)


def _samples(
    criterion: Criterion, statistics: Any, names: Sequence[str], structured: bool
) -> Iterable[tuple[str, Inputs]]:
    """Yields the inputs that a criterion requires, kernel by kernel, once for each batch or row."""
    requires = criterion.requires
    if requires == "weights":
        yield from ((name, {}) for name in names)
    elif requires == "scale":
        yield from ((name, {"scale": scale}) for name, scale in statistics.scales().items() if name in names)
    elif requires == "activations":
        for batch in statistics.batches():
            activations = statistics.activations(batch, names)
            yield from ((name, {"activations": values}) for name, values in activations.items())
    else:
        for batch in statistics.rows() if requires == "row_gradients" else statistics.batches():
            gates = statistics.gates(batch, names) if structured else {}
            for name, values in statistics.gradients(batch, names).items():
                yield name, {"gradients": values, **({"gates": gates[name]} if name in gates else {})}


def _stored(
    plan: PruningPlan, kernels: Mapping[str, Kernel], layouts: Mapping[str, _Layout]
) -> Iterable[tuple[str, Inputs]]:
    """Yields the scores of the plan's file, kernel by kernel."""
    for name, scores in stored_scores.read(str(plan.scores), kernels, list(layouts)).items():
        layout = layouts[name]
        if scores.shape == layout.kernel.shape:
            yield name, {"scores": layout.matrix(scores)}
        else:
            _require_scores(scores, (layout.channels,) if plan.structured else layout.kernel.shape, "scores", name)
            yield name, {"scores": scores}


def _apply(
    function: CriterionFn, criterion: Criterion, layout: _Layout, plan: PruningPlan, inputs: Inputs
) -> tuple[np.ndarray, float]:
    """Returns a criterion's scores for one sample, and the sample's weight in the average."""
    name = layout.kernel.name
    for field, values in inputs.items():
        if field != "scores" and not np.isfinite(values).all():
            raise ModelError(
                f"Criterion {criterion.name!r}: the {field} of {name!r} are not finite. "
                "Remedy: check the Trainer's loss, as this model may have diverged, and the rows of the data.",
                code="not-finite",
            )
    if "gradients" in inputs:
        inputs = {**inputs, "gradients": layout.matrix(inputs["gradients"])}
    generator = np.random.default_rng([plan.seed, zlib.crc32(name.encode())])
    given = CriterionInputs(name, layout.matrix(layout.kernel.values), generator, **inputs)
    result = np.asarray(function(given), np.float32)
    _require_scores(result, (layout.channels,) if plan.structured else given.values.shape, criterion.name, name)
    return result, float(len(inputs["activations"])) if "activations" in inputs else 1.0


def _require_scores(scores: np.ndarray, shape: tuple[int, ...], criterion: str, name: str) -> None:
    """Raises ConfigError for scores of a wrong shape or that are not finite."""
    place = f"Criterion {criterion!r}, kernel {name!r}"
    if scores.shape != shape:
        message = f"{place}: scores of shape {scores.shape}. Remedy: return scores of shape {shape}."
        raise ConfigError(message, code="shape-of-scores")
    if not np.isfinite(scores).all():
        message = f"{place}: a score is not finite. Remedy: finite scores, larger for more important elements."
        raise ConfigError(message, code="scores-not-finite")
