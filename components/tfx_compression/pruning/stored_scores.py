"""Importance scores that the user computed and stored in an NPZ file, for the criterion `scores`."""

import io
import zipfile
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from tfx_compression.errors import ConfigError
from tfx_compression.kernels import KERNEL_ATTRIBUTES, Kernel

_FIELD = "PruningPlan.scores"


def read(path: str, kernels: Mapping[str, Kernel], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the stored scores of kernels, float32.

    Args:
      path: Path of an NPZ file with one array per kernel, called by the kernel's name, the name without `:0`, or the
        layer's name if the layer has only one kernel.
      kernels: All kernels of the model, by name.
      names: Names of the kernels to return.

    Raises:
      ConfigError: The file can't be read, has an array that is no kernel, or lacks one of `names`.
    """
    arrays = _read(path)
    aliases = _aliases(kernels)
    if unknown := [key for key in arrays if key not in aliases]:
        raise ConfigError(
            f"{_FIELD} = {path!r}: {', '.join(map(repr, unknown))} is no kernel of the model. "
            f"Remedy: name the arrays after the kernels, which are {', '.join(kernels)}.",
            field=_FIELD,
            code="unknown-kernel",
        )
    scores = {aliases[key]: array for key, array in arrays.items()}
    if missing := [name for name in names if name not in scores]:
        raise ConfigError(
            f"{_FIELD} = {path!r} has no scores of {', '.join(map(repr, missing))}. "
            "Remedy: add them, or rules with sparsity 0 for these layers.",
            field=_FIELD,
            code="missing-scores",
        )
    return {name: scores[name] for name in names}


def _read(path: str) -> dict[str, np.ndarray]:
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as stored:
            return {name: np.asarray(stored[name], np.float32) for name in stored.files}
    except (tf.errors.OpError, OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{_FIELD} = {path!r} can't be read: {error} Remedy: the path of a file that np.savez wrote.",
            field=_FIELD,
            code="unreadable-scores",
        ) from error


def _aliases(kernels: Collection[str]) -> dict[str, str]:
    """Returns the kernel for every name that a file may use for it."""
    stems = {name: name.split(":")[0] for name in kernels}
    layers = [stem.rpartition("/")[0] for stem in stems.values() if stem.rpartition("/")[2] in KERNEL_ATTRIBUTES]
    by_layer = {stem.rpartition("/")[0]: name for name, stem in stems.items()}
    aliases = {layer: by_layer[layer] for layer in layers if layer and layers.count(layer) == 1}
    return {**aliases, **{stem: name for name, stem in stems.items()}, **{name: name for name in kernels}}
