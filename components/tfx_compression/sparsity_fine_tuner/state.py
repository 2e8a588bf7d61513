"""What a training needs to go on after it was killed: variables and where it was, on any file system of TensorFlow.

A checkpoint is a folder, complete once `state.json` is in it.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfx_compression.errors import ModelError

_log = logging.getLogger(__name__)
_STATE = "state.json"
_VALUES = "values"
_PREFIX = "step-"


class Checkpoints:
    """The checkpoints of one training.

    Args:
      folder: theirs.
      variables: what is kept, in the same order each time.
    """

    def __init__(self, folder: str, variables: Sequence[tf.Variable]):
        self._folder = folder
        self._checkpoint = tf.train.Checkpoint(variables=list(variables))

    def save(self, step: int, epochs: int, state: dict[str, Any]) -> None:
        """Writes a checkpoint, then deletes the older ones.

        Args:
          step: how many were made.
          epochs: how many are over: the one before validation, at the same step, is never written over.
          state: what else is to be known.

        Raises:
          ModelError: where it can't be written; the older ones are still there.
        """
        place = os.path.join(self._folder, f"{_PREFIX}{step:09d}-{epochs:06d}")
        with writing(place):
            self._checkpoint.write(os.path.join(place, _VALUES))
        write_json(os.path.join(place, _STATE), state)
        for name in self._names():
            if name != os.path.basename(place):
                tf.io.gfile.rmtree(os.path.join(self._folder, name))

    def restore(self) -> dict[str, Any] | None:
        """Reads the newest whole checkpoint into the variables; its state, or None where there is none.

        Raises:
          ModelError: where it is another model's.
        """
        for name in reversed(self._names()):
            place = os.path.join(self._folder, name)
            state = read_json(os.path.join(place, _STATE))
            if state is not None and _whole(os.path.join(place, _VALUES)):
                _read(self._checkpoint, os.path.join(place, _VALUES))
                return state
            _log.warning("The checkpoint in %s is not whole; it is left out.", place)
        return None

    def _names(self) -> list[str]:
        if not tf.io.gfile.exists(self._folder):
            return []
        names = [name.rstrip("/") for name in tf.io.gfile.listdir(self._folder)]
        return sorted(name for name in names if name.startswith(_PREFIX))


class Kept:
    """The values of some variables, on disk: the best epoch's weights.

    Args:
      prefix: of its files.
      variables: whose values.
    """

    def __init__(self, prefix: str, variables: Sequence[tf.Variable]):
        self._prefix = prefix
        self._checkpoint = tf.train.Checkpoint(variables=list(variables))

    def write(self, name: str) -> None:
        """Keeps the values of now, under a name."""
        with writing(f"{self._prefix}-{name}"):
            self._checkpoint.write(f"{self._prefix}-{name}")

    def read(self, name: str) -> None:
        """Gives the variables the values that were kept.

        Raises:
          ModelError: where they are not there any more, or another model's.
        """
        _read(self._checkpoint, f"{self._prefix}-{name}")

    def remove_others(self, name: str) -> None:
        """Deletes what was kept under other names, also what was not written to its end."""
        folder, prefix = os.path.split(self._prefix)
        for file in tf.io.gfile.listdir(folder):
            if file.startswith(f"{prefix}-") and not file.startswith(f"{prefix}-{name}."):
                path = os.path.join(folder, file.rstrip("/"))
                (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)


@contextlib.contextmanager
def writing(place: str) -> Iterator[None]:
    """Makes the folder of a file and explains a failure to write it.

    Raises:
      ModelError: naming the place.
    """
    try:
        tf.io.gfile.makedirs(os.path.dirname(place))
        yield
    except (OSError, tf.errors.OpError) as error:
        raise ModelError(
            f"{place} can't be written: {str(error).rstrip(' .')}. Remedy: room on that file system, or another place "
            "(of checkpoints, checkpoint_uri). What was written before is still there: the next attempt goes on there."
        ) from error


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file under another name first, so that it is there whole or not at all.

    Raises:
      ModelError: where it can't be written.
    """
    with writing(path):
        with tf.io.gfile.GFile(f"{path}.part", "w") as file:
            file.write(json.dumps(value, indent=1))
        tf.io.gfile.rename(f"{path}.part", path, overwrite=True)


def read_json(path: str) -> Any:
    """What a JSON file holds, or None where there is none, or the machine went down before it was on disk."""
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path) as file:
        try:
            return json.load(file)
        except ValueError:
            _log.warning("%s is not whole; it is left out.", path)
            return None


def _whole(path: str) -> bool:
    """Whether all values of a checkpoint can be read; TensorFlow has their checksums."""
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (ValueError, RuntimeError, IndexError, tf.errors.OpError):  # what the reader makes of TensorFlow's errors
        return False
    return True


def _read(checkpoint: tf.train.Checkpoint, path: str) -> None:
    try:
        checkpoint.read(path).assert_consumed()
    except (ValueError, AssertionError, tf.errors.OpError) as error:
        raise ModelError(
            f"{path} can't be read into the model that is trained: {str(error).splitlines()[0].rstrip(' .')}. Remedy: "
            "delete its folder, or name another; the training begins anew."
        ) from error
