"""The CompressedEvaluator component."""

import re
from collections.abc import Mapping

import tensorflow_model_analysis as tfma
from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.orchestration import data_types
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import json_utils, proto_utils

from tfx_compression.compressed_evaluator import executor
from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.compressed_evaluator.eval_config import BASELINE, complete_config, has_thresholds
from tfx_compression.errors import ConfigError
from tfx_compression.tfx_support import artifacts, declaration


class CompressedEvaluatorSpec(ComponentSpec):
    """Inputs, outputs and parameters of CompressedEvaluator, except the candidates, which differ by instance."""

    PARAMETERS = {
        "eval_config": ExecutionParameter(type=str),
        "budget": ExecutionParameter(type=str),
        "max_metric_drop": ExecutionParameter(type=float, optional=True),
        "candidates": ExecutionParameter(type=str),
        "example_split": ExecutionParameter(type=str),
        "reference_kernels": ExecutionParameter(type=int),
        declaration.CODE_VERSION: ExecutionParameter(type=str),
    }
    INPUTS = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "baseline_model": ChannelParameter(type=standard_artifacts.Model, optional=True),
        "schema": ChannelParameter(type=standard_artifacts.Schema, optional=True),
    }
    OUTPUTS = {
        "best_model": ChannelParameter(type=standard_artifacts.Model),
        "blessing": ChannelParameter(type=standard_artifacts.ModelBlessing),
        "evaluation": ChannelParameter(type=standard_artifacts.ModelEvaluation),
        "report": ChannelParameter(type=artifacts.EvaluationReport),
    }


class CompressedEvaluator(base_beam_component.BaseBeamComponent):
    """Measures candidates against a baseline and decides which one may be released.

    ```python
    evaluator = tfc.CompressedEvaluator(
        candidates={"int8": int8.outputs["tflite_model"], "float16": float16.outputs["tflite_model"]},
        baseline_model=trainer.outputs["model"],
        examples=example_gen.outputs["examples"],
        schema=schema_gen.outputs["schema"],
        eval_config=tfma.EvalConfig(
            model_specs=[tfma.ModelSpec(label_key="label")],
            metrics_specs=[tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="SparseCategoricalAccuracy")])],
        ),
        budget=tfc.Budget(max_metric_drop={"sparse_categorical_accuracy": 0.01}, max_bytes=100_000),
    )
    ```

    Outputs:
      best_model: The chosen Model, without files if none was chosen.
      blessing: The ModelBlessing that Pusher and TFLiteStorePusher obey.
      evaluation: A ModelEvaluation with TFMA's files, for `tfma.load_eval_result(uri, model_name="int8")`, and
        `evaluation.json`.
      report: `report.html`, for people.
    """

    SPEC_CLASS = CompressedEvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        candidates: Mapping[str, types.BaseChannel],
        baseline_model: types.BaseChannel | None,
        examples: types.BaseChannel,
        eval_config: tfma.EvalConfig,
        budget: Budget | None = None,
        *,
        schema: types.BaseChannel | None = None,
        max_metric_drop: float | data_types.RuntimeParameter | None = None,
        example_split: str = "eval",
        reference_kernels: bool = False,
    ):
        """Declares the evaluation of `candidates`.

        Args:
          candidates: Model channels (SavedModels or TFLite models) by name. A name has letters, digits and `_`.
          baseline_model: Model channel with which the candidates are compared, a SavedModel or a TFLite model. None
            for a first release, which the budget has to allow (`allow_first`). A channel that turns out empty (a
            Resolver's, before any model was blessed) counts as None.
          examples: Examples that the models' `serving_default` takes, usually the ExampleGen's.
          eval_config: TFMA's configuration. The first ModelSpec, with the label, applies to all models.
          budget: Limits and objective. A budget without limits needs thresholds in `eval_config`, or
            `accept_anything`.
          schema: Schema of the examples.
          max_metric_drop: Overrides the allowed drop of every metric in the budget, also at run time.
          example_split: Split to evaluate on.
          reference_kernels: Whether TFLite models run on TFLite's reference kernels, which are slow and give the same
            bits on every machine, instead of XNNPACK, which devices run.

        Raises:
          ConfigError: A candidate's name is invalid, there is no label, `eval_config` doesn't compute a limited
            metric, or nothing limits what is blessed.
        """
        budget = budget or Budget()
        names = sorted(candidates)
        _check(names, baseline_model is not None, eval_config, budget, max_metric_drop is not None)
        super().__init__(
            _spec_for(names)(
                **{f"candidate_{name}": candidates[name] for name in names},
                baseline_model=baseline_model,
                examples=examples,
                schema=schema,
                best_model=types.Channel(type=standard_artifacts.Model),
                blessing=types.Channel(type=standard_artifacts.ModelBlessing),
                evaluation=types.Channel(type=standard_artifacts.ModelEvaluation),
                report=types.Channel(type=artifacts.EvaluationReport),
                eval_config=proto_utils.proto_to_json(eval_config),
                budget=budget.to_json(),
                max_metric_drop=max_metric_drop,
                candidates=json_utils.dumps(names),
                example_split=example_split,
                reference_kernels=int(reference_kernels),
                code_version=declaration.code_version(__name__),
            )
        )


def _check(
    names: list[str], has_baseline: bool, eval_config: tfma.EvalConfig, budget: Budget, overrides_drops: bool
) -> None:
    """Raises a ConfigError if the evaluation could not decide."""
    bad = [name for name in names if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)]
    if bad or not names:
        raise ConfigError(
            f"A candidate's name starts with a letter and has letters, digits and '_'; got {bad or 'no name'}. "
            'Remedy: candidates={"int8": …}.',
            field="candidates",
            code="invalid-name" if bad else "no-candidates",
        )
    if not has_baseline and not budget.allow_first:
        raise ConfigError(
            "CompressedEvaluator blesses nothing without a baseline_model. Remedy: baseline_model="
            "trainer.outputs['model'], or Budget(allow_first=True) for the first release.",
            field="baseline_model",
            code="no-baseline",
        )
    if not budget.set_limits and not budget.accept_anything and not has_thresholds(eval_config):
        raise ConfigError(
            "CompressedEvaluator would bless any model: the budget has no limit, and the eval_config no threshold. "
            "Remedy: Budget(max_metric_drop={…}, max_bytes=…), or Budget(accept_anything=True).",
            field="budget",
            code="no-limits",
        )
    models = [*names, BASELINE] if has_baseline else names
    complete_config(models, eval_config, budget, has_baseline=has_baseline)
    if overrides_drops and not budget.max_metric_drop:
        raise ConfigError(
            "max_metric_drop overrides the drops of the budget, which has none. Remedy: Budget(max_metric_drop={…}).",
            field="max_metric_drop",
            code="no-drops",
        )


def _spec_for(names: list[str]) -> type[CompressedEvaluatorSpec]:
    """Returns the spec with an input `candidate_<name>` for each name. Kubeflow takes one plain channel per input."""
    candidates = {f"candidate_{name}": ChannelParameter(type=standard_artifacts.Model) for name in names}
    inputs = {**CompressedEvaluatorSpec.INPUTS, **candidates}
    return type("CompressedEvaluatorSpec", (CompressedEvaluatorSpec,), {"INPUTS": inputs})
