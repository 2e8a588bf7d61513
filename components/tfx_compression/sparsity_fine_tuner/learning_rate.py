"""The learning rate of each training step: linear warm-up, then constant, linear or cosine decay."""

import math

from tfx_compression.sparsity_fine_tuner.config import FineTuning


def learning_rate(config: FineTuning, step: int, steps: int) -> float:
    """Returns the learning rate of a step.

    Args:
      config: Configuration whose learning rate, its schedule and warm-up are used.
      step: Number of the step, counted from 0.
      steps: Number of steps of the training. The last one has the final learning rate.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.learning_rate_schedule == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps))
    decay = 1 - progress if config.learning_rate_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * decay)
