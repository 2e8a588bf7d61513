"""Settings of the digits example."""

from pathlib import Path
from typing import Literal

import tfx_compression as tfc

from pipelines.settings import Settings

Technique = Literal["weight", "filter", "neuron"]
METRIC = "sparse_categorical_accuracy"


def settings(
    folder: Path,
    module_file: Path,
    sparsity: float | None = None,
    epochs: int | None = None,
    max_drop: float | None = None,
    max_bytes: int | None = None,
    technique: Technique = "weight",
) -> Settings:
    """Returns the settings of the example. Arguments that are None take the example's values.

    The technique `weight` prunes 80 % of the weights between the first and the last layer, and the budget requires that
    half of all weights are zero. The other techniques remove half of the filters or units, which leaves no zeros.

    Args:
      folder: Folder of all results.
      module_file: Path of the functions of Transform and Trainer.
      sparsity: Fraction of the weights, filters or units to prune.
      epochs: Epochs of fine-tuning.
      max_drop: Largest absolute drop in accuracy.
      max_bytes: Largest TFLite file in bytes.
      technique: Pruning technique.
    """
    leaves_zeros = technique == "weight"
    if sparsity is None:
        sparsity = 0.8 if leaves_zeros else 0.5
    # The limit applies to the upper confidence bound of the drop. On 500 rows it is about a point above the drop.
    drop = {METRIC: 0.04 if max_drop is None else max_drop}
    return Settings(
        name="digits",
        module_file=str(module_file),
        label="label",
        serving_directory=str(folder / "serving/digits"),
        store=str(folder / "store"),
        plan=tfc.PruningPlan(technique=technique, sparsity=sparsity),
        fine_tuning=tfc.FineTuning(epochs=15 if epochs is None else epochs, learning_rate=1e-3),
        edge=tfc.Budget(
            max_metric_drop=drop,
            max_bytes=150_000 if max_bytes is None else max_bytes,
            max_bytes_gzip=50_000,
            min_sparsity=0.5 if leaves_zeros else None,
        ),
        serving=tfc.Budget(max_metric_drop=drop, min_sparsity=0.5 if leaves_zeros else None),
    )
