"""The Pruner component."""

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration import data_types
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from tfx_compression.errors import ConfigError
from tfx_compression.pruner import executor
from tfx_compression.pruning import criteria
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import requires_data
from tfx_compression.tfx_support import artifacts, declaration


class PrunerSpec(ComponentSpec):
    """Inputs, outputs and parameters of Pruner."""

    PARAMETERS = {
        "plan": ExecutionParameter(type=str),
        "sparsity": ExecutionParameter(type=float, optional=True),
        "technique": ExecutionParameter(type=str, optional=True),
        "split": ExecutionParameter(type=str),
        "checkpoint_uri": ExecutionParameter(type=str, optional=True),
        declaration.CODE_VERSION: ExecutionParameter(type=str),
        **declaration.MODULE_PARAMETERS,
    }
    INPUTS = {
        "model": ChannelParameter(type=standard_artifacts.Model),
        "examples": ChannelParameter(type=standard_artifacts.Examples, optional=True),
        "schema": ChannelParameter(type=standard_artifacts.Schema, optional=True),
        "transform_graph": ChannelParameter(type=standard_artifacts.TransformGraph, optional=True),
    }
    OUTPUTS = {
        "pruned_model": ChannelParameter(type=standard_artifacts.Model),
        "pruning_plan": ChannelParameter(type=artifacts.PruningPlanArtifact),
    }


class Pruner(base_component.BaseComponent):
    """Prunes a trained model: sets weights to zero, or removes filters, units and heads.

    ```python
    pruner = tfc.Pruner(
        model=trainer.outputs["model"],
        plan=tfc.PruningPlan(technique="filter", criterion="taylor", allocation="global", sparsity=0.5),
        examples=transform.outputs["transformed_examples"],
        schema=transform.outputs["post_transform_schema"],
    )
    ```

    Outputs:
      pruned_model: The Model, with the Trainer's signatures, and `summary.json` (sizes before and after, per layer).
      pruning_plan: The record of the pruning, `pruning.json`, and `masks.npz` for SparsityFineTuner; `report.html` for
        people.
    """

    SPEC_CLASS = PrunerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        plan: PruningPlan | None = None,
        *,
        examples: types.BaseChannel | None = None,
        schema: types.BaseChannel | None = None,
        transform_graph: types.BaseChannel | None = None,
        split: str = "train",
        sparsity: float | data_types.RuntimeParameter | None = None,
        technique: str | data_types.RuntimeParameter | None = None,
        checkpoint_uri: str | None = None,
        module_file: str | None = None,
    ):
        """Declares the pruning of a model.

        Args:
          model: Model channel: a Keras 2 SavedModel with its metadata, a Keras 3 model (`.keras` beside or instead of
            the SavedModel), or, for technique `weight`, any SavedModel.
          plan: Plan of the pruning; by default `PruningPlan()`.
          examples: Examples that the model was trained on (`transformed_examples` after Transform), for the criteria
            taylor, fisher, activation_mean and apoz, and for the allocation sensitivity. For a SavedModel without
            layers, the examples that its signature takes, mostly ExampleGen's.
          schema: Schema of the examples (`post_transform_schema` after Transform).
          transform_graph: TransformGraph that a user's `input_fn` gets instead of the schema. It is also needed to
            rebuild signatures that apply Transform, if channels are removed and the model lacks its Transform layer.
          split: Split of the examples to use.
          sparsity: Value that overrides the plan's, also at run time.
          technique: The same for the technique.
          checkpoint_uri: Folder in which sensitivity keeps its values for a second attempt; by default one beside the
            node's outputs, which a cluster doesn't keep.
          module_file: Path of the user's module. It may register criteria and define `custom_objects()`,
            `compile_fn(model)`, `loss_fn(labels, outputs)` (for a SavedModel without layers, with `outputs` by name),
            `input_fn(files, data_accessor, tf_transform_output_or_schema, batch_size)` and `signatures_fn(model,
            tf_transform_output)`.

        Raises:
          ConfigError: `sparsity` or `technique` doesn't fit the plan, the criterion is unknown and no module file could
            register it, or the plan requires data and there is none.
        """
        plan = plan or PruningPlan()
        properties = declaration.config_properties("plan", plan, {"sparsity": sparsity, "technique": technique})
        _require_inputs(plan, examples is not None and schema is not None, bool(module_file))
        super().__init__(
            PrunerSpec(
                model=model,
                examples=examples,
                schema=schema,
                transform_graph=transform_graph,
                pruned_model=types.Channel(type=standard_artifacts.Model),
                pruning_plan=types.Channel(type=artifacts.PruningPlanArtifact),
                split=split,
                checkpoint_uri=checkpoint_uri,
                module_file=module_file,
                code_version=declaration.code_version(__name__),
                **properties,
            )
        )
        declaration.package_module(self)


def _require_inputs(plan: PruningPlan, data: bool, module: bool) -> None:
    """Raises ConfigError for an unknown criterion, or for data that the plan requires and that is missing."""
    if plan.criterion not in criteria.NAMES and module:
        return  # the module registers it and declares what it requires
    if requires_data(plan) and not data:
        raise ConfigError(
            f"Pruner(plan=…): criterion {plan.criterion!r} with allocation {plan.allocation!r} requires data. "
            "Remedy: Pruner(examples=…, schema=…) with those of the Trainer.",
            field="examples",
            code="plan-without-data",
        )
