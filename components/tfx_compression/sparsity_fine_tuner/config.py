"""How a pruned model is trained further."""

from typing import Literal

from pydantic import Field, model_validator

from tfx_compression.config import Config


class Distillation(Config):
    """Learning from teachers, the dense model mostly (Hinton et al. 2015, arXiv:1503.02531).

    The loss is `(1 - alpha)` times the model's own plus `alpha` times the squared temperature times the
    Kullback-Leibler divergence from the teachers' softened outputs, of several teachers averaged, to the model's.
    Outputs that are no probabilities are compared by their mean squared difference, without the temperature. Several
    outputs are added up.

    Attributes:
      temperature: softens both distributions.
      alpha: the share of the teachers, in [0, 1].
      outputs: what the model puts out: `probabilities` (softmax, or sigmoid), `logits` of them, `values`; `auto` takes
        it from the last layer's activation and the loss, which a SavedModel without layers doesn't tell. There, a last
        dimension of 1 is binary, any other a softmax.
      features: layers whose outputs shall be like the teacher's: `{student's layer: teacher's layer}` (FitNets,
        arXiv:1412.6550); of the first teacher, with outputs of the same shape.
      feature_weight: of the mean squared difference of each.
    """

    temperature: float = Field(default=2.0, gt=0.0)
    alpha: float = Field(default=0.5, ge=0.0, le=1.0)
    outputs: Literal["auto", "probabilities", "logits", "values"] = "auto"
    features: dict[str, str] = {}
    feature_weight: float = Field(default=1.0, ge=0.0)


class AccuracyGuard(Config):
    """How much may be lost while a model is pruned further, in the manner of NNCF's adaptive compression training.

    Each round prunes `step` more than the last accepted model and trains. A model that lost too much is thrown away,
    the step is halved, and the next round starts from the accepted one again. The result is the last accepted model.

    Attributes:
      metric: `loss`, or the name of one that the model was compiled with, on the evaluation split.
      max_drop: by how much it may be worse than the baseline, in its own unit.
      baseline: its value; by default the (first) teacher's, on the same data.
      step: what a round adds to the sparsity (of the plan's target).
      minimum_step: below it, the search is over.
    """

    metric: str = "loss"
    max_drop: float = Field(ge=0.0)
    baseline: float | None = None
    step: float = Field(default=0.1, gt=0.0, lt=1.0)
    minimum_step: float = Field(default=0.025, gt=0.0, lt=1.0)


class EarlyStopping(Config):
    """Ends training when a metric no longer gets better.

    Attributes:
      monitor: a name in the log: `val_loss`, `loss`, a metric's name, with `val_` on the evaluation split. By default
        `val_loss`, or `loss` where there is no such split.
      patience: epochs without an improvement that are allowed.
      min_delta: the least that counts as an improvement.
      restore_best: the result is the best epoch's model, not the last one's.
    """

    monitor: str | None = None
    patience: int = Field(default=2, ge=0)
    min_delta: float = Field(default=0.0, ge=0.0)
    restore_best: bool = True


class FineTuning(Config):
    """Training after pruning.

    Attributes:
      mode: `fixed`, what was pruned stays zero. `gradual`, more is pruned while training, by the plan's schedule
        (`constant`, `polynomial`, `cubic`). `iterative`, prune and train in rounds, weights or channels. `dynamic`, the
        weights of least magnitude are dropped and those of largest gradient grown, at constant sparsity (RigL,
        arXiv:1911.11134). `quantization_aware`, training with the rounding of int8 (tfmot), which keeps zeros and
        clusters. `cluster`, each kernel's weights share few values, which are trained.
      epochs: passes over the training split; of `iterative`, in each round.
      batch_size: rows per step.
      steps_per_epoch: steps that make an epoch; by default until the data ends, which it must then do.
      optimizer: a Keras name (`adam`, `sgd`); by default the one that the model was compiled with, without its state.
      learning_rate: at the start; a tenth of the Trainer's is usual.
      learning_rate_schedule: `constant`, or falling to `final_learning_rate` times itself at the last step, `linear` or
        `cosine`; each round of `iterative` starts anew (learning-rate rewinding, arXiv:2003.02389).
      final_learning_rate: a fraction of `learning_rate`.
      warmup_steps: over which the learning rate rises from zero.
      loss: a Keras name, for a model that was saved without one; a cross entropy of a SavedModel's logits is taken of
        logits.
      metrics: Keras names, the same.
      label_key: the label's feature; by default the one feature of the schema that is no input of the model.
      sample_weight_key: a feature of the examples that weighs its row.
      class_weights: by class, the weight of its rows.
      early_stopping: None trains all epochs.
      mixed_precision: computes in 16 bits, keeps the weights in 32.
      distribution: `mirrored` trains on all devices (tf.distribute.MirroredStrategy); others by the module's
        `strategy_fn`.
      distillation: from the teachers; None learns from the labels alone.
      guard: of `iterative`; None prunes to the plan's sparsity in its number of iterations.
      rewind: of `iterative` weights: before each round's training, those that are left go back to what they were
        (lottery ticket, arXiv:1803.03635): `start`, when this training began, or the path of a model of the same layers
        that Trainer saved early.
      drop_fraction: of `dynamic`, the share of a kernel's weights that moves at first; it falls to zero as a cosine.
      clusters: of `cluster`, how many values a kernel has.
      keep_clusters: in `quantization_aware`, kernels of at most this many values keep sharing them; 0 lets them go.
      checkpoint_steps: steps between checkpoints.
      log_steps: steps between entries in the TensorBoard logs.
      deterministic: TensorFlow's op determinism, for the whole process: the same machine gives the same bits.
      seed: of shuffling and dropout.
    """

    mode: Literal["fixed", "gradual", "iterative", "dynamic", "quantization_aware", "cluster"] = "fixed"
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
    label_key: str | None = None
    sample_weight_key: str | None = None
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
    seed: int = 0

    @model_validator(mode="after")
    def _fits_together(self) -> "FineTuning":
        for name in ("guard", "rewind"):
            if getattr(self, name) is not None and self.mode != "iterative":
                raise ValueError(f"{name} is of mode 'iterative', not of {self.mode!r}")
        if self.guard is not None and self.guard.minimum_step > self.guard.step:
            raise ValueError(f"guard.minimum_step={self.guard.minimum_step} is above guard.step={self.guard.step}")
        if self.mixed_precision is not None and self.mode == "quantization_aware":
            raise ValueError("mode 'quantization_aware' computes as int8 will: leave mixed_precision out")
        if any(weight < 0 for weight in self.class_weights.values()):
            raise ValueError("class_weights has a negative weight")
        return self
