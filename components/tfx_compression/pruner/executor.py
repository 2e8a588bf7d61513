"""Runs the Pruner: reads the Model, prunes it, writes the Model and the plan."""

import os
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_executor

from tfx_compression.models import keras2
from tfx_compression.models.compressed import SUMMARY_FILE, write_masks, write_text
from tfx_compression.models.plan import PruningPlan
from tfx_compression.pruner.pruning import prune
from tfx_compression.tfx_support import artifacts, inputs


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
          input_dict: `model`.
          output_dict: `pruned_model`, `pruning_plan`.
          exec_properties: `plan` (JSON), `sparsity` (overrides the plan's), `module_path` or `module_file`.
        """
        model = artifacts.single(input_dict, "model")
        pruned = artifacts.single(output_dict, "pruned_model")
        plan_output = artifacts.single(output_dict, "pruning_plan")
        plan = PruningPlan.merged(exec_properties["plan"], {"sparsity": exec_properties.get("sparsity")})
        loaded = keras2.load(artifacts.model_path(model), inputs.UserModule(exec_properties).custom_objects())
        compressed = prune(loaded, plan)
        compressed.save(artifacts.model_path(pruned))
        write_text(os.path.join(pruned.uri, SUMMARY_FILE), compressed.summary.model_dump_json(indent=1))
        write_text(os.path.join(plan_output.uri, artifacts.PLAN_FILE), plan.model_dump_json(indent=1))
        write_masks(os.path.join(plan_output.uri, artifacts.MASKS_FILE), compressed.masks)
        after = compressed.summary.after
        artifacts.describe_model(
            pruned,
            model,
            technique=plan.technique,
            sparsity=after.sparsity,
            parameters=after.parameters,
            macs=after.macs,
        )
        artifacts.set_properties(plan_output, plan=plan.to_json(), sparsity=plan.sparsity)
