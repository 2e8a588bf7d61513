"""The Pruner component."""

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration import data_types
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from tfx_compression.models.plan import PruningPlan
from tfx_compression.pruner import executor
from tfx_compression.tfx_support import artifacts, declaration


class PrunerSpec(ComponentSpec):
    """Inputs, outputs and parameters of Pruner."""

    PARAMETERS = {
        "plan": ExecutionParameter(type=str),
        "sparsity": ExecutionParameter(type=float, optional=True),
        declaration.CODE_VERSION: ExecutionParameter(type=str),
        **declaration.MODULE_PARAMETERS,
    }
    INPUTS = {"model": ChannelParameter(type=standard_artifacts.Model)}
    OUTPUTS = {
        "pruned_model": ChannelParameter(type=standard_artifacts.Model),
        "pruning_plan": ChannelParameter(type=artifacts.PruningPlanArtifact),
    }


class Pruner(base_component.BaseComponent):
    """Sets the least important weights of a trained model to zero.

    ```python
    pruner = tfc.Pruner(model=trainer.outputs["model"], plan=tfc.PruningPlan(sparsity=0.8))
    ```

    Outputs:
      pruned_model: the Model, with the Trainer's signatures; `summary.json` (per layer, before and after) beside it.
      pruning_plan: what was pruned, for SparsityFineTuner: `plan.json` and `masks.npz`.
    """

    SPEC_CLASS = PrunerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        plan: PruningPlan | None = None,
        *,
        sparsity: float | data_types.RuntimeParameter | None = None,
        module_file: str | None = None,
    ):
        """Declares the pruning of `model`.

        Args:
          model: a Model channel: a Keras 2 model saved with its metadata.
          plan: what to prune; the default plan otherwise.
          sparsity: overrides the plan's, also at run time.
          module_file: the user's module; its `custom_objects()` is used to load the model.

        Raises:
          ConfigError: where `sparsity` is no value for the plan.
        """
        properties = declaration.config_properties("plan", plan or PruningPlan(), {"sparsity": sparsity})
        super().__init__(
            PrunerSpec(
                model=model,
                pruned_model=types.Channel(type=standard_artifacts.Model),
                pruning_plan=types.Channel(type=artifacts.PruningPlanArtifact),
                module_file=module_file,
                code_version=declaration.code_version(__name__),
                **properties,
            )
        )
        declaration.package_module(self)
