"""The executor of CompressedEvaluator: reads models and examples, evaluates, writes the decision and the report."""

import hashlib
import json
import os
from typing import Any

import tensorflow as tf
from google.protobuf import json_format
from tensorflow_model_analysis.proto import config_pb2
from tfx import types
from tfx.components.evaluator import constants
from tfx.components.evaluator import executor as evaluator_executor
from tfx.utils import io_utils

from tfx_compression import files
from tfx_compression.compressed_evaluator import evaluate, report
from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.compressed_evaluator.eval_config import BASELINE
from tfx_compression.compressed_evaluator.evaluation import Evaluation
from tfx_compression.errors import ModelError
from tfx_compression.tfx_support import artifacts, blessings, inputs


class Executor(evaluator_executor.Executor):
    """Executor of CompressedEvaluator.

    It is a subclass of the Evaluator's, because Kubeflow's runner converts artifact ids only for that class.
    """

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Evaluates the candidates.

        Args:
          input_dict: `candidate_<name>` for each name, `baseline_model` (optional), `examples`, `schema` (optional).
          output_dict: `best_model`, `blessing`, `evaluation`, `report`.
          exec_properties: `candidates` (JSON list of names), `eval_config` and `budget` (JSON), `max_metric_drop`
            (overrides every drop of the budget), `example_split`, `reference_kernels` (0 or 1).
        """
        names = json.loads(exec_properties["candidates"])
        candidates = {name: artifacts.single(input_dict, f"candidate_{name}") for name in names}
        baseline = artifacts.optional(input_dict, "baseline_model")
        examples = artifacts.single(input_dict, "examples")
        budget = Budget.merged(exec_properties["budget"], {})
        if (drop := exec_properties.get("max_metric_drop")) is not None:
            budget = Budget.merged(budget.to_json(), {"max_metric_drop": dict.fromkeys(budget.max_metric_drop, drop)})
        digests = {name: blessings.model_digest(model) for name, model in candidates.items()}
        evaluation = evaluate.run(
            candidates={name: artifacts.model_path(model) for name, model in candidates.items()},
            baseline=artifacts.model_path(baseline) if baseline is not None else None,
            patterns=[inputs.example_pattern(examples, exec_properties["example_split"])],
            schema=inputs.read_schema(input_dict) if input_dict.get("schema") else None,
            eval_config=json_format.Parse(exec_properties["eval_config"], config_pb2.EvalConfig()),
            budget=budget,
            output_path=artifacts.single(output_dict, "evaluation").uri,
            make_pipeline=self._make_beam_pipeline,
            reference_kernels=bool(exec_properties.get("reference_kernels")),
        )
        chosen = candidates[evaluation.chosen] if evaluation.chosen else None
        models = {**candidates, **({BASELINE: baseline} if baseline is not None else {})}
        page = report.render({"": evaluation}, origins={"": {name: _origin(model) for name, model in models.items()}})
        files.write_text(os.path.join(artifacts.single(output_dict, "report").uri, artifacts.REPORT_FILE), page)
        best = artifacts.single(output_dict, "best_model")
        self._copy_chosen(evaluation, chosen, best)
        if evaluation.chosen:
            _require_unchanged(best, digests[evaluation.chosen])
        blessing = artifacts.single(output_dict, "blessing")
        self._bless(evaluation, chosen, baseline, blessing)
        digest_of_budget = hashlib.sha256(budget.to_json().encode()).hexdigest()
        artifacts.set_properties(blessing, **{blessings.BUDGET_DIGEST: digest_of_budget})
        if evaluation.chosen:
            artifacts.set_properties(blessing, **{blessings.MODEL_DIGEST: digests[evaluation.chosen]})

    def _copy_chosen(self, evaluation: Evaluation, chosen: types.Artifact | None, best: types.Artifact) -> None:
        """Copies the chosen candidate with the properties of its artifact, and adds its metrics."""
        tf.io.gfile.makedirs(best.uri)
        if chosen is None or evaluation.chosen is None:
            return
        io_utils.copy_dir(chosen.uri, best.uri)
        metrics = evaluation.candidates[evaluation.chosen].metrics
        drops = evaluation.metric_drop[evaluation.chosen]
        artifacts.set_properties(
            best,
            **{
                **artifacts.custom_properties(chosen),
                "parent_uri": chosen.uri,
                "candidate": evaluation.chosen,
                **{f"metric_{name}": value for name, value in metrics.items() if name != "example_count"},
                **{f"drop_{name}": value for name, value in drops.items()},
            },
        )

    def _bless(
        self,
        evaluation: Evaluation,
        chosen: types.Artifact | None,
        baseline: types.Artifact | None,
        blessing: types.Artifact,
    ) -> None:
        """Writes the blessing as Pusher expects it.

        A TFLite model is not recorded as the current model, or a Resolver would make it the next baseline.
        """
        blessed = chosen is not None
        name = constants.BLESSED_FILE_NAME if blessed else constants.NOT_BLESSED_FILE_NAME
        files.write_text(os.path.join(blessing.uri, name), "")
        artifacts.set_properties(
            blessing,
            reason=evaluation.reason,
            candidate=evaluation.chosen,
            candidate_uri=chosen.uri if chosen else None,
            first_release=1 if chosen is not None and baseline is None else None,
            **{
                constants.ARTIFACT_PROPERTY_BLESSED_KEY: (
                    constants.BLESSED_VALUE if blessed else constants.NOT_BLESSED_VALUE
                ),
                constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY: baseline.uri if baseline is not None else None,
                constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY: baseline.id if baseline is not None else None,
            },
        )
        if chosen is not None and evaluation.candidates[str(evaluation.chosen)].kind == "saved_model":
            artifacts.set_properties(
                blessing,
                **{
                    constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY: chosen.uri,
                    constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY: chosen.id,
                },
            )


def _require_unchanged(best: types.Artifact, digest: str) -> None:
    """Raises ModelError if the copy of the chosen model isn't what was measured."""
    if blessings.model_digest(best) != digest:
        raise ModelError(
            f"The files of the chosen model changed while it was evaluated: {best.uri} has other bytes than were "
            "measured. Remedy: run the evaluator again, with nothing else writing to the pipeline's folder.",
            code="changed-while-evaluated",
        )


def _origin(model: types.Artifact) -> dict[str, object]:
    """Returns what the report says about how a model was made."""
    producer = {"made by": model.producer_component} if model.producer_component else {}
    return {"artifact id": model.id, "uri": model.uri, **producer, **artifacts.custom_properties(model)}
