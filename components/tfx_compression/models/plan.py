"""What is to be pruned, how and by how much: the contract between Pruner and SparsityFineTuner."""

import re
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, field_validator

from tfx_compression.models.config import Config, ConfigError


class LayerRule(Config):
    """The sparsity of the layers whose name matches `layers`, a regular expression for the whole name."""

    layers: str
    sparsity: float = Field(ge=0.0, lt=1.0)

    @field_validator("layers")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class PruningPlan(Config):
    """Which weights are set to zero.

    Attributes:
      technique: `weight`, single weights of convolution and dense kernels (unstructured).
      criterion: `magnitude`, the weights nearest to zero go first (Han et al. 2015, arXiv:1506.02626).
      allocation: `uniform`, the same sparsity in every pruned layer.
      schedule: `one_shot`, all at once.
      sparsity: fraction of zeros in each pruned kernel, in [0, 1); weights that tie with the smallest kept one stay.
      rules: exceptions by layer name; the last rule that matches a layer wins. Sparsity 0 leaves a layer alone.
    """

    technique: Literal["weight"] = "weight"
    criterion: Literal["magnitude"] = "magnitude"
    allocation: Literal["uniform"] = "uniform"
    schedule: Literal["one_shot"] = "one_shot"
    sparsity: float = Field(default=0.5, ge=0.0, lt=1.0)
    rules: tuple[LayerRule, ...] = ()

    def sparsities(self, layers: Iterable[str]) -> dict[str, float]:
        """The sparsity of each of `layers`, by name.

        Raises:
          ConfigError: where a rule matches none of them.
        """
        names = list(layers)
        result = dict.fromkeys(names, self.sparsity)
        for rule in self.rules:
            matched = [name for name in names if re.fullmatch(rule.layers, name)]
            if not matched:
                raise ConfigError(
                    f"PruningPlan.rules: the pattern {rule.layers!r} matches no layer that can be pruned. "
                    f"Patterns match whole names; the model's are: {', '.join(names) or 'none'}."
                )
            result.update(dict.fromkeys(matched, rule.sparsity))
        return result
