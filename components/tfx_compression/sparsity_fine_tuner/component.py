"""The SparsityFineTuner component."""

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration import data_types
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from tfx_compression.sparsity_fine_tuner import executor
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.tfx_support import artifacts, declaration


class SparsityFineTunerSpec(ComponentSpec):
    """Inputs, outputs and parameters of SparsityFineTuner."""

    PARAMETERS = {
        "config": ExecutionParameter(type=str),
        "epochs": ExecutionParameter(type=int, optional=True),
        "learning_rate": ExecutionParameter(type=float, optional=True),
        "train_split": ExecutionParameter(type=str),
        "eval_split": ExecutionParameter(type=str),
        declaration.CODE_VERSION: ExecutionParameter(type=str),
        **declaration.MODULE_PARAMETERS,
    }
    INPUTS = {
        "model": ChannelParameter(type=standard_artifacts.Model),
        "pruning_plan": ChannelParameter(type=artifacts.PruningPlanArtifact),
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "schema": ChannelParameter(type=standard_artifacts.Schema),
        "transform_graph": ChannelParameter(type=standard_artifacts.TransformGraph, optional=True),
    }
    OUTPUTS = {
        "fine_tuned_model": ChannelParameter(type=standard_artifacts.Model),
        "model_run": ChannelParameter(type=standard_artifacts.ModelRun),
    }


class SparsityFineTuner(base_component.BaseComponent):
    """Trains a pruned model to win its accuracy back; what was pruned stays zero, and that is checked.

    ```python
    tuner = tfc.SparsityFineTuner(
        model=pruner.outputs["pruned_model"],
        pruning_plan=pruner.outputs["pruning_plan"],
        examples=transform.outputs["transformed_examples"],
        schema=transform.outputs["post_transform_schema"],
        module_file="trainer.py",
        config=tfc.FineTuning(epochs=3),
    )
    ```

    Outputs:
      fine_tuned_model: the Model, with the Trainer's signatures; `summary.json` (before and after) beside it.
      model_run: TensorBoard logs.
    """

    SPEC_CLASS = SparsityFineTunerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        pruning_plan: types.BaseChannel,
        examples: types.BaseChannel,
        schema: types.BaseChannel,
        config: FineTuning | None = None,
        *,
        transform_graph: types.BaseChannel | None = None,
        epochs: int | data_types.RuntimeParameter | None = None,
        learning_rate: float | data_types.RuntimeParameter | None = None,
        train_split: str = "train",
        eval_split: str = "eval",
        module_file: str | None = None,
    ):
        """Declares the fine-tuning of `model`.

        Args:
          model: Pruner's Model channel.
          pruning_plan: Pruner's.
          examples: what the Trainer's network was trained on (behind Transform: `transformed_examples`).
          schema: theirs (behind Transform: `post_transform_schema`).
          config: how to train; the default otherwise.
          transform_graph: what a user's `input_fn` gets instead of the schema, as a TFTransformOutput.
          epochs: overrides the configuration's, also at run time.
          learning_rate: the same.
          train_split: split to train on.
          eval_split: split whose metrics are logged after each epoch.
          module_file: the user's module. Used of it, all optional:
            `input_fn(files, data_accessor, tf_transform_output_or_schema, batch_size)`, batches of (features, label);
            `compile_fn(model)`; `custom_objects()`.

        Raises:
          ConfigError: where an override is no value for the configuration.
        """
        properties = declaration.config_properties(
            "config", config or FineTuning(), {"epochs": epochs, "learning_rate": learning_rate}
        )
        super().__init__(
            SparsityFineTunerSpec(
                model=model,
                pruning_plan=pruning_plan,
                examples=examples,
                schema=schema,
                transform_graph=transform_graph,
                fine_tuned_model=types.Channel(type=standard_artifacts.Model),
                model_run=types.Channel(type=standard_artifacts.ModelRun),
                train_split=train_split,
                eval_split=eval_split,
                module_file=module_file,
                code_version=declaration.code_version(__name__),
                **properties,
            )
        )
        declaration.package_module(self)
