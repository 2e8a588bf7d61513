"""A fine-tuning session: what all trainings of one fine-tuning share, and how one of them is prepared and run."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.kernels import Kernel
from tfx_compression.model_handle import ModelHandle, wrap
from tfx_compression.model_handle.compressed import Masks
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.sparsity_fine_tuner import training_loop, training_model
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.constraints import MaskConstraint, WeightConstraint
from tfx_compression.sparsity_fine_tuner.distillation import DistillationLoss
from tfx_compression.sparsity_fine_tuner.mask_updates import MaskUpdater
from tfx_compression.sparsity_fine_tuner.results import TrainingResult
from tfx_compression.sparsity_fine_tuner.training_data import Batches, total_steps
from tfx_compression.sparsity_fine_tuner.training_loop import TrainingJob, TrainStep
from tfx_compression.sparsity_fine_tuner.training_model import LossFn
from tfx_compression.sparsity_fine_tuner.variables import unique


@dataclasses.dataclass(frozen=True)
class Session:
    """What all trainings of one fine-tuning share.

    Attributes:
      handle: Model that is fine-tuned.
      config: Configuration of the fine-tuning.
      plan: Plan of the pruning, if there is one.
      target_sparsity: Sparsity of each kernel at the end of the plan's schedule, if Pruner chose it.
      data: Function from the number of a pass to its batches.
      validation: Evaluation data, if there is any.
      teachers: Teachers; the first one is the guard's baseline, too.
      loss_fn: Loss of a SavedModel without layers; see `fine_tune`.
      train_step: Step that replaces the model's own; see `fine_tune`.
      callbacks: Keras callbacks.
      folder: Folder for checkpoints and snapshots.
      resumable: Whether trainings keep checkpoints in that folder.
      log_dir: Folder of TensorBoard logs, or None.
      custom_objects: The user's classes, for loading networks.
    """

    handle: ModelHandle
    config: FineTuning
    plan: PruningPlan | None
    target_sparsity: Mapping[str, float]
    data: Batches
    validation: tf.data.Dataset | None
    teachers: Sequence[ModelHandle]
    loss_fn: LossFn | None
    train_step: TrainStep | None
    callbacks: tuple[Any, ...]
    folder: str
    resumable: bool
    log_dir: str | None
    custom_objects: dict[str, Any]

    @functools.cached_property
    def steps(self) -> int:
        """The number of steps of one training."""
        return total_steps(self.data, self.config)

    def prepare(self, handle: ModelHandle, masks: Masks) -> "Training":
        """Returns a training of a model in place.

        Args:
          handle: The session's model, or a model made from it.
          masks: Masks by kernel name of that model.
        """
        return Training(self, handle, masks)

    def training_model(self, handle: ModelHandle, feature_layers: Iterable[str] = ()) -> Any:
        """Returns a Keras model that trains or evaluates a model in place.

        Args:
          handle: Model.
          feature_layers: Names of layers whose outputs the distillation loss compares.

        Raises:
          ModelError: For a subclassed model, or one without a loss.
        """
        if handle.kind == "saved_model":
            return training_model.from_signature(handle.model, self.config, self.loss_fn)
        compiled = self.handle if self.handle.kind == handle.kind else handle  # a teacher may be of the other Keras
        return training_model.from_network(compiled, _network(handle), self.config, tuple(feature_layers))

    def evaluate(self, handle: ModelHandle) -> dict[str, float]:
        """Returns loss and metrics of a model on the evaluation data."""
        metrics = self.training_model(handle).evaluate(self.validation, verbose=0, return_dict=True)
        return {name: float(value) for name, value in metrics.items()}


class Training:
    """One training of a session.

    Attributes:
      handle: Model whose kernels train: the given one, or a copy of it in mixed precision.
      model: Keras model that trains it.
      mask_constraint: Constraint that keeps pruned weights zero.

    Args:
      session: Session of the training.
      handle: Model to train in place.
      masks: Masks by kernel name.
    """

    def __init__(self, session: Session, handle: ModelHandle, masks: Masks):
        config = session.config
        self._session = session
        self._original = handle
        self.handle = _mixed_precision_copy(handle, config.mixed_precision) if config.mixed_precision else handle
        distillation = config.distillation
        self.model = session.training_model(self.handle, distillation.features if distillation is not None else ())
        if distillation is not None:
            network = None if self.handle.network is None else self.model
            self.model.distillation_loss = DistillationLoss(distillation, session.handle, network, session.teachers)
        self.mask_constraint = MaskConstraint(self.handle.kernels, masks)

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The current masks by kernel name."""
        return self.mask_constraint.masks

    def run(
        self,
        constraints: Sequence[WeightConstraint] = (),
        mask_updaters: Sequence[MaskUpdater] = (),
        name: str = "training",
        first_step: int = 0,
    ) -> TrainingResult:
        """Trains the model.

        Args:
          constraints: Constraints to apply before the masks.
          mask_updaters: Updaters of the masks.
          name: Name of the training's folder of checkpoints.
          first_step: Number of the first step in the logs.
        """
        session, kernels = self._session, self.handle.kernels
        constraints = [*constraints, self.mask_constraint]
        for constraint in constraints:
            constraint.apply()
        job = TrainingJob(
            model=self.model,
            config=session.config,
            data=session.data,
            validation=session.validation,
            constraints=constraints,
            mask_updaters=mask_updaters,
            callbacks=session.callbacks,
            train_step=session.train_step,
            sparsity=lambda: _sparsity(kernels),
            folder=os.path.join(session.folder, name) if session.resumable else None,
            log_dir=session.log_dir,
            first_step=first_step,
        )
        result = training_loop.train(job, session.steps)
        for constraint in constraints:
            constraint.apply()
        if self.handle is not self._original:
            self._original.network.set_weights(self.handle.model.get_weights())
        return result


def _mixed_precision_copy(handle: ModelHandle, policy: str) -> ModelHandle:
    if handle.kind == "saved_model":
        raise ConfigError(
            "FineTuning.mixed_precision needs the layers, and the model is a SavedModel without. Remedy: leave it out, "
            "or have Trainer save the Keras model.",
            field="FineTuning.mixed_precision",
            code="no-layers",
        )
    return wrap(training_model.with_precision(_network(handle), policy))


def _network(handle: ModelHandle) -> Any:
    if handle.network is None:
        raise ModelError(
            f"The model {handle.model.name!r} is subclassed: it has no graph of layers to train by. Remedy: build it "
            "with Sequential or the functional API, or save it as a SavedModel, which trains by its signature.",
            code="subclassed-model",
        )
    return handle.network


def _sparsity(kernels: Mapping[str, Kernel]) -> float:
    """Returns the fraction of zeros of all kernels; a shared variable counts once."""
    variables = unique(kernel.variable for kernel in kernels.values())
    size = sum(variable.shape.num_elements() for variable in variables)
    nonzero = sum(int(tf.math.count_nonzero(variable)) for variable in variables)
    return 1 - nonzero / size if size else 0.0
