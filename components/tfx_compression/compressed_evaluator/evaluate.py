"""Evaluates candidates against a baseline: one pass over the examples, measurements, and the gate's decision."""

import contextlib
import copy
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any

import apache_beam as beam
import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis.proto import config_pb2

from tfx_compression.compressed_evaluator import gate, measurement, tfma_results, trial_run
from tfx_compression.compressed_evaluator.beam_pipeline import PlannedModel, run_models
from tfx_compression.compressed_evaluator.behavior import PassStatistics
from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.compressed_evaluator.eval_config import BASELINE, check_config, complete_config
from tfx_compression.compressed_evaluator.evaluation import FILE, Evaluation
from tfx_compression.compressed_evaluator.measurement import ExampleRow, LoadedModel
from tfx_compression.compressed_evaluator.output_matching import match_outputs
from tfx_compression.compressed_evaluator.output_metrics import (
    Outputs,
    outputs_of_classes,
    require_output_names,
    with_default_metrics,
)
from tfx_compression.compressed_evaluator.records import BaselineComparison, LimitVerdict, ModelMeasurements
from tfx_compression.config import require_config
from tfx_compression.data import examples
from tfx_compression.errors import ConfigError, DataError, ModelError
from tfx_compression.files import write_text
from tfx_compression.model_handle import model_files
from tfx_compression.quiet import quiet_libraries
from tfx_compression.tflite.contents import ModelContents, read_contents

# Files that an evaluation writes beside evaluation.json.
_WRITTEN = re.compile(
    r"(metrics|plots|attributions)-\d+-of-\d+\.tfrecord|validations\.tfrecord|eval_config\.json|report\.html"
)


def evaluate(
    candidates: Mapping[str, str],
    examples: str | Sequence[str],
    label_key: str | None = None,
    *,
    baseline: str | None = None,
    schema: schema_pb2.Schema | None = None,
    eval_config: config_pb2.EvalConfig | None = None,
    budget: Budget | None = None,
    output_path: str | None = None,
    reference_kernels: bool = False,
) -> Evaluation:
    """Evaluates models on tf.Examples with a local Beam runner.

    Args:
      candidates: By name, the path of a SavedModel or TFLite model.
      examples: Pattern or patterns of TFRecord files with the tf.Examples that the models take.
      label_key: Feature that holds the label. It may be in `eval_config` instead.
      baseline: Path of the model that the candidates are compared with.
      schema: Schema of the examples, which gives features their shape.
      eval_config: TFMA's configuration: metrics, slices, thresholds. By default, the metric is the accuracy of a
        classifier; for models with several outputs, that of each output, whose label is the feature of its name.
      budget: Limits and objective.
      output_path: Folder for TFMA's files, which `tfma.load_eval_result` reads, and evaluation.json. By default nothing
        is kept.
      reference_kernels: Whether TFLite models run on TFLite's reference kernels, which are slow and give the same bits
        on every machine.

    Raises:
      ModelError: A model can't be run, or its inputs or outputs don't fit.
      DataError: There are no examples, or some lack the label.
      ConfigError: The configuration doesn't fit the models or the budget.
    """
    if budget is not None:
        require_config(budget, Budget, "budget")
    _check_types(candidates, examples, baseline, schema, eval_config)
    paths = {name: os.fspath(path) for name, path in candidates.items()}
    baseline = None if baseline is None else os.fspath(baseline)
    patterns = [os.fspath(examples)] if isinstance(examples, str | os.PathLike) else list(examples)
    config = config_pb2.EvalConfig() if eval_config is None else copy.deepcopy(eval_config)
    if not config.model_specs:
        config.model_specs.add()
    if label_key:
        config.model_specs[0].label_key = label_key
    with contextlib.ExitStack() as stack:
        output = output_path or stack.enter_context(tempfile.TemporaryDirectory())
        pipeline, limits = beam.Pipeline, budget or Budget()
        return run(paths, baseline, patterns, schema, config, limits, output, pipeline, reference_kernels)


def _check_types(candidates: Any, examples: object, baseline: object, schema: object, eval_config: object) -> None:
    """Raises a ConfigError for an argument of `evaluate` of another type."""
    _require_type("candidates", candidates, Mapping, "a dict of paths by name: {'int8': 'model.tflite'}")
    for name, path in (*candidates.items(), *([(BASELINE, baseline)] if baseline is not None else [])):
        remedy = "a path; save a model with result.save(path) or model.export(path)"
        _require_type(f"candidates[{name!r}]" if name != BASELINE else BASELINE, path, str | os.PathLike, remedy)
    _require_type("examples", examples, str | os.PathLike | Sequence, "a pattern of TFRecord files, or several")
    remedy = "a tfma.EvalConfig; proto_files.read_eval_config reads one from a file"
    _require_type("eval_config", eval_config, config_pb2.EvalConfig | None, remedy)
    remedy = "a schema_pb2.Schema; proto_files.read_schema reads one from a file"
    _require_type("schema", schema, schema_pb2.Schema | None, remedy)


def _require_type(argument: str, value: object, accepted: type | UnionType, remedy: str) -> None:
    if not isinstance(value, accepted):
        message = f"{argument} is a {type(value).__name__}. Remedy: {remedy}."
        raise ConfigError(message, field=argument, code="wrong-type")


@quiet_libraries()
def run(
    candidates: Mapping[str, str],
    baseline: str | None,
    patterns: Sequence[str],
    schema: schema_pb2.Schema | None,
    eval_config: config_pb2.EvalConfig,
    budget: Budget,
    output_path: str,
    make_pipeline: Callable[[], beam.Pipeline],
    reference_kernels: bool = False,
) -> Evaluation:
    """Evaluates, decides, and writes TFMA's files and evaluation.json to `output_path`.

    The first ModelSpec of `eval_config` applies to every model (label, weights, signature outputs). Without metrics, it
    gets the default ones (see `evaluate`).

    Raises:
      ModelError: The baseline can't be run, or a candidate's inputs or outputs don't fit.
      DataError: There are no examples, or some lack the label.
      ConfigError: The budget limits a metric that is not computed, or there is no label.
    """
    if tf.io.gfile.exists(output_path) and not tf.io.gfile.isdir(output_path):
        raise ConfigError(f"{output_path} is a file. Remedy: a folder.", field="output_path", code="unwritable-folder")
    _clear(output_path)
    paths = _locate(candidates, baseline)
    if eval_config.metrics_specs or eval_config.model_specs[0].label_key:  # Else, the outputs decide.
        checked = eval_config if eval_config.metrics_specs else with_default_metrics(eval_config, {}, ())
        check_config(list(paths), checked, schema, budget, has_baseline=baseline is not None)
    files = _files(patterns)
    row = measurement.first_row(files, patterns, schema, eval_config)
    evaluation = _Evaluation(paths, files, schema, eval_config, budget, output_path, reference_kernels)
    with evaluation.timed("trial"):
        evaluation.load_models()
    if set(evaluation.models) - {BASELINE}:
        evaluation.fit_metrics(row)
        evaluation.run_models(make_pipeline, row, ", ".join(patterns))
    decision = evaluation.decide(list(candidates))
    write_text(os.path.join(output_path, FILE), decision.to_json() + "\n")
    return decision


class _Evaluation:
    """The steps of one evaluation and what they found so far.

    Args:
      paths: By name, the path of each model, as `model_files.locate` returns it.
      files: TFRecord files of the examples.
      schema: Schema of the examples.
      eval_config: The user's configuration.
      budget: Limits and objective.
      output_path: Folder for TFMA's files.
      reference_kernels: Whether TFLite models run on TFLite's reference kernels.

    Attributes:
      models: The models that run, by name.
    """

    def __init__(
        self,
        paths: Mapping[str, str],
        files: Sequence[str],
        schema: schema_pb2.Schema | None,
        eval_config: config_pb2.EvalConfig,
        budget: Budget,
        output_path: str,
        reference_kernels: bool,
    ):
        self.models: dict[str, LoadedModel] = {}
        self._paths = paths
        self._files = files
        self._schema = schema
        self._eval_config = eval_config
        self._budget = budget
        self._output_path = output_path
        self._reference_kernels = reference_kernels
        self._has_baseline = BASELINE in paths
        self._measured: dict[str, ModelMeasurements] = {}
        self._comparisons: dict[str, BaselineComparison] = {}
        self._missed_thresholds: dict[str, list[LimitVerdict]] = {}
        self._statistics = PassStatistics()
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Records how long a step takes."""
        started = time.perf_counter()
        yield
        self._seconds[step] = time.perf_counter() - started

    def load_models(self) -> None:
        """Tries every TFLite model in a process of its own, and loads the models that run.

        Raises:
          ModelError: The baseline does not run.
        """
        contents, failures = _try_models(self._paths, self._reference_kernels)
        self.models = {
            name: measurement.load(path, contents.get(name), self._reference_kernels)
            for name, path in self._paths.items()
            if name not in failures
        }
        self._measured = {
            name: measurement.measure_size(path, failures.get(name, "")) for name, path in self._paths.items()
        }

    def fit_metrics(self, row: ExampleRow) -> None:
        """Adds the default metrics if the configuration has none, and checks that the metrics fit the outputs.

        Raises:
          ConfigError: They don't fit.
        """
        compared = [BASELINE] if self._has_baseline else list(self.models)
        if not self._eval_config.metrics_specs:
            self._eval_config = with_default_metrics(self._eval_config, self._outputs()[compared[0]], row[1])
            check_config(
                list(self._paths), self._eval_config, self._schema, self._budget, has_baseline=self._has_baseline
            )
        for name in compared:
            require_output_names(self._eval_config, self._outputs()[name])

    def _outputs(self) -> dict[str, Outputs]:
        return {name: model.predictor.outputs for name, model in self.models.items()}

    def run_models(self, make_pipeline: Callable[[], beam.Pipeline], row: ExampleRow, place: str) -> None:
        """Computes the metrics in one pass over the examples, and measures the models meanwhile and after it.

        Args:
          make_pipeline: Makes the Beam pipeline.
          row: The row that is timed.
          place: Patterns of the examples, for errors.
        """
        names = list(self.models)
        planned = _plan(self.models)
        classes = outputs_of_classes(self._eval_config, self._outputs())
        config = complete_config(names, self._eval_config, self._budget, has_baseline=self._has_baseline)
        has_tflite = any(model.contents is not None for model in self.models.values())
        with measurement.float_tflite(self._paths.get(BASELINE) if has_tflite else None) as float_baseline:
            with self.timed("pass"):
                self._statistics = run_models(
                    planned,
                    self._files,
                    self._schema,
                    config,
                    self._output_path,
                    make_pipeline,
                    reference_kernels=self._reference_kernels,
                    outputs_of_classes=classes,
                )
            self._seconds["interpreter"] = sum(self._statistics.seconds.values())
            if not self._statistics.weight:
                raise DataError(
                    f"All example weights are zero in {place}, so every metric would be zero. "
                    "Remedy: use another example_weight_key, or none.",
                    field="eval_config.model_specs",
                    code="zero-weights",
                )
            with self.timed("latency"):
                self._measured |= measurement.measure(
                    self.models, BASELINE if self._has_baseline else None, float_baseline(), row
                )
        self._read_results(names)

    def _read_results(self, names: Sequence[str]) -> None:
        """Reads what TFMA wrote, and compares the candidates with the baseline."""
        results = tfma_results.read(self._output_path, names)
        self._missed_thresholds = tfma_results.missed_thresholds(self._output_path, names)
        self._budget = self._budget.for_metrics(results.metrics(names[0]))
        for name in names:
            metrics = {
                "metrics": results.metrics(name),
                "slices": results.slices(name),
                "not_finite": self._statistics.not_finite[name],
            }
            self._measured[name] = self._measured[name].model_copy(update=metrics)
        for name in names if self._has_baseline else ():
            if name != BASELINE:
                drops = results.drops(name, BASELINE, self._budget.confidence)
                self._comparisons[name] = BaselineComparison(
                    drops=drops.pop("", {}), slice_drops=drops, behavior=self._statistics.behavior(name)
                )

    def decide(self, candidates: Sequence[str]) -> Evaluation:
        """Returns the decision of the gate."""
        return gate.decide(
            rows=self._statistics.rows,
            baseline=self._measured.get(BASELINE),
            candidates={name: self._measured[name] for name in candidates},
            comparisons=self._comparisons,
            budget=self._budget,
            threshold_verdicts=self._missed_thresholds,
            seconds=self._seconds,
            effective_rows=self._statistics.effective_rows,
        )


def _clear(output_path: str) -> None:
    """Removes the files of an earlier evaluation, which would pass for the result if this one ends early."""
    for name in tf.io.gfile.listdir(output_path) if tf.io.gfile.isdir(output_path) else ():
        if name == FILE or _WRITTEN.fullmatch(name):
            tf.io.gfile.remove(os.path.join(output_path, name))


def _locate(candidates: Mapping[str, str], baseline: str | None) -> dict[str, str]:
    """Returns the path of each model by name, the baseline last."""
    example = "Remedy: candidates={'int8': 'model.tflite'}."
    if BASELINE in candidates:
        raise ConfigError(
            f"A candidate can't be called {BASELINE!r}: that is the baseline's name. Remedy: rename the candidate.",
            field="candidates",
            code="reserved-name",
        )
    if "" in candidates:
        raise ConfigError(f"A candidate has no name. {example}", field="candidates", code="no-name")
    if not candidates:
        raise ConfigError(f"There is no candidate to evaluate. {example}", field="candidates", code="no-candidates")
    paths = {name: model_files.locate(path) for name, path in candidates.items()}
    if baseline is not None:
        paths[BASELINE] = model_files.locate(baseline)
    for name, path in paths.items():
        if model_files.model_format(path) == "keras":
            raise ModelError(
                f"{path} is a Keras file, and an evaluation runs SavedModels and TFLite models. Remedy: keras (or, for "
                f"Keras 2, tf_keras).models.load_model({path!r}).export(folder), or tfc.quantize({path!r}, …).",
                field="baseline" if name == BASELINE else "candidates",
                code="keras-file",
            )
    return paths


def _files(patterns: Sequence[str]) -> list[str]:
    """Returns the files that match the patterns.

    Raises:
      DataError: No file matches, or there is no row in the files.
    """
    files = sorted({name for pattern in patterns for name in tf.io.gfile.glob(pattern)})
    examples.require_rows(files, ", ".join(patterns))
    return files


def _try_models(paths: Mapping[str, str], reference_kernels: bool) -> tuple[dict[str, ModelContents], dict[str, str]]:
    """Returns the contents of the TFLite models that can be read, and the failures of those that can't be run.

    Raises:
      ModelError: The baseline can't be run.
    """
    contents: dict[str, ModelContents] = {}
    failures: dict[str, str] = {}
    readable: dict[str, bytes] = {}
    for name, path in paths.items():
        if model_files.model_format(path) == "tflite":
            content = measurement.read(path)
            try:
                contents[name], readable[name] = read_contents(content), content
            except ModelError as error:
                failures[name] = str(error)
    failures |= trial_run.find_failures(readable, reference_kernels)
    if BASELINE in failures:
        raise ModelError(
            f"The baseline in {paths[BASELINE]} can't be run: {failures[BASELINE]} Remedy: compare with a model that "
            "runs.",
            field="baseline",
            code="baseline-failed",
        )
    return contents, failures


def _plan(models: Mapping[str, LoadedModel]) -> dict[str, PlannedModel]:
    """Returns the models as the pass takes them, with outputs named as the baseline's."""
    predictors = {name: model.predictor for name, model in models.items()}
    names = {name: {output: output for output in predictor.outputs} for name, predictor in predictors.items()}
    if BASELINE in predictors:
        candidates = {name: predictor for name, predictor in predictors.items() if name != BASELINE}
        names |= match_outputs(predictors[BASELINE], candidates)
    return {
        name: PlannedModel(
            path=model.path,
            outputs=names[name],
            is_baseline=name == BASELINE,
            arena_bytes=model.contents.arena_bytes if model.contents is not None else 0,
        )
        for name, model in models.items()
    }
