"""What a metric's name says: whether smaller values are better, and whether it only counts examples."""

import re

# Keras and TFMA metrics, spelled as `plain_name` returns them, that are better when smaller and don't match the pattern
# below. A pattern for "false" would be wrong: recall_at_false_positive_rate is better when larger.
_SMALLER_IS_BETTER = frozenset(
    [
        "falsenegatives",
        "falsenegativerate",
        "falsepositives",
        "falsepositiverate",
        "falsediscoveryrate",
        "falseomissionrate",
        "fn",
        "fnr",
        "fp",
        "fpr",
        "fdr",
        "for",
        "fallout",
        "missrate",
        "minlabelposition",
        "symmetricpredictiondifference",
        "flipcount",
        "mse",
        "mae",
        "mape",
        "msle",
        "rmse",
        "logcosh",
        "poisson",
        "hinge",
        "squaredhinge",
        "categoricalhinge",
        "brierscore",
        "perplexity",
    ]
)
_SMALLER_IS_BETTER_ENDING = re.compile(r"(loss|error|entropy|divergence|deviation)$")


def smaller_is_better(metric: str) -> bool:
    """Returns whether a metric improves as it decreases.

    The names of Keras and TFMA metrics are known, and so are names that end in loss, error, entropy, divergence or
    deviation. Every other metric is better when larger. An output before the name (`output/metric`) and a sub-key
    behind it (`metric@k:3`) are ignored.
    """
    name = plain_name(_without_output_and_sub_key(metric))
    return name in _SMALLER_IS_BETTER or bool(_SMALLER_IS_BETTER_ENDING.search(name))


def metric_drop(metric: str, baseline: float, candidate: float) -> float:
    """Returns how much worse the candidate is than the baseline: positive if it is worse, whatever the metric."""
    return candidate - baseline if smaller_is_better(metric) else baseline - candidate


def is_example_count(metric: str) -> bool:
    """Returns whether a metric counts examples instead of measuring a model."""
    return _without_output_and_sub_key(metric) in ("example_count", "weighted_example_count")


def plain_name(metric: str) -> str:
    """Returns a metric's name without case and underscores, which is the same for Keras' classes and functions."""
    return metric.replace("_", "").lower()


def _without_output_and_sub_key(metric: str) -> str:
    return re.sub(r".*/|@.*", "", metric)
