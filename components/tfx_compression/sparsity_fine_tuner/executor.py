"""Runs the SparsityFineTuner: reads the pruned Model and the Examples, trains, writes the Model and its logs."""

import os
from typing import Any

import tf_keras
from tfx import types
from tfx.dsl.components.base import base_executor

from tfx_compression.models import keras2
from tfx_compression.models.compressed import SUMMARY_FILE, read_json, read_masks, require_zeros, write_text
from tfx_compression.models.config import ConfigError
from tfx_compression.models.plan import PruningPlan
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.training import fine_tune
from tfx_compression.tfx_support import artifacts, inputs


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
          input_dict: `model`, `pruning_plan`, `examples`, `schema`, `transform_graph` (optional).
          output_dict: `fine_tuned_model`, `model_run`.
          exec_properties: `config` (JSON), `epochs` and `learning_rate` (override it), `train_split`, `eval_split`,
            `module_path` or `module_file`.
        """
        model = artifacts.single(input_dict, "model")
        tuned = artifacts.single(output_dict, "fine_tuned_model")
        logs = artifacts.single(output_dict, "model_run")
        overrides = {name: exec_properties.get(name) for name in ("epochs", "learning_rate")}
        config = FineTuning.merged(exec_properties["config"], overrides)
        masks = read_masks(_plan_file(input_dict, artifacts.MASKS_FILE))
        _require_finished(PruningPlan(**read_json(_plan_file(input_dict, artifacts.PLAN_FILE))), config)
        module = inputs.UserModule(exec_properties)
        objects = module.custom_objects()
        loaded = keras2.load(artifacts.model_path(model), objects)
        names = list(keras2.network(loaded).input_names)
        train, evaluation = (
            inputs.training_batches(
                input_dict, module, names, exec_properties[split], config.label_key, config.batch_size, shuffle
            )
            for split, shuffle in (("train_split", True), ("eval_split", False))
        )
        compressed = fine_tune(
            loaded,
            train,
            config,
            masks=masks,
            validation_data=evaluation,
            compile_fn=module.function("compile_fn"),
            callbacks=[tf_keras.callbacks.TensorBoard(logs.uri)],
        )
        compressed.save(artifacts.model_path(tuned))
        require_zeros(keras2.load(artifacts.model_path(tuned), objects), masks, "the fine-tuned model as written")
        write_text(os.path.join(tuned.uri, SUMMARY_FILE), compressed.summary.model_dump_json(indent=1))
        after = compressed.summary.after
        artifacts.describe_model(
            tuned, model, mode=config.mode, sparsity=after.sparsity, parameters=after.parameters, macs=after.macs
        )


def _plan_file(input_dict: dict[str, list[types.Artifact]], name: str) -> str:
    return os.path.join(artifacts.single(input_dict, "pruning_plan").uri, name)


def _require_finished(plan: PruningPlan, config: FineTuning) -> None:
    """Raises ConfigError for a schedule whose later steps the mode doesn't take: the target would never be reached."""
    if plan.schedule != "one_shot":
        raise ConfigError(
            f"PruningPlan.schedule = {plan.schedule!r}: FineTuning(mode={config.mode!r}) holds what is pruned now and "
            f"would never reach the sparsity of {plan.sparsity:g}. Remedy: schedule 'one_shot'."
        )
