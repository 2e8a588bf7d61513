"""The allocation step of `prune`: from the plan's sparsity to the sparsity of each group."""

from collections.abc import Sequence

from tfx_compression.keras_models.metric_names import smaller_is_better
from tfx_compression.pruning import sensitivity
from tfx_compression.pruning.allocation import Allocator, GroupSparsity, remaining_sparsity
from tfx_compression.pruning.model_pruner import ModelPruner
from tfx_compression.pruning.record import SensitivityCurve


class SparsityAllocator:
    """Allocates sparsities to the groups of a model; prepares the scores once for several sparsities.

    Args:
      pruner: The model's groups, with their scores.
      curves: Sensitivity curves of the free groups, for the allocation `sensitivity`.
    """

    def __init__(self, pruner: ModelPruner, curves: Sequence[SensitivityCurve] = ()):
        self._pruner = pruner
        self._curves = curves
        self._rules = {name: pruner.rule_sparsity[name] for name in pruner.names if name in pruner.rule_sparsity}
        self._allocator: Allocator | None = None
        self._solved: dict[tuple[float, float], GroupSparsity] = {}

    def allocate(self, sparsity: float, current_sparsity: float = 0.0) -> GroupSparsity:
        """Returns the sparsity of each group that is pruned, as a fraction of what earlier steps left of it.

        Args:
          sparsity: Sparsity to reach, as a fraction of the plan's target in the model before the first step.
          current_sparsity: Sparsity that earlier steps reached by removing channels, which can't be counted any more.

        Raises:
          ConfigError: The sparsity can't be reached; the message has the highest that can.
        """
        key = (sparsity, current_sparsity)
        if key not in self._solved:
            self._solved[key] = self._allocate(sparsity, current_sparsity)
        return self._solved[key]

    def _allocate(self, sparsity: float, current_sparsity: float) -> GroupSparsity:
        pruner, plan = self._pruner, self._pruner.plan
        scale = 1 / plan.sparsity if plan.sparsity else 0.0  # the steps of a schedule apply to rules too
        rules = {
            name: remaining_sparsity(value * scale * sparsity, value * scale * current_sparsity)
            for name, value in self._rules.items()
        }
        remaining = remaining_sparsity(sparsity, current_sparsity)
        if not pruner.free or not remaining:
            return {name: rules.get(name, 0.0) for name in pruner.names}
        if self._curves:
            solved = sensitivity.solve(
                self._curves,
                lambda name, level: pruner.planned_fraction({name: level}),
                remaining,
                lambda free: pruner.planned_fraction({**rules, **free}),
                higher_is_better=not smaller_is_better(plan.sensitivity_metric),
                target=plan.target,
            )
            return {name: rules.get(name, solved.get(name, 0.0)) for name in pruner.names}
        if self._allocator is None:
            groups = [pruner.groups[name] for name in pruner.names]
            achieved = None if plan.target == "sparsity" else pruner.planned_fraction
            self._allocator = Allocator(groups, plan.allocation, list(self._rules), achieved, plan.target)
        return self._allocator.allocate(remaining, rules)
