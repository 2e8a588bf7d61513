"""A trained model of any kind, with one face: its kernels, its size, and saving it so that it answers as before."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, Literal

import tensorflow as tf

from tfx_compression import kernels
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph, keras2, keras3, model_size
from tfx_compression.keras_models.library import is_keras3
from tfx_compression.keras_models.model_size import ModelSize
from tfx_compression.kernels import Kernel, variable_uses
from tfx_compression.model_handle.variable_matching import VariableMatching, match_variables
from tfx_compression.saved_models import rebuilt_signatures, saved_model
from tfx_compression.saved_models.rebuilt_signatures import RebuiltSignatures, SignaturesFn
from tfx_compression.saved_models.saved_model import SavedModel, same_place

ModelKind = Literal["keras2", "keras3", "saved_model"]

SERVING_FOLDER = "Format-Serving"  # TFX's, in a Model artifact
KERAS_FILE = "model.keras"
_METADATA = "keras_metadata.pb"
_ENDINGS = (".keras", ".h5")
_RESOURCES = (tf.lookup.StaticHashTable, tf.lookup.StaticVocabularyTable, tf.lookup.experimental.MutableHashTable)


@dataclasses.dataclass
class ModelHandle:
    """A model that a Trainer wrote, or one in memory.

    Attributes:
      kind: `keras2` or `keras3`, whose layers are seen, or `saved_model`, whose variables are.
      model: the Keras model, or the SavedModel.
      path: the SavedModel that it was loaded from or that lies beside it, if any.
      notes: how it was detected and what was found beside it.
      paired_saved_model: the SavedModel beside a Keras file, with the weights that its variables hold.
    """

    kind: ModelKind
    model: Any
    path: str | None = None
    notes: tuple[str, ...] = ()
    paired_saved_model: tuple[SavedModel, VariableMatching] | None = None

    @functools.cached_property
    def network(self) -> Any:
        """The layers between the model's inputs and outputs, as a Keras model that shares its weights; None where the
        model has no graph of layers.
        """
        if self.kind == "saved_model" or not _functional(self.model):
            return None
        return graph.extract_network(self.model)

    @property
    def keras_model(self) -> Any:
        """The Keras model that holds the weights: the network, or the model itself where it is subclassed.

        None for a SavedModel without layers.
        """
        if self.kind == "saved_model":
            return None
        return self.network if self.network is not None else self.model

    @property
    def weights(self) -> list[Any]:
        """The variables of the model: a Keras model's weights, or what a SavedModel's signatures read."""
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
        """The kernels that the Trainer did not train: their layer or variable is not trainable."""
        return tuple(name for name, kernel in self.kernels.items() if not _trainable(kernel))

    @property
    def tied(self) -> dict[str, str]:
        """The kernels that are the variable of an earlier one too, with that one's name."""
        first: dict[int, str] = {}
        earlier = {
            name: first.setdefault(id(variable_uses.resource_handle(kernel.variable)), name)
            for name, kernel in self.kernels.items()
        }
        return {name: other for name, other in earlier.items() if other != name}

    def measure(self) -> ModelSize:
        """Parameters, zeros and multiply-accumulates, per layer (or variable) and whole."""
        return self.model.measure() if self.kind == "saved_model" else model_size.measure(self.keras_model)

    def save(
        self,
        path: str,
        network: Any = None,
        signatures_fn: SignaturesFn | None = None,
        transform_graph_uri: str | None = None,
    ) -> None:
        """Writes a SavedModel that answers the same signatures; of a Keras 3 model also the `.keras` file, inside it.

        Args:
          path: of a folder.
          network: the Keras network that replaces the model's, where its graph changed shape; by default the model's
            own, with its weights of now.
          signatures_fn: makes the signatures of a network anew, instead of the ones that the model came with:
            `signatures_fn(model, tf_transform_output or None)`.
          transform_graph_uri: of Transform's output; for signatures that are made anew.

        Raises:
          ModelError: where the signatures can't be kept, the folder holds another `.keras` file, or can't be written.
        """
        if self.path is not None and same_place(path, self.path):
            path = self.path  # TensorFlow knows its own files by their names only
        try:
            self._refuse_other_files(path, network is None and signatures_fn is None)
            self._save(path, network, signatures_fn, transform_graph_uri)
        except (OSError, tf.errors.OpError) as error:
            raise ModelError(
                f"The model can't be written to {path}: {str(error).rstrip(' .')}. "
                "Remedy: a folder that can be made and written."
            ) from error

    def _save(
        self, path: str, network: Any, signatures_fn: SignaturesFn | None, transform_graph_uri: str | None
    ) -> None:
        if self.kind == "saved_model":
            if network is not None or signatures_fn is not None:
                raise ModelError(
                    f"The SavedModel in {self.path} has no graph of layers, so no network can take its place. "
                    "Remedy: let Trainer write a .keras file beside it, or a Keras 2 SavedModel."
                )
            self.model.save(path)
        elif network is None and signatures_fn is None:
            self._save_in_place(path)
        else:
            network = network if network is not None else self._required_network()
            copy_compilation(self.model, network)
            if signatures_fn is not None:
                rebuilt = rebuilt_signatures.user_signatures(signatures_fn, network, transform_graph_uri)
            else:
                rebuilt = self._rebuilt(network, transform_graph_uri)
            _write(network, rebuilt, path)

    def _refuse_other_files(self, path: str, in_place: bool) -> None:
        """Refuses a folder with a `.keras` file that isn't written anew: loading would take it for the model's."""
        written = self.kind == "keras3" or (in_place and self.paired_saved_model is not None)
        own = os.path.join(path, KERAS_FILE)
        if others := [file for file in _keras_files(path) if not (written and same_place(file, own))]:
            raise ModelError(
                f"{path} would be read together with another model's {', '.join(others)}. Remedy: an empty folder."
            )

    def _required_network(self) -> Any:
        if self.network is None:
            raise ModelError(
                f"The model {self.model.name!r} is subclassed: it has no graph of layers. "
                "Remedy: build it with Sequential or the functional API."
            )
        return self.network

    def _save_in_place(self, path: str) -> None:
        if self.paired_saved_model is not None:
            saved, twins = self.paired_saved_model
            twins.assign()
            saved.save(path)
            keras3.save(self.model, os.path.join(path, KERAS_FILE))
        elif self.kind == "keras2":
            keras2.save(self.model, path)
        else:
            signatures = rebuilt_signatures.tensor_signatures(self._required_network())
            _write(self.model, RebuiltSignatures(signatures, {}), path)

    def _rebuilt(self, network: Any, transform_graph_uri: str | None) -> RebuiltSignatures:
        before = self._required_network()
        if self.paired_saved_model is not None:
            original, twins = self.paired_saved_model
            twins.assign()
            own = twins.handles
        elif getattr(self.model, "signatures", None):
            original = SavedModel(self.path or self.model.name, self.model)
            own = {id(variable_uses.resource_handle(weight)) for weight in before.weights}
        else:
            return RebuiltSignatures(rebuilt_signatures.tensor_signatures(network), {})
        return rebuilt_signatures.rebuild(original, before, network, own, transform_graph_uri)


def load(path: str, custom_objects: Mapping[str, Any] | None = None) -> ModelHandle:
    """The model in a `.keras` or `.h5` file, or in a folder as a Trainer writes it.

    Of a folder, the layers are those of a SavedModel with Keras metadata, or else of a `.keras` file in it (in TFX's
    `Format-Serving`, also beside that folder); the signatures are the SavedModel's. Where neither has a graph of layers
    it is a `saved_model`; the notes say why.

    Raises:
      ModelError: where there is no model, or several `.keras` files.
    """
    try:
        exists = tf.io.gfile.exists(path)
    except tf.errors.OpError as error:  # no such kind of file system
        raise ModelError(
            f"{path} can't be read: {str(error).rstrip(' .')}. Remedy: a path on a file system that TensorFlow knows."
        ) from error
    if not exists:
        raise ModelError(f"No model at {path}.")
    if not tf.io.gfile.isdir(path):
        model, kind = _load_file(path, custom_objects)
        return ModelHandle(kind, model, None, (f"{path} was written by Keras {kind[-1]}.",))
    file = _keras_file(path)
    if not tf.saved_model.contains_saved_model(path):
        if file is None:
            raise ModelError(
                f"{path} holds neither a saved_model.pb nor a .keras file. Remedy: check Trainer's run_fn."
            )
        return load(file, custom_objects)
    return _load_folder(path, file, custom_objects)


def wrap(model: Any) -> ModelHandle:
    """A Keras 2 or Keras 3 model in memory, a loaded SavedModel, or the path of a model.

    Raises:
      ModelError: for anything else.
    """
    if isinstance(model, ModelHandle):
        return model
    if isinstance(model, str | os.PathLike):
        return load(os.fspath(model))
    if isinstance(model, SavedModel):
        return ModelHandle("saved_model", model, model.path)
    if is_keras3(model):
        return ModelHandle("keras3", model)
    if isinstance(model, tf.Module) and hasattr(model, "get_config") and hasattr(model, "layers"):
        return ModelHandle("keras2", model)
    raise ModelError(
        f"A {type(model).__module__}.{type(model).__name__} is no model that can be compressed. "
        "Remedy: a tf_keras or keras model, or the path of a SavedModel, .keras or .h5 file."
    )


def _load_folder(path: str, file: str | None, custom_objects: Mapping[str, Any] | None) -> ModelHandle:
    notes = []
    if tf.io.gfile.exists(os.path.join(path, _METADATA)):
        model = keras2.load(path, custom_objects)
        if _functional(model):
            ignored = (f"{file} was not used: the SavedModel has the layers itself.",) if file else ()
            return ModelHandle("keras2", model, path, (f"{path} has Keras 2 metadata ({_METADATA}).", *ignored))
        notes.append(f"The Keras 2 model in {path} is subclassed: its graph of layers can't be seen.")
    else:
        notes.append(f"{path} has no Keras metadata ({_METADATA}).")
    saved = saved_model.load(path)
    if file is not None:
        model, kind = _load_file(file, custom_objects)
        if _functional(model):
            notes.append(f"The layers are those of {file}, written by Keras {kind[-1]}.")
            return ModelHandle(kind, model, path, tuple(notes), (saved, match_variables(model.weights, saved)))
        notes.append(f"The Keras model in {file} is subclassed: its graph of layers can't be seen.")
    notes.append("Its kernels are the variables that its signatures multiply with.")
    if saved.left_alone:
        why = "what they multiply can't be told, or they are whole numbers"
        notes.append(f"Left alone, since {why}: {', '.join(saved.left_alone)}.")
    return ModelHandle("saved_model", saved, path, tuple(notes))


def _load_file(path: str, custom_objects: Mapping[str, Any] | None) -> tuple[Any, ModelKind]:
    if not path.endswith(_ENDINGS):
        raise ModelError(f"{path} is no model. Remedy: the path of a SavedModel folder, a .keras or an .h5 file.")
    if keras3.keras_version(path) == 2:
        return keras2.load(path, custom_objects), "keras2"
    return keras3.load(path, custom_objects), "keras3"


def _keras_file(path: str) -> str | None:
    """The `.keras` file in a folder, or beside it in its Model artifact."""
    files = _keras_files(path)
    if len(files) > 1:
        raise ModelError(f"Several Keras files, which may differ: {', '.join(files)}. Remedy: leave one of them.")
    return files[0] if files else None


def _keras_files(path: str) -> list[str]:
    folders = [path]
    if os.path.basename(os.path.normpath(path)) == SERVING_FOLDER:
        folders.append(os.path.dirname(os.path.normpath(path)))
    return [name for folder in folders for name in sorted(tf.io.gfile.glob(os.path.join(folder, "*.keras")))]


def _functional(model: Any) -> bool:
    return bool(getattr(model, "inputs", None) and getattr(model, "outputs", None))


def _trainable(kernel: Kernel) -> bool:
    return bool(kernel.variable.trainable and (kernel.layer is None or kernel.layer.trainable))


def copy_compilation(model: Any, network: Any) -> None:
    """Compiles a network that is not, as the model that it replaces."""
    if is_keras3(model):
        if getattr(model, "compiled", False) and not network.compiled:
            keras3.copy_compilation(model, network)
    elif getattr(network, "optimizer", None) is None and (compiled := keras2.compile_arguments(model)):
        network.compile(**compiled)


def _write(network: Any, rebuilt: RebuiltSignatures, path: str) -> None:
    """Writes a Keras 2 network with its metadata, a Keras 3 one as a SavedModel with the `.keras` file inside."""
    if not is_keras3(network):
        for name, thing in rebuilt.tracked.items():
            setattr(network, name, thing)
        keras2.resolve_metrics(network)
        network.save(path, save_format="tf", signatures=rebuilt.signatures)
        return
    module = tf.Module()
    module.weights = [weight._value for weight in network.variables]
    module.resources = [  # the tables of lookup layers
        thing for layer in network._flatten_layers() for thing in vars(layer).values() if isinstance(thing, _RESOURCES)
    ]
    for name, thing in rebuilt.tracked.items():
        setattr(module, name, thing)
    tf.saved_model.save(module, path, signatures=rebuilt.signatures)
    keras3.save(network, os.path.join(path, KERAS_FILE))
