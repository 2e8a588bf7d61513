"""A Keras model and the SavedModel that was written of it: which variable holds which weight."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from tfx_compression.errors import ModelError
from tfx_compression.kernels.variable_uses import resource_handle
from tfx_compression.saved_models.saved_model import SavedModel

_REMEDY = (
    "Remedy: a signatures_fn(model, tf_transform_output) in the module file, from which the signatures are made anew; "
    "or let Trainer write both at the same moment."
)


@dataclasses.dataclass(frozen=True)
class VariableMatching:
    """The weights of a Keras model, each with the variables of a SavedModel that had its value when both were read.

    Attributes:
      weights: by name, the Keras weight and those variables.
      place: what to call the SavedModel.
      contents: by name, what tells the weights' values when both were read.
    """

    weights: dict[str, tuple[Any, tuple[Any, ...]]]
    place: str
    contents: dict[str, str]

    @property
    def handles(self) -> set[int]:
        """The ids of the handles of all variables that hold a weight."""
        return {id(resource_handle(variable)) for _, variables in self.weights.values() for variable in variables}

    def assign(self) -> None:
        """Gives the SavedModel's variables the weights' values of now.

        Raises:
          ModelError: for a weight that no variable holds, or where several weights were the same and no longer are.
            One that is not trained and has not changed may be missing: exporting makes constants of some.
        """
        lacking = {name: weight for name, (weight, variables) in self.weights.items() if not variables}
        if missing := [
            name
            for name, weight in lacking.items()
            if weight.trainable or len(lacking) == len(self.weights) or _content(weight) != self.contents[name]
        ]:
            raise ModelError(
                f"The SavedModel in {self.place} is not of the Keras model beside it: no variable holds the weights "
                f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}. {_REMEDY}"
            )
        values: dict[int, tuple[str, np.ndarray]] = {}
        for name, (weight, variables) in self.weights.items():
            value = np.asarray(weight.numpy())
            for variable in variables:
                other, taken = values.setdefault(id(resource_handle(variable)), (name, value))
                if taken.tobytes() != value.tobytes():
                    raise ModelError(
                        f"The weights {other!r} and {name!r} had the same values, so it can't be told which variables "
                        f"of the SavedModel in {self.place} hold them. {_REMEDY}"
                    )
                variable.assign(value)


def match_variables(weights: list[Any], saved: SavedModel) -> VariableMatching:
    """Matches weights with the variables of the same dtype, shape and bytes, or the one of them with the same name."""
    by_content: dict[str, list[tuple[str, Any]]] = {}
    for name, variable in saved.variables.items():
        by_content.setdefault(_content(variable), []).append((name, variable))
    matched = {}
    for weight in weights:
        name = _name(weight)
        same = by_content.get(_content(weight), [])
        named = [variable for other, variable in same if other == name]
        matched[name] = (weight, tuple(named if len(named) == 1 else [variable for _, variable in same]))
    return VariableMatching(matched, saved.path, {_name(weight): _content(weight) for weight in weights})


def _name(weight: Any) -> str:
    return str(getattr(weight, "path", weight.name)).split(":")[0]


def _content(variable: Any) -> str:
    value = np.asarray(variable.numpy())
    return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
