"""What the digits example is run with."""

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
    """The example's settings, everything below `folder`; what is None takes the example's value.

    By technique `weight`, 80 % of the weights between the first and the last layer are pruned, and half of all must be
    zero in the end. By the others, half of the filters or units are removed, which leaves no zeros to ask for.
    """
    zeros = technique == "weight"
    if sparsity is None:
        sparsity = 0.8 if zeros else 0.5
    # What is held against it is the drop's confidence bound, on 500 rows about a point above the drop itself.
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
            min_sparsity=0.5 if zeros else None,
        ),
        serving=tfc.Budget(max_metric_drop=drop, min_sparsity=0.5 if zeros else None),
    )
