"""Evaluation of candidates against a baseline: TFMA's metrics in one pass over the data, then the limits."""

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis.proto import config_pb2  # tfma 0.52 has these at its top level only once TFX is imported

from tfx_compression.compressed_evaluator import gate, measurement, predictors, tfma_results, trial_run
from tfx_compression.compressed_evaluator.beam_pipeline import Planned, run_models
from tfx_compression.compressed_evaluator.behavior import Observed
from tfx_compression.compressed_evaluator.budget import Budget, Verdict
from tfx_compression.compressed_evaluator.evaluation import FILE, Comparison, Evaluation, Measured
from tfx_compression.data import examples
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.files import write_text
from tfx_compression.keras_models.metric_names import smaller_is_better
from tfx_compression.model_handle import model_files
from tfx_compression.tflite import flatbuffer

BASELINE = "baseline"


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
    """Evaluates models on tf.Examples, on local Beam.

    Args:
      candidates: by name, the path of a SavedModel or of a TFLite model.
      examples: pattern or patterns of TFRecord files of the tf.Examples that the models take.
      label_key: the label's feature; it may be in `eval_config` instead.
      baseline: the path of the model that they are compared with.
      schema: of the examples; gives features their shape.
      eval_config: TFMA's: metrics, slices, thresholds. By default the accuracy of a classifier.
      budget: the limits.
      output_path: where TFMA's files are written, for `tfma.load_eval_result`; by default nowhere.
      reference_kernels: run TFLite models on TFLite's reference kernels: slow, the same to the bit on every machine.

    Raises:
      ModelError, DataError, ConfigError: see `run`.
    """
    patterns = [examples] if isinstance(examples, str) else list(examples)
    config = config_pb2.EvalConfig()
    config.CopyFrom(eval_config or _accuracy())
    if not config.model_specs:
        config.model_specs.add()
    if label_key:
        config.model_specs[0].label_key = label_key
    with contextlib.ExitStack() as stack:
        output = output_path or stack.enter_context(tempfile.TemporaryDirectory())
        limits = budget or Budget()
        return run(candidates, baseline, patterns, schema, config, limits, output, beam.Pipeline, reference_kernels)


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
    """Evaluates, decides, and writes TFMA's files and `evaluation.json` to `output_path`.

    The first ModelSpec of `eval_config` says how every model is evaluated (label, weights, signature outputs).

    Raises:
      ModelError: for a baseline that can't be run, or a candidate whose inputs or outputs don't fit.
      DataError: where there are no examples, or no label in some of them.
      ConfigError: where the budget limits a metric that is not computed, or there is no label.
    """
    _clear(output_path)
    seconds: dict[str, float] = {}
    paths = _located(candidates, baseline)
    has_baseline = baseline is not None
    config_for(list(paths), eval_config, budget, has_baseline=has_baseline)
    files = _files(patterns)
    row = _first_row(files, patterns, schema, eval_config)
    with _timed(seconds, "trial"):
        contents, failed = _tried(paths, reference_kernels)
    models = {
        name: measurement.load(path, contents.get(name), reference_kernels)
        for name, path in paths.items()
        if name not in failed
    }
    measured = {name: measurement.unmeasured(path, failed.get(name, "")) for name, path in paths.items()}
    compared: dict[str, Comparison] = {}
    missed: dict[str, list[Verdict]] = {}
    observed = Observed()
    if set(models) - {BASELINE}:
        planned = _planned(models)
        classes = _of_classes(eval_config, models)
        config = config_for(list(models), eval_config, budget, has_baseline=has_baseline)
        with measurement.float_twin(paths.get(BASELINE), wanted=bool(set(contents) & set(models))) as twin:
            with _timed(seconds, "pass"):
                observed = run_models(
                    planned, files, schema, config, output_path, make_pipeline, reference_kernels, classes
                )
            if not observed.weight:
                raise examples.DataError(
                    f"All example weights are zero in {', '.join(patterns)}, so every metric would be. "
                    "Remedy: another example_weight_key, or none."
                )
            seconds["interpreter"] = sum(observed.seconds.values())
            with _timed(seconds, "latency"):
                measured |= measurement.measure(models, BASELINE if has_baseline else None, twin(), row)
        found = tfma_results.read(output_path, list(models))
        missed = tfma_results.thresholds(output_path, list(models))
        budget = budget.for_metrics(found.metrics(next(iter(models))))
        measured |= {name: _with_metrics(measured[name], name, found, observed) for name in models}
        compared = _comparisons(found, observed, models, budget) if has_baseline else {}
    evaluation = gate.decide(
        rows=observed.rows,
        baseline=measured.get(BASELINE),
        candidates={name: measured[name] for name in candidates},
        comparisons=compared,
        budget=budget,
        failures=missed,
        seconds=seconds,
        effective_rows=observed.effective_rows,
    )
    write_text(os.path.join(output_path, FILE), evaluation.model_dump_json(indent=1) + "\n")
    return evaluation


_WRITTEN = re.compile(
    r"(metrics|plots|attributions)-\d+-of-\d+\.tfrecord|validations\.tfrecord|eval_config\.json|report\.html"
)


def _clear(output_path: str) -> None:
    """Removes what an earlier evaluation wrote here: should this one end early, that would pass for its result."""
    for name in tf.io.gfile.listdir(output_path) if tf.io.gfile.isdir(output_path) else ():
        if name == FILE or _WRITTEN.fullmatch(name):
            tf.io.gfile.remove(os.path.join(output_path, name))


def _of_classes(eval_config: config_pb2.EvalConfig, models: Mapping[str, measurement.Model]) -> bool:
    """Whether labels are numbers of classes, which metrics of the eval_config say.

    Raises:
      ConfigError: where the models have one output per row, so that there is but one class.
    """
    sparse = [
        metric.class_name
        for spec in eval_config.metrics_specs
        for metric in spec.metrics
        if metric.class_name.startswith("Sparse")
    ]
    for name, model in models.items() if sparse else ():
        shapes = list(model.predictor.outputs.values())
        if shapes in ([(1,)], [()]):
            raise ConfigError(
                f"{sparse[0]} needs an output for each class, and {name!r} has one in all: every row would be of class "
                "0. Remedy: an eval_config with BinaryAccuracy, or whatever else fits one output."
            )
    return bool(sparse)


def _located(candidates: Mapping[str, str], baseline: str | None) -> dict[str, str]:
    """Where the models are, by name."""
    if BASELINE in candidates:
        raise ConfigError(f"A candidate can't be called {BASELINE!r}: that is the baseline's name.")
    if "" in candidates:
        raise ConfigError("A candidate needs a name. Remedy: candidates={'int8': 'model.tflite'}.")
    if not candidates:
        raise ConfigError("There is no candidate to evaluate. Remedy: candidates={'int8': 'model.tflite'}.")
    paths = {name: model_files.locate(path) for name, path in candidates.items()}
    return paths if baseline is None else {**paths, BASELINE: model_files.locate(baseline)}


def _tried(
    paths: Mapping[str, str], reference_kernels: bool
) -> tuple[dict[str, flatbuffer.ModelContents], dict[str, str]]:
    """What is in the TFLite models, and what is wrong with those that can't be read or run.

    Raises:
      ModelError: where the baseline is one of these.
    """
    contents: dict[str, flatbuffer.ModelContents] = {}
    failed: dict[str, str] = {}
    readable: dict[str, bytes] = {}
    for name, path in paths.items():
        if model_files.model_format(path) == "tflite":
            content = measurement.read(path)
            try:
                contents[name], readable[name] = flatbuffer.read_contents(content), content
            except ModelError as error:
                failed[name] = str(error)
    failed |= trial_run.failures(readable, reference_kernels)
    if BASELINE in failed:
        raise ModelError(f"The baseline in {paths[BASELINE]} can't be compared with: {failed[BASELINE]}")
    return contents, failed


def _with_metrics(measured: Measured, name: str, found: tfma_results.Results, observed: Observed) -> Measured:
    return measured.model_copy(
        update={
            "metrics": found.metrics(name),
            "slices": found.slices(name),
            "not_finite": observed.not_finite[name],
        }
    )


@contextlib.contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - started


def _planned(models: Mapping[str, measurement.Model]) -> dict[str, Planned]:
    """The models as the pass takes them, with their outputs called as the baseline calls them."""
    loaded = {name: model.predictor for name, model in models.items()}
    names = {name: {output: output for output in predictor.outputs} for name, predictor in loaded.items()}
    if BASELINE in loaded:
        candidates = {name: predictor for name, predictor in loaded.items() if name != BASELINE}
        names |= predictors.same_outputs(loaded[BASELINE], candidates)
    return {
        name: Planned(
            path=model.path,
            outputs=names[name],
            is_baseline=name == BASELINE,
            arena_bytes=model.contents.arena_bytes if model.contents is not None else 0,
        )
        for name, model in models.items()
    }


def _comparisons(
    found: tfma_results.Results, observed: Observed, running: Iterable[str], budget: Budget
) -> dict[str, Comparison]:
    compared = {}
    for name in running:
        if name != BASELINE:
            drops = found.drops(name, BASELINE, budget.confidence)
            compared[name] = Comparison(drops=drops.pop("", {}), slice_drops=drops, behaviour=observed.behaviour(name))
    return compared


def config_for(
    names: Sequence[str], eval_config: config_pb2.EvalConfig, budget: Budget, *, has_baseline: bool
) -> config_pb2.EvalConfig:
    """`eval_config` with its first ModelSpec made one for each model, and the number of examples counted.

    Raises:
      ConfigError: where it has no label, no metrics, or not those that the budget limits.
    """
    if not eval_config.model_specs or not (
        eval_config.model_specs[0].label_key or eval_config.model_specs[0].label_keys
    ):
        raise ConfigError(
            "The evaluation needs to know the label. Remedy: eval_config=tfma.EvalConfig(model_specs=["
            "tfma.ModelSpec(label_key='…')], …)."
        )
    if not any(spec.metrics for spec in eval_config.metrics_specs):
        raise ConfigError("The eval_config has no metrics. Remedy: add metrics_specs.")
    for class_name, name in _metric_names(eval_config):
        if smaller_is_better(name) != smaller_is_better(class_name):
            better, ending = ("smaller", "loss") if smaller_is_better(class_name) else ("larger", "accuracy")
            raise ConfigError(
                f"The {class_name} is called {name!r}, which doesn't say that it is better when {better}. "
                f"Remedy: leave its name as it is, or take one that ends in {ending!r}."
            )
    # Of `output/metric@sub-key` only the metric is known before anything has run.
    plain = {metric.split("/")[-1].split("@")[0]: 0.0 for metric in budget.limited_metrics}
    Budget(max_metric_drop=plain).for_metrics(name for _, name in _metric_names(eval_config))
    if budget.limited_metrics and not has_baseline and not budget.allow_first:
        raise ConfigError(
            "The budget limits drops of metrics, which compare with a baseline, and there is none. "
            "Remedy: baseline_model=…, or Budget(allow_first=True) for the first release."
        )
    if budget.max_slice_metric_drop and not any(
        spec.feature_keys or spec.feature_values or spec.slice_keys_sql for spec in eval_config.slicing_specs
    ):
        raise ConfigError(
            "Budget.max_slice_metric_drop limits the worst slice, and the eval_config has no slices. "
            "Remedy: add slicing_specs with feature_keys or feature_values."
        )
    config = config_pb2.EvalConfig()
    config.CopyFrom(eval_config)
    template = eval_config.model_specs[0]
    del config.model_specs[:]
    for name in names:
        spec = config.model_specs.add()
        spec.CopyFrom(template)
        spec.name = name
        spec.model_type = "tf_generic"
        spec.is_baseline = has_baseline and name == BASELINE
    weighted = bool(template.example_weight_key or template.example_weight_keys)
    counted = "ExampleCount" in {metric.class_name for spec in config.metrics_specs for metric in spec.metrics}
    if weighted or not counted:  # of weights, TFMA's count is their sum
        count = config.metrics_specs.add(metrics=[config_pb2.MetricConfig(class_name="ExampleCount")])
        if weighted:
            count.example_weights.unweighted = True
    if has_baseline and budget.needs_intervals:
        options = config.options
        if not options.compute_confidence_intervals.value:
            options.confidence_intervals.method = config_pb2.ConfidenceIntervalOptions.JACKKNIFE
        options.compute_confidence_intervals.value = True
    return tfma.utils.update_eval_config_with_defaults(config, has_baseline=has_baseline, rubber_stamp=not has_baseline)


def _in_braces(config: str) -> str:
    """The JSON of a metric's configuration: TFMA takes it without its braces too."""
    return config if config.strip().startswith("{") else f"{{{config}}}"


def _metric_names(eval_config: config_pb2.EvalConfig) -> list[tuple[str, str]]:
    """The class of each metric, and what it is called."""
    return [
        (metric.class_name, str(json.loads(_in_braces(metric.config)).get("name", metric.class_name)))
        for spec in eval_config.metrics_specs
        for metric in spec.metrics
    ]


def _accuracy() -> config_pb2.EvalConfig:
    metric = config_pb2.MetricConfig(class_name="SparseCategoricalAccuracy")
    return config_pb2.EvalConfig(metrics_specs=[config_pb2.MetricsSpec(metrics=[metric])])


def _files(patterns: Sequence[str]) -> list[str]:
    """The files of all patterns.

    Raises:
      DataError: where there are none, or not one row in them.
    """
    found = sorted({name for pattern in patterns for name in tf.io.gfile.glob(pattern)})
    examples.require_rows(found, ", ".join(patterns))
    return found


def _first_row(
    files: Sequence[str], patterns: Sequence[str], schema: schema_pb2.Schema | None, config: config_pb2.EvalConfig
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One serialized tf.Example and its features, after checking that it has the label."""
    label = config.model_specs[0].label_key
    if schema is not None and label:
        examples.resolve_label(schema, (), label)
    record = next(examples.records(files).as_numpy_iterator())
    parsed = tf.train.Example.FromString(record)
    features = {}
    for name, feature in parsed.features.feature.items():
        kind = feature.WhichOneof("kind")
        features[name] = np.asarray([getattr(feature, kind).value]) if kind else np.empty([1, 0])
    if label and label not in features:
        raise examples.DataError(
            f"The label {label!r} is not in the examples of {', '.join(patterns)}; the first has: "
            f"{', '.join(sorted(features))}. Remedy: set label_key to one of them."
        )
    return np.asarray([record], object), features
