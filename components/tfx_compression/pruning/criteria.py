"""Importance criteria: how much each weight, or each output channel, of a kernel matters.

A criterion is a function of the `CriterionInputs` of one kernel. `register` adds one, in the module file:

    from tfx_compression.pruning import criteria

    criteria.register("movement", needs="gradients", weights=lambda inputs: -inputs.gradients * inputs.values)
"""

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.kernels import KERNEL_ATTRIBUTES, Kernel
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.statistics import Statistics

Needs = Literal["nothing", "scale", "gradients", "row_gradients", "activations"]
Axes = Mapping[str, Sequence[int]]


@dataclasses.dataclass(frozen=True)
class CriterionInputs:
    """A kernel as a criterion sees it: output channels in the last axis, what belongs to one of them along the first.

    Attributes:
      name: the kernel's.
      values: its weights, [weights of a channel, channels].
      generator: of random numbers, seeded by the plan and the kernel's name.
      gradients: of the loss by the weights, in the shape of `values`: for `gradients`, of a batch's mean loss, for
        `row_gradients`, of one row's.
      gates: of the batch's mean loss (or a row's) by a factor on each channel of what the layer puts out, behind its
        bias and normalisation, [channels]; None where the network doesn't tell.
      activations: what the next layer sees, [positions, channels]: rows and places together.
      scale: of the normalisation behind the layer (gamma), [channels].
    """

    name: str
    values: np.ndarray
    generator: np.random.Generator
    gradients: Any = None
    gates: Any = None
    activations: Any = None
    scale: Any = None


Function = Callable[[CriterionInputs], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Criterion:
    """What importance is made from; see `register`."""

    needs: Needs
    weights: Function | None
    channels: Function | None


def register(
    name: str, *, weights: Function | None = None, channels: Function | None = None, needs: Needs = "nothing"
) -> None:
    """Makes a criterion known by name.

    Args:
      name: what `PruningPlan.criterion` calls it.
      weights: the importance of single weights, in the shape of `inputs.values`.
      channels: the importance of channels, [channels]. By default, the sum of their weights'.
      needs: what of the data it looks at. The results of all batches (`gradients`), rows (`row_gradients`) or
        positions (`activations`) are averaged.

    Raises:
      ConfigError: where there is no function, or the name is a built-in one.
    """
    if weights is None and channels is None:
        raise ConfigError(f"The criterion {name!r} has no function. Remedy: register(…, weights=… or channels=…).")
    if name in NAMES:
        raise ConfigError(f"The criterion {name!r} is built in. Remedy: register yours by another name.")
    _registry[name] = Criterion(needs, weights, channels)


def get(name: str) -> Criterion:
    """The criterion of this name.

    Raises:
      ConfigError: listing the names there are.
    """
    if name not in _registry:
        raise ConfigError(
            f"PruningPlan.criterion = {name!r} is unknown. There are: {', '.join(_registry)}. "
            "Remedy: one of these, or criteria.register(…) in the module file."
        )
    return _registry[name]


def score(
    kernels: Mapping[str, Kernel],
    names: Sequence[str],
    plan: PruningPlan,
    statistics: Statistics | None = None,
    axes: Axes | None = None,
) -> dict[str, np.ndarray]:
    """The importance of kernels by the plan's criterion; larger is more important.

    Args:
      kernels: of the model, by name.
      names: which of them to score.
      plan: its technique, criterion, scores and seed are used.
      statistics: for the criteria that look at more than the weights.
      axes: for channels, which axes of a kernel they are, by name; `channel_axes` where it isn't said.

    Returns:
      For the technique `weight`, an array in each kernel's shape; otherwise one score for each channel, [channels], of
      several axes flattened. Kernels that the statistics says nothing of, without normalisation or inside a layer, are
      left out: what is coupled with them may tell. `unscored` is the error where nothing does.

    Raises:
      ConfigError: for a criterion that is unknown, doesn't fit the technique, needs data that isn't there, or gives
        something of another shape or not finite.
      ModelError: for gradients or activations that are not finite.
    """
    layout = {name: _Layout(kernels[name], _axes_of(kernels[name], plan, axes or {})) for name in names}
    if plan.criterion == "scores":
        return _stored(plan, kernels, layout)
    criterion = get(plan.criterion)
    function = _function(criterion, plan)
    if statistics is None and criterion.needs != "nothing":
        raise ConfigError(
            f"PruningPlan.criterion = {plan.criterion!r} looks at {criterion.needs.replace('_', ' ')}, and there is no "
            "data. Remedy: connect examples to Pruner, or a criterion of the weights alone: magnitude, l2."
        )
    total: dict[str, np.ndarray] = {}
    weight: dict[str, float] = {}
    for name, found in _samples(criterion.needs, statistics, names, plan.structured):
        result, times = _apply(function, layout[name], plan, found)
        total[name] = total[name] + result * times if name in total else result * times
        weight[name] = weight.get(name, 0.0) + times
    return {name: layout[name].restored(total[name] / weight[name], plan) for name in names if name in total}


def unscored(plan: PruningPlan, layer: str) -> ConfigError:
    """The error for a layer of which the criterion knows nothing."""
    why = {"scale": "no normalisation with a scale follows it", "activations": "its output can't be looked at"}
    return ConfigError(
        f"PruningPlan.criterion = {plan.criterion!r} knows nothing of {layer!r}: "
        f"{why.get(get(plan.criterion).needs, 'it has no kernel')}. Remedy: another criterion, or "
        f"rules=[LayerRule(layers={layer!r}, sparsity=0)]."
    )


def normalize(scores: np.ndarray) -> np.ndarray:
    """Scores of mean 1, so that parts compare when they are ranked together.

    Divided by their mean, as Torch-Pruning's normaliser `mean` does (Fang et al. 2023, arXiv:2301.12900); of signed
    scores, by the mean of their sizes. Scores that are all zero stay.
    """
    mean = np.abs(scores).mean(dtype=np.float64)
    return scores / scores.dtype.type(mean) if mean > 0 else scores


def channel_axes(kernel: Kernel) -> tuple[int, ...]:
    """The axes that tell a kernel's output channels apart.

    The last one; of a transposed convolution the last but one; of a depthwise kernel input and multiplier; of an einsum
    all that are not summed over. A recurrent kernel's gates lie side by side in the last, one column each.
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
        """`values`, in the kernel's shape, as [weights of a channel, channels]."""
        return values.transpose(self._order).reshape(-1, self.channels)

    def restored(self, scores: np.ndarray, plan: PruningPlan) -> np.ndarray:
        """Scores of weights in the kernel's shape again; those of channels as they are."""
        if plan.structured:
            return scores
        return scores.reshape([self.kernel.shape[axis] for axis in self._order]).transpose(np.argsort(self._order))


def _axes_of(kernel: Kernel, plan: PruningPlan, axes: Axes) -> tuple[int, ...]:
    return tuple(axes.get(kernel.name, channel_axes(kernel))) if plan.structured else channel_axes(kernel)


def _function(criterion: Criterion, plan: PruningPlan) -> Function:
    if plan.structured:
        return criterion.channels or _summed(criterion.weights)
    if criterion.weights is None:
        raise ConfigError(
            f"PruningPlan.criterion = {plan.criterion!r} tells channels apart, no single weights. "
            "Remedy: technique='filter' or 'neuron', or another criterion."
        )
    return criterion.weights


def _summed(weights: Any) -> Function:
    return lambda inputs: weights(inputs).sum(axis=0)


def _samples(
    needs: Needs, statistics: Any, names: Sequence[str], structured: bool
) -> Iterable[tuple[str, dict[str, Any]]]:
    """What a criterion gets to see beside the weights, kernel by kernel, as often as there is something to see."""
    if needs == "nothing":
        yield from ((name, {}) for name in names)
    elif needs == "scale":
        yield from ((name, {"scale": scale}) for name, scale in statistics.scales().items() if name in names)
    elif needs == "activations":
        for batch in statistics.batches():
            yield from ((name, {"activations": found}) for name, found in statistics.activations(batch, names).items())
    else:
        for batch in statistics.rows() if needs == "row_gradients" else statistics.batches():
            gates = statistics.gates(batch, names) if structured else {}
            for name, found in statistics.gradients(batch, names).items():
                yield name, {"gradients": found, **({"gates": gates[name]} if name in gates else {})}


def _apply(
    function: Function, layout: _Layout, plan: PruningPlan, found: dict[str, np.ndarray]
) -> tuple[np.ndarray, float]:
    """A criterion's result for one sample, and the sample's weight in the average."""
    name = layout.kernel.name
    for what, values in found.items():
        if not np.isfinite(values).all():
            raise ModelError(
                f"Criterion {plan.criterion!r}: the {what} of {name!r} are not finite. "
                "Remedy: look at the Trainer's loss, this model diverged, or at the rows of the data."
            )
    if "gradients" in found:
        found = {**found, "gradients": layout.matrix(found["gradients"])}
    generator = np.random.default_rng([plan.seed, zlib.crc32(name.encode())])
    inputs = CriterionInputs(name, layout.matrix(layout.kernel.values), generator, **found)
    result = np.asarray(function(inputs), np.float32)
    _check(result, (layout.channels,) if plan.structured else inputs.values.shape, plan, name)
    return result, float(len(found["activations"])) if "activations" in found else 1.0


def _check(scores: np.ndarray, shape: tuple[int, ...], plan: PruningPlan, name: str) -> None:
    where = f"Criterion {plan.criterion!r}, kernel {name!r}"
    if scores.shape != shape:
        raise ConfigError(f"{where}: scores of shape {scores.shape}. Remedy: give them the shape {shape}.")
    if not np.isfinite(scores).all():
        raise ConfigError(f"{where}: a score is not finite. Remedy: scores that are numbers, larger for what stays.")


def _stored(plan: PruningPlan, kernels: Mapping[str, Kernel], layout: Mapping[str, _Layout]) -> dict[str, np.ndarray]:
    """The scores of an NPZ file, by the kernels' names."""
    arrays = _read(str(plan.scores))
    keys = _keys(kernels)
    if extra := [key for key in arrays if key not in keys]:
        raise ConfigError(
            f"PruningPlan.scores = {plan.scores!r}: {', '.join(map(repr, extra))} is no kernel of the model. "
            f"Remedy: name its arrays as the kernels, which are {', '.join(kernels)}."
        )
    found = {keys[key]: array for key, array in arrays.items()}
    if missing := [name for name in layout if name not in found]:
        raise ConfigError(
            f"PruningPlan.scores = {plan.scores!r} has no scores of {', '.join(map(repr, missing))}. "
            "Remedy: add them, or rules with sparsity 0 for what shall stay."
        )
    result = {}
    for name, place in layout.items():
        scores = found[name]
        if plan.structured and scores.shape == place.kernel.shape:
            scores = place.matrix(scores).sum(axis=0)
        _check(scores, (place.channels,) if plan.structured else place.kernel.shape, plan, name)
        result[name] = scores
    return result


def _keys(kernels: Collection[str]) -> dict[str, str]:
    """What a kernel may be called in a file: its name, or that without `:0`, or the layer, where it is its only one."""
    stems = {name: name.split(":")[0] for name in kernels}
    layers = [stem.rpartition("/")[0] for stem in stems.values() if stem.rpartition("/")[2] in KERNEL_ATTRIBUTES]
    short = {stem.rpartition("/")[0]: name for name, stem in stems.items()}
    keys = {layer: short[layer] for layer in layers if layer and layers.count(layer) == 1}
    return {**keys, **{stem: name for name, stem in stems.items()}, **{name: name for name in kernels}}


def _read(path: str) -> dict[str, np.ndarray]:
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as stored:
            return {name: np.asarray(stored[name], np.float32) for name in stored.files}
    except (tf.errors.OpError, OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"PruningPlan.scores = {path!r} can't be read: {error} Remedy: the path of a file that np.savez wrote."
        ) from error


def _magnitude(inputs: CriterionInputs) -> np.ndarray:
    """Han et al. 2015 (arXiv:1506.02626); summed over a filter, the L1 norm of Li et al. 2017 (arXiv:1608.08710)."""
    return np.abs(inputs.values)


def _squares(inputs: CriterionInputs) -> np.ndarray:
    return np.square(inputs.values)


def _l2(inputs: CriterionInputs) -> np.ndarray:
    return np.sqrt(_squares(inputs).sum(axis=0))


def _bn_scale(inputs: CriterionInputs) -> np.ndarray:
    """Network slimming, Liu et al. 2017 (arXiv:1708.06519)."""
    return np.abs(inputs.scale)


def _geometric_median(inputs: CriterionInputs) -> np.ndarray:
    """FPGM, He et al. 2019 (arXiv:1811.00250): the sum of a filter's distances to the others."""
    filters = inputs.values.T.astype(np.float64)
    products = filters @ filters.T
    norms = np.diag(products)
    squares = np.maximum(norms[:, None] + norms[None, :] - 2 * products, 0)
    np.fill_diagonal(squares, 0)  # rounding leaves a little
    return np.sqrt(squares).sum(axis=1)


def _random(inputs: CriterionInputs) -> np.ndarray:
    return inputs.generator.random(inputs.values.shape)


def _random_channels(inputs: CriterionInputs) -> np.ndarray:
    return inputs.generator.random(inputs.values.shape[1])


def _taylor(inputs: CriterionInputs) -> np.ndarray:
    """Molchanov et al. 2019 (arXiv:1906.10771): the first-order change of the loss without the weight."""
    return np.abs(inputs.gradients * inputs.values)


def _taylor_channels(inputs: CriterionInputs) -> np.ndarray:
    """The same for a channel: the square of the first-order change without it."""
    return np.square(_change(inputs))


def _change(inputs: CriterionInputs) -> np.ndarray:
    """The change of the loss, to first order, without a channel.

    By a factor on what the layer puts out, as the paper recommends where a normalisation follows: zero weights would
    leave its shift. Otherwise by the channel's weights together, which is the same.
    """
    return (inputs.gradients * inputs.values).sum(axis=0) if inputs.gates is None else np.asarray(inputs.gates)


def _fisher(inputs: CriterionInputs) -> np.ndarray:
    """The saliency of LeCun et al. 1990 (Optimal Brain Damage), the Hessian's diagonal being the empirical Fisher's."""
    return 0.5 * np.square(inputs.gradients * inputs.values)


def _fisher_channels(inputs: CriterionInputs) -> np.ndarray:
    """Theis et al. 2018 (arXiv:1801.05787): the same of a channel's mask, which multiplies all of its weights."""
    return 0.5 * np.square(_change(inputs))


def _activation_mean(inputs: CriterionInputs) -> np.ndarray:
    """Molchanov et al. 2017 (arXiv:1611.06440); Polyak & Wolf 2015."""
    return np.abs(inputs.activations).mean(axis=0, dtype=np.float64)


def _apoz(inputs: CriterionInputs) -> np.ndarray:
    """1 - the average percentage of zeros (APoZ) of Hu et al. 2016 (arXiv:1607.03250): larger is more important."""
    return (inputs.activations != 0).mean(axis=0)


_registry = {
    "magnitude": Criterion("nothing", _magnitude, None),
    "l1": Criterion("nothing", _magnitude, None),
    "l2": Criterion("nothing", _squares, _l2),
    "bn_scale": Criterion("scale", None, _bn_scale),
    "geometric_median": Criterion("nothing", None, _geometric_median),
    "random": Criterion("nothing", _random, _random_channels),
    "taylor": Criterion("gradients", _taylor, _taylor_channels),
    "fisher": Criterion("row_gradients", _fisher, _fisher_channels),
    "activation_mean": Criterion("activations", None, _activation_mean),
    "apoz": Criterion("activations", None, _apoz),
}
NAMES = (*_registry, "scores")
