"""What a training needs to go on after it was killed: variables and where it was, on any file system of TensorFlow.

A checkpoint is a folder, complete once `state.json` is in it.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfx_compression.models.errors import ModelError

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

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes a checkpoint, then deletes the older ones.

        Raises:
          ModelError: where it can't be written; the older ones are still there.
        """
        place = os.path.join(self._folder, f"{_PREFIX}{step:09d}")
        with writing(place):
            self._checkpoint.write(os.path.join(place, _VALUES))
            write_json(os.path.join(place, _STATE), state)
        for name in self._names():
            if name != os.path.basename(place):
                tf.io.gfile.rmtree(os.path.join(self._folder, name))

    def restore(self) -> dict[str, Any] | None:
        """Reads the newest whole checkpoint into the variables; its state, or None where there is none."""
        for name in reversed(self._names()):
            place = os.path.join(self._folder, name)
            state = read_json(os.path.join(place, _STATE))
            if state is not None:
                self._checkpoint.read(os.path.join(place, _VALUES)).assert_consumed()
                return state
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
        """Gives the variables the values that were kept."""
        self._checkpoint.read(f"{self._prefix}-{name}").assert_consumed()

    def remove_others(self, name: str) -> None:
        """Deletes what was kept under other names."""
        for file in tf.io.gfile.glob(f"{self._prefix}-*"):
            if not os.path.basename(file).startswith(f"{os.path.basename(self._prefix)}-{name}."):
                tf.io.gfile.remove(file)


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
            f"The checkpoint can't be written to {place}: {str(error).rstrip(' .')}. Remedy: room on that file system, "
            "or another place (checkpoint_uri). What was written before is still there: the next attempt goes on there."
        ) from error


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file under another name first, so that it is there whole or not at all."""
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(f"{path}.part", "w") as file:
        file.write(json.dumps(value, indent=1))
    tf.io.gfile.rename(f"{path}.part", path, overwrite=True)


def read_json(path: str) -> Any:
    """What a JSON file holds, or None where there is none."""
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path) as file:
        return json.load(file)
