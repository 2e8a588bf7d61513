"""Checkpoints of a training, from which it resumes after it was killed. They work on any TensorFlow file system.

A checkpoint is a folder. It is complete once it holds `state.json`.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfx_compression import files
from tfx_compression.errors import ConfigError, ModelError

_log = logging.getLogger(__name__)
_CONFIGURATION = "training.json"
_STATE = "state.json"
_VALUES = "values"
_PREFIX = "step-"


class Checkpoints:
    """The checkpoints of one training.

    Args:
      folder: Folder of this training's checkpoints.
      variables: Variables to keep, in the same order each time.
    """

    def __init__(self, folder: str, variables: Sequence[tf.Variable]):
        self._folder = folder
        self._checkpoint = tf.train.Checkpoint(variables=list(variables))

    def save(self, step: int, epochs: int, state: dict[str, Any]) -> None:
        """Writes a checkpoint and then deletes the older ones.

        Args:
          step: Number of completed steps.
          epochs: Number of completed epochs. It is part of the folder's name, so that the checkpoint after validation
            never overwrites the one before it, at the same step.
          state: State other than variables, as JSON values.

        Raises:
          ModelError: If the checkpoint can't be written. The older ones still exist then.
        """
        path = os.path.join(self._folder, f"{_PREFIX}{step:09d}-{epochs:06d}")
        with writing(path):
            self._checkpoint.write(os.path.join(path, _VALUES))
        write_state(os.path.join(path, _STATE), state)
        for name in self._names():
            if name != os.path.basename(path):
                tf.io.gfile.rmtree(os.path.join(self._folder, name))

    def restore(self) -> dict[str, Any] | None:
        """Reads the newest complete checkpoint into the variables.

        Returns:
          The state that was saved with it, or None if there is no complete checkpoint.

        Raises:
          ModelError: If the checkpoint belongs to another model.
        """
        for name in reversed(self._names()):
            path = os.path.join(self._folder, name)
            state = read_state(os.path.join(path, _STATE))
            if state is not None and _is_complete(os.path.join(path, _VALUES)):
                _read(self._checkpoint, os.path.join(path, _VALUES))
                return state
            _log.warning("The checkpoint in %s is incomplete and is ignored.", path)
        return None

    def _names(self) -> list[str]:
        if not tf.io.gfile.exists(self._folder):
            return []
        names = [name.rstrip("/") for name in tf.io.gfile.listdir(self._folder)]
        return sorted(name for name in names if name.startswith(_PREFIX))


class WeightSnapshot:
    """Named snapshots of some variables on disk, such as the weights of the best epoch.

    Args:
      prefix: Path that the names of all files begin with.
      variables: Variables to save and to restore.
    """

    def __init__(self, prefix: str, variables: Sequence[tf.Variable]):
        self._prefix = prefix
        self._checkpoint = tf.train.Checkpoint(variables=list(variables))

    def save(self, name: str) -> None:
        """Writes the current values under a name."""
        with writing(f"{self._prefix}-{name}"):
            self._checkpoint.write(f"{self._prefix}-{name}")

    def restore(self, name: str) -> None:
        """Assigns the values that were saved under a name.

        Raises:
          ModelError: If they no longer exist, or belong to another model.
        """
        _read(self._checkpoint, f"{self._prefix}-{name}")

    def remove_others(self, name: str) -> None:
        """Deletes the snapshots of other names, including incomplete ones."""
        folder, prefix = os.path.split(self._prefix)
        for file in tf.io.gfile.listdir(folder):
            if file.startswith(f"{prefix}-") and not file.startswith(f"{prefix}-{name}."):
                path = os.path.join(folder, file.rstrip("/"))
                (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)


def require_same_configuration(folder: str, configuration: dict[str, Any]) -> None:
    """Checks that the checkpoints in a folder belong to a configuration, which it writes there the first time.

    Args:
      folder: Folder of all checkpoints of a fine-tuning.
      configuration: Configuration as JSON values.

    Raises:
      ConfigError: If they belong to another configuration.
    """
    path = os.path.join(folder, _CONFIGURATION)
    existing = read_state(path)
    if existing is None:
        write_state(path, configuration)
    elif existing != configuration:
        raise ConfigError(
            f"The checkpoints in {folder} belong to another configuration or plan. Remedy: another folder "
            "(checkpoints=), or delete it.",
            field="checkpoints",
            code="checkpoints-of-another-configuration",
        )


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Creates the folder of `path` and turns a failure to write into an error with a remedy.

    Raises:
      ModelError: If the file can't be written.
    """
    try:
        tf.io.gfile.makedirs(os.path.dirname(path))
        yield
    except (OSError, tf.errors.OpError) as error:
        raise ModelError(
            f"{path} can't be written: {str(error).rstrip(' .')}. Remedy: free space on that file system, or choose "
            "another folder (checkpoints=, checkpoint_uri=). Earlier checkpoints still exist: the next attempt resumes "
            "from them.",
            code="checkpoint-not-written",
        ) from error


def write_state(path: str, state: Any) -> None:
    """Writes JSON values to a file that is either complete or missing.

    Raises:
      ModelError: If it can't be written.
    """
    with writing(path):
        files.write_json(path, state)


def read_state(path: str) -> Any:
    """Returns the JSON values in a file, or None if the file is missing or incomplete."""
    if not tf.io.gfile.exists(path):
        return None
    try:
        return files.read_json(path)
    except ValueError:
        _log.warning("%s is incomplete and is ignored.", path)
        return None


def _is_complete(path: str) -> bool:
    """Returns whether all values of a checkpoint can be read; TensorFlow verifies their checksums."""
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (ValueError, RuntimeError, IndexError, tf.errors.OpError):  # the reader raises any of these
        return False
    return True


def _read(checkpoint: tf.train.Checkpoint, path: str) -> None:
    try:
        checkpoint.read(path).assert_consumed()
    except (ValueError, AssertionError, tf.errors.OpError) as error:
        raise ModelError(
            f"{path} can't be read into this model: {str(error).splitlines()[0].rstrip(' .')}. Remedy: delete its "
            "folder, or choose another one; training starts from the beginning.",
            code="checkpoint-mismatch",
        ) from error
