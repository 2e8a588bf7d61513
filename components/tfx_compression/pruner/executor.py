"""Runs the Pruner: reads the Model, prunes it, writes the Model, the plan and the report."""

import logging
import os
from typing import Any

import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_executor

from tfx_compression import files, model_handle
from tfx_compression.errors import ModelError
from tfx_compression.model_handle.compressed import SUMMARY_FILE, write_masks
from tfx_compression.pruner import report
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune_step, requires_data
from tfx_compression.pruning.record import RECORD_FILE
from tfx_compression.pruning.sensitivity import SensitivityOptions
from tfx_compression.tfx_support import artifacts, checkpoints, inputs
from tfx_compression.tfx_support.user_module import UserModule

_log = logging.getLogger(__name__)


class Executor(base_executor.BaseExecutor):
    """See the component."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Prunes.

        Args:
          input_dict: `model`; `examples`, `schema` and `transform_graph`, all optional.
          output_dict: `pruned_model`, `pruning_plan`.
          exec_properties: `plan` (JSON), `sparsity` and `technique` (override the plan's), `split`, `checkpoint_uri`,
            `module_path` or `module_file`.
        """
        model = artifacts.single(input_dict, "model")
        pruned = artifacts.single(output_dict, "pruned_model")
        plan_output = artifacts.single(output_dict, "pruning_plan")
        overrides = {name: exec_properties.get(name) for name in ("sparsity", "technique")}
        plan = PruningPlan.merged(exec_properties["plan"], overrides)
        module = UserModule(exec_properties)
        loaded = model_handle.load(artifacts.model_path(model), module.custom_objects())
        if compile_fn := module.function("compile_fn"):
            _compile(loaded, compile_fn)
        key = checkpoints.fingerprint(input_dict, exec_properties)
        folder = checkpoints.folder(pruned, key, exec_properties.get("checkpoint_uri"))
        store = os.path.join(folder, "sensitivity.json") if plan.allocation == "sensitivity" else None
        if store:
            tf.io.gfile.makedirs(folder)
        data = None
        if input_dict.get("examples") and requires_data(plan):
            split, rows = exec_properties["split"], plan.batch_size
            data = inputs.model_batches(loaded, input_dict, module, split, plan.label_key, rows, True, plan.seed)
        compressed = prune_step(
            loaded,
            plan,
            data,
            loss_fn=module.function("loss_fn"),
            sensitivity_options=SensitivityOptions(store, key),
        )
        page = report.render(compressed.record)
        graph = artifacts.optional(input_dict, "transform_graph")
        compressed.save(
            artifacts.model_path(pruned), module.function("signatures_fn"), None if graph is None else graph.uri
        )
        files.write_text(os.path.join(pruned.uri, SUMMARY_FILE), compressed.summary.model_dump_json(indent=1))
        files.write_text(os.path.join(plan_output.uri, RECORD_FILE), compressed.record.model_dump_json(indent=1))
        files.write_text(os.path.join(plan_output.uri, artifacts.REPORT_FILE), page)
        write_masks(os.path.join(plan_output.uri, artifacts.MASKS_FILE), compressed.masks)
        before, after = compressed.summary.before, compressed.summary.after
        artifacts.describe_model(
            pruned,
            model,
            kind=loaded.kind,
            technique=plan.technique,
            criterion=plan.criterion,
            allocation=plan.allocation,
            sparsity=after.sparsity,
            parameters=after.parameters,
            parameters_before=before.parameters,
            macs=after.macs,
            macs_before=before.macs,
        )
        artifacts.set_properties(plan_output, plan=plan.to_json(), sparsity=plan.sparsity, schedule=plan.schedule)
        checkpoints.remove(folder)
        for note in compressed.record.notes:
            _log.warning("Pruner: %s", note)


def _compile(loaded: model_handle.ModelHandle, compile_fn: Any) -> None:
    if loaded.network is None:
        raise ModelError(
            "The module file has a compile_fn, and the model is a SavedModel without layers, which can't be compiled. "
            "Remedy: leave it out, or save the Keras model with its layers."
        )
    compile_fn(loaded.model)
