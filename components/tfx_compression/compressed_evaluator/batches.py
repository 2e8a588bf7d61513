"""Batches of rows for TFMA's metrics: as arrays for what can take them, row by row for what can't."""

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


class Batch:
    """The extracts of some rows: labels, predictions, example weights and features, as arrays [rows, …].

    Attributes:
      extracts: TFMA's, batched.
      size: number of rows.
      cache: what the metrics of all slices and samples of these rows share.
    """

    def __init__(self, extracts: tfma.Extracts, computations: Sequence[metric_types.MetricComputation] = ()):
        self.extracts = extracts
        self.size = len(extracts[tfma.INPUT_KEY])
        self.cache: dict[Hashable, Any] = {}
        self._computations = computations

    def column(self, key: str, model: str, output: str) -> Any:
        """What the extracts hold under `key` for an output of a model: an array, or whatever else TFMA takes."""
        value = self.extracts.get(key)
        for name in (model, output):
            if name and isinstance(value, Mapping) and name in value:
                value = value[name]
        return value

    @functools.cached_property
    def rows(self) -> list[tfma.Extracts]:
        """Each row's extracts, as TFMA splits them."""
        kept = {key: value for key, value in self.extracts.items() if isinstance(value, np.ndarray | Mapping)}
        return list(util.split_extracts(kept))

    @functools.cached_property
    def _inputs(self) -> list[dict[str, Any]]:
        preprocess = stock._PreprocessorDoFn(list(self._computations))
        preprocess.setup()
        preprocess.start_bundle()
        return [next(preprocess.process({**row, tfma.SLICE_KEY_TYPES_KEY: ()})) for row in self.rows]

    def inputs(self, row: int, computation: int) -> list[Any]:
        """What TFMA's own combiner of a computation takes for a row."""
        found = self._inputs[row]
        own = found[stock._COMBINER_INPUTS_KEY][computation]
        return list(found[stock._DEFAULT_COMBINER_INPUT_KEY] if own is None else own)

    @functools.cached_property
    def generator(self) -> np.random.Generator:
        """Random numbers for the resampling of these rows: the same ones whatever worker has them."""
        return np.random.default_rng(zlib.crc32(self.extracts[tfma.INPUT_KEY][0]))


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows of a batch, perhaps repeated."""

    batch: Batch
    index: np.ndarray

    def inputs(self, computation: int) -> Iterator[Any]:
        """What TFMA's own combiner of a computation takes, row by row."""
        for row in self.index:
            yield from self.batch.inputs(int(row), computation)


class Slice(beam.DoFn):
    """From batched extracts to (slice key, Rows), with TFMA's slice keys."""

    def __init__(self, eval_config: config_pb2.EvalConfig, computations: Sequence[metric_types.MetricComputation]):
        self._computations = computations
        configs = list(eval_config.slicing_specs)
        for cross in eval_config.cross_slicing_specs:
            configs += [cross.baseline_spec, *cross.slicing_specs]
        specs = dict.fromkeys(slicer_lib.SingleSliceSpec(spec=config) for config in configs)
        self._specs = list(specs) or [slicer_lib.SingleSliceSpec()]
        self._columns = sorted({key for config in configs for key in (*config.feature_keys, *config.feature_values)})

    def process(self, extracts: tfma.Extracts) -> Iterator[tuple[SliceKey, Rows]]:
        """Yields one element for each slice that has a row in the batch."""
        batch = Batch(extracts, self._computations)
        by_slice: dict[SliceKey, list[np.ndarray]] = {}
        for features, index in self._alike(batch):
            for key in set(slicer_lib.get_slices_for_features_dicts([], features, self._specs)):
                by_slice.setdefault(key, []).append(index)
        for key, parts in by_slice.items():
            yield key, Rows(batch, parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts)))

    def _alike(self, batch: Batch) -> list[tuple[tfma.Extracts, np.ndarray]]:
        """The rows in groups that have the same values in the columns that the slices look at."""
        if not self._columns:
            return [({}, np.arange(batch.size))]
        features = batch.extracts[tfma.FEATURES_KEY]
        columns = {name: features[name] for name in self._columns if name in features}
        groups: dict[Hashable, tuple[tfma.Extracts, list[int]]] = {}
        for row, values in enumerate(util.split_extracts(columns) if columns else [{}] * batch.size):
            alike = tuple((name, tuple(np.ravel(value).tolist())) for name, value in values.items())
            groups.setdefault(alike, (values, []))[1].append(row)
        return [(values, np.asarray(index)) for values, index in groups.values()]


@dataclasses.dataclass(frozen=True)
class Samples:
    """How rows are sampled for confidence intervals, as TFMA does: `jackknife`, `bootstrap` or not at all (None).

    The jackknife leaves out one of 20 random parts at a time; the bootstrap draws each row as often as a Poisson
    distribution of mean 1 says, 20 times.
    """

    method: str | None = None
    count: int = 0

    @property
    def parts(self) -> int:
        """The number of accumulators behind a slice."""
        return {None: 1, "jackknife": self.count, "bootstrap": self.count + 1}[self.method]

    def split(self, rows: Rows) -> list[tuple[int, Rows]]:
        """Which accumulator gets which rows."""
        batch = rows.batch
        if self.method is None:
            return [(0, rows)]
        if self.method == "jackknife":
            if "parts" not in batch.cache:
                first = batch.generator.integers(self.count)  # or batches of few rows would all go to the first parts
                batch.cache["parts"] = batch.generator.permutation((first + np.arange(batch.size)) % self.count)
            part = batch.cache["parts"][rows.index]
            found = [(number, rows.index[part == number]) for number in range(self.count)]
        else:
            if "counts" not in batch.cache:
                batch.cache["counts"] = batch.generator.poisson(1, [self.count, batch.size])
            drawn = [np.repeat(rows.index, counts[rows.index]) for counts in batch.cache["counts"]]
            found = list(enumerate([rows.index, *drawn]))
        return [(number, Rows(batch, index)) for number, index in found if len(index)]
