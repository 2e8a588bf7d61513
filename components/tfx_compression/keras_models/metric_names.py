"""Which way a metric points, by its name."""

import re

# Metrics of Keras and TFMA that are better when they are smaller, as `plain_name` writes their names: the ones that the
# pattern below doesn't tell. (recall_at_false_positive_rate, say, is better when larger.)
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
    """Whether a metric measures something bad.

    That is known by name for Keras' and TFMA's metrics and for names that end in loss, error, entropy, divergence or
    deviation; any other metric is better when larger.
    """
    plain = plain_name(re.sub(r".*/|@.*", "", metric))
    return plain in _SMALLER_IS_BETTER or bool(_SMALLER_IS_BETTER_ENDING.search(plain))


def plain_name(metric: str) -> str:
    """A metric's name without case and underscores: Keras' class and function names are then one."""
    return metric.replace("_", "").lower()
