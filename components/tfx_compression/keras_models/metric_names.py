"""Metric names: whether smaller values are better, and names without case and underscores."""

import re

# Metrics of Keras and TFMA that are better when smaller, as `plain_name` spells them, where the pattern below doesn't
# match. It would match too much otherwise: recall_at_false_positive_rate, for example, is better when larger.
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
    """Returns whether smaller values of a metric are better.

    They are for some of Keras' and TFMA's metrics, known by name, and for names that end in loss, error, entropy,
    divergence or deviation. For any other metric, larger values are better.
    """
    plain = plain_name(re.sub(r".*/|@.*", "", metric))
    return plain in _SMALLER_IS_BETTER or bool(_SMALLER_IS_BETTER_ENDING.search(plain))


def plain_name(metric: str) -> str:
    """Returns a metric's name without case and underscores, so that Keras' class and function names are equal."""
    return metric.replace("_", "").lower()
