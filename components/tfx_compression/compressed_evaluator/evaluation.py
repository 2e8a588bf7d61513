"""Evaluation of candidates against a baseline: TFMA's metrics in one pass over the data, then the limits."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis.extractors import (
    example_weights_extractor,
    features_extractor,
    labels_extractor,
    slice_key_extractor,
    unbatch_extractor,
)
from tensorflow_model_analysis.proto import config_pb2  # tfma 0.52 has these at its top level only once TFX is imported
from tfx_bsl.tfxio import tensor_adapter, tf_example_record

from tfx_compression.compressed_evaluator import gate, latency, predictors
from tfx_compression.compressed_evaluator.budget import Budget, Verdict
from tfx_compression.compressed_evaluator.record import FILE, Evaluation, Layer, Measured
from tfx_compression.models import conversion, examples, files, serving, weights
from tfx_compression.models.compressed import write_text
from tfx_compression.models.config import ConfigError
from tfx_compression.models.keras2 import ModelError

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

    Raises:
      ModelError, ExamplesError, ConfigError: see `run`.
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
        return run(candidates, baseline, patterns, schema, config, budget or Budget(), output, beam.Pipeline)


def run(
    candidates: Mapping[str, str],
    baseline: str | None,
    patterns: Sequence[str],
    schema: schema_pb2.Schema | None,
    eval_config: config_pb2.EvalConfig,
    budget: Budget,
    output_path: str,
    make_pipeline: Callable[[], beam.Pipeline],
) -> Evaluation:
    """Evaluates, decides, and writes TFMA's files and `evaluation.json` to `output_path`.

    The first ModelSpec of `eval_config` says how every model is evaluated (label, weights, signature outputs).

    Raises:
      ModelError: for a model that can't be run, or whose outputs differ in shape from the baseline's.
      ExamplesError: where there are no examples, or no label in the schema.
      ConfigError: where the budget limits a metric that is not computed, or there is no label.
    """
    paths = {name: weights.locate(path) for name, path in candidates.items()}
    if BASELINE in paths:
        raise ConfigError(f"A candidate can't be called {BASELINE!r}: that is the baseline's name.")
    if baseline is not None:
        paths[BASELINE] = weights.locate(baseline)
    config = config_for(list(paths), eval_config, budget, has_baseline=baseline is not None)
    row = _first_row(patterns, schema, config)
    loaded = {name: predictors.load(path) for name, path in paths.items()}
    if baseline is not None:
        predictors.require_same_outputs(loaded[BASELINE], {name: loaded[name] for name in candidates})
    _analyse(paths, patterns, schema, config, output_path, make_pipeline)
    metrics = {name: _metrics(output_path, name, len(paths) > 1) for name in paths}
    measured = _measure(paths, loaded, row, metrics)
    rows = next((int(values["example_count"]) for values in metrics.values() if "example_count" in values), 0)
    evaluation = gate.decide(
        rows=rows,
        baseline=measured.pop(BASELINE, None),
        candidates=measured,
        budget=budget.for_metrics(metrics[next(iter(paths))]),
        failures=_threshold_failures(output_path, len(paths) > 1),
    )
    write_text(os.path.join(output_path, FILE), evaluation.model_dump_json(indent=1) + "\n")
    return evaluation


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
    # Of `output/metric@sub-key` only the metric is known before anything has run.
    plain = {metric.split("/")[-1].split("@")[0]: drop for metric, drop in budget.max_metric_drop.items()}
    Budget(max_metric_drop=plain).for_metrics(_metric_names(eval_config))
    if budget.max_metric_drop and not has_baseline:
        raise ConfigError(
            "Budget.max_metric_drop compares with a baseline, and there is none. Remedy: baseline_model=…."
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
    if "ExampleCount" not in {metric.class_name for spec in config.metrics_specs for metric in spec.metrics}:
        config.metrics_specs.add().metrics.add(class_name="ExampleCount")
    return tfma.utils.update_eval_config_with_defaults(config, has_baseline=has_baseline, rubber_stamp=not has_baseline)


def _metric_names(eval_config: config_pb2.EvalConfig) -> list[str]:
    return [
        str(json.loads(metric.config or "{}").get("name", metric.class_name))
        for spec in eval_config.metrics_specs
        for metric in spec.metrics
    ]


def _accuracy() -> config_pb2.EvalConfig:
    metric = config_pb2.MetricConfig(class_name="SparseCategoricalAccuracy")
    return config_pb2.EvalConfig(metrics_specs=[config_pb2.MetricsSpec(metrics=[metric])])


def _tfxio(patterns: Sequence[str], schema: schema_pb2.Schema | None) -> tf_example_record.TFExampleRecord:
    return tf_example_record.TFExampleRecord(
        file_pattern=list(patterns),
        schema=schema,
        raw_record_column_name=tfma.ARROW_INPUT_COLUMN,
        telemetry_descriptors=["CompressedEvaluator"],
    )


def _first_row(
    patterns: Sequence[str], schema: schema_pb2.Schema | None, config: config_pb2.EvalConfig
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One serialized tf.Example and its features, after checking that there is one and that it has the label."""
    found = sorted(name for pattern in patterns for name in tf.io.gfile.glob(pattern))
    examples.require_rows(found, ", ".join(patterns))
    label = config.model_specs[0].label_key
    if schema is not None and label:
        examples.label_of(schema, (), label)
    record = next(examples.records(found).as_numpy_iterator())
    parsed = tf.train.Example.FromString(record)
    features = {}
    for name, feature in parsed.features.feature.items():
        kind = feature.WhichOneof("kind")
        features[name] = np.asarray([getattr(feature, kind).value]) if kind else np.empty([1, 0])
    if label and label not in features:
        raise examples.ExamplesError(
            f"The label {label!r} is not in the examples; they have: {', '.join(sorted(features))}. "
            "Remedy: set label_key to one of them."
        )
    return np.asarray([record], object), features


class _Predict(beam.DoFn):
    """Adds the predictions of all models to a batch of TFMA's extracts."""

    def __init__(self, paths: Mapping[str, str]):
        self._paths = dict(paths)

    def setup(self) -> None:
        self._predictors = {name: predictors.load(path) for name, path in self._paths.items()}

    def process(self, extracts: tfma.Extracts) -> Any:
        batch, features = extracts[tfma.INPUT_KEY], extracts[tfma.FEATURES_KEY]
        predictions = {}
        for name, predictor in self._predictors.items():
            outputs = predictor.predict(batch, features)
            predictions[name] = next(iter(outputs.values())) if len(outputs) == 1 else outputs
        only = len(predictions) == 1
        yield {**extracts, tfma.PREDICTIONS_KEY: next(iter(predictions.values())) if only else predictions}


def _analyse(
    paths: Mapping[str, str],
    patterns: Sequence[str],
    schema: schema_pb2.Schema | None,
    config: config_pb2.EvalConfig,
    output_path: str,
    make_pipeline: Callable[[], beam.Pipeline],
) -> None:
    """TFMA over all models in one pass, on our predictions: its own truncate int8 inputs and wrap them around."""
    tfxio = _tfxio(patterns, schema)
    adapter = None
    if schema is not None:
        adapter = tensor_adapter.TensorAdapterConfig(tfxio.ArrowSchema(), tfxio.TensorRepresentations())
    predict = tfma.extractors.Extractor(
        stage_name="ExtractCompressedPredictions",
        ptransform=beam.ParDo(_Predict(paths)),
    )
    shared = [
        tfma.types.EvalSharedModel(
            model_path=path,
            model_name=name,
            model_type="tf_generic",
            is_baseline=config.model_specs[position].is_baseline,
        )
        for position, (name, path) in enumerate(paths.items())
    ]
    with make_pipeline() as pipeline:
        batches = pipeline | "Read" >> tfxio.BeamSource()
        batches | "Evaluate" >> tfma.ExtractEvaluateAndWriteResults(
            eval_config=config,
            eval_shared_model=shared if len(shared) > 1 else shared[0],
            extractors=[
                features_extractor.FeaturesExtractor(
                    config, tensor_representations=adapter.tensor_representations if adapter else None
                ),
                labels_extractor.LabelsExtractor(config),
                example_weights_extractor.ExampleWeightsExtractor(config),
                predict,
                unbatch_extractor.UnbatchExtractor(),
                slice_key_extractor.SliceKeyExtractor(eval_config=config),
            ],
            output_path=output_path,
            tensor_adapter_config=adapter,
            schema=schema,
        )


def _metrics(output_path: str, name: str, several: bool) -> dict[str, float]:
    """The scalar metrics of a model on the whole split, without TFMA's differences from the baseline.

    Those of a named output are called `output/metric`, those with a sub-key (top k, a class) `metric@sub-key`.

    Raises:
      ConfigError: where there is none: nothing could be compared.
    """
    result = tfma.load_eval_result(output_path, model_name=name) if several else tfma.load_eval_result(output_path)
    found = {}
    for slice_key, by_output in result.slicing_metrics:
        if slice_key:
            continue
        for output, by_sub_key in by_output.items():
            for sub_key, metrics in by_sub_key.items():
                for metric, value in metrics.items():
                    if "doubleValue" in value and not metric.endswith("_diff"):
                        called = f"{output}/{metric}" if output else metric
                        found[f"{called}@{sub_key}" if sub_key else called] = float(value["doubleValue"])
    if not set(found) - {"example_count"}:
        raise ConfigError(
            "The eval_config computes no metric on the whole split, so there is nothing to compare. "
            "Remedy: add a SlicingSpec() without features, and metrics that return a number."
        )
    return found


def _threshold_failures(output_path: str, several: bool) -> dict[str, list[Verdict]]:
    """The thresholds of the eval_config that were missed, by model; TFMA's own verdict is one bit for all models."""
    result = tfma.load_validation_result(output_path)
    failures: dict[str, list[Verdict]] = {}
    for by_slice in result.metric_validations_per_slice:
        keys = ", ".join(f"{key.column}={_value(key)}" for key in by_slice.slice_key.single_slice_keys)
        for failure in by_slice.failures:
            text = " ".join(str(failure.metric_threshold).split()) or failure.message
            value = failure.metric_value.double_value.value if failure.metric_value.HasField("double_value") else None
            verdict = Verdict(
                limit=f"threshold on {failure.metric_key.name}{f' for {keys}' if keys else ''} ({text})",
                bound=None,
                measured=value,
                held=False,
                note=failure.message,
            )
            failures.setdefault(failure.metric_key.model_name if several else "", []).append(verdict)
    return failures


def _value(key: tfma.proto.metrics_for_slice_pb2.SingleSliceKey) -> object:
    kind = key.WhichOneof("kind")
    value = getattr(key, kind) if kind else ""
    return value.decode() if isinstance(value, bytes) else value


def _measure(
    paths: Mapping[str, str],
    loaded: Mapping[str, predictors.Predictor],
    row: tuple[np.ndarray, dict[str, np.ndarray]],
    metrics: Mapping[str, Mapping[str, float]],
) -> dict[str, Measured]:
    """Sizes, sparsity and latency of every model, and of the baseline's float TFLite model where it is needed."""
    timed = {name: predictor.prepare(*row) for name, predictor in loaded.items()}
    with tempfile.TemporaryDirectory() as folder:
        twin = _float_tflite(paths, loaded, folder)
        if twin:
            timed[twin] = predictors.load(twin).prepare(*row)
        times = latency.measure(timed)
        return {
            name: _measured(path, times[name], metrics[name]).model_copy(
                update={"tflite": _measured(twin, times[twin], {})} if twin and name == BASELINE else {}
            )
            for name, path in paths.items()
        }


def _float_tflite(paths: Mapping[str, str], loaded: Mapping[str, predictors.Predictor], folder: str) -> str | None:
    """The baseline converted to float TFLite, written to `folder`: what a TFLite candidate's speed-up is against.

    None where no candidate is a TFLite model, the baseline is one, or it can't be converted.
    """
    kinds = {name: predictor.kind for name, predictor in loaded.items()}
    if kinds.get(BASELINE) != "saved_model" or "tflite" not in kinds.values():
        return None
    try:
        content = conversion.convert(serving.feature_signature(paths[BASELINE]), "float32")
    except ModelError as error:
        tf.get_logger().warning("The baseline has no float TFLite twin, so speed-ups are unknown: %s", error)
        return None
    path = os.path.join(folder, "baseline.tflite")
    with open(path, "wb") as file:
        file.write(content)
    return path


def _measured(path: str, time: latency.Latency, metrics: Mapping[str, float]) -> Measured:
    size = files.size(path)
    kernels = weights.kernels(path)
    total = sum(kernel.size for kernel in kernels.values())
    zeros = sum(kernel.size - np.count_nonzero(kernel) for kernel in kernels.values())
    return Measured(
        kind=weights.kind(path),
        uri=path,
        metrics=dict(metrics),
        bytes=size.raw,
        bytes_gzip=size.gzip,
        latency_ms=time.median,
        latency_spread_ms=time.spread,
        sparsity=float(zeros / total) if total else None,
        layers=tuple(
            Layer(name=name, size=kernel.size, sparsity=weights.sparsity(kernel)) for name, kernel in kernels.items()
        ),
    )
