"""The TensorBoard logs of a training."""

import os
from collections.abc import Mapping

import tensorflow as tf

from tfx_compression.sparsity_fine_tuner.checkpoints import writing


class TensorBoardLogs:
    """Writes the logs of steps to `train` and the metrics on evaluation data to `validation`.

    Args:
      folder: Folder of the logs. None writes nothing.
    """

    def __init__(self, folder: str | None):
        self._path = os.path.join(folder or "", "train")
        self._writers = {}
        if folder is not None:
            self._writers = {
                name: tf.summary.create_file_writer(os.path.join(folder, name)) for name in ("train", "validation")
            }

    def __bool__(self) -> bool:
        """Returns whether logs are written."""
        return bool(self._writers)

    def write_step(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values of a training step."""
        with writing(self._path), self._writers["train"].as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def write_epoch(self, step: int, logs: Mapping[str, float]) -> None:
        """Writes the metrics on evaluation data (`val_…`) of an epoch that ends after `step` steps."""
        with writing(self._path):
            with self._writers["validation"].as_default(step):
                for name, value in logs.items():
                    if name.startswith("val_"):
                        tf.summary.scalar(name.removeprefix("val_"), value)
            for writer in self._writers.values():
                writer.flush()
