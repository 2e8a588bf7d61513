"""Runs the SparsityFineTuner: reads the pruned model and the examples, trains, and writes the model and its logs."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_executor

from tfx_compression import files, model_handle
from tfx_compression.errors import ModelError
from tfx_compression.keras_models.model_size import ModelSize
from tfx_compression.model_handle import ModelHandle
from tfx_compression.model_handle.compressed import SUMMARY_FILE, Summary, read_masks
from tfx_compression.pruning.record import RECORD_FILE, PruningRecord
from tfx_compression.sparsity_fine_tuner import verification
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune
from tfx_compression.sparsity_fine_tuner.results import FineTunedModel
from tfx_compression.tfx_support import artifacts, checkpoints, inputs
from tfx_compression.tfx_support.user_module import UserModule

TEACHER = "teacher_model"
TUNING_FILE = "tuning.json"
_NO_CHECKPOINT_URI = (
    "checkpoints are kept in {folder}, where another run of the pipeline may not look. Remedy: checkpoint_uri, a "
    "folder that all runs share."
)
_log = logging.getLogger(__name__)

InputDict = dict[str, list[types.Artifact]]


class Executor(base_executor.BaseExecutor):
    """Executor of SparsityFineTuner; see the component."""

    def Do(
        self,
        input_dict: InputDict,
        output_dict: InputDict,
        exec_properties: dict[str, Any],
    ) -> None:
        """Fine-tunes a pruned model.

        Args:
          input_dict: `model`, `pruning_plan`, `examples`, `schema`; optionally `transform_graph`, `teacher_model` and
            `teacher_model_<name>`.
          output_dict: `fine_tuned_model`, `model_run`.
          exec_properties: `config` (JSON); `epochs`, `learning_rate` and `mode`, which override it; `train_split`,
            `eval_split`, `checkpoint_uri`, `module_path` or `module_file`.
        """
        execution = _Execution(input_dict, output_dict, exec_properties)
        tuned = execution.train()
        with _removed_on_failure(execution.output.uri):
            size = execution.write(tuned)
        artifacts.describe_model(
            execution.output,
            execution.source,
            kind=tuned.handle.kind,
            mode=execution.config.mode,
            sparsity=size.sparsity,
            parameters=size.parameters,
            macs=size.macs,
            rounds=len(tuned.rounds) or None,
            epochs=len(tuned.history),
            **{name: value for name, value in tuned.metrics.items() if name.startswith("val_")},
        )
        checkpoints.remove(execution.checkpoint_folder)
        for note in tuned.notes:
            _log.warning("SparsityFineTuner: %s", note)


class _Execution:
    """One execution: its artifacts, its configuration and the user's module."""

    def __init__(self, input_dict: InputDict, output_dict: InputDict, exec_properties: dict[str, Any]):
        self._inputs, self._properties = input_dict, exec_properties
        self.source = artifacts.single(input_dict, "model")
        self.output = artifacts.single(output_dict, "fine_tuned_model")
        self._log_dir = artifacts.single(output_dict, "model_run").uri
        overrides = {name: exec_properties.get(name) for name in ("epochs", "learning_rate", "mode")}
        self.config = FineTuning.merged(exec_properties["config"], overrides)
        self._record = PruningRecord(**files.read_json(self._plan_file(RECORD_FILE)))
        self._module = UserModule(exec_properties)
        self._custom_objects = self._module.custom_objects()
        checkpoint_uri = exec_properties.get("checkpoint_uri")
        key = checkpoints.fingerprint(input_dict, exec_properties)
        self.checkpoint_folder = checkpoints.folder(self.output, key, checkpoint_uri)
        if "://" in self.output.uri and not checkpoint_uri:
            _log.warning("SparsityFineTuner: %s", _NO_CHECKPOINT_URI.format(folder=self.checkpoint_folder))

    def train(self) -> FineTunedModel:
        """Loads the models and trains, within the scope of the strategy."""
        config, module, properties = self.config, self._module, self._properties
        with _strategy(config, module).scope():
            handle = self._load(self.source)
            uses_teachers = config.distillation is not None or config.guard is not None
            teachers = _teachers(self._inputs) if uses_teachers else []
            callbacks_fn = module.function("callbacks_fn")
            return fine_tune(
                handle,
                lambda number: self._batches(handle, properties["train_split"], True, config.seed + number),
                config,
                [self._load(teacher) for teacher in teachers],
                self._record.plan,
                target_sparsity=self._record.target_sparsity,
                masks=read_masks(self._plan_file(artifacts.MASKS_FILE)),
                validation_data=self._batches(handle, properties["eval_split"], False, config.seed),
                compile_fn=module.function("compile_fn"),
                loss_fn=module.function("loss_fn"),
                train_step=module.function("train_step"),
                callbacks=callbacks_fn() if callbacks_fn else (),
                checkpoints=self.checkpoint_folder,
                log_dir=self._log_dir,
                custom_objects=self._custom_objects,
            )

    def write(self, tuned: FineTunedModel) -> ModelSize:
        """Writes the model and its side files, and returns the model's verified size."""
        path = artifacts.model_path(self.output)
        graph = artifacts.optional(self._inputs, "transform_graph")
        tuned.save(path, self._module.function("signatures_fn"), None if graph is None else graph.uri)
        original = artifacts.model_path(self.source)
        size = verification.verify(path, tuned, self._record, original, self._custom_objects)
        summary = Summary(before=tuned.summary.before, after=size)
        files.write_text(os.path.join(self.output.uri, SUMMARY_FILE), summary.model_dump_json(indent=1))
        files.write_text(os.path.join(self.output.uri, TUNING_FILE), _tuning_json(tuned, self.config))
        return size

    def _load(self, model: types.Artifact) -> ModelHandle:
        return model_handle.load(artifacts.model_path(model), self._custom_objects)

    def _batches(self, handle: ModelHandle, split: str, shuffle: bool, seed: int) -> tf.data.Dataset:
        config = self.config
        return inputs.model_batches(
            handle,
            self._inputs,
            self._module,
            split,
            config.label_key,
            config.batch_size,
            shuffle,
            seed,
            config.sample_weight_key,
        )

    def _plan_file(self, name: str) -> str:
        return os.path.join(artifacts.single(self._inputs, "pruning_plan").uri, name)


def _tuning_json(tuned: FineTunedModel, config: FineTuning) -> str:
    values = {
        "config": config.model_dump(),
        "history": list(tuned.history),
        "rounds": [each.model_dump() for each in tuned.rounds],
        "notes": list(tuned.notes),
    }
    return json.dumps(values, indent=1)


def _teachers(input_dict: InputDict) -> list[types.Artifact]:
    """Returns the teachers: the single one, or several in the order of their names."""
    keys = sorted(key for key in input_dict if key == TEACHER or key.startswith(f"{TEACHER}_"))
    return [artifacts.single(input_dict, key) for key in keys if input_dict[key]]


def _strategy(config: FineTuning, module: UserModule) -> Any:
    if strategy_fn := module.function("strategy_fn"):
        return strategy_fn()
    return tf.distribute.MirroredStrategy() if config.distribution == "mirrored" else tf.distribute.get_strategy()


@contextlib.contextmanager
def _removed_on_failure(uri: str) -> Iterator[None]:
    """Removes an artifact that can't be written completely.

    Raises:
      ModelError: If it can't be written.
    """
    try:
        yield
    except BaseException as error:
        if tf.io.gfile.exists(uri):
            tf.io.gfile.rmtree(uri)
        if isinstance(error, OSError | tf.errors.OpError):
            raise ModelError(
                f"The fine-tuned model can't be written to {uri}: {str(error).rstrip(' .')}. Remedy: free space on "
                "that file system. The checkpoints are kept: the next attempt resumes from them.",
                code="model-not-written",
            ) from error
        raise
