"""What is to be pruned, how and by how much: the contract between Pruner and SparsityFineTuner."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tfx_compression.config import Config, Pattern
from tfx_compression.errors import ConfigError

UNSTRUCTURED = "unstructured"


class LayerRule(Config):
    """The sparsity of the layers whose name matches `layers`, a regular expression for the whole name."""

    layers: Pattern
    sparsity: float = Field(ge=0.0, lt=1.0)


class PruningPlan(Config):
    """What is pruned: single weights set to zero, or whole filters and neurons removed.

    Attributes:
      technique: `weight`, single weights of convolution, dense, recurrent and embedding kernels are set to zero.
        `filter`, whole convolution filters are removed, with all that depends on them. `neuron`, the same for dense
        units, attention heads, LSTM and GRU units.
      pattern: of the zeros, for `weight`. `unstructured`; `N:M` (2:4), N weights stay of every M along the input
        channels; `RxC` (4x1), blocks of R inputs and C outputs stay or go together.
      criterion: what tells the important ones: a name in `criteria.NAMES`, or one that the module file registers.
      scores: for the criterion `scores`, the path of an NPZ file of importances by kernel name, each in its kernel's
        shape (or, for `filter` and `neuron`, one per output channel).
      allocation: how the sparsity is spread. `uniform`, the same everywhere; `global`, the least important of the whole
        model go; `erdos_renyi` (ERK, arXiv:1911.11134), layers with few weights keep more of them; `lamp`
        (arXiv:2010.07611); `sensitivity`, each layer's effect on the metric is measured and the least loss solved for.
      target: what `sparsity` is a fraction of. `sparsity`: the weights, filters or units that can be pruned; otherwise
        of the whole model's `parameters`, `macs` or `bytes` (for `weight`: of those that are not zero, the bytes with
        a bit mask of the zeros).
      sparsity: the fraction that goes, in [0, 1). Set by the pattern for N:M.
      protect: layers that are left alone unless a rule names them: the `first` with a kernel, the `last` before each
        output. What is coupled to a protected layer's channels (a residual trunk to its stem) is left alone with it.
      rules: exceptions by layer name; the last rule that matches a layer wins. Sparsity 0 leaves a layer alone.
      round_to: for `filter` and `neuron`, what is left of each layer is a multiple of this (8 suits most kernels), at
        least one multiple, unless nothing is removed.
      strict: an unsupported layer is an error; otherwise what it touches is left alone, with a note in the report.
      schedule: `one_shot`, all at once. Of the others Pruner takes the first step, and SparsityFineTuner the rest, in
        its mode `gradual`: `constant` (the target at once, masks chosen anew while training), `polynomial` and `cubic`
        (from `initial_sparsity`; Zhu & Gupta, arXiv:1710.01878); in its mode `iterative`: `iterative` (prune and train,
        `iterations` times).
      initial_sparsity: where `polynomial` and `cubic` start.
      power: of `polynomial`.
      iterations: of `iterative`; each removes the same fraction of what is left.
      begin_step, end_step, frequency: training steps of `constant`, `polynomial` and `cubic`; without `end_step`, three
        quarters of the training.
      sample_rows: rows of the data that criteria and sensitivity look at.
      batch_size: rows at a time.
      label_key: the label's feature; by default the one feature of the schema that is no input of the model.
      sensitivity_levels: the sparsities at which `sensitivity` measures each layer, ascending, in (0, 1).
      sensitivity_metric: `loss`, or the name of a metric that the model was compiled with.
      seed: of the sample and of the criterion `random`.
    """

    technique: Literal["weight", "filter", "neuron"] = "weight"
    pattern: str = UNSTRUCTURED
    criterion: str = "magnitude"
    scores: str | None = None
    allocation: Literal["uniform", "global", "erdos_renyi", "lamp", "sensitivity"] = "uniform"
    target: Literal["sparsity", "parameters", "macs", "bytes"] = "sparsity"
    sparsity: float = Field(default=0.5, ge=0.0, lt=1.0)
    protect: tuple[Literal["first", "last"], ...] = ("first", "last")
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
    label_key: str | None = None
    sensitivity_levels: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    sensitivity_metric: str = "loss"
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _pattern_sets_sparsity(cls, fields: Any) -> Any:
        """N:M says itself how much goes."""
        n_of_m = _n_of_m(fields.get("pattern")) if isinstance(fields, dict) else None
        if n_of_m and fields.get("sparsity") is None:
            return {**fields, "sparsity": 1 - n_of_m[0] / n_of_m[1]}
        return fields

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, pattern: str) -> str:
        sizes = _n_of_m(pattern) or _block(pattern)
        if pattern != UNSTRUCTURED and not sizes:
            raise ValueError("not `unstructured`, `N:M` with 0 < N < M (2:4), or `RxC` with positive numbers (4x1)")
        return pattern

    @field_validator("sensitivity_levels")
    @classmethod
    def _levels_ascend(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if not levels or list(levels) != sorted(set(levels)) or not 0 < levels[0] <= levels[-1] < 1:
            raise ValueError("not one or more ascending fractions between 0 and 1")
        return levels

    @model_validator(mode="after")
    def _fits_together(self) -> "PruningPlan":
        structured = self.technique != "weight"
        if structured and self.pattern != UNSTRUCTURED:
            raise ValueError(f"pattern {self.pattern!r} is of technique 'weight', not of {self.technique!r}")
        if structured and self.schedule not in ("one_shot", "iterative"):
            raise ValueError(
                f"schedule {self.schedule!r} moves masks while training; {self.technique}s are removed for good: "
                "use 'one_shot' or 'iterative'"
            )
        if not structured and self.round_to != 1:
            raise ValueError(f"round_to={self.round_to} is for the techniques 'filter' and 'neuron'")
        if n_of_m := _n_of_m(self.pattern):
            fixed = 1 - n_of_m[0] / n_of_m[1]
            if abs(self.sparsity - fixed) > 1e-6:
                raise ValueError(f"sparsity={self.sparsity} with pattern {self.pattern!r}, which makes it {fixed:g}")
            if (
                self.allocation != "uniform"
                or self.target != "sparsity"
                or self.schedule not in ("one_shot", "constant")
            ):
                raise ValueError(
                    f"pattern {self.pattern!r} prunes every layer alike and at once: leave allocation at 'uniform', "
                    "target at 'sparsity' and schedule at 'one_shot' or 'constant'"
                )
            if any(rule.sparsity not in (0.0, self.sparsity) for rule in self.rules):
                raise ValueError(f"a rule's sparsity must be 0 (leave it dense) or {fixed:g} with {self.pattern!r}")
        if (self.criterion == "scores") != (self.scores is not None):
            raise ValueError("criterion 'scores' and the path `scores` go together")
        if self.schedule in ("polynomial", "cubic") and self.initial_sparsity > self.sparsity:
            raise ValueError(f"initial_sparsity={self.initial_sparsity} is above sparsity={self.sparsity}")
        if self.end_step is not None and self.end_step <= self.begin_step:
            raise ValueError(f"end_step={self.end_step} is not after begin_step={self.begin_step}")
        return self

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(N, M) of the pattern `N:M`: N of M weights stay."""
        return _n_of_m(self.pattern)

    @property
    def block(self) -> tuple[int, int]:
        """(inputs, outputs) that stay or go together."""
        return _block(self.pattern) or (1, 1)

    @property
    def structured(self) -> bool:
        """Whether channels are removed, rather than weights set to zero."""
        return self.technique != "weight"

    def first_step(self) -> float:
        """The sparsity that Pruner itself brings about."""
        if self.schedule in ("polynomial", "cubic"):
            return self.initial_sparsity
        if self.schedule == "iterative":
            return 1 - (1 - self.sparsity) ** (1 / self.iterations)
        return self.sparsity

    def exceptions(self, parts: Mapping[str, Iterable[str]]) -> dict[str, float]:
        """What the rules say of parts of a model, by name; nothing of those that no rule matches.

        Args:
          parts: by name, the layers that a part concerns: a rule matches it by its name or one of theirs.

        Raises:
          ConfigError: where a rule matches none of them.
        """
        result: dict[str, float] = {}
        for rule in self.rules:
            matched = [
                name
                for name, layers in parts.items()
                if any(re.fullmatch(rule.layers, known) for known in (name, *layers))
            ]
            if not matched:
                raise ConfigError(
                    f"PruningPlan.rules: the pattern {rule.layers!r} matches no layer that can be pruned. "
                    f"Patterns match whole names; the model's are: {', '.join(parts) or 'none'}."
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
