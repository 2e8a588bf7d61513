"""Protection of the first and the last layers, and the sparsity of the whole model that it leaves."""

from collections.abc import Mapping

from tfx_compression.pruning.plan import PruningPlan

DEFAULT_SHARE = 0.1  # of the weights in all kernels, which the layers that are protected by default may hold together
NOTABLE_DIFFERENCE = 0.05  # between the sparsity that is asked for and that of the whole model
_MOST_NAMES = 8


def protected_ends(
    plan: PruningPlan, ends: Mapping[str, str], weights: Mapping[str, int], total: int
) -> tuple[dict[str, str], list[str]]:
    """Returns the first and last layers that a plan leaves dense.

    Args:
      plan: The plan. By default it protects the smallest ones, as long as they are a small share of the model.
      ends: By group, what the layer is: "first layer (stem)".
      weights: Number of weights of each of these groups.
      total: Number of weights in all kernels.

    Returns:
      The reasons by group, and notes on those that the default leaves unprotected.
    """
    if plan.protect is not None:
        return {name: f"{end}, protected by the plan" for name, end in ends.items()}, []
    large, sum_of_weights = [], 0
    for name in sorted(ends, key=lambda name: weights[name]):
        sum_of_weights += weights[name]
        if sum_of_weights > DEFAULT_SHARE * total:
            large.append(name)
    notes = []
    if large:
        layers = ", ".join(f"{ends[name]} {name!r} with {weights[name] / total:.0%}" for name in large[:_MOST_NAMES])
        notes.append(
            f"First and last layers are protected by default as long as they hold at most {DEFAULT_SHARE:.0%} of the "
            f"weights together. These hold more and are pruned: {layers}. protect=('first', 'last') leaves them dense."
        )
    return {name: f"{end}, protected by default" for name, end in ends.items() if name not in large}, notes


def shortfall(
    asked: float, whole: float, protected: Mapping[str, str], elements: Mapping[str, int], rounding_reason: str
) -> str:
    """Returns what to know if the whole model is less sparse than asked; empty if it isn't.

    Args:
      asked: Sparsity that was asked for.
      whole: Fraction of all elements of the model that are pruned.
      protected: Reason why a group is not pruned, by group.
      elements: Number of elements of each group.
      rounding_reason: Reason why less may be pruned than the sparsity of a group says.
    """
    if asked - whole <= NOTABLE_DIFFERENCE:
        return ""
    total = sum(elements.values())
    names = sorted(protected, key=lambda name: -elements[name])
    left = "; ".join(f"{name} ({elements[name] / total:.1%}: {protected[name]})" for name in names[:_MOST_NAMES])
    more = f"; and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    remedies = ["a higher sparsity for the others"]
    if left:
        remedies.insert(0, "rules=[LayerRule(layers=…, sparsity=…)] for single layers")
    if any("layer" in reason and "protected by" in reason for reason in protected.values()):
        remedies.insert(0, "protect=(), which prunes the first and last layers too")
    return (
        f"The plan asks for a sparsity of {asked:.1%}, and that of the whole model is {whole:.1%}. "
        + (f"Left as they are: {left}{more}. " if left else f"The reason: {rounding_reason}. ")
        + f"Remedy: {', or '.join(remedies)}."
    )
