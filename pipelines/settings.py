"""Everything that differs between one run and another, or one example and another. Imports no TFX."""

import dataclasses
from typing import Any

import tfx_compression as tfc


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the builder makes a pipeline of.

    Attributes:
      name: the pipeline's, and the model's in the store.
      module_file: Transform's and Trainer's functions.
      label: the label's feature.
      train_steps: of the Trainer.
      plan, fine_tuning: how the model is compressed.
      edge, serving: the limits for TFLite candidates and for the pruned SavedModel.
      serving_directory: TensorFlow Serving's model directory.
      store: root of the TFLite store.
      channel: of the store.
      sparsity, epochs, learning_rate, max_metric_drop: override the configurations, with a value or a RuntimeParameter.
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
