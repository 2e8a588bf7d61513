"""Batches of rows for TFMA's metrics, and the rows of each slice."""

import dataclasses
import functools
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.evaluators import metrics_plots_and_validations_evaluator as stock
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.slicer import slicer_lib
from tensorflow_model_analysis.utils import util

SliceKey = tuple[tuple[str, Any], ...]


class RowBatch:
    """The extracts of some rows: labels, predictions, example weights and features, as arrays [rows, …].

    Metrics that can't take arrays get the same rows one by one.

    Attributes:
      extracts: TFMA's extracts, batched.
      size: Number of rows.
      cache: Intermediate results that the metrics of all slices and samples share.
    """

    def __init__(self, extracts: tfma.Extracts, computations: Sequence[metric_types.MetricComputation] = ()):
        self.extracts = extracts
        self.size = len(extracts[tfma.INPUT_KEY])
        self.cache: dict[Hashable, Any] = {}
        self._computations = computations

    def column(self, key: str, model: str, output: str) -> Any:
        """Returns what the extracts hold under `key` for an output of a model: an array, or another type of TFMA's."""
        value = self.extracts.get(key)
        for name in (model, output):
            if name and isinstance(value, Mapping) and name in value:
                value = value[name]
        return value

    @functools.cached_property
    def rows(self) -> list[tfma.Extracts]:
        """The extracts of each row, as TFMA splits them."""
        splittable = {key: value for key, value in self.extracts.items() if isinstance(value, np.ndarray | Mapping)}
        return list(util.split_extracts(splittable))

    @functools.cached_property
    def _inputs(self) -> list[dict[str, Any]]:
        preprocess = stock._PreprocessorDoFn(list(self._computations))
        preprocess.setup()
        preprocess.start_bundle()
        return [next(preprocess.process({**row, tfma.SLICE_KEY_TYPES_KEY: ()})) for row in self.rows]

    def inputs(self, row: int, computation: int) -> list[Any]:
        """Returns what TFMA's combiner of a computation takes for one row."""
        inputs = self._inputs[row]
        preprocessed = inputs[stock._COMBINER_INPUTS_KEY][computation]
        return list(inputs[stock._DEFAULT_COMBINER_INPUT_KEY] if preprocessed is None else preprocessed)

    @functools.cached_property
    def generator(self) -> np.random.Generator:
        """Random numbers for resampling these rows. Every worker gets the same ones for the same rows."""
        return np.random.default_rng(zlib.crc32(self.extracts[tfma.INPUT_KEY][0]))


@dataclasses.dataclass(frozen=True)
class RowSelection:
    """Some rows of a batch, possibly repeated.

    Attributes:
      batch: The batch.
      index: Indices of the rows.
    """

    batch: RowBatch
    index: np.ndarray

    def inputs(self, computation: int) -> Iterator[Any]:
        """Yields what TFMA's combiner of a computation takes, row by row."""
        for row in self.index:
            yield from self.batch.inputs(int(row), computation)


class SliceBatches(beam.DoFn):
    """Turns batched extracts into pairs of slice key and RowSelection, with TFMA's slice keys."""

    def __init__(self, eval_config: config_pb2.EvalConfig, computations: Sequence[metric_types.MetricComputation]):
        self._computations = computations
        configs = list(eval_config.slicing_specs)
        for cross in eval_config.cross_slicing_specs:
            configs += [cross.baseline_spec, *cross.slicing_specs]
        specs = dict.fromkeys(slicer_lib.SingleSliceSpec(spec=config) for config in configs)
        self._specs = list(specs) or [slicer_lib.SingleSliceSpec()]
        self._columns = sorted({key for config in configs for key in (*config.feature_keys, *config.feature_values)})

    def process(self, extracts: tfma.Extracts) -> Iterator[tuple[SliceKey, RowSelection]]:
        """Yields one element for each slice that has a row in the batch."""
        batch = RowBatch(extracts, self._computations)
        by_slice: dict[SliceKey, list[np.ndarray]] = {}
        for features, index in self._group(batch):
            for key in set(slicer_lib.get_slices_for_features_dicts([], features, self._specs)):
                by_slice.setdefault(key, []).append(index)
        for key, parts in by_slice.items():
            yield key, RowSelection(batch, parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts)))

    def _group(self, batch: RowBatch) -> list[tuple[tfma.Extracts, np.ndarray]]:
        """Returns the rows in groups of equal values in the sliced columns, with these values."""
        if not self._columns:
            return [({}, np.arange(batch.size))]
        features = batch.extracts[tfma.FEATURES_KEY]
        columns = {name: features[name] for name in self._columns if name in features}
        groups: dict[Hashable, tuple[tfma.Extracts, list[int]]] = {}
        for row, values in enumerate(util.split_extracts(columns) if columns else [{}] * batch.size):
            group = tuple((name, tuple(np.ravel(value).tolist())) for name, value in values.items())
            groups.setdefault(group, (values, []))[1].append(row)
        return [(values, np.asarray(index)) for values, index in groups.values()]
