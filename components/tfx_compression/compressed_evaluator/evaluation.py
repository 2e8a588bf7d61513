"""Evaluation of candidates against a baseline: TFMA's metrics in one pass over the data, then the limits."""

import concurrent.futures
import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis.proto import config_pb2  # tfma 0.52 has these at its top level only once TFX is imported

from tfx_compression.compressed_evaluator import gate, latency, predictors, results, trial
from tfx_compression.compressed_evaluator.analysis import Model, analyse
from tfx_compression.compressed_evaluator.behaviour import Observed
from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.compressed_evaluator.record import FILE, Comparison, Evaluation, Layer, Measured
from tfx_compression.models import conversion, examples, serving, tflite, weights
from tfx_compression.models import files as model_files
from tfx_compression.models.compressed import write_text
from tfx_compression.models.config import ConfigError
from tfx_compression.models.errors import ModelError

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
    reference_kernels: bool = False,
) -> Evaluation:
    """Evaluates, decides, and writes TFMA's files and `evaluation.json` to `output_path`.

    The first ModelSpec of `eval_config` says how every model is evaluated (label, weights, signature outputs).

    Raises:
      ModelError: for a baseline that can't be run, or a candidate whose inputs or outputs don't fit.
      ExamplesError: where there are no examples, or no label in some of them.
      ConfigError: where the budget limits a metric that is not computed, or there is no label.
    """
    seconds: dict[str, float] = {}
    paths = {name: weights.locate(path) for name, path in candidates.items()}
    if BASELINE in paths:
        raise ConfigError(f"A candidate can't be called {BASELINE!r}: that is the baseline's name.")
    if baseline is not None:
        paths[BASELINE] = weights.locate(baseline)
    config_for(list(paths), eval_config, budget, has_baseline=baseline is not None)
    files = _files(patterns)
    row = _first_row(files, patterns, schema, eval_config)
    contents = {name: tflite.contents(_read(path)) for name, path in paths.items() if weights.kind(path) == "tflite"}
    with _timed(seconds, "trial"):
        failed = trial.failures({name: paths[name] for name in contents}, reference_kernels)
    if BASELINE in failed:
        raise ModelError(f"The baseline in {paths[BASELINE]} can't be compared with: {failed[BASELINE]}.")
    running = {name: path for name, path in paths.items() if name not in failed}
    loaded = {name: predictors.load(path, reference_kernels=reference_kernels) for name, path in running.items()}
    measured = {name: _failed(path, failed[name]) for name, path in paths.items() if name in failed}
    found, observed, missed = None, Observed(), {}
    if set(running) - {BASELINE}:
        models = _models(running, loaded, contents)
        config = config_for(list(running), eval_config, budget, has_baseline=baseline is not None)
        with _twin(paths, loaded) as twin:
            with _timed(seconds, "pass"):
                observed = analyse(models, files, schema, config, output_path, make_pipeline, reference_kernels)
            found = results.read(output_path, list(running))
            missed = results.thresholds(output_path, list(running))
            budget = budget.for_metrics(found.metrics(next(iter(running))))
            with _timed(seconds, "latency"):
                measured |= _measure(running, loaded, row, found, observed, contents, twin())
        seconds["interpreter"] = sum(observed.seconds.values())
    elif baseline is not None:
        measured[BASELINE] = _failed(paths[BASELINE], "")
    evaluation = gate.decide(
        rows=observed.rows,
        baseline=measured.pop(BASELINE, None),
        candidates={name: measured[name] for name in candidates},
        comparisons=_comparisons(found, observed, running, budget) if baseline is not None and found else {},
        budget=budget,
        failures=missed,
        seconds=seconds,
    )
    write_text(os.path.join(output_path, FILE), evaluation.model_dump_json(indent=1) + "\n")
    return evaluation


@contextlib.contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - started


def _models(
    running: Mapping[str, str], loaded: Mapping[str, predictors.Predictor], contents: Mapping[str, tflite.Contents]
) -> dict[str, Model]:
    """The models with their outputs called as the baseline calls them."""
    candidates = {name: predictor for name, predictor in loaded.items() if name != BASELINE}
    own = {name: {output: output for output in predictor.outputs} for name, predictor in loaded.items()}
    names = {**own, **predictors.same_outputs(loaded[BASELINE], candidates)} if BASELINE in loaded else own
    return {
        name: Model(path, names[name], name == BASELINE, contents[name].arena_bytes if name in contents else 0)
        for name, path in running.items()
    }


def _comparisons(
    found: results.Results, observed: Observed, running: Iterable[str], budget: Budget
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
    # Of `output/metric@sub-key` only the metric is known before anything has run.
    plain = {metric.split("/")[-1].split("@")[0]: 0.0 for metric in budget.limited_metrics}
    Budget(max_metric_drop=plain).for_metrics(_metric_names(eval_config))
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
    if "ExampleCount" not in {metric.class_name for spec in config.metrics_specs for metric in spec.metrics}:
        config.metrics_specs.add().metrics.add(class_name="ExampleCount")
    if has_baseline and budget.needs_intervals:
        options = config.options
        if not options.compute_confidence_intervals.value:
            options.confidence_intervals.method = config_pb2.ConfidenceIntervalOptions.JACKKNIFE
        options.compute_confidence_intervals.value = True
    return tfma.utils.update_eval_config_with_defaults(config, has_baseline=has_baseline, rubber_stamp=not has_baseline)


def _in_braces(config: str) -> str:
    """The JSON of a metric's configuration: TFMA takes it without its braces too."""
    return config if config.strip().startswith("{") else f"{{{config}}}"


def _metric_names(eval_config: config_pb2.EvalConfig) -> list[str]:
    return [
        str(json.loads(_in_braces(metric.config)).get("name", metric.class_name))
        for spec in eval_config.metrics_specs
        for metric in spec.metrics
    ]


def _accuracy() -> config_pb2.EvalConfig:
    metric = config_pb2.MetricConfig(class_name="SparseCategoricalAccuracy")
    return config_pb2.EvalConfig(metrics_specs=[config_pb2.MetricsSpec(metrics=[metric])])


def _files(patterns: Sequence[str]) -> list[str]:
    """The files of all patterns.

    Raises:
      ExamplesError: where there are none, or not one row in them.
    """
    found = sorted(name for pattern in patterns for name in tf.io.gfile.glob(pattern))
    examples.require_rows(found, ", ".join(patterns))
    return found


def _read(path: str) -> bytes:
    with tf.io.gfile.GFile(path, "rb") as file:
        return bytes(file.read())


def _first_row(
    files: Sequence[str], patterns: Sequence[str], schema: schema_pb2.Schema | None, config: config_pb2.EvalConfig
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One serialized tf.Example and its features, after checking that it has the label."""
    label = config.model_specs[0].label_key
    if schema is not None and label:
        examples.label_of(schema, (), label)
    record = next(examples.records(files).as_numpy_iterator())
    parsed = tf.train.Example.FromString(record)
    features = {}
    for name, feature in parsed.features.feature.items():
        kind = feature.WhichOneof("kind")
        features[name] = np.asarray([getattr(feature, kind).value]) if kind else np.empty([1, 0])
    if label and label not in features:
        raise examples.ExamplesError(
            f"The label {label!r} is not in the examples of {', '.join(patterns)}; the first has: "
            f"{', '.join(sorted(features))}. Remedy: set label_key to one of them."
        )
    return np.asarray([record], object), features


def _measure(
    paths: Mapping[str, str],
    loaded: Mapping[str, predictors.Predictor],
    row: tuple[np.ndarray, dict[str, np.ndarray]],
    found: results.Results,
    observed: Observed,
    contents: Mapping[str, tflite.Contents],
    twin: str | None,
) -> dict[str, Measured]:
    """Sizes, sparsity and latency of every model, and of the baseline's float TFLite model where it is needed."""
    timed = {name: predictor.prepare(*row) for name, predictor in loaded.items()}
    runtimes = {name: predictor.runtime for name, predictor in loaded.items()}
    everything = dict(contents)
    if twin:
        predictor = predictors.load(twin)
        timed[twin], runtimes[twin], everything[twin] = (
            predictor.prepare(*row),
            predictor.runtime,
            tflite.contents(_read(twin)),
        )
    times = latency.measure(timed)
    reference = _kernels(twin or paths.get(BASELINE), everything.get(twin or BASELINE))
    measured = {}
    for name, path in {**paths, **({twin: twin} if twin else {})}.items():
        measured[name] = _measured(path, runtimes[name], times[name], everything.get(name), reference).model_copy(
            update={
                "metrics": found.metrics(name),
                "slices": found.slices(name),
                "not_finite": observed.not_finite[name],
            }
        )
    if twin:
        measured[BASELINE] = measured[BASELINE].model_copy(update={"tflite": measured.pop(twin)})
    return measured


@contextlib.contextmanager
def _twin(paths: Mapping[str, str], loaded: Mapping[str, predictors.Predictor]) -> Iterator[Callable[[], str | None]]:
    """Converts the baseline to float TFLite, what a TFLite candidate's speed-up is against, while other work goes on.

    The function that it gives waits for the path of the model; it is None where no candidate is a TFLite model, the
    baseline is one, or it can't be converted.
    """
    kinds = {name: predictor.kind for name, predictor in loaded.items()}
    if kinds.get(BASELINE) != "saved_model" or "tflite" not in kinds.values():
        yield lambda: None
        return
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(1) as background:
        signature = _signature(paths[BASELINE])
        converted = background.submit(conversion.convert, signature, "float32") if signature else None

        def path() -> str | None:
            if converted is None:
                return None
            try:
                content = converted.result()
            except ModelError as error:
                _log_no_twin(error)
                return None
            name = os.path.join(folder, "baseline.tflite")
            with open(name, "wb") as file:
                file.write(content)
            return name

        yield path


def _signature(path: str) -> serving.FeatureSignature | None:
    try:
        return serving.feature_signature(path)
    except ModelError as error:
        _log_no_twin(error)
        return None


def _log_no_twin(error: ModelError) -> None:
    tf.get_logger().warning("The baseline has no float TFLite twin, so speed-ups are unknown: %s", error)


def _failed(path: str, failure: str) -> Measured:
    """A model of which only the size is known."""
    size = model_files.size(path)
    return Measured(
        kind=weights.kind(path),
        uri=path,
        bytes=size.raw,
        bytes_gzip=size.gzip,
        latency_ms=None,
        latency_spread_ms=None,
        failure=failure,
    )


def _measured(
    path: str,
    runtime: str,
    took: latency.Latency,
    contents: tflite.Contents | None,
    reference: Mapping[str, np.ndarray],
) -> Measured:
    kernels = contents.weights if contents is not None else weights.kernels(path)
    real = _kernels(path, contents)
    total = sum(kernel.size for kernel in kernels.values())
    zeros = sum(kernel.size - np.count_nonzero(kernel) for kernel in kernels.values())
    return _failed(path, "").model_copy(
        update={
            "runtime": runtime,
            "latency_ms": took.median,
            "latency_spread_ms": took.spread,
            "latency_quantiles_ms": took.quantiles,
            "latency_repeats": took.repeats,
            "arena_bytes": contents.arena_bytes if contents is not None else None,
            "ops": contents.ops if contents is not None else {},
            "sparsity": float(zeros / total) if total else None,
            "layers": tuple(
                Layer(
                    name=name,
                    size=kernel.size,
                    sparsity=weights.sparsity(kernel),
                    snr_db=_snr(reference.get(name), real[name]),
                )
                for name, kernel in kernels.items()
            ),
        }
    )


def _kernels(path: str | None, contents: tflite.Contents | None) -> dict[str, np.ndarray]:
    """The kernels of a model as real numbers."""
    if contents is not None:
        return {name: contents.real(name) for name in contents.weights}
    return weights.kernels(path) if path is not None else {}


def _snr(reference: np.ndarray | None, kernel: np.ndarray) -> float | None:
    """Signal-to-noise ratio in decibels: ten times the logarithm of the energies of kernel and difference."""
    if reference is None or reference.shape != kernel.shape:
        return None
    noise = float(np.sum((kernel.astype(np.float64) - reference) ** 2))
    signal = float(np.sum(reference.astype(np.float64) ** 2))
    return (10 * math.log10(signal / noise) if signal else -math.inf) if noise else math.inf
