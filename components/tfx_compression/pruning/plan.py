"""The pruning plan: the configuration of Pruner, and its contract with SparsityFineTuner."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tfx_compression.config import Config, Name, Pattern, Seed
from tfx_compression.errors import ConfigError

UNSTRUCTURED = "unstructured"


class LayerRule(Config):
    """The sparsity of layers chosen by name.

    Attributes:
      layers: Regular expression that matches the whole name of a layer.
      sparsity: Sparsity of these layers; 0 leaves them dense.
    """

    layers: Pattern
    sparsity: float = Field(ge=0.0, lt=1.0)


class PruningPlan(Config):
    """Configuration of a pruning: which weights, filters or units to prune, and how many.

    Attributes:
      technique: `weight` sets single weights of convolution, dense, recurrent and embedding kernels to zero. `filter`
        removes whole convolution filters and everything that depends on them. `neuron` does the same for dense units,
        attention heads, LSTM and GRU units.
      pattern: Pattern of the zeros, for technique `weight`: `unstructured`; `N:M` (2:4), which keeps N of every M
        weights along the input channels; `RxC` (4x1), which keeps or prunes blocks of R inputs and C outputs.
      criterion: Importance criterion: a name in `criteria.NAMES`, or one that the module file registers.
      scores: For criterion `scores`, the path of an NPZ file of importances by kernel name, each in its kernel's shape
        (or, for `filter` and `neuron`, one per output channel).
      allocation: Distribution of the sparsity over layers. `uniform` prunes all alike; `global` prunes the least
        important elements of the whole model; `erdos_renyi` (ERK, arXiv:1911.11134) keeps more of layers with few
        weights; `lamp` (arXiv:2010.07611) ranks weights by layer-adaptive magnitude; `sensitivity` measures each
        layer's effect on the metric and solves for the least loss.
      target: Quantity that `sparsity` is a fraction of. `sparsity`: the weights, filters or units that can be pruned;
        otherwise the whole model's `parameters`, `macs` or `bytes` (for technique `weight` those of nonzero weights,
        the bytes with a bit mask of the zeros).
      sparsity: Fraction to prune, in [0, 1). The pattern N:M sets it.
      protect: Layers to leave dense unless a rule names them: the `first` with a kernel, the `last` before each
        output. Layers whose channels are coupled to a protected layer (a residual trunk to its stem) are left dense
        too. None protects both as long as they are a small share of the model: the smallest ones that hold at most a
        tenth of the weights of all kernels together.
      rules: Exceptions by layer name; the last matching rule wins. Sparsity 0 leaves a layer dense.
      round_to: For `filter` and `neuron`, each layer keeps a multiple of this number of channels (8 suits most
        kernels), at least one multiple, unless nothing is removed.
      strict: Whether an unsupported layer is an error. Otherwise the channels that it touches are left alone, with a
        note in the report.
      schedule: `one_shot` prunes everything at once. For the other schedules Pruner takes the first step and
        SparsityFineTuner the rest. Its mode `gradual` takes `constant` (the whole sparsity at once, with masks that
        are updated during training), `polynomial` and `cubic` (from `initial_sparsity`; Zhu & Gupta,
        arXiv:1710.01878); its mode `iterative` takes `iterative` (prune and train, `iterations` times).
      initial_sparsity: First sparsity of `polynomial` and `cubic`.
      power: Exponent of `polynomial`.
      iterations: Rounds of `iterative`; each prunes the same fraction of the remaining elements.
      begin_step: First training step of `constant`, `polynomial` and `cubic`.
      end_step: Last training step of these schedules; None means three quarters of the training.
      frequency: Training steps between two mask updates.
      sample_rows: Number of rows of data that criteria and sensitivity use.
      batch_size: Rows per batch of this sample.
      recalibrate_batches: For `filter` and `neuron`, the number of batches of the data on which the statistics of batch
        normalizations are computed anew once channels are removed; Pruner does it where it has data, and
        SparsityFineTuner before it trains. 0 leaves the statistics of the whole network.
      label_key: Name of the label feature; None means the one feature of the schema that isn't an input of the model.
      sensitivity_levels: Sparsities at which `sensitivity` measures each layer, ascending, in (0, 1).
      sensitivity_metric: `loss`, or the name of a metric that the model is compiled with.
      seed: Random seed of the sample and of the criterion `random`.
    """

    technique: Literal["weight", "filter", "neuron"] = "weight"
    pattern: str = UNSTRUCTURED
    criterion: str = "magnitude"
    scores: str | None = None
    allocation: str = "uniform"
    target: Literal["sparsity", "parameters", "macs", "bytes"] = "sparsity"
    sparsity: float = Field(default=0.5, ge=0.0, lt=1.0)
    protect: tuple[Literal["first", "last"], ...] | None = None
    rules: tuple[LayerRule, ...] = ()
    round_to: int = Field(default=1, ge=1)
    strict: bool = False
    schedule: Literal["one_shot", "constant", "polynomial", "cubic", "iterative"] = "one_shot"
    initial_sparsity: float = Field(default=0.0, ge=0.0, lt=1.0)
    power: float = Field(default=3.0, gt=0.0)
    iterations: int = Field(default=4, ge=2)
    begin_step: int = Field(default=0, ge=0)
    end_step: int | None = Field(default=None, ge=1)
    frequency: int = Field(default=100, ge=1)
    sample_rows: int = Field(default=1024, ge=1)
    batch_size: int = Field(default=32, ge=1)
    recalibrate_batches: int = Field(default=60, ge=0)
    label_key: Name | None = None
    sensitivity_levels: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    sensitivity_metric: str = "loss"
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _pattern_sets_sparsity(cls, fields: Any) -> Any:
        """Fills in the sparsity that an N:M pattern implies."""
        n_of_m = _n_of_m(fields.get("pattern")) if isinstance(fields, dict) else None
        if n_of_m and fields.get("sparsity") is None:
            return {**fields, "sparsity": 1 - n_of_m[0] / n_of_m[1]}
        return fields

    @field_validator("pattern")
    @classmethod
    def _pattern_is_known(cls, pattern: str) -> str:
        sizes = _n_of_m(pattern) or _block(pattern)
        if pattern != UNSTRUCTURED and not sizes:
            raise ConfigError(
                "not `unstructured`, `N:M` with 0 < N < M (2:4), or `RxC` with positive numbers (4x1)",
                code="unknown-pattern",
            )
        return pattern

    @field_validator("allocation")
    @classmethod
    def _allocation_is_known(cls, allocation: str) -> str:
        from tfx_compression.pruning.allocation import ALLOCATIONS  # imports NumPy

        if allocation not in ALLOCATIONS:
            raise ConfigError(f"not one of {', '.join(ALLOCATIONS)}", code="unknown-allocation")
        return allocation

    @field_validator("criterion")
    @classmethod
    def _criterion_scores_the_technique(cls, criterion: str, info: ValidationInfo) -> str:
        from tfx_compression.pruning import criteria  # imports NumPy

        if info.data.get("technique") == "weight" and criterion in criteria.NAMES:
            criteria.lookup(criterion).require_weights()
        return criterion

    @field_validator("sensitivity_levels")
    @classmethod
    def _levels_ascend(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if not levels or list(levels) != sorted(set(levels)) or not 0 < levels[0] <= levels[-1] < 1:
            raise ConfigError("not one or more ascending fractions between 0 and 1", code="bad-levels")
        return levels

    @model_validator(mode="after")
    def _technique_fits(self) -> "PruningPlan":
        if self.structured and self.pattern != UNSTRUCTURED:
            message = f"pattern {self.pattern!r} is for technique 'weight', not for {self.technique!r}"
            raise ConfigError(message, field="PruningPlan.pattern", code="pattern-of-channels")
        if self.structured and self.schedule not in ("one_shot", "iterative"):
            raise ConfigError(
                f"schedule {self.schedule!r} updates masks during training, and {self.technique}s are removed for "
                "good: use 'one_shot' or 'iterative'",
                field="PruningPlan.schedule",
                code="schedule-of-channels",
            )
        if not self.structured and self.round_to != 1:
            message = f"round_to={self.round_to} is for techniques 'filter' and 'neuron'"
            raise ConfigError(message, field="PruningPlan.round_to", code="round-to-of-weights")
        return self

    @model_validator(mode="after")
    def _n_of_m_fits(self) -> "PruningPlan":
        if self.n_of_m is None:
            return self
        implied = 1 - self.n_of_m[0] / self.n_of_m[1]
        if abs(self.sparsity - implied) > 1e-6:
            message = f"sparsity={self.sparsity} with pattern {self.pattern!r}, which implies {implied:g}"
            raise ConfigError(message, field="PruningPlan.sparsity", code="sparsity-of-pattern")
        if self.allocation != "uniform" or self.target != "sparsity" or self.schedule not in ("one_shot", "constant"):
            raise ConfigError(
                f"pattern {self.pattern!r} prunes every layer alike and at once: leave allocation at 'uniform', "
                "target at 'sparsity' and schedule at 'one_shot' or 'constant'",
                field="PruningPlan.pattern",
                code="n-of-m-is-uniform",
            )
        if any(rule.sparsity not in (0.0, self.sparsity) for rule in self.rules):
            message = f"a rule's sparsity must be 0 (leave it dense) or {implied:g} with {self.pattern!r}"
            raise ConfigError(message, field="PruningPlan.rules", code="rule-of-pattern")
        return self

    @model_validator(mode="after")
    def _values_fit(self) -> "PruningPlan":
        if (self.criterion == "scores") != (self.scores is not None):
            message = "criterion 'scores' and the path `scores` require each other"
            raise ConfigError(message, field="PruningPlan.scores", code="scores-without-criterion")
        if self.schedule in ("polynomial", "cubic") and self.initial_sparsity > self.sparsity:
            message = f"initial_sparsity={self.initial_sparsity} is above sparsity={self.sparsity}"
            raise ConfigError(message, field="PruningPlan.initial_sparsity", code="initial-above-sparsity")
        if self.end_step is not None and self.end_step <= self.begin_step:
            message = f"end_step={self.end_step} is not after begin_step={self.begin_step}"
            raise ConfigError(message, field="PruningPlan.end_step", code="end-before-begin")
        return self

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(N, M) of a pattern `N:M`: N of M weights are kept."""
        return _n_of_m(self.pattern)

    @property
    def block(self) -> tuple[int, int]:
        """(inputs, outputs) of the blocks that are kept or pruned together."""
        return _block(self.pattern) or (1, 1)

    @property
    def structured(self) -> bool:
        """Whether channels are removed, rather than weights set to zero."""
        return self.technique != "weight"

    @property
    def protected_ends(self) -> tuple[str, ...]:
        """The ends of the network that are protected, of `first` and `last`."""
        return ("first", "last") if self.protect is None else self.protect

    @property
    def first_step_sparsity(self) -> float:
        """Sparsity after the first step of the schedule, which Pruner takes."""
        if self.schedule in ("polynomial", "cubic"):
            return self.initial_sparsity
        if self.schedule == "iterative":
            return 1 - (1 - self.sparsity) ** (1 / self.iterations)
        return self.sparsity

    def rule_sparsity(self, groups: Mapping[str, Iterable[str]]) -> dict[str, float]:
        """Returns the sparsity that the rules set, by group; groups that no rule matches are left out.

        Args:
          groups: Names of the layers of each group, by the group's name. A rule matches a group by either.

        Raises:
          ConfigError: A rule matches no group.
        """
        result: dict[str, float] = {}
        for rule in self.rules:
            matched = [
                name
                for name, layers in groups.items()
                if any(re.fullmatch(rule.layers, known) for known in (name, *layers))
            ]
            if not matched:
                raise ConfigError(
                    f"PruningPlan.rules: the pattern {rule.layers!r} matches no layer that can be pruned. "
                    f"Patterns match whole names. Remedy: the names of the model, which are: "
                    f"{', '.join(groups) or 'none'}.",
                    field="PruningPlan.rules",
                    code="unmatched-rule",
                )
            result.update(dict.fromkeys(matched, rule.sparsity))
        return result


def _n_of_m(pattern: Any) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    if match and 0 < int(match[1]) < int(match[2]):
        return int(match[1]), int(match[2])
    return None


def _block(pattern: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)x(\d+)", pattern)
    return (int(match[1]), int(match[2])) if match and int(match[1]) and int(match[2]) else None
