"""One pass over the examples with all models: TFMA's metrics, and how the answers compare."""

import dataclasses
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow_model_analysis as tfma
from apache_beam.options.pipeline_options import DirectOptions
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis.extractors import (
    example_weights_extractor,
    labels_extractor,
    slice_key_extractor,
    unbatch_extractor,
)
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.utils import util
from tfx_bsl.coders import example_coder
from tfx_bsl.tfxio import tf_example_record

from tfx_compression.compressed_evaluator import batch_evaluator, predictors
from tfx_compression.compressed_evaluator.behavior import SECONDS, Observe, Observed, part_of
from tfx_compression.data import examples
from tfx_compression.errors import ModelError

_OBSERVED = "behaviour.pickle"
_ROWS = 1024
_BYTES = 128 << 20  # for the tensors of a batch in one interpreter


@dataclasses.dataclass(frozen=True)
class Planned:
    """A model to run.

    Attributes:
      path: as `weights.locate` returns it.
      outputs: what its outputs are called, by the names that it gives them.
      is_baseline: whether the others are compared with it.
      arena_bytes: memory that one row takes; 0 where it is not known.
    """

    path: str
    outputs: Mapping[str, str]
    is_baseline: bool = False
    arena_bytes: int = 0


def run_models(
    models: Mapping[str, Planned],
    files: Sequence[str],
    schema: schema_pb2.Schema | None,
    config: config_pb2.EvalConfig,
    output_path: str,
    make_pipeline: Callable[[], beam.Pipeline],
    reference_kernels: bool = False,
    classes: bool = False,
) -> Observed:
    """Runs all models on all examples and writes TFMA's files to `output_path`.

    Where labels are `classes`, they have to be the number of an output.

    Raises:
      DataError, ModelError: where rows lack a label or what a model takes.
    """
    shared = [
        tfma.types.EvalSharedModel(
            model_path=model.path, model_name=name, model_type="tf_generic", is_baseline=model.is_baseline
        )
        for name, model in models.items()
    ]
    whole = shared if len(shared) > 1 else shared[0]
    observed = os.path.join(output_path, _OBSERVED)
    try:
        with make_pipeline() as pipeline:
            workers = pipeline.options.view_as(DirectOptions).direct_num_workers or os.cpu_count() or 1
            predict = _Predict(models, predictors.threads(workers), reference_kernels, classes)
            extractors = [
                labels_extractor.LabelsExtractor(config),
                example_weights_extractor.ExampleWeightsExtractor(config),
                tfma.extractors.Extractor("Predict", beam.ParDo(predict)),
                tfma.extractors.Extractor("Observe", _Observe(models, observed)),
            ]
            if batch_evaluator.needs_rows(config):
                extractors += [
                    unbatch_extractor.UnbatchExtractor(),
                    slice_key_extractor.SliceKeyExtractor(eval_config=config),
                ]
                evaluators = tfma.default_evaluators(eval_shared_model=whole, eval_config=config, schema=schema)
            else:
                evaluators = [batch_evaluator.batch_evaluator(config, schema, extractors[-1].stage_name)]
            (
                pipeline
                | "Files" >> beam.Create(list(files))
                | "Spread" >> beam.Reshuffle()
                | "Read" >> beam.ParDo(_Read(schema, _required(config), _batch_rows(models)))
                | "Evaluate" >> tfma.ExtractAndEvaluate(extractors, evaluators)
                | "Write"
                >> tfma.WriteResults(tfma.default_writers(output_path, eval_shared_model=whole, eval_config=config))
            )
    except (RuntimeError, examples.DataError, ModelError) as error:
        raise _own(error) from error
    with tf.io.gfile.GFile(observed, "rb") as file:
        found: Observed = pickle.loads(file.read())
    tf.io.gfile.remove(observed)
    return found


def _own(error: Exception) -> Exception:
    """Our own error out of the one that Beam makes of it: its text names the class and quotes the message."""
    kinds = {kind.__name__: kind for kind in (examples.DataError, ModelError)}
    found = re.findall(rf"({'|'.join(kinds)}): (.*?)(?:\s*\[while running|\n|$)", f"{type(error).__name__}: {error}")
    return kinds[found[-1][0]](found[-1][1]) if found else error


def _batch_rows(models: Mapping[str, Planned]) -> int:
    """As many rows as fit into the memory for one interpreter's tensors, at most 1,024: more gain nothing."""
    largest = max((model.arena_bytes for model in models.values()), default=0)
    return max(1, min(_ROWS, _BYTES // largest)) if largest else _ROWS


class _Read(beam.DoFn):
    """From the name of a TFRecord file to batched extracts of its tf.Examples, as TFMA's FeaturesExtractor makes them.

    Beam's own source hands over one record at a time, which takes longer than reading it.
    """

    def __init__(self, schema: schema_pb2.Schema | None, required: Mapping[str, str], rows: int):
        self._schema = schema.SerializeToString() if schema is not None else None
        self._required = dict(required)
        self._rows = rows
        self._shapes = (
            tf_example_record.TFExampleRecord([""], schema=schema).TensorRepresentations() if schema is not None else {}
        )

    def setup(self) -> None:
        self._decoder = example_coder.ExamplesToRecordBatchDecoder(self._schema)

    def process(self, file: str) -> Iterator[tfma.Extracts]:
        for batch in _batches(file, self._rows):
            try:
                decoded = self._decoder.DecodeBatch(batch.tolist())
            except (ValueError, RuntimeError) as error:
                raise examples.DataError(f"{file} holds a record that is not as the schema says: {error}") from error
            self._require(file, decoded)
            # What some rows lack has no fixed shape: whether that is an error, is up to the models.
            whole = {name for name in decoded.schema.names if not decoded.column(name).null_count}
            shapes = {name: shape for name, shape in self._shapes.items() if name in whole}
            yield {
                tfma.FEATURES_KEY: util.record_batch_to_tensor_values(decoded, shapes),
                tfma.INPUT_KEY: batch,
            }

    def _require(self, file: str, decoded: pa.RecordBatch) -> None:
        for name, what in self._required.items():
            missing = decoded.column(name).null_count if name in decoded.schema.names else decoded.num_rows
            if missing:
                raise examples.DataError(
                    f"The {what} {name!r} is missing in {missing} of {decoded.num_rows} examples in a row of {file}. "
                    f"Remedy: evaluate on a split whose examples all have their {what}."
                )
            values = decoded.column(name).flatten()
            numeric = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
            if what == "example weight" and not (numeric and (np.asarray(values) >= 0).all()):
                raise examples.DataError(
                    f"The example weight {name!r} is not a number of 0 or more in some examples of {file}. "
                    "Remedy: evaluate on examples whose weights are."
                )


def _batches(file: str, rows: int) -> Iterator[np.ndarray]:
    try:
        yield from examples.records([file]).batch(rows).prefetch(1).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise examples.unreadable_error(file, error) from error


def _required(config: config_pb2.EvalConfig) -> dict[str, str]:
    """The features that every row needs, and what they are."""
    weights = {
        key for spec in config.model_specs for key in (spec.example_weight_key, *spec.example_weight_keys.values())
    }
    labels = {key for spec in config.model_specs for key in (spec.label_key, *spec.label_keys.values())}
    return {
        **{key: "example weight" for key in sorted(weights) if key},
        **{key: "label" for key in sorted(labels) if key},
    }


class _Predict(beam.DoFn):
    """Adds the predictions of all models to a batch of TFMA's extracts."""

    def __init__(self, models: Mapping[str, Planned], num_threads: int, reference_kernels: bool, classes: bool):
        self._models = dict(models)
        self._classes = classes
        self._num_threads = num_threads
        self._reference_kernels = reference_kernels

    def setup(self) -> None:
        self._predictors = {
            name: predictors.load(model.path, self._num_threads, self._reference_kernels)
            for name, model in self._models.items()
        }

    def process(self, extracts: tfma.Extracts) -> Iterator[tfma.Extracts]:
        batch, features = extracts[tfma.INPUT_KEY], extracts[tfma.FEATURES_KEY]
        predictions: dict[str, Any] = {}
        seconds = {}
        for name, predictor in self._predictors.items():
            before = predictor.seconds
            outputs = predictor.predict(batch, features)
            seconds[name] = predictor.seconds - before
            named = {called: outputs[own] for own, called in self._models[name].outputs.items()}
            predictions[name] = next(iter(named.values())) if len(named) == 1 else named
            if self._classes and len(named) == 1:
                _require_classes(part_of(extracts[tfma.LABELS_KEY], name), predictions[name])
        only = len(predictions) == 1
        yield {
            **extracts,
            tfma.PREDICTIONS_KEY: next(iter(predictions.values())) if only else predictions,
            SECONDS: seconds,
        }


def _require_classes(labels: Any, outputs: np.ndarray) -> None:
    """Raises DataError where a label is not the number of an output."""
    values = np.asarray(labels)
    numbers = values.dtype.kind in "iuf" and values.size == len(outputs)
    if not numbers or (values != np.floor(values)).any() or values.min() < 0 or values.max() >= outputs.shape[-1]:
        shown = ", ".join(map(repr, np.unique(values.astype(str))[:5].tolist())) if values.ndim else repr(labels)
        raise examples.DataError(
            f"The labels of a batch are {shown} …, where a metric of sparse classes takes one whole number from 0 to "
            f"{outputs.shape[-1] - 1}, as many as the models have outputs. Remedy: another label or metric."
        )


class _Observe(beam.PTransform):
    """Writes what the batches show beside the metrics; passes them on without it."""

    def __init__(self, models: Mapping[str, Planned], path: str):
        super().__init__()
        self._models = models
        self._path = path

    def expand(self, extracts: beam.PCollection) -> beam.PCollection:
        baseline = next((name for name, model in self._models.items() if model.is_baseline), None)
        (
            extracts
            | "Count" >> beam.CombineGlobally(Observe(self._models, baseline))
            | "Write" >> beam.Map(_write, self._path)
        )
        return extracts | "Rest" >> beam.Map(lambda batch: {key: batch[key] for key in batch if key != SECONDS})


def _write(observed: Observed, path: str) -> None:
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(pickle.dumps(observed))
