"""The SparsityFineTuner component."""

import re
from collections.abc import Mapping

import tf_keras
from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration import data_types
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from tfx_compression.errors import ConfigError
from tfx_compression.keras_models.library import import_keras3
from tfx_compression.sparsity_fine_tuner import checks, executor
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.tfx_support import artifacts, declaration


class SparsityFineTunerSpec(ComponentSpec):
    """Inputs, outputs and parameters of SparsityFineTuner."""

    PARAMETERS = {
        "config": ExecutionParameter(type=str),
        "epochs": ExecutionParameter(type=int, optional=True),
        "learning_rate": ExecutionParameter(type=float, optional=True),
        "mode": ExecutionParameter(type=str, optional=True),
        "checkpoint_uri": ExecutionParameter(type=str, optional=True),
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
        executor.TEACHER: ChannelParameter(type=standard_artifacts.Model, optional=True),
    }
    OUTPUTS = {
        "fine_tuned_model": ChannelParameter(type=standard_artifacts.Model),
        "model_run": ChannelParameter(type=standard_artifacts.ModelRun),
    }


class SparsityFineTuner(base_component.BaseComponent):
    """Trains a pruned model to recover its accuracy, or prunes it further while it trains. What is pruned stays so.

    ```python
    tuner = tfc.SparsityFineTuner(
        model=pruner.outputs["pruned_model"],
        pruning_plan=pruner.outputs["pruning_plan"],
        teacher_model=trainer.outputs["model"],
        examples=transform.outputs["transformed_examples"],
        schema=transform.outputs["post_transform_schema"],
        module_file="trainer.py",
        config=tfc.FineTuning(mode="fixed", epochs=3, distillation=tfc.Distillation()),
    )
    ```

    A run that was killed resumes from its last checkpoint when the pipeline is started again.

    Outputs:
      fine_tuned_model: Model with the Trainer's signatures. `summary.json` (size before and after) and `tuning.json`
        (epochs, rounds, notes) are beside it.
      model_run: TensorBoard logs: loss, metrics, sparsity and learning rate by step.
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
        teacher_model: types.BaseChannel | Mapping[str, types.BaseChannel] | None = None,
        transform_graph: types.BaseChannel | None = None,
        epochs: int | data_types.RuntimeParameter | None = None,
        learning_rate: float | data_types.RuntimeParameter | None = None,
        mode: str | data_types.RuntimeParameter | None = None,
        train_split: str = "train",
        eval_split: str = "eval",
        checkpoint_uri: str | None = None,
        module_file: str | None = None,
    ):
        """Declares the fine-tuning of `model`.

        Args:
          model: Channel of Pruner's Model.
          pruning_plan: Channel of Pruner's plan.
          examples: Examples that the Trainer's network was trained on (after Transform: `transformed_examples`). For a
            SavedModel without layers, those that its signature takes: mostly ExampleGen's.
          schema: Schema of the examples (after Transform: `post_transform_schema`).
          config: Configuration of the training.
          teacher_model: Dense Model (`trainer.outputs["model"]`), or several by name (letters, digits and `_`), to
            learn from (`config.distillation`) and to compare with (`config.guard`; the first by name).
          transform_graph: TransformGraph. A user's `input_fn` gets it as a TFTransformOutput instead of the schema.
            Signatures of a network whose graph changed need it, too.
          epochs: Override of the configuration's epochs, also at run time.
          learning_rate: Override of the configuration's learning rate, also at run time.
          mode: Override of the configuration's mode, also at run time.
          train_split: Split to train on.
          eval_split: Split to evaluate after each epoch.
          checkpoint_uri: Folder of checkpoints for a second attempt. By default, they are beside the node's outputs. It
            is required on Kubeflow, where each run has other outputs: choose a folder that all runs share.
          module_file: The user's module. All of its functions are optional:
            `input_fn(files, data_accessor, tf_transform_output_or_schema, batch_size)` returns batches of (features,
            label[, weight]); `compile_fn(model)` compiles; `loss_fn(labels, outputs)` is the loss of a SavedModel
            without layers; `train_step(model, batch)` trains one step and returns its logs; `callbacks_fn()` returns
            Keras callbacks; `strategy_fn()` returns a tf.distribute strategy;
            `signatures_fn(model, tf_transform_output)` returns signatures; `custom_objects()` returns the user's
            classes by name.

        Raises:
          ConfigError: If an override is no value of the configuration, a teacher's name is invalid, or the
            configuration needs a teacher and there is none, or no Keras has an optimizer, loss or metric of its names
            and no module file could register it.
        """
        config = config or FineTuning()
        properties = declaration.config_properties(
            "config", config, {"epochs": epochs, "learning_rate": learning_rate, "mode": mode}
        )
        teachers = _teachers(teacher_model)
        _require_teacher(config, bool(teachers))
        if module_file is None:
            _require_keras_names(config)
        super().__init__(
            _spec_class(list(teachers))(
                model=model,
                pruning_plan=pruning_plan,
                examples=examples,
                schema=schema,
                transform_graph=transform_graph,
                **teachers,
                fine_tuned_model=types.Channel(type=standard_artifacts.Model),
                model_run=types.Channel(type=standard_artifacts.ModelRun),
                train_split=train_split,
                eval_split=eval_split,
                checkpoint_uri=checkpoint_uri,
                module_file=module_file,
                code_version=declaration.code_version(__name__),
                **properties,
            )
        )
        declaration.package_module(self)


def _teachers(teacher: types.BaseChannel | Mapping[str, types.BaseChannel] | None) -> dict[str, types.BaseChannel]:
    """Returns the channels of the teachers by input name."""
    if teacher is None:
        return {}
    if not isinstance(teacher, Mapping):
        return {executor.TEACHER: teacher}
    if invalid := [name for name in teacher if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)]:
        raise ConfigError(
            f"Names of teachers have letters, digits and '_'; got {invalid}.",
            field="teacher_model",
            code="invalid-name",
        )
    return {f"{executor.TEACHER}_{name}": channel for name, channel in teacher.items()}


def _require_teacher(config: FineTuning, given: bool) -> None:
    required = config.distillation is not None or (config.guard is not None and config.guard.baseline is None)
    if required and not given:
        field = "distillation" if config.distillation is not None else "guard"
        raise ConfigError(
            f"FineTuning.{field} needs the dense model. Remedy: SparsityFineTuner(teacher_model="
            "trainer.outputs['model']).",
            field=f"FineTuning.{field}",
            code="teacher-missing",
        )


def _require_keras_names(config: FineTuning) -> None:
    """Raises ConfigError unless Keras 2 or Keras 3 knows all names; which of them the model has is not known yet."""
    try:
        checks.require_keras_names(config, tf_keras)
    except ConfigError:
        checks.require_keras_names(config, import_keras3())


def _spec_class(teachers: list[str]) -> type[SparsityFineTunerSpec]:
    """Returns the spec with an input per teacher: Kubeflow takes one plain channel per input."""
    inputs = {name: ChannelParameter(type=standard_artifacts.Model) for name in teachers if name != executor.TEACHER}
    if not inputs:
        return SparsityFineTunerSpec
    return type(
        "SparsityFineTunerSpec", (SparsityFineTunerSpec,), {"INPUTS": {**SparsityFineTunerSpec.INPUTS, **inputs}}
    )
