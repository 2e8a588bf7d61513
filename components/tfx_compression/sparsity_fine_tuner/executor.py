"""Runs the SparsityFineTuner: reads the pruned Model and the Examples, trains, writes the Model and its logs."""

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
from tfx_compression.model_handle.compressed import SUMMARY_FILE, Summary, read_masks
from tfx_compression.pruning.record import RECORD_FILE, PruningRecord
from tfx_compression.sparsity_fine_tuner import promises
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.training import Tuned, fine_tune
from tfx_compression.tfx_support import artifacts, checkpoints, inputs
from tfx_compression.tfx_support.user_module import UserModule

TEACHER = "teacher_model"
TUNING_FILE = "tuning.json"
_NO_CHECKPOINT_URI = (
    "checkpoints are kept in {folder}, where another run of the pipeline may not look. Remedy: checkpoint_uri, a "
    "folder that all runs share."
)
_log = logging.getLogger(__name__)


class Executor(base_executor.BaseExecutor):
    """See the component."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Fine-tunes.

        Args:
          input_dict: `model`, `pruning_plan`, `examples`, `schema`; `transform_graph`, `teacher_model` and
            `teacher_model_<name>`, all optional.
          output_dict: `fine_tuned_model`, `model_run`.
          exec_properties: `config` (JSON), `epochs`, `learning_rate` and `mode` (override it), `train_split`,
            `eval_split`, `checkpoint_uri`, `module_path` or `module_file`.
        """
        model = artifacts.single(input_dict, "model")
        output = artifacts.single(output_dict, "fine_tuned_model")
        logs = artifacts.single(output_dict, "model_run")
        overrides = {name: exec_properties.get(name) for name in ("epochs", "learning_rate", "mode")}
        config = FineTuning.merged(exec_properties["config"], overrides)
        record = PruningRecord(**files.read_json(_plan_file(input_dict, RECORD_FILE)))
        module = UserModule(exec_properties)
        objects = module.custom_objects()
        key = checkpoints.fingerprint(input_dict, exec_properties)
        folder = checkpoints.folder(output, key, exec_properties.get("checkpoint_uri"))
        if "://" in output.uri and not exec_properties.get("checkpoint_uri"):
            _log.warning("SparsityFineTuner: %s", _NO_CHECKPOINT_URI.format(folder=folder))
        with _strategy(config, module).scope():
            loaded = model_handle.load(artifacts.model_path(model), objects)
            taught = config.distillation is not None or config.guard is not None
            teachers = _teachers(input_dict) if taught else []
            dense = [model_handle.load(artifacts.model_path(each), objects) for each in teachers]

            def batches(split: str, shuffle: bool, seed: int) -> tf.data.Dataset:
                return inputs.model_batches(
                    loaded,
                    input_dict,
                    module,
                    split,
                    config.label_key,
                    config.batch_size,
                    shuffle,
                    seed,
                    config.sample_weight_key,
                )

            callbacks_fn = module.function("callbacks_fn")
            tuned = fine_tune(
                loaded,
                lambda number: batches(exec_properties["train_split"], True, config.seed + number),
                config,
                dense,
                record.plan,
                target_sparsity=record.target_sparsity,
                masks=read_masks(_plan_file(input_dict, artifacts.MASKS_FILE)),
                validation_data=batches(exec_properties["eval_split"], False, config.seed),
                compile_fn=module.function("compile_fn"),
                loss_fn=module.function("loss_fn"),
                train_step=module.function("train_step"),
                callbacks=callbacks_fn() if callbacks_fn else (),
                checkpoints=folder,
                log_dir=logs.uri,
                custom_objects=objects,
            )
        graph = artifacts.optional(input_dict, "transform_graph")
        path = artifacts.model_path(output)
        with _whole(output.uri):
            tuned.save(path, module.function("signatures_fn"), None if graph is None else graph.uri)
            size = promises.check(path, tuned, record, artifacts.model_path(model), objects)
            summary = Summary(before=tuned.summary.before, after=size)
            files.write_text(os.path.join(output.uri, SUMMARY_FILE), summary.model_dump_json(indent=1))
            files.write_text(os.path.join(output.uri, TUNING_FILE), _described(tuned, config))
        artifacts.describe_model(
            output,
            model,
            kind=loaded.kind,
            mode=config.mode,
            sparsity=size.sparsity,
            parameters=size.parameters,
            macs=size.macs,
            rounds=len(tuned.rounds) or None,
            epochs=len(tuned.history),
            **{name: value for name, value in tuned.metrics.items() if name.startswith("val_")},
        )
        checkpoints.remove(folder)
        for note in tuned.notes:
            _log.warning("SparsityFineTuner: %s", note)


def _described(tuned: Tuned, config: FineTuning) -> str:
    found = {
        "config": config.model_dump(),
        "history": list(tuned.history),
        "rounds": [each.model_dump() for each in tuned.rounds],
        "notes": list(tuned.notes),
    }
    return json.dumps(found, indent=1)


def _plan_file(input_dict: dict[str, list[types.Artifact]], name: str) -> str:
    return os.path.join(artifacts.single(input_dict, "pruning_plan").uri, name)


def _teachers(input_dict: dict[str, list[types.Artifact]]) -> list[types.Artifact]:
    """The teachers: the one, or those of several by name."""
    keys = sorted(key for key in input_dict if key == TEACHER or key.startswith(f"{TEACHER}_"))
    return [artifacts.single(input_dict, key) for key in keys if input_dict[key]]


def _strategy(config: FineTuning, module: UserModule) -> Any:
    if strategy_fn := module.function("strategy_fn"):
        return strategy_fn()
    return tf.distribute.MirroredStrategy() if config.distribution == "mirrored" else tf.distribute.get_strategy()


@contextlib.contextmanager
def _whole(uri: str) -> Iterator[None]:
    """Writes an artifact whole or not at all.

    Raises:
      ModelError: where it can't be written.
    """
    try:
        yield
    except BaseException as error:
        if tf.io.gfile.exists(uri):
            tf.io.gfile.rmtree(uri)
        if isinstance(error, OSError | tf.errors.OpError):
            raise ModelError(
                f"The fine-tuned model can't be written to {uri}: {str(error).rstrip(' .')}. Remedy: room on that file "
                "system. The checkpoints are kept: the next attempt goes on where this one ended."
            ) from error
        raise
