"""Importance criteria: functions that score the weights, or the output channels, of a kernel.

A criterion is a row of `_registry`. The module file adds one with `register`:

    from tfx_compression.pruning import criteria

    criteria.register("movement", requires="gradients", weights=lambda inputs: -inputs.gradients * inputs.values)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from tfx_compression.errors import ConfigError

Requirement = Literal["weights", "scores", "scale", "gradients", "row_gradients", "activations"]
_DATA: tuple[Requirement, ...] = ("gradients", "row_gradients", "activations")


@dataclasses.dataclass(frozen=True)
class CriterionInputs:
    """Inputs of a criterion for one kernel. The output channels lie along the last axis of each array.

    Attributes:
      name: Name of the kernel.
      values: Weights of the kernel, [weights of a channel, channels].
      generator: Random generator, seeded by the plan and the kernel's name.
      gradients: Gradients of the loss with respect to the weights, in the shape of `values`: of a batch's mean loss for
        `gradients`, of one row's loss for `row_gradients`.
      gates: Gradient of the same loss with respect to a multiplicative gate on each output channel, after bias and
        normalization, [channels]; None if the network doesn't show it.
      activations: Input of the next layer, [rows and positions, channels].
      scale: Scale (gamma) of the normalization that follows the layer, [channels].
      scores: Scores from the file `PruningPlan.scores`, in the shape of `values` or [channels].
    """

    name: str
    values: np.ndarray
    generator: np.random.Generator
    gradients: Any = None
    gates: Any = None
    activations: Any = None
    scale: Any = None
    scores: Any = None


CriterionFn = Callable[[CriterionInputs], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Criterion:
    """An importance criterion; see `register`.

    Attributes:
      name: Name in `PruningPlan.criterion`.
      requires: Inputs that it requires beside the weights.
      weights: Function that scores single weights; None if it only scores channels.
      channels: Function that scores channels; None to add up the scores of their weights.
    """

    name: str
    requires: Requirement
    weights: CriterionFn | None
    channels: CriterionFn | None

    @property
    def requires_data(self) -> bool:
        """Whether it requires rows of data."""
        return self.requires in _DATA

    @property
    def requires_statistics(self) -> bool:
        """Whether it requires `Statistics` of the model: data, or what follows a layer."""
        return self.requires_data or self.requires == "scale"

    def require_weights(self) -> CriterionFn:
        """Returns the function that scores single weights.

        Raises:
          ConfigError: It only scores channels (code "criterion-of-channels").
        """
        if self.weights is None:
            raise ConfigError(
                f"Criterion {self.name!r} scores channels, not single weights. "
                "Remedy: technique 'filter' or 'neuron', or another criterion.",
                field="PruningPlan.criterion",
                code="criterion-of-channels",
            )
        return self.weights


def register(
    name: str,
    *,
    weights: CriterionFn | None = None,
    channels: CriterionFn | None = None,
    requires: Requirement = "weights",
) -> None:
    """Registers a criterion.

    Args:
      name: Name in `PruningPlan.criterion`.
      weights: Function that returns the importance of single weights, in the shape of `inputs.values`; larger is more
        important.
      channels: Function that returns the importance of channels, [channels]. The default adds up the scores of their
        weights.
      requires: Inputs that the functions require beside the weights. Their results are averaged over batches
        (`gradients`), rows (`row_gradients`) or positions (`activations`).

    Raises:
      ConfigError: Neither function is given, or the name is built in.
    """
    if weights is None and channels is None:
        raise ConfigError(
            f"Criterion {name!r} has no function. Remedy: register(…, weights=…) or register(…, channels=…).",
            code="criterion-without-function",
        )
    if name in NAMES:
        message = f"Criterion {name!r} is built in. Remedy: register yours under another name."
        raise ConfigError(message, code="built-in-criterion")
    _registry[name] = Criterion(name, requires, weights, channels)


def lookup(name: str) -> Criterion:
    """Returns a criterion by name.

    Raises:
      ConfigError: The criterion is unknown.
    """
    if name not in _registry:
        raise ConfigError(
            f"PruningPlan.criterion = {name!r} is unknown. The criteria are: {', '.join(_registry)}. "
            "Remedy: one of these, or criteria.register(…) in the module file.",
            field="PruningPlan.criterion",
            code="unknown-criterion",
        )
    return _registry[name]


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
    np.fill_diagonal(squares, 0)  # the differences above leave rounding errors
    return np.sqrt(squares).sum(axis=1)


def _random(inputs: CriterionInputs) -> np.ndarray:
    return inputs.generator.random(inputs.values.shape)


def _random_channels(inputs: CriterionInputs) -> np.ndarray:
    return inputs.generator.random(inputs.values.shape[1])


def _taylor(inputs: CriterionInputs) -> np.ndarray:
    """Molchanov et al. 2019 (arXiv:1906.10771): the first-order change of the loss without the weight."""
    return np.abs(inputs.gradients * inputs.values)


def _taylor_channels(inputs: CriterionInputs) -> np.ndarray:
    """Molchanov et al. 2019: the square of the first-order change of the loss without the channel."""
    return np.square(_loss_change(inputs))


def _loss_change(inputs: CriterionInputs) -> np.ndarray:
    """Returns the first-order change of the loss without each channel.

    It uses the gate on the layer's output where there is one, as the paper recommends before a normalization: zero
    weights would leave its shift. Otherwise it adds up the channel's weights, which is equivalent.
    """
    return (inputs.gradients * inputs.values).sum(axis=0) if inputs.gates is None else np.asarray(inputs.gates)


def _fisher(inputs: CriterionInputs) -> np.ndarray:
    """LeCun et al. 1990 (Optimal Brain Damage), with the empirical Fisher information as the Hessian's diagonal."""
    return 0.5 * np.square(inputs.gradients * inputs.values)


def _fisher_channels(inputs: CriterionInputs) -> np.ndarray:
    """Theis et al. 2018 (arXiv:1801.05787): the saliency of a mask that multiplies all weights of the channel."""
    return 0.5 * np.square(_loss_change(inputs))


def _activation_mean(inputs: CriterionInputs) -> np.ndarray:
    """Molchanov et al. 2017 (arXiv:1611.06440); Polyak & Wolf 2015."""
    return np.abs(inputs.activations).mean(axis=0, dtype=np.float64)


def _apoz(inputs: CriterionInputs) -> np.ndarray:
    """1 - the average percentage of zeros (APoZ) of Hu et al. 2016 (arXiv:1607.03250): larger is more important."""
    return (inputs.activations != 0).mean(axis=0)


def _stored(inputs: CriterionInputs) -> np.ndarray:
    return inputs.scores


def _stored_channels(inputs: CriterionInputs) -> np.ndarray:
    return inputs.scores if inputs.scores.ndim == 1 else inputs.scores.sum(axis=0)


_registry = {
    criterion.name: criterion
    for criterion in (
        Criterion("magnitude", "weights", _magnitude, None),
        Criterion("l1", "weights", _magnitude, None),
        Criterion("l2", "weights", _squares, _l2),
        Criterion("bn_scale", "scale", None, _bn_scale),
        Criterion("geometric_median", "weights", None, _geometric_median),
        Criterion("random", "weights", _random, _random_channels),
        Criterion("taylor", "gradients", _taylor, _taylor_channels),
        Criterion("fisher", "row_gradients", _fisher, _fisher_channels),
        Criterion("activation_mean", "activations", None, _activation_mean),
        Criterion("apoz", "activations", None, _apoz),
        Criterion("scores", "scores", _stored, _stored_channels),
    )
}
NAMES = tuple(_registry)
