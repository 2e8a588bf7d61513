"""Draws a random sample of the tf.Examples in TFRecord files, on Beam."""

import collections
import contextlib
import dataclasses
import heapq
import json
import os
import random
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf

from tfx_compression.data import example_parsing, examples
from tfx_compression.errors import DataError

MAX_STRATA = 1000
_BATCH = 512  # rows read at once
_REPORT = "<sampling error>"  # around an error's message, field and code in the text of Beam's error
_SINGLE_STRATUM = ""  # the only stratum of a sample that isn't stratified

_Drawn = list[tuple[float, bytes]]  # random number and row, of rows drawn from a stratum


@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows that were drawn, in random order.

    Attributes:
      rows: Serialized tf.Examples.
      columns: [rows, …] values by feature, in the dtype of the feature.
      labels: [rows] labels, or [rows, length] if a row has several; int64, float32 or bytes. None without a label.
      strata: Number of rows by value of the feature that was stratified by.
    """

    rows: list[bytes]
    columns: dict[str, np.ndarray]
    labels: np.ndarray | None
    strata: dict[str, int]


def sample(
    files: Sequence[str],
    features: Mapping[str, tf.TensorSpec],
    rows: int,
    seed: int,
    *,
    stratify_by: str | None = None,
    label: str | None = None,
    pipeline: Callable[[], beam.Pipeline] = beam.Pipeline,
    temp: str | None = None,
) -> Sample:
    """Draws rows from all files, each with the same chance. Returns fewer if there are fewer.

    This is reservoir sampling by random numbers (Efraimidis and Spirakis 2006, "Weighted random sampling with a
    reservoir", all weights one): each row gets a number, and the rows with the smallest numbers are kept. A row's
    number depends on the seed, the base name of its file and its place in the file only, so the sample doesn't depend
    on how a runner distributes the work or on the order of `files`. Only rows that might be drawn are held in memory,
    and only those drawn are parsed.

    Args:
      files: TFRecord files of tf.Examples; files whose names end in .gz are gzipped.
      features: Specs of the [batch, …] features that become `columns`, by name; may be empty.
      rows: Number of rows.
      seed: Random seed of the draw.
      stratify_by: Feature with one integer, string or whole float per row. Equally many rows are drawn for each of its
        values; values with more rows fill up for those with too few. Takes a second pass over the data.
      label: Feature to return as `labels`.
      pipeline: Makes the Beam pipeline, which runs when its context ends.
      temp: Folder that the workers of the pipeline share; by default, a temporary one of this machine.

    Raises:
      DataError: If there are no rows, a file is not a TFRecord file of tf.Examples, a drawn row lacks a feature or the
        label, or a row lacks the feature to stratify by, or that feature has more than 1,000 values.
    """
    names = _names(files)
    with _folder(temp) as folder:
        counts = None
        if stratify_by is not None:
            counts = _counts(names, stratify_by, pipeline, os.path.join(folder, "counts"))
        quotas = {_SINGLE_STRATUM: rows} if counts is None else shares(counts, rows)
        path = os.path.join(folder, "rows")
        _run(pipeline, names, _Draw(quotas, seed, stratify_by), _Smallest(quotas), path)
        drawn = list(examples.records([path]).as_numpy_iterator())
    if not drawn:
        raise DataError(
            f"There is not one tf.Example in {', '.join(files) or 'no files'}. Remedy: check the splits of the "
            "ExampleGen (input_config or output_config) and its input files.",
            code="no-examples",
        )
    strata = {} if counts is None else {value: quota for value, quota in quotas.items() if quota}
    columns = example_parsing.parse_columns(drawn, features) if features else {}
    return Sample(drawn, columns, None if label is None else _labels(drawn, label), strata)


def shares(counts: Mapping[str, int], rows: int) -> dict[str, int]:
    """Returns the number of rows of each value in a stratified sample: equally many, as far as there are enough.

    Rows that rare values can't fill are shared by the others, and a remainder goes to the most frequent ones.

    Args:
      counts: Number of rows that have each value.
      rows: Number of rows to share.
    """
    quotas = {}
    for place, (value, count) in enumerate(sorted(counts.items(), key=lambda item: (item[1], item[0]))):
        quotas[value] = min(count, rows // (len(counts) - place))
        rows -= quotas[value]
    return dict(sorted(quotas.items()))


def _names(files: Sequence[str]) -> list[tuple[str, str]]:
    """Returns each file with the name that seeds its random numbers.

    That is the base name, numbered because files in several folders, such as spans of an ExampleGen, share it.
    """
    seen: collections.Counter[str] = collections.Counter()
    named = []
    for file in sorted(files):
        name = os.path.basename(file)
        named.append((file, f"{name}/{seen[name]}"))
        seen[name] += 1
    return named


@contextlib.contextmanager
def _folder(temp: str | None) -> Iterator[str]:
    """Yields a new folder in `temp`, or on this machine, and deletes it afterwards."""
    if temp is None:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    folder = os.path.join(temp, f"sample-{uuid.uuid4().hex}")
    tf.io.gfile.makedirs(folder)
    try:
        yield folder
    finally:
        tf.io.gfile.rmtree(folder)


def _run(
    pipeline: Callable[[], beam.Pipeline],
    names: Sequence[tuple[str, str]],
    read: beam.DoFn,
    combine: beam.CombineFn,
    path: str,
) -> None:
    """Runs a pipeline that reads each file and combines the results into records at `path`."""
    try:
        with pipeline() as root:
            (
                root
                | "Files" >> beam.Create(list(names))
                | "Spread" >> beam.Reshuffle()
                | "Read" >> beam.ParDo(read)
                | "Combine" >> beam.CombineGlobally(combine)
                | "Write" >> beam.Map(_write, path)
            )
    except RuntimeError as error:
        report = re.search(f"{_REPORT}(.*?){_REPORT}", str(error))
        if report is None:
            raise
        message, field, code = json.loads(report[1])
        raise DataError(message, field=field, code=code) from error


@contextlib.contextmanager
def _reported_errors() -> Iterator[None]:
    """Raises errors of examples as text that Beam, which keeps nothing else of errors, hands back."""
    try:
        yield
    except DataError as error:
        report = json.dumps([str(error), error.field, error.code])
        raise RuntimeError(f"{_REPORT}{report}{_REPORT}") from error


def _write(records: Iterable[bytes], path: str) -> None:
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)


def _counts(
    names: Sequence[tuple[str, str]], feature: str, pipeline: Callable[[], beam.Pipeline], path: str
) -> dict[str, int]:
    """Returns the number of rows with each value of a feature."""
    _run(pipeline, names, _Count(feature), _Sum(), path)
    counts = {}
    for record in examples.records([path]).as_numpy_iterator():
        count, value = record.decode().split(" ", maxsplit=1)
        counts[value] = int(count)
    _require_few_values(feature, counts)
    return counts


def _require_few_values(feature: str, values: Mapping[str, int]) -> None:
    if len(values) > MAX_STRATA:
        raise DataError(
            f"The feature {feature!r} has more than {MAX_STRATA} values ({', '.join(sorted(values)[:3])}, …), too many "
            "to stratify by. Remedy: stratify by a feature with fewer, usually a classifier's label, or by none.",
            field="Calibration.stratify_by",
            code="too-many-strata",
        )


class _Count(beam.DoFn):
    """Maps a file to the number of its rows with each value of a feature."""

    def __init__(self, feature: str):
        self._feature = feature

    def process(self, named: tuple[str, str]) -> Iterator[dict[str, int]]:
        total: collections.Counter[str] = collections.Counter()
        with _reported_errors():
            for _, values in _read(named[0], self._feature):
                unique, counts = np.unique(values, return_counts=True)
                total.update(dict(zip(unique.tolist(), counts.tolist(), strict=True)))
                _require_few_values(self._feature, total)
        yield dict(total)


class _Sum(beam.CombineFn):
    """Adds the counts of all files, as records of count and value."""

    def create_accumulator(self) -> collections.Counter[str]:
        return collections.Counter()

    def add_input(self, total: collections.Counter[str], counts: Mapping[str, int]) -> collections.Counter[str]:
        total.update(counts)
        return total

    def merge_accumulators(self, totals: Iterable[collections.Counter[str]]) -> collections.Counter[str]:
        return sum(totals, collections.Counter())

    def extract_output(self, total: collections.Counter[str]) -> list[bytes]:
        return [f"{count} {value}".encode() for value, count in sorted(total.items())]


class _Draw(beam.DoFn):
    """Maps a file to those of its rows that might be drawn, by stratum, with their random numbers."""

    def __init__(self, quotas: Mapping[str, int], seed: int, stratify_by: str | None):
        self._quotas = dict(quotas)
        self._seed = seed
        self._stratify_by = stratify_by

    def process(self, named: tuple[str, str]) -> Iterator[dict[str, _Drawn]]:
        file, name = named
        with _reported_errors():
            drawn = _smallest(_read(file, self._stratify_by), self._quotas, self._seed, name)
        yield drawn


def _smallest(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], quotas: Mapping[str, int], seed: int, name: str
) -> dict[str, _Drawn]:
    """Returns the rows of a file with the smallest random numbers of their stratum, from the batches of `_read`."""
    generator = np.random.default_rng(random.Random(f"{seed}/{name}").getrandbits(128))
    kept: dict[str, _Drawn] = {value: [] for value in quotas}  # heaps with the largest number first
    limits = {value: 1.0 if quota else 0.0 for value, quota in quotas.items()}  # rows with smaller numbers are kept
    for rows, values in batches:
        numbers = generator.random(len(rows))
        unique, places = np.unique(values, return_inverse=True)
        limit = np.array([limits[value] for value in unique.tolist()])[places.reshape(-1)]
        for row in np.flatnonzero(numbers < limit).tolist():
            value, pair = str(values[row]), (-float(numbers[row]), rows[row])
            if len(kept[value]) < quotas[value]:
                heapq.heappush(kept[value], pair)
            else:
                heapq.heappushpop(kept[value], pair)
            if len(kept[value]) == quotas[value]:
                limits[value] = -kept[value][0][0]
    return {value: [(-negative, row) for negative, row in heap] for value, heap in kept.items()}


class _Smallest(beam.CombineFn):
    """Keeps the rows with the smallest random numbers of each stratum, in the order of these numbers."""

    def __init__(self, quotas: Mapping[str, int]):
        self._quotas = dict(quotas)

    def create_accumulator(self) -> dict[str, _Drawn]:
        return {value: [] for value in self._quotas}

    def add_input(self, kept: dict[str, _Drawn], drawn: Mapping[str, _Drawn]) -> dict[str, _Drawn]:
        return self.merge_accumulators([kept, drawn])

    def merge_accumulators(self, all_drawn: Iterable[Mapping[str, _Drawn]]) -> dict[str, _Drawn]:
        kept = self.create_accumulator()
        for drawn in all_drawn:
            kept = {value: heapq.nsmallest(quota, kept[value] + drawn[value]) for value, quota in self._quotas.items()}
        return kept

    def extract_output(self, kept: Mapping[str, _Drawn]) -> list[bytes]:
        return [row for _, row in sorted(pair for drawn in kept.values() for pair in drawn)]


def _read(file: str, feature: str | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields [batch] tf.Examples of a file with their strata, [batch] strings."""
    dtype = None
    try:
        for rows in examples.records([file]).batch(_BATCH).prefetch(1).as_numpy_iterator():
            if feature is None:
                yield rows, np.full(len(rows), _SINGLE_STRATUM)
                continue
            if dtype is None:
                dtype = _stored_values(rows[0], feature, file).dtype
            yield rows, _strata(rows, feature, dtype, file)
    except tf.errors.OpError as error:
        raise examples.unreadable_error(file, error) from error


def _strata(rows: np.ndarray, feature: str, dtype: np.dtype, file: str) -> np.ndarray:
    """Returns the values of the feature to stratify by, as strings."""
    spec = tf.io.FixedLenFeature([], tf.string if dtype.kind == "O" else tf.as_dtype(dtype))
    try:
        values = tf.io.parse_example(rows, {feature: spec})[feature].numpy()
    except tf.errors.InvalidArgumentError as error:
        raise DataError(
            f"{file} has tf.Examples with no or several values of {feature!r}, which is stratified by: "
            f"{example_parsing.one_line(error)} Remedy: stratify by a feature that every row has once, or by none.",
            field="Calibration.stratify_by",
            code="missing-stratum",
        ) from error
    if dtype.kind == "O":
        return np.array([value.decode(errors="backslashreplace") for value in values])
    if dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.floor(values)).all()):
            raise DataError(
                f"The feature {feature!r} of {file} has values that are not whole numbers and can't be stratified by. "
                "Remedy: stratify by a feature of classes, usually a classifier's label, or by none.",
                field="Calibration.stratify_by",
                code="no-classes",
            )
        values = values.astype(np.int64)
    return values.astype(str)


def _labels(rows: Sequence[bytes], label: str) -> np.ndarray:
    values = [_stored_values(row, label, "a drawn tf.Example") for row in rows]
    kinds = {(each.dtype, each.shape) for each in values}
    if len(kinds) > 1:
        described = ", ".join(sorted(f"{size[0]} of {dtype}" for dtype, size in kinds))
        raise DataError(
            f"The rows have different numbers or types of values for the label {label!r}: {described}. Remedy: set "
            "label_key to a feature with the same in each row.",
            field="AutoPrecision.label_key",
            code="label-shape",
        )
    labels = np.stack(values)
    return labels[:, 0] if labels.shape[1] == 1 else labels


def _stored_values(row: bytes, feature: str, place: str) -> np.ndarray:
    """Returns the values of a feature of a tf.Example, in the type that they are stored in."""
    from google.protobuf.message import DecodeError

    try:
        stored = tf.train.Example.FromString(row).features.feature
    except DecodeError as error:
        raise DataError(
            f"{place} is not a tf.Example. Remedy: pass TFRecord files of tf.Examples.", code="not-tf-examples"
        ) from error
    kind = stored[feature].WhichOneof("kind") if feature in stored else None
    if kind is None or not getattr(stored[feature], kind).value:
        raise DataError(
            f"{place} has no {feature!r}; it has: {', '.join(sorted(stored)) or 'nothing'}. "
            "Remedy: name a feature that every row has.",
            code="missing-feature",
        )
    dtypes: dict[str, Any] = {"int64_list": np.int64, "float_list": np.float32, "bytes_list": object}
    return np.array(getattr(stored[feature], kind).value, dtypes[kind])
