"""SavedModels of any origin, without layers: their kernels are the variables that their signatures multiply with."""

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.errors import ModelError
from tfx_compression.keras_models.keras3 import LOADING_FAILURES
from tfx_compression.keras_models.model_size import (
    LayerSize,
    ModelSize,
    measure_kernel,
    measure_other_weights,
    total_size,
)
from tfx_compression.kernels import Kernel, variable_uses
from tfx_compression.kernels.variable_uses import VariableUse
from tfx_compression.saved_models import checkpoint

SIGNATURE = "serving_default"

_ADDITIONS = ("AddV2", "Add", "BiasAdd", "Sub")
_SCALINGS = ("Mul", "RealDiv")


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A loaded SavedModel.

    Attributes:
      path: Path that it was loaded from; saving reads it again.
      loaded: What tf.saved_model.load returned.
    """

    path: str
    loaded: Any

    @property
    def signatures(self) -> dict[str, Any]:
        """The signatures by name, `serving_default` first."""
        names = sorted(self.loaded.signatures, key=lambda name: (name != SIGNATURE, name))
        return {name: self.loaded.signatures[name] for name in names}

    @functools.cached_property
    def variables(self) -> dict[str, tf.Variable]:
        """The variables that the signatures use, by unique names.

        Raises:
          ModelError: If the SavedModel was loaded under a tf.distribute strategy.
        """
        by_handle: dict[int, tf.Variable] = {}
        for signature in self.signatures.values():
            if any(isinstance(variable, tf.distribute.DistributedValues) for variable in signature.variables):
                raise ModelError(
                    f"The SavedModel in {self.path} has no graph of layers, and can be trained on one device only. "
                    "Remedy: no tf.distribute strategy of several devices, or have Trainer save the Keras model.",
                    code="distributed-saved-model",
                )
            by_handle.update({id(variable.handle): variable for variable in signature.variables})
        named: dict[str, tf.Variable] = {}
        for variable in by_handle.values():
            named[_unique_name(variable.name.split(":")[0], named)] = variable
        return named

    @functools.cached_property
    def kernels(self) -> dict[str, Kernel]:
        """The kernels of rank 2 or more, by the names of their variables."""
        kernels = {}
        for name, variable in self.variables.items():
            use = self._multiplication(variable)
            if use is not None and use.kind is not None:
                kernels[name] = Kernel(name, variable, use.kind, use.input_axes, use.output_axes)
        return kernels

    @property
    def unrecognized(self) -> tuple[str, ...]:
        """Names of the variables of rank 2 or more that may be kernels, but aren't known to be.

        They are used in a way that is neither a known multiplication nor an addition, or they are integers that
        multiply.
        """
        return tuple(
            name
            for name, variable in self.variables.items()
            if len(variable.shape) >= 2 and name not in self.kernels
            if any(_may_multiply(use, variable.dtype) for use in self._uses.get(id(variable.handle), []))
        )

    @functools.cached_property
    def first_and_last_kernels(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the first and of the last kernels of the first signature.

        First are those that multiply what depends on no other kernel. Last are those from which an output comes without
        another kernel between. There may be several: one for each input and output, say.
        """
        names = {id(kernel.variable.handle): name for name, kernel in self.kernels.items()}
        first, last = variable_uses.first_and_last_kernels(next(iter(self.signatures.values())), set(names))
        return tuple(names[key] for key in names if key in first), tuple(names[key] for key in names if key in last)

    def measure(self) -> ModelSize:
        """Counts parameters, zeros and multiply-accumulates of the variables that the signatures use.

        Multiply-accumulates are those of the first signature that uses the variable.
        """
        rows: list[LayerSize] = []
        for name, variable in self.variables.items():
            uses = self._uses.get(id(variable.handle), [])
            if name in self.kernels:
                use = self._multiplication(variable)
                rows.append(measure_kernel(self.kernels[name], use.op if use else "", variable_uses.total_macs(uses)))
            else:
                kind = uses[0].op if uses else "Variable"
                rows.append(measure_other_weights(name, kind, int(np.prod(variable.shape))))
        size = sum(int(np.prod(kernel.shape)) for kernel in self.kernels.values())
        return total_size(rows, size, (np.asarray(variable.numpy()) for variable in self.variables.values()))

    def require_savable(self) -> None:
        """Raises ModelError if its files can't be written with other values, so that `save` would fail."""
        checkpoint.require_values(self.loaded, self.path, self.variables)

    def save(self, path: str) -> None:
        """Writes the SavedModel with the current values of its variables.

        Raises:
          ModelError: If `path` is the one that it was loaded from, or its checkpoint lacks a variable.
        """
        checkpoint.save_variables(self.loaded, self.path, path, self.variables)

    @functools.cached_property
    def _uses(self) -> dict[int, list[VariableUse]]:
        """The uses of variables, by the id of their handle, in the first signature that has any."""
        uses: dict[int, list[VariableUse]] = {}
        for signature in self.signatures.values():
            uses = variable_uses.find_uses(signature) | uses
        return uses

    def _multiplication(self, variable: tf.Variable) -> VariableUse | None:
        """Returns the use that makes a variable a kernel; a sum over an axis comes before a lookup."""
        if len(variable.shape) < 2 or not variable.dtype.is_floating:
            return None
        known = [use for use in self._uses.get(id(variable.handle), []) if use.kind is not None]
        return max(known, key=lambda use: len(use.input_axes) > 0, default=None)


def load(path: str) -> SavedModel:
    """Loads the SavedModel in a folder.

    Raises:
      ModelError: If there is none, it can't be loaded, or it has no signatures.
    """
    if not tf.saved_model.contains_saved_model(path):
        raise ModelError(
            f"{path} holds no saved_model.pb: not a SavedModel. Remedy: the path of a folder that tf.saved_model.save "
            "wrote.",
            code="no-saved-model",
        )
    try:
        loaded = tf.saved_model.load(path)
    except LOADING_FAILURES as error:
        raise ModelError(
            f"The SavedModel in {path} can't be loaded: {str(error).rstrip(' .')}. "
            "Remedy: write it again, with tf.saved_model.save; its files are damaged.",
            code="damaged-saved-model",
        ) from error
    if not getattr(loaded, "signatures", None):
        raise ModelError(
            f"The SavedModel in {path} has no signatures, so nobody can see what it computes. "
            f"Remedy: save it with signatures={{{SIGNATURE!r}: …}}.",
            code="no-signatures",
        )
    return SavedModel(path, loaded)


def _may_multiply(use: VariableUse, dtype: tf.DType) -> bool:
    if dtype.is_floating:
        return use.op not in _ADDITIONS
    return bool(use.input_axes) or use.op in (*_ADDITIONS, *_SCALINGS)  # other integers are indices and counts


def _unique_name(name: str, taken: dict[str, tf.Variable]) -> str:
    if name not in taken:
        return name
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
