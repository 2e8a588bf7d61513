"""Settings of a run: everything that differs between runs and between examples. Imports no TFX."""

import dataclasses
from typing import Any

import tfx_compression as tfc


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a pipeline run.

    Attributes:
      name: Name of the pipeline, and of the model in the store.
      module_file: Path of the functions of Transform and Trainer.
      label: Feature with the label.
      serving_directory: Model directory of TensorFlow Serving.
      store: Root of the TFLite store.
      plan: Configuration of the Pruner.
      fine_tuning: Configuration of the SparsityFineTuner.
      edge: Limits of the TFLite candidates.
      serving: Limits of the pruned SavedModel.
      train_steps: Steps of the Trainer.
      channel: Channel of the store that a release moves.
      sparsity: Override of `plan.sparsity`: None, a value or a RuntimeParameter.
      epochs: Override of `fine_tuning.epochs`, likewise.
      learning_rate: Override of `fine_tuning.learning_rate`, likewise.
      max_metric_drop: Override of the largest drop in `edge` and `serving`, likewise.
    """

    name: str
    module_file: str
    label: str
    serving_directory: str
    store: str
    plan: tfc.PruningPlan
    fine_tuning: tfc.FineTuning
    edge: tfc.Budget
    serving: tfc.Budget
    train_steps: int = 300
    channel: str = "stable"
    sparsity: Any = None
    epochs: Any = None
    learning_rate: Any = None
    max_metric_drop: Any = None
