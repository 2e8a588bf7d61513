"""Measures how much of the accuracy a round of pruning and training loses, against an AccuracyGuard's baseline."""

from collections.abc import Mapping

from tfx_compression.errors import ConfigError
from tfx_compression.keras_models.metric_names import metric_drop
from tfx_compression.sparsity_fine_tuner.config import AccuracyGuard
from tfx_compression.sparsity_fine_tuner.session import Session


class Guard:
    """Compares models with a baseline. It measures the first teacher unless the configuration gives a baseline.

    Args:
      config: Configuration of the guard.
      session: Session whose evaluation data and teachers are used.

    Raises:
      ConfigError: If there is no evaluation data, no baseline, or no such metric.
    """

    def __init__(self, config: AccuracyGuard, session: Session):
        if session.validation is None:
            raise ConfigError(
                "FineTuning.guard measures on evaluation data. Remedy: a split for it (validation_data=).",
                field="FineTuning.guard",
                code="evaluation-data-missing",
            )
        if config.baseline is None and not session.teachers:
            raise ConfigError(
                "FineTuning.guard compares with the dense model, and there is none. Remedy: connect teacher_model "
                "(teacher=), or set guard.baseline.",
                field="FineTuning.guard",
                code="baseline-missing",
            )
        self.config = config
        if config.baseline is not None:
            self._baseline = config.baseline
        else:
            self._baseline = self._metric(session.evaluate(session.teachers[0]))

    def drop(self, metrics: Mapping[str, float]) -> float:
        """Returns how much worse than the baseline a model with these metrics is, in the metric's unit."""
        return metric_drop(self.config.metric, self._baseline, self._metric(metrics))

    def accepts(self, drop: float) -> bool:
        """Returns whether a drop is within the limit."""
        return bool(drop <= self.config.max_drop)

    def _metric(self, metrics: Mapping[str, float]) -> float:
        if self.config.metric not in metrics:
            raise ConfigError(
                f"AccuracyGuard.metric = {self.config.metric!r}: the model was not compiled with it. Remedy: one of "
                f"{', '.join(metrics)}, or a compile_fn(model) in the module file.",
                field="AccuracyGuard.metric",
                code="unknown-metric",
            )
        return float(metrics[self.config.metric])
