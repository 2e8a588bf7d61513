"""What the two ways of pruning have in common: parts that share sparsity, some of which are left alone."""

import abc
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfx_compression.errors import ConfigError
from tfx_compression.keras_models.model_size import ModelSize
from tfx_compression.model_handle import ModelHandle
from tfx_compression.pruning.allocation import unreachable
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.pruning_group import PruningGroup
from tfx_compression.pruning.statistics import Statistics

RULE = "a rule leaves it alone"


_NOTED = 0.005  # a smaller shortfall is the granularity of small kernels


class Technique(abc.ABC):
    """A model seen as parts that can be pruned.

    Attributes:
      trained: the model.
      whole: its size.
      plan: what is asked for.
      layers: by part, the layers that it concerns; parts that are left alone too.
      protected: by part, why it is left alone.
      fixed: by part, the sparsity that a rule sets.
      notes: for the user.
      parts: by name, those that are pruned, with their scores; set by `score`.
      rounding: why less may go than the sparsity of a part says.
    """

    rounding: str

    def __init__(
        self,
        trained: ModelHandle,
        whole: ModelSize,
        plan: PruningPlan,
        layers: Mapping[str, Sequence[str]],
        why: Mapping[str, str],
    ):
        self.trained = trained
        self.whole = whole
        self.plan = plan
        self.layers = {name: tuple(of) for name, of in layers.items()}
        self.protected = dict(why)
        self.fixed: dict[str, float] = {}
        self.notes: list[str] = []
        self.parts: dict[str, PruningGroup] = {}
        self._require_macs()

    def _require_macs(self) -> None:
        unknown = [
            layer.name for layer in self.whole.layers if layer.macs is None and layer.name in self.trained.kernels
        ]
        if self.plan.target != "macs" or not unknown:
            return
        if not self.whole.macs:
            raise ConfigError(
                "PruningPlan.target = 'macs': the multiply-accumulates of this model are not known. "
                "Remedy: fixed shapes of its inputs, or the target parameters or bytes."
            )
        self.notes.append(
            f"The multiply-accumulates of these layers are not known and not counted: {', '.join(unknown)}."
        )

    def follow_rules(self, locked: Mapping[str, str]) -> None:
        """Applies the plan's rules: to parts whose layers they match, protected or not, but not to `locked` ones.

        Raises:
          ConfigError: where a rule matches no layer, or nothing is left to prune.
        """
        for name, sparsity in self.plan.exceptions(self.layers).items():
            if name in locked:
                if sparsity:
                    self.notes.append(f"A rule would prune {name!r}, which can't be: it {locked[name]}.")
            elif sparsity:
                self.protected.pop(name, None)
                self.fixed[name] = sparsity
            else:
                self.fixed.pop(name, None)
                self.protected[name] = RULE
        if not self.names:
            model = self.trained.path or getattr(self.trained.model, "name", "")
            raise ConfigError(
                f"The plan leaves nothing of {model!r} to prune (technique {self.plan.technique!r}). Left alone are: "
                + ("; ".join(f"{name!r}: {why}" for name, why in self.protected.items()) or "no layers at all")
                + ". Remedy: another technique, protect=(), a rule that names a layer, or trainable layers."
            )

    @property
    def names(self) -> list[str]:
        """The parts that are pruned."""
        return [name for name in self.layers if name not in self.protected]

    @property
    def free(self) -> list[str]:
        """The parts whose sparsity the allocation chooses."""
        return [name for name in self.names if name not in self.fixed]

    @abc.abstractmethod
    def score(self, statistics: Statistics | None) -> None:
        """Sets `parts`."""

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """How many elements a part has: weights, or channel units."""

    @abc.abstractmethod
    def saved(self, sparsities: Mapping[str, float]) -> float:
        """The fraction of the plan's target, other than `sparsity`, that goes."""

    @abc.abstractmethod
    def ablated(self, name: str, sparsity: float) -> contextlib.AbstractContextManager[None]:
        """The model computes as if one part were pruned, while the context is open."""

    def achieved(self, sparsities: Mapping[str, float]) -> float:
        """The fraction of the plan's target that goes; `sparsity` is that of the free parts' elements."""
        if self.plan.target != "sparsity":
            return self.saved(sparsities)
        counted = self.free or self.names
        total = sum(self.parts[name].scores.size for name in counted)
        return 1 - sum(self.parts[name].kept(sparsities.get(name, 0.0)) for name in counted) / total

    def reached(self, kept: Mapping[str, int]) -> float:
        """The same of what was carried out: how many elements are left of the parts of which some went."""
        left = {name: kept.get(name, self.size(name)) for name in self.names}
        if self.plan.target != "sparsity":
            return self.saved({name: 1 - count / self.size(name) for name, count in left.items()})
        counted = self.free or self.names
        return 1 - sum(left[name] for name in counted) / sum(self.size(name) for name in counted)

    def require_reached(self, asked: float, kept: Mapping[str, int]) -> None:
        """Notes what is missing of what was asked for.

        Raises:
          ConfigError: where nothing went at all.
        """
        reached = self.reached(kept)
        if asked and all(kept.get(name, self.size(name)) == self.size(name) for name in self.names):
            raise unreachable(asked, 0.0, self.plan.target)
        if reached < asked - _NOTED:
            why = self.rounding if self.free else "the rules set the sparsity of every part"
            self.notes.append(f"Asked for {asked:.3g}, reached {reached:.3g}: {why}.")


@contextlib.contextmanager
def assigned(values: Sequence[tuple[Any, np.ndarray]]) -> Iterator[None]:
    """Variables have other values while the context is open."""
    before = [(variable, np.array(variable.numpy())) for variable, _ in values]
    try:
        for variable, value in values:
            variable.assign(value)
        yield
    finally:
        for variable, value in before:
            variable.assign(value)
