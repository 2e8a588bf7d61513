"""The Beam pipeline of an evaluation: one pass over the examples with all models."""

import dataclasses
import os
import pickle
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from tfx_compression.compressed_evaluator.beam_errors import carried_errors, original_error
from tfx_compression.compressed_evaluator.behavior import SECONDS, CollectStatistics, PassStatistics, select
from tfx_compression.data import examples
from tfx_compression.data.iteration import numpy_elements
from tfx_compression.errors import DataError

_STATISTICS = "behavior.pickle"
_MAX_BATCH_ROWS = 1024
_MAX_BATCH_BYTES = 128 << 20  # of the tensors in one interpreter


@dataclasses.dataclass(frozen=True)
class PlannedModel:
    """A model to run.

    Attributes:
      path: Path of the model, as `model_files.locate` returns it.
      outputs: By the name that the model gives an output, the name that it gets.
      is_baseline: Whether the other models are compared with this one.
      arena_bytes: Memory that one row takes; 0 if unknown.
    """

    path: str
    outputs: Mapping[str, str]
    is_baseline: bool = False
    arena_bytes: int = 0


def run_models(
    models: Mapping[str, PlannedModel],
    files: Sequence[str],
    schema: schema_pb2.Schema | None,
    config: config_pb2.EvalConfig,
    output_path: str,
    make_pipeline: Callable[[], beam.Pipeline],
    *,
    reference_kernels: bool = False,
    outputs_of_classes: Collection[str] = (),
) -> PassStatistics:
    """Runs all models on all examples, and writes TFMA's files to `output_path`.

    Args:
      models: The models by name.
      files: TFRecord files of the examples.
      schema: Schema of the examples.
      config: TFMA's configuration, complete.
      output_path: Folder for TFMA's files.
      make_pipeline: Makes the Beam pipeline.
      reference_kernels: Whether TFLite models run on TFLite's reference kernels.
      outputs_of_classes: Outputs whose labels are numbers of classes; "" is the only output of the models.

    Raises:
      DataError: Rows lack a label or an example weight, or hold an invalid one.
      ModelError: A model can't be run on the rows.
    """
    statistics = os.path.join(output_path, _STATISTICS)
    shared_models = _shared_models(models)
    writers = tfma.default_writers(output_path, eval_shared_model=shared_models, eval_config=config)
    try:
        with make_pipeline() as pipeline:
            workers = pipeline.options.view_as(DirectOptions).direct_num_workers or os.cpu_count() or 1
            predict = _PredictBatches(models, predictors.threads(workers), reference_kernels, outputs_of_classes)
            extractors = [
                labels_extractor.LabelsExtractor(config),
                example_weights_extractor.ExampleWeightsExtractor(config),
                tfma.extractors.Extractor("Predict", beam.ParDo(predict)),
                tfma.extractors.Extractor("Observe", _WriteStatistics(models, statistics)),
            ]
            if batch_evaluator.needs_rows(config):
                extractors += [
                    unbatch_extractor.UnbatchExtractor(),
                    slice_key_extractor.SliceKeyExtractor(eval_config=config),
                ]
                evaluators = tfma.default_evaluators(eval_shared_model=shared_models, eval_config=config, schema=schema)
            else:
                evaluators = [batch_evaluator.batch_evaluator(config, schema, extractors[-1].stage_name)]
            (
                pipeline
                | "Files" >> beam.Create(list(files))
                | "Spread" >> beam.Reshuffle()
                | "Read" >> beam.ParDo(_ReadBatches(schema, _required_features(config), _batch_rows(models)))
                | "Evaluate" >> tfma.ExtractAndEvaluate(extractors, evaluators)
                | "Write" >> tfma.WriteResults(writers)
            )
    except RuntimeError as error:
        if (original := original_error(error)) is None:
            raise
        raise original from error
    with tf.io.gfile.GFile(statistics, "rb") as file:
        result: PassStatistics = pickle.loads(file.read())
    tf.io.gfile.remove(statistics)
    return result


def _shared_models(models: Mapping[str, PlannedModel]) -> Any:
    """Returns TFMA's descriptions of the models: a list, or the only one."""
    shared = [
        tfma.types.EvalSharedModel(
            model_path=model.path, model_name=name, model_type="tf_generic", is_baseline=model.is_baseline
        )
        for name, model in models.items()
    ]
    return shared if len(shared) > 1 else shared[0]


def _batch_rows(models: Mapping[str, PlannedModel]) -> int:
    """Returns as many rows as fit into the memory for one interpreter's tensors, at most 1,024: more gain nothing."""
    largest = max((model.arena_bytes for model in models.values()), default=0)
    return max(1, min(_MAX_BATCH_ROWS, _MAX_BATCH_BYTES // largest)) if largest else _MAX_BATCH_ROWS


def _required_features(config: config_pb2.EvalConfig) -> dict[str, str]:
    """Returns the features that every row needs, and whether each is a label or an example weight."""
    weights = {
        key for spec in config.model_specs for key in (spec.example_weight_key, *spec.example_weight_keys.values())
    }
    labels = {key for spec in config.model_specs for key in (spec.label_key, *spec.label_keys.values())}
    return {
        **{key: "example weight" for key in sorted(weights) if key},
        **{key: "label" for key in sorted(labels) if key},
    }


class _ReadBatches(beam.DoFn):
    """Reads a TFRecord file of tf.Examples into batched extracts, as TFMA's FeaturesExtractor makes them.

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
        with carried_errors():
            for batch in self._batches(file):
                decoded = self._decode(file, batch)
                self._require(file, decoded)
                # A feature that some rows lack has no fixed shape. Whether that is an error is up to the models.
                complete = {name for name in decoded.schema.names if not decoded.column(name).null_count}
                shapes = {name: shape for name, shape in self._shapes.items() if name in complete}
                yield {
                    tfma.FEATURES_KEY: util.record_batch_to_tensor_values(decoded, shapes),
                    tfma.INPUT_KEY: batch,
                }

    def _batches(self, file: str) -> Iterator[np.ndarray]:
        try:
            yield from numpy_elements(examples.records([file]).batch(self._rows).prefetch(1))
        except tf.errors.OpError as error:
            raise examples.unreadable_error(file, error) from error

    def _decode(self, file: str, batch: np.ndarray) -> pa.RecordBatch:
        try:
            return self._decoder.DecodeBatch(batch.tolist())
        except (ValueError, RuntimeError) as error:
            raise DataError(
                f"{file} holds a record that doesn't match the schema: {error} Remedy: use these examples' schema.",
                code="schema-mismatch",
            ) from error

    def _require(self, file: str, decoded: pa.RecordBatch) -> None:
        for name, role in self._required.items():
            missing = decoded.column(name).null_count if name in decoded.schema.names else decoded.num_rows
            if missing:
                raise DataError(
                    f"The {role} {name!r} is missing in {missing} of {decoded.num_rows} successive examples of {file}. "
                    f"Remedy: evaluate on a split whose examples all have their {role}.",
                    field="eval_config.model_specs",
                    code=f"missing-{role.replace(' ', '-')}",
                )
            values = decoded.column(name).flatten()
            numeric = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
            if role == "example weight" and not (numeric and (np.asarray(values) >= 0).all()):
                raise DataError(
                    f"The example weight {name!r} is not a number of 0 or more in some examples of {file}. "
                    "Remedy: evaluate on examples whose weights are.",
                    field="eval_config.model_specs",
                    code="invalid-example-weight",
                )


class _PredictBatches(beam.DoFn):
    """Adds the predictions of all models to a batch of TFMA's extracts."""

    def __init__(
        self,
        models: Mapping[str, PlannedModel],
        num_threads: int,
        reference_kernels: bool,
        outputs_of_classes: Collection[str],
    ):
        self._models = dict(models)
        self._outputs_of_classes = frozenset(outputs_of_classes)
        self._num_threads = num_threads
        self._reference_kernels = reference_kernels

    def setup(self) -> None:
        with carried_errors():
            self._predictors = {
                name: predictors.load(model.path, self._num_threads, self._reference_kernels)
                for name, model in self._models.items()
            }

    def process(self, extracts: tfma.Extracts) -> Iterator[tfma.Extracts]:
        with carried_errors():
            predictions, seconds = self._predict(extracts)
        only = len(predictions) == 1
        yield {
            **extracts,
            tfma.PREDICTIONS_KEY: next(iter(predictions.values())) if only else predictions,
            SECONDS: seconds,
        }

    def _predict(self, extracts: tfma.Extracts) -> tuple[dict[str, Any], dict[str, float]]:
        """Returns by model the outputs, and the time that they took."""
        batch, features = extracts[tfma.INPUT_KEY], extracts[tfma.FEATURES_KEY]
        predictions: dict[str, Any] = {}
        seconds = {}
        for name, predictor in self._predictors.items():
            before = predictor.seconds
            outputs = predictor.predict(batch, features)
            seconds[name] = predictor.seconds - before
            renamed = {new: outputs[output] for output, new in self._models[name].outputs.items()}
            predictions[name] = next(iter(renamed.values())) if len(renamed) == 1 else renamed
            labels = select(extracts[tfma.LABELS_KEY], name)
            for output, values in renamed.items():
                if output in self._outputs_of_classes or ("" in self._outputs_of_classes and len(renamed) == 1):
                    _require_classes(select(labels, output), values)
        return predictions, seconds


def _require_classes(labels: Any, outputs: np.ndarray) -> None:
    """Raises a DataError unless every label is the number of an output."""
    values = np.asarray(labels)
    numeric = values.dtype.kind in "iuf" and values.size == len(outputs)
    if not numeric or (values != np.floor(values)).any() or values.min() < 0 or values.max() >= outputs.shape[-1]:
        shown = ", ".join(map(repr, np.unique(values.astype(str))[:5].tolist())) if values.ndim else repr(labels)
        raise DataError(
            f"The labels of a batch include {shown}, but a metric of sparse classes takes one whole number from 0 to "
            f"{outputs.shape[-1] - 1} per row, one for each output of the models. Remedy: use another label or metric.",
            field="eval_config.model_specs",
            code="labels-not-classes",
        )


class _WriteStatistics(beam.PTransform):
    """Writes the statistics of all batches to a file, and passes the batches on."""

    def __init__(self, models: Mapping[str, PlannedModel], path: str):
        super().__init__()
        self._models = models
        self._path = path

    def expand(self, extracts: beam.PCollection) -> beam.PCollection:
        baseline = next((name for name, model in self._models.items() if model.is_baseline), None)
        (
            extracts
            | "Count" >> beam.CombineGlobally(CollectStatistics(self._models, baseline))
            | "Write" >> beam.Map(_write, self._path)
        )
        return extracts | "Rest" >> beam.Map(lambda batch: {key: batch[key] for key in batch if key != SECONDS})


def _write(statistics: PassStatistics, path: str) -> None:
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(pickle.dumps(statistics))
