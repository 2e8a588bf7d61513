"""Executor of Pruner: loads the Model, prunes it, and writes the Model, the record and the report."""

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
from tfx_compression.pruning.prune import PrunedModel, prune_step, requires_data
from tfx_compression.pruning.record import RECORD_FILE
from tfx_compression.pruning.sensitivity import SensitivityOptions
from tfx_compression.tfx_support import artifacts, checkpoints, inputs
from tfx_compression.tfx_support.user_module import UserModule

_log = logging.getLogger(__name__)


class Executor(base_executor.BaseExecutor):
    """Executor of Pruner; see the component."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Prunes a model.

        Args:
          input_dict: `model`; optional `examples`, `schema` and `transform_graph`.
          output_dict: `pruned_model`, `pruning_plan`.
          exec_properties: `plan` (JSON), `sparsity` and `technique` (which override the plan's), `split`,
            `checkpoint_uri`, `module_path` or `module_file`.
        """
        model = artifacts.single(input_dict, "model")
        pruned_output = artifacts.single(output_dict, "pruned_model")
        plan_output = artifacts.single(output_dict, "pruning_plan")
        overrides = {name: exec_properties.get(name) for name in ("sparsity", "technique")}
        plan = PruningPlan.merged(exec_properties["plan"], overrides)
        module = UserModule(exec_properties)
        handle = model_handle.load(artifacts.model_path(model), module.custom_objects())
        if compile_fn := module.function("compile_fn"):
            _compile(handle, compile_fn)
        data = None
        if input_dict.get("examples") and (requires_data(plan) or plan.structured):
            split, rows = exec_properties["split"], plan.batch_size
            data = inputs.model_batches(handle, input_dict, module, split, plan.label_key, rows, True, plan.seed)
        fingerprint = checkpoints.fingerprint(input_dict, exec_properties)
        folder = checkpoints.folder(pruned_output, fingerprint, exec_properties.get("checkpoint_uri"))
        store_path = os.path.join(folder, "sensitivity.json") if plan.allocation == "sensitivity" else None
        if store_path:
            tf.io.gfile.makedirs(folder)
        options = SensitivityOptions(store_path, fingerprint)
        pruned = prune_step(handle, plan, data, loss_fn=module.function("loss_fn"), sensitivity_options=options)
        page = report.render(pruned.record)
        graph = artifacts.optional(input_dict, "transform_graph")
        graph_uri = None if graph is None else graph.uri
        pruned.save(artifacts.model_path(pruned_output), module.function("signatures_fn"), graph_uri)
        files.write_text(os.path.join(pruned_output.uri, SUMMARY_FILE), pruned.summary.model_dump_json(indent=1))
        files.write_text(os.path.join(plan_output.uri, RECORD_FILE), pruned.record.model_dump_json(indent=1))
        files.write_text(os.path.join(plan_output.uri, artifacts.REPORT_FILE), page)
        write_masks(os.path.join(plan_output.uri, artifacts.MASKS_FILE), pruned.masks)
        _describe(pruned, pruned_output, plan_output, model)
        checkpoints.remove(folder)
        for note in pruned.record.notes:
            _log.warning("Pruner: %s", note)


def _describe(
    pruned: PrunedModel, pruned_output: types.Artifact, plan_output: types.Artifact, model: types.Artifact
) -> None:
    """Sets the custom properties of the outputs."""
    plan, before, after = pruned.plan, pruned.summary.before, pruned.summary.after
    artifacts.describe_model(
        pruned_output,
        model,
        kind=pruned.record.kind,
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


def _compile(handle: model_handle.ModelHandle, compile_fn: Any) -> None:
    if handle.network is None:
        raise ModelError(
            "The module file has a compile_fn, and the model is a SavedModel without layers, which can't be compiled. "
            "Remedy: leave it out, or save the Keras model with its layers.",
            field="compile_fn",
            code="no-layer-graph",
        )
    compile_fn(handle.model)
