"""The configuration of fine-tuning."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field, model_validator

from tfx_compression.config import Config, Name, Seed
from tfx_compression.errors import ConfigError
from tfx_compression.sparsity_fine_tuner.modes import MODES


class Distillation(Config):
    """Configuration of learning from teachers, such as the dense model (Hinton et al. 2015, arXiv:1503.02531).

    The loss is `(1 - alpha)` times the model's own loss plus `alpha` times the squared temperature times the
    Kullback-Leibler divergence from the teachers' softened outputs to the model's. Several teachers are averaged.
    Outputs that are no probabilities are compared by their mean squared difference, without the temperature. The losses
    of several outputs are added.

    Attributes:
      temperature: Temperature that softens both distributions.
      alpha: Weight of the teachers, in [0, 1].
      outputs: Form of the model's outputs: `probabilities` (softmax or sigmoid), their `logits`, or `values`. `auto`
        detects it by the last layer's activation and the loss, which a SavedModel without layers doesn't have. There,
        a last dimension of 1 is binary, and any other is a softmax.
      features: Pairs of layers whose outputs are compared (FitNets, arXiv:1412.6550): `{student's layer: teacher's
        layer}`. The first teacher is used, and the outputs have the same shape.
      feature_weight: Weight of the mean squared difference of each pair of layers.
    """

    temperature: float = Field(default=2.0, gt=0.0)
    alpha: float = Field(default=0.5, ge=0.0, le=1.0)
    outputs: Literal["auto", "probabilities", "logits", "values"] = "auto"
    features: dict[str, str] = {}
    feature_weight: float = Field(default=1.0, ge=0.0)


class AccuracyGuard(Config):
    """Limit on the accuracy that further pruning may lose, similar to NNCF's adaptive compression level training.

    Each round prunes `step` more than the last accepted model and trains. If the result loses too much, it is rejected,
    the step is halved, and the next round starts from the accepted model again. The result is the last accepted model.

    Attributes:
      metric: `loss`, or the name of a metric that the model was compiled with. It is measured on the evaluation split.
      max_drop: Largest amount by which it may be worse than the baseline, in its own unit.
      baseline: Value of the baseline. By default, it is measured for the (first) teacher on the same data.
      step: Sparsity (of the plan's target) that a round adds.
      minimum_step: Smallest step. The search ends below it.
    """

    metric: str = "loss"
    max_drop: float = Field(ge=0.0)
    baseline: float | None = None
    step: float = Field(default=0.1, gt=0.0, lt=1.0)
    minimum_step: float = Field(default=0.025, gt=0.0, lt=1.0)


class EarlyStopping(Config):
    """Configuration of when training ends because a metric no longer improves.

    Attributes:
      monitor: Name in the logs: `loss` or a metric, with the prefix `val_` on the evaluation split. By default
        `val_loss`, or `loss` without such a split.
      patience: Number of epochs without an improvement that are allowed.
      min_delta: Smallest change that counts as an improvement.
      restore_best: Whether the result is the model of the best epoch instead of the last one.
    """

    monitor: str | None = None
    patience: int = Field(default=2, ge=0)
    min_delta: float = Field(default=0.0, ge=0.0)
    restore_best: bool = True


def _known_mode(mode: str) -> str:
    if mode not in MODES:
        raise ConfigError(f"not a mode; the modes are {', '.join(MODES)}", code="unknown-mode")
    return mode


class FineTuning(Config):
    """Configuration of training after pruning.

    Attributes:
      mode: Name of a mode in `modes.MODES`. `fixed`: what was pruned stays zero. `gradual`: more is pruned while
        training, by the plan's schedule (`constant`, `polynomial`, `cubic`). `iterative`: pruning and training
        alternate in rounds, for weights or channels. `dynamic`: the weights of least magnitude are dropped and those of
        largest gradient grown, at constant sparsity (RigL, arXiv:1911.11134). `quantization_aware`: training rounds
        like int8 (tfmot) and keeps zeros and clusters. `cluster`: the weights of a kernel share a few values, which
        train.
      epochs: Number of passes over the training split; in mode `iterative`, of each round.
      batch_size: Rows per step.
      steps_per_epoch: Steps per epoch. By default, an epoch ends with the data.
      optimizer: Keras name, such as `adam` or `sgd`. By default, the one that the model was compiled with, without its
        state.
      learning_rate: Learning rate at the start. A tenth of the Trainer's is usual.
      learning_rate_schedule: `constant`, or a decay, `linear` or `cosine`, to `final_learning_rate` times the learning
        rate at the last step. Each round of `iterative` starts again (learning-rate rewinding, arXiv:2003.02389).
      final_learning_rate: Fraction of `learning_rate`.
      warmup_steps: Number of steps in which the learning rate rises from zero.
      loss: Keras name, for a model that was saved without a loss. A cross entropy of a SavedModel that returns logits
        takes logits.
      metrics: Keras names, likewise.
      label_key: Feature of the label. By default, the one feature of the schema that is not an input of the model.
      sample_weight_key: Feature of the examples that weights each row.
      class_weights: Weight of the rows of a class, by class number.
      early_stopping: When training ends early. None trains all epochs.
      mixed_precision: Keras policy of computing in 16 bits, with weights in 32.
      distribution: `mirrored` trains on all devices (tf.distribute.MirroredStrategy). The module file's `strategy_fn`
        replaces it.
      distillation: Learning from teachers. None learns from labels alone.
      guard: Limit on lost accuracy in mode `iterative`. None prunes to the plan's sparsity in its number of iterations.
      rewind: Weights that each round of mode `iterative` starts from, for plans of single weights (lottery ticket,
        arXiv:1803.03635): `start` for those at the start of this training, or the path of a model of the same layers
        that Trainer saved early.
      drop_fraction: Fraction of a kernel's weights that mode `dynamic` moves at first. It falls to zero along a cosine.
      clusters: Number of values per kernel in mode `cluster`.
      keep_clusters: Largest number of values of a kernel whose weights go on sharing them in mode
        `quantization_aware`. 0 keeps none.
      checkpoint_steps: Steps between checkpoints.
      log_steps: Steps between entries in the TensorBoard logs.
      deterministic: Whether TensorFlow's op determinism is enabled, for the whole process: the same machine then gives
        the same bits.
      seed: Random seed of shuffling and dropout.
    """

    mode: Annotated[str, pydantic.AfterValidator(_known_mode)] = "fixed"
    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=64, ge=1)
    steps_per_epoch: int | None = Field(default=None, ge=1)
    optimizer: str | None = None
    learning_rate: float = Field(default=1e-4, gt=0.0)
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_learning_rate: float = Field(default=0.0, ge=0.0, le=1.0)
    warmup_steps: int = Field(default=0, ge=0)
    loss: str | None = None
    metrics: tuple[str, ...] = ()
    label_key: Name | None = None
    sample_weight_key: Name | None = None
    class_weights: dict[int, float] = {}
    early_stopping: EarlyStopping | None = None
    mixed_precision: Literal["mixed_bfloat16", "mixed_float16"] | None = None
    distribution: Literal["none", "mirrored"] = "none"
    distillation: Distillation | None = None
    guard: AccuracyGuard | None = None
    rewind: str | None = None
    drop_fraction: float = Field(default=0.3, gt=0.0, lt=1.0)
    clusters: int = Field(default=16, ge=2, le=256)
    keep_clusters: int = Field(default=64, ge=0, le=256)
    checkpoint_steps: int = Field(default=500, ge=1)
    log_steps: int = Field(default=10, ge=1)
    deterministic: bool = False
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits_together(self) -> "FineTuning":
        for name, mode in MODES.items():
            for option in mode.options:
                if self.mode != name and getattr(self, option) is not None:
                    raise ConfigError(
                        f"{option} is for mode {name!r}, not for {self.mode!r}",
                        field=f"FineTuning.{option}",
                        code="option-of-another-mode",
                    )
        if self.guard is not None and self.guard.minimum_step > self.guard.step:
            raise ConfigError(
                f"guard.minimum_step={self.guard.minimum_step} is above guard.step={self.guard.step}",
                field="FineTuning.guard.minimum_step",
                code="minimum-above-step",
            )
        if self.mixed_precision is not None and not MODES[self.mode].mixed_precision:
            raise ConfigError(
                f"mode {self.mode!r} can't compute in 16 bits: leave mixed_precision out",
                field="FineTuning.mixed_precision",
                code="no-mixed-precision",
            )
        if any(weight < 0 for weight in self.class_weights.values()):
            raise ConfigError(
                "class_weights has a negative weight", field="FineTuning.class_weights", code="negative-weight"
            )
        return self
