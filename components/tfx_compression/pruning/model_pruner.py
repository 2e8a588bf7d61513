"""The base class of the two pruners: groups of elements to which a sparsity is allocated, some of them protected."""

import abc
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfx_compression.errors import ConfigError
from tfx_compression.keras_models.model_size import ModelSize
from tfx_compression.model_handle import ModelHandle
from tfx_compression.pruning import criteria, protection
from tfx_compression.pruning.allocation import unreachable
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.pruning_group import PruningGroup
from tfx_compression.pruning.statistics import Statistics

_RULE = "a rule leaves it alone"
_NOTABLE_SHORTFALL = 0.005  # a smaller one comes from the granularity of small kernels

Kept = Mapping[str, np.ndarray]  # by group, an array of bool: the elements that are kept


@dataclasses.dataclass(frozen=True)
class AppliedPruning:
    """The model after a pruning was applied.

    Attributes:
      model: The pruned model.
      size: Its size.
      masks: Masks of the pruned kernels, by name.
      channels: Indices of the output channels that are left, by layer, where channels were removed.
      inexact: By group, the reason why the pruned model differs from one with the removed units' weights zero.
    """

    model: Any
    size: ModelSize
    masks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    channels: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    inexact: Mapping[str, str] = dataclasses.field(default_factory=dict)


class ModelPruner(abc.ABC):
    """A model, divided into groups that can be pruned.

    Attributes:
      handle: The model.
      size: Size of the model.
      plan: The plan.
      criterion: The plan's criterion.
      layers: Layers of each group, protected groups too.
      protected: Reason why a group is not pruned, by group.
      rule_sparsity: Sparsity that a rule sets, by group.
      notes: Messages for the user.
      groups: The groups that are pruned, with their scores, by name; `score` sets them.
      rounding_reason: Reason why less may be pruned than the sparsity of a group says.
    """

    rounding_reason: str

    def __init__(
        self,
        handle: ModelHandle,
        plan: PruningPlan,
        layers: Mapping[str, Sequence[str]],
        protected: Mapping[str, str],
    ):
        self.handle = handle
        self.size = handle.measure()
        self.plan = plan
        self.criterion = criteria.lookup(plan.criterion)
        self.layers = {name: tuple(group) for name, group in layers.items()}
        self.protected = dict(protected)
        self.rule_sparsity: dict[str, float] = {}
        self.notes: list[str] = []
        self.groups: dict[str, PruningGroup] = {}
        self._require_macs()

    def _require_macs(self) -> None:
        unknown = [layer.name for layer in self.size.layers if layer.macs is None and layer.name in self.handle.kernels]
        if self.plan.target != "macs" or not unknown:
            return
        if not self.size.macs:
            raise ConfigError(
                "PruningPlan.target = 'macs': the multiply-accumulates of this model are unknown. "
                "Remedy: fixed input shapes, or the target parameters or bytes.",
                field="PruningPlan.target",
                code="unknown-macs",
            )
        self.notes.append(
            f"The multiply-accumulates of these layers are unknown and not counted: {', '.join(unknown)}."
        )

    def apply_rules(self, locked: Mapping[str, str]) -> None:
        """Applies the plan's rules to the groups whose layers they match, protected or not, except `locked` ones.

        Args:
          locked: Reason why a group can't be pruned at all, by group.

        Raises:
          ConfigError: A rule matches no layer, or nothing is left to prune.
        """
        for name, sparsity in self.plan.rule_sparsity(self.layers).items():
            if name in locked:
                if sparsity:
                    self.notes.append(f"A rule would prune {name!r}, which can't be pruned: it {locked[name]}.")
            elif sparsity:
                self.protected.pop(name, None)
                self.rule_sparsity[name] = sparsity
            else:
                self.rule_sparsity.pop(name, None)
                self.protected[name] = _RULE
        if not self.names:
            model = self.handle.path or getattr(self.handle.model, "name", "")
            protected = "; ".join(f"{name!r}: {reason}" for name, reason in self.protected.items())
            raise ConfigError(
                f"The plan leaves nothing of {model!r} to prune (technique {self.plan.technique!r}). "
                + (
                    f"Protected are: {protected}. Remedy: another technique, protect=(), a rule that names a layer, or "
                    "trainable layers."
                    if protected
                    else "The model has no layers that this technique prunes. Remedy: another technique."
                ),
                field="PruningPlan.technique",
                code="nothing-to-prune",
            )

    @property
    def names(self) -> list[str]:
        """Names of the groups that are pruned."""
        return [name for name in self.layers if name not in self.protected]

    @property
    def free(self) -> list[str]:
        """Names of the groups whose sparsity the allocation chooses."""
        return [name for name in self.names if name not in self.rule_sparsity]

    @abc.abstractmethod
    def score(self, statistics: Statistics | None) -> None:
        """Scores the elements of all groups that are pruned, and sets `groups`.

        Raises:
          ConfigError: The criterion can't score a group.
        """

    @abc.abstractmethod
    def counts(self, name: str) -> bool:
        """Returns whether a group counts among the elements of the whole model."""

    @abc.abstractmethod
    def elements(self, name: str) -> int:
        """Returns the number of elements of a group: weights, or channel units."""

    @abc.abstractmethod
    def select(self, sparsity: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Returns the elements to keep at given group sparsities, for the groups that lose some."""

    @abc.abstractmethod
    def apply(self, kept: Kept) -> AppliedPruning:
        """Prunes everything but the given elements."""

    @abc.abstractmethod
    def saved_fraction(self, sparsity: Mapping[str, float]) -> float:
        """Returns the fraction of the plan's target that group sparsities remove; the target is not `sparsity`."""

    @abc.abstractmethod
    def ablated(self, name: str, sparsity: float) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which the model computes as if one group were pruned."""

    def planned_fraction(self, sparsity: Mapping[str, float]) -> float:
        """Returns the fraction of the plan's target that group sparsities remove.

        The target `sparsity` counts the elements of the free groups.
        """
        if self.plan.target != "sparsity":
            return self.saved_fraction(sparsity)
        counted = self.free or self.names
        total = sum(self.groups[name].scores.size for name in counted)
        return 1 - sum(self.groups[name].kept(sparsity.get(name, 0.0)) for name in counted) / total

    def achieved_fraction(self, kept: Kept) -> float:
        """Returns the achieved fraction of the target, computed from actual counts."""
        counts = {name: int(kept[name].sum()) if name in kept else self.elements(name) for name in self.names}
        if self.plan.target != "sparsity":
            return self.saved_fraction({name: 1 - count / self.elements(name) for name, count in counts.items()})
        counted = self.free or self.names
        return 1 - sum(counts[name] for name in counted) / sum(self.elements(name) for name in counted)

    def model_fraction(self, kept: Kept) -> float:
        """Returns the fraction of the elements of the whole model that are pruned, protected groups included."""
        elements = {name: self.elements(name) for name in self.layers if self.counts(name)}
        left = sum(int(kept[name].sum()) if name in kept else count for name, count in elements.items())
        return 1 - left / sum(elements.values())

    def shortfall(self, sparsity: float, kept: Kept) -> str:
        """Returns the warning if the whole model is less sparse than the plan says; empty if it isn't.

        Args:
          sparsity: Sparsity that the step is to reach. Those of rules are in proportion to it.
          kept: Elements that are kept.
        """
        if self.plan.target != "sparsity":
            return ""
        elements = {name: self.elements(name) for name in self.layers if self.counts(name)}
        scale = sparsity / self.plan.sparsity if self.plan.sparsity else 0.0
        by_rule = {name: 0.0 for name, reason in self.protected.items() if reason == _RULE}
        by_rule |= {name: value * scale for name, value in self.rule_sparsity.items()}
        asked = sum(count * by_rule.get(name, sparsity) for name, count in elements.items()) / sum(elements.values())
        protected = {name: reason for name, reason in self.protected.items() if name in {*elements} - {*by_rule}}
        return protection.shortfall(asked, self.model_fraction(kept), protected, elements, self.rounding_reason)

    def check_achieved(self, sparsity: float, kept: Kept) -> None:
        """Adds a note if less is pruned than requested.

        Raises:
          ConfigError: Nothing is pruned at all.
        """
        achieved = self.achieved_fraction(kept)
        if sparsity and all(name not in kept or kept[name].all() for name in self.names):
            raise unreachable(sparsity, 0.0, self.plan.target)
        if achieved < sparsity - _NOTABLE_SHORTFALL:
            reason = self.rounding_reason if self.free else "the rules set the sparsity of every group"
            self.notes.append(f"The requested sparsity is {sparsity:.3g}, the achieved one {achieved:.3g}: {reason}.")


@contextlib.contextmanager
def assigned(values: Sequence[tuple[Any, np.ndarray]]) -> Iterator[None]:
    """Gives variables other values while the context is open."""
    before = [(variable, np.array(variable.numpy())) for variable, _ in values]
    try:
        for variable, value in values:
            variable.assign(value)
        yield
    finally:
        for variable, value in before:
            variable.assign(value)
