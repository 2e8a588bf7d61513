"""Matching the weights of a Keras model with the variables of the SavedModel that was written with it."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from tfx_compression.errors import ModelError
from tfx_compression.kernels.variable_uses import variable_id
from tfx_compression.saved_models.saved_model import SavedModel

_REMEDY = (
    "Remedy: a signatures_fn(model, tf_transform_output) in the module file, which rebuilds the signatures; "
    "or let Trainer write both at the same time."
)


@dataclasses.dataclass(frozen=True)
class VariableMatching:
    """The weights of a Keras model with the variables of a SavedModel that hold the same values.

    Attributes:
      saved_model: The SavedModel.
      variables: By name, the Keras weight and the variables that had its values when both were loaded.
      digests: By name, the digest of the weight's values when both were loaded.
    """

    saved_model: SavedModel
    variables: dict[str, tuple[Any, tuple[Any, ...]]]
    digests: dict[str, str]

    @property
    def variable_ids(self) -> set[int]:
        """The `variable_id` of every variable that holds a weight."""
        return {variable_id(variable) for _, variables in self.variables.values() for variable in variables}

    def assign(self) -> None:
        """Assigns the weights' current values to the SavedModel's variables.

        A weight without a variable is accepted if it is not trainable and has not changed, because exporting turns some
        into constants.

        Raises:
          ModelError: No variable holds a weight (code `unmatched-weights`), or several weights had the same values and
            no longer do (`ambiguous-weights`).
        """
        unmatched = {name: weight for name, (weight, variables) in self.variables.items() if not variables}
        if missing := [
            name
            for name, weight in unmatched.items()
            if weight.trainable or len(unmatched) == len(self.variables) or _digest(weight) != self.digests[name]
        ]:
            raise ModelError(
                f"The SavedModel in {self.saved_model.path} doesn't belong to the Keras model beside it: no variable "
                f"holds the weights {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}. {_REMEDY}",
                code="unmatched-weights",
            )
        assigned: dict[int, tuple[str, np.ndarray]] = {}
        for name, (weight, variables) in self.variables.items():
            value = np.asarray(weight.numpy())
            for variable in variables:
                earlier, earlier_value = assigned.setdefault(variable_id(variable), (name, value))
                if earlier_value.tobytes() != value.tobytes():
                    raise ModelError(
                        f"The weights {earlier!r} and {name!r} had the same values, so it is unknown which variables "
                        f"of the SavedModel in {self.saved_model.path} hold them. {_REMEDY}",
                        code="ambiguous-weights",
                    )
                variable.assign(value)


def match_variables(weights: list[Any], saved: SavedModel) -> VariableMatching:
    """Matches each weight with the variables of the same dtype, shape and bytes.

    If one of several such variables has the weight's name, only that one matches.
    """
    by_digest: dict[str, list[tuple[str, Any]]] = {}
    for name, variable in saved.variables.items():
        by_digest.setdefault(_digest(variable), []).append((name, variable))
    matched = {}
    for weight in weights:
        name = _name(weight)
        same = by_digest.get(_digest(weight), [])
        same_name = [variable for other, variable in same if other == name]
        variables = same_name if len(same_name) == 1 else [variable for _, variable in same]
        matched[name] = (weight, tuple(variables))
    return VariableMatching(saved, matched, {_name(weight): _digest(weight) for weight in weights})


def _name(weight: Any) -> str:
    return str(getattr(weight, "path", weight.name)).split(":")[0]


def _digest(variable: Any) -> str:
    value = np.asarray(variable.numpy())
    return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
