"""The handle of a trained model: its kernels, its size, and how to save it with the same signatures."""

import dataclasses
import functools
import os
from typing import Any, Literal

import tensorflow as tf

from tfx_compression import kernels
from tfx_compression.errors import ModelError
from tfx_compression.files import unwritable
from tfx_compression.keras_models import graph, keras2, keras3, model_size
from tfx_compression.keras_models.model_size import ModelSize
from tfx_compression.kernels import Kernel
from tfx_compression.kernels.variable_uses import variable_id
from tfx_compression.model_handle.layout import KERAS_ENDINGS, KERAS_FILE, keras_files
from tfx_compression.model_handle.saving import copy_compilation, write_network
from tfx_compression.model_handle.variable_matching import VariableMatching
from tfx_compression.quiet import quiet_libraries
from tfx_compression.saved_models import rebuilt_signatures
from tfx_compression.saved_models.checkpoint import same_path
from tfx_compression.saved_models.rebuilt_signatures import RebuiltSignatures, SignaturesFn
from tfx_compression.saved_models.saved_model import SavedModel
from tfx_compression.tracing import unwrapped_errors

ModelKind = Literal["keras2", "keras3", "saved_model"]


@dataclasses.dataclass
class ModelHandle:
    """A model that a Trainer wrote, or one in memory.

    Attributes:
      kind: `keras2` or `keras3` for a model with layers, `saved_model` for one whose variables only are known.
      model: The Keras model, or the `SavedModel`.
      path: Path of the SavedModel that the model was loaded from or lies beside, if any.
      notes: How the kind was detected, and what was found beside the model.
      matching: Matching of the weights with a SavedModel beside the Keras file, if there is one.
    """

    kind: ModelKind
    model: Any
    path: str | None = None
    notes: tuple[str, ...] = ()
    matching: VariableMatching | None = None

    @functools.cached_property
    def network(self) -> Any:
        """The layers between the model's inputs and outputs, as a Keras model that shares its weights.

        None if the model has no graph of layers.
        """
        if self.kind == "saved_model" or not graph.has_inputs_and_outputs(self.model):
            return None
        return graph.extract_network(self.model)

    @property
    def keras_model(self) -> Any:
        """The Keras model that holds the weights: the network, or the model itself if it is subclassed.

        None for a SavedModel without layers.
        """
        if self.kind == "saved_model":
            return None
        return self.network if self.network is not None else self.model

    @property
    def weights(self) -> list[Any]:
        """The variables of the model: a Keras model's weights, or those that a SavedModel's signatures use."""
        if self.kind == "saved_model":
            return list(self.model.variables.values())
        return list(self.keras_model.weights)

    @functools.cached_property
    def kernels(self) -> dict[str, Kernel]:
        """The kernels of rank 2 or more, by name, in the model's order."""
        if self.kind == "saved_model":
            return dict(self.model.kernels)
        return kernels.find_kernels(self.keras_model)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the kernels whose layer or variable is not trainable."""
        return tuple(name for name, kernel in self.kernels.items() if not _is_trainable(kernel))

    @property
    def tied(self) -> dict[str, str]:
        """By name of a kernel that shares its variable with an earlier one, the name of that one."""
        first: dict[int, str] = {}
        earliest = {name: first.setdefault(variable_id(kernel.variable), name) for name, kernel in self.kernels.items()}
        return {name: other for name, other in earliest.items() if other != name}

    def measure(self) -> ModelSize:
        """Measures parameters, zeros and multiply-accumulates, in total and per layer or variable."""
        return self.model.measure() if self.kind == "saved_model" else model_size.measure(self.keras_model)

    @unwrapped_errors()
    @quiet_libraries()
    def save(
        self,
        path: str,
        network: Any = None,
        signatures_fn: SignaturesFn | None = None,
        transform_graph_uri: str | None = None,
    ) -> None:
        """Writes a SavedModel with the same signatures. A Keras 3 model is also written as a `.keras` file inside it.

        Args:
          path: Path of a folder, which is not named like a Keras file.
          network: Keras network that replaces the model's, if its graph has changed shape. By default, the model's own
            network is saved with its current weights.
          signatures_fn: Function `signatures_fn(model, tf_transform_output or None)` that returns the signatures of a
            network, instead of those that the model came with.
          transform_graph_uri: URI of Transform's output, for signatures that are rebuilt.

        Raises:
          ModelError: The signatures can't be kept, the path is named like a Keras file (code `keras-file-name`), the
            folder holds another `.keras` file (`other-keras-file`), or it can't be written (`unwritable-folder`;
            `disk-full` if no space is left).
        """
        path = os.fspath(path)
        if path.endswith(KERAS_ENDINGS):
            raise ModelError(
                f"save writes a SavedModel, which is a folder, and {path} is named like a Keras file. Remedy: another "
                "name; for a Keras file, result.model.save(path).",
                field="path",
                code="keras-file-name",
            )
        if self.path is not None and same_path(path, self.path):
            path = self.path  # TensorFlow recognizes its own files by their names only.
        try:
            self._refuse_other_keras_files(path, network is None and signatures_fn is None)
            self._save(path, network, signatures_fn, transform_graph_uri)
        except (OSError, tf.errors.OpError) as error:
            raise unwritable("The model", path, error, "a folder that can be created and written") from error

    def _save(
        self, path: str, network: Any, signatures_fn: SignaturesFn | None, transform_graph_uri: str | None
    ) -> None:
        if self.kind == "saved_model":
            if network is not None or signatures_fn is not None:
                raise ModelError(
                    f"The SavedModel in {self.path} has no graph of layers, so no network can replace it. "
                    "Remedy: let Trainer write a .keras file beside it, or a Keras 2 SavedModel.",
                    code="no-layers",
                )
            self.model.save(path)
        elif network is None and signatures_fn is None:
            self._save_unchanged(path)
        else:
            network = network if network is not None else self._required_network()
            copy_compilation(self.model, network)
            if signatures_fn is not None:
                rebuilt = rebuilt_signatures.user_signatures(signatures_fn, network, transform_graph_uri)
            else:
                rebuilt = self._rebuild_signatures(network, transform_graph_uri)
            write_network(network, rebuilt, path)

    def _save_unchanged(self, path: str) -> None:
        """Saves the model with the graph and the signatures that it came with."""
        if self.matching is not None:
            self.matching.assign()
            self.matching.saved_model.save(path)
            keras3.save(self.model, os.path.join(path, KERAS_FILE))
        elif self.kind == "keras2":
            keras2.save(self.model, path)
        else:
            signatures = rebuilt_signatures.tensor_signatures(self._required_network())
            write_network(self.model, RebuiltSignatures(signatures, {}), path)

    def _rebuild_signatures(self, network: Any, transform_graph_uri: str | None) -> RebuiltSignatures:
        before = self._required_network()
        if self.matching is not None:
            self.matching.assign()
            original, variables = self.matching.saved_model, self.matching.variable_ids
        elif getattr(self.model, "signatures", None):
            original = SavedModel(self.path or self.model.name, self.model)
            variables = {variable_id(weight) for weight in before.weights}
        else:
            return RebuiltSignatures(rebuilt_signatures.tensor_signatures(network), {})
        return rebuilt_signatures.rebuild(original, before, network, variables, transform_graph_uri)

    def _refuse_other_keras_files(self, path: str, unchanged: bool) -> None:
        """Refuses a folder with a `.keras` file that isn't overwritten: loading would take it for the model's."""
        overwritten = self.kind == "keras3" or (unchanged and self.matching is not None)
        target = os.path.join(path, KERAS_FILE)
        if others := [file for file in keras_files(path) if not (overwritten and same_path(file, target))]:
            raise ModelError(
                f"{path} would be loaded together with another model's {', '.join(others)}. Remedy: an empty folder.",
                code="other-keras-file",
            )

    def _required_network(self) -> Any:
        return self.network if self.network is not None else graph.extract_network(self.model)


def _is_trainable(kernel: Kernel) -> bool:
    return bool(kernel.variable.trainable and (kernel.layer is None or kernel.layer.trainable))
