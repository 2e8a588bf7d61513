"""A sample of the tf.Examples in TFRecord files, drawn on Beam."""

import collections
import contextlib
import dataclasses
import heapq
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
_BATCH = 512  # rows that are read at once
_WHOLE = ""  # the only stratum where none are asked for

_Drawn = list[tuple[float, bytes]]  # the rows of a stratum that were drawn, with their random numbers


@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows that were drawn, in random order.

    Attributes:
      rows: serialized tf.Examples.
      columns: by feature, [rows, …] values in the dtype of the feature.
      labels: [rows], or [rows, length] where there are several to a row; int64, float32 or bytes. None without a label.
      strata: by value of the feature that was stratified by, the rows that have it.
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
    """`rows` rows out of all of `files`, each with the same chance; fewer where there are fewer.

    Reservoir sampling by random numbers (Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir",
    all weights one): each row gets one, and those with the smallest are kept. A row's number follows from the seed, the
    base name of its file and its place in there, so the sample is the same however a runner shares out the work and
    whatever the order of `files`. Only rows that might be drawn are held, and only those that were are parsed.

    Args:
      files: TFRecord files of tf.Examples, gzipped where they are called .gz.
      features: [batch, …] tensors that `columns` are made of, by the feature's name; none of them makes none.
      rows: how many.
      seed: of the draw.
      stratify_by: a feature of one integer or string, or whole float, per row: as many rows of each of its values, as
        far as there are; the others make up for what there isn't. Takes a second pass over the data.
      label: a feature that is to be returned beside `features`.
      pipeline: makes Beam's, which is run when its context ends.
      temp: a directory that the workers of that pipeline share; by default one of this machine.

    Raises:
      DataError: where there are no rows, files are no TFRecords of tf.Examples, a drawn row lacks a feature or the
        label, or a row lacks what is stratified by, or that has more than 1,000 values.
    """
    names = _names(files)
    with _folder(temp) as folder:
        counts = None
        if stratify_by is not None:
            counts = _counts(names, stratify_by, pipeline, os.path.join(folder, "counts"))
        quotas = {_WHOLE: rows} if counts is None else shares(counts, rows)
        drawn = os.path.join(folder, "rows")
        draw = _Draw(quotas, seed, stratify_by)
        _run(pipeline, names, draw, _Smallest(quotas), drawn)
        chosen = list(examples.records([drawn]).as_numpy_iterator())
    if not chosen:
        raise DataError(
            f"There is not one tf.Example in {', '.join(files) or 'no files'}. Remedy: check the splits of the "
            "ExampleGen (input_config or output_config) and its input files."
        )
    strata = {} if counts is None else {value: quota for value, quota in quotas.items() if quota}
    columns = example_parsing.parse_columns(chosen, features) if features else {}
    return Sample(chosen, columns, None if label is None else _labels(chosen, label), strata)


def shares(counts: Mapping[str, int], rows: int) -> dict[str, int]:
    """How many of `rows` each value gets where it has `counts`: as many each, as far as there are.

    What rare values can't fill goes to the others alike; a remainder goes to the most frequent ones.
    """
    found = {}
    for place, (value, count) in enumerate(sorted(counts.items(), key=lambda item: (item[1], item[0]))):
        found[value] = min(count, rows // (len(counts) - place))
        rows -= found[value]
    return dict(sorted(found.items()))


def _names(files: Sequence[str]) -> list[tuple[str, str]]:
    """Each file with what its random numbers follow from: the base name, numbered where files in several folders share
    it, as the spans of an ExampleGen do.
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
    """A new folder in `temp`, or on this machine, that is gone afterwards."""
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
    """Has Beam read each file and combine what is found into records at `path`."""
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
    except (RuntimeError, DataError) as error:
        # Beam makes another error of it, whose text names the class and quotes the message.
        found = re.findall(r"DataError: (.*?)(?:\s*\[while running|\n|$)", f"{type(error).__name__}: {error}")
        if not found:
            raise
        raise DataError(found[-1]) from error


def _write(records: Iterable[bytes], path: str) -> None:
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)


def _counts(
    names: Sequence[tuple[str, str]], feature: str, pipeline: Callable[[], beam.Pipeline], path: str
) -> dict[str, int]:
    """How many rows have each value of a feature."""
    _run(pipeline, names, _Count(feature), _Sum(), path)
    found = {}
    for record in examples.records([path]).as_numpy_iterator():
        count, value = record.decode().split(" ", maxsplit=1)
        found[value] = int(count)
    _require_few(feature, found)
    return found


def _require_few(feature: str, values: Mapping[str, int]) -> None:
    if len(values) > MAX_STRATA:
        raise DataError(
            f"The feature {feature!r} has more than {MAX_STRATA} values ({', '.join(sorted(values)[:3])}, …), too many "
            "to stratify by. Remedy: stratify_by a feature with fewer, the label of a classifier mostly, or by none."
        )


class _Count(beam.DoFn):
    """From the name of a file to how many of its rows have each value of a feature."""

    def __init__(self, feature: str):
        self._feature = feature

    def process(self, named: tuple[str, str]) -> Iterator[dict[str, int]]:
        found: collections.Counter[str] = collections.Counter()
        for _, values in _read(named[0], self._feature):
            unique, counts = np.unique(values, return_counts=True)
            found.update(dict(zip(unique.tolist(), counts.tolist(), strict=True)))
            _require_few(self._feature, found)
        yield dict(found)


class _Sum(beam.CombineFn):
    """Adds what `_Count` found in each file, as records of count and value."""

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
    """From the name of a file to those of its rows that might be drawn: by stratum, with their random numbers."""

    def __init__(self, quotas: Mapping[str, int], seed: int, stratify_by: str | None):
        self._quotas = dict(quotas)
        self._seed = seed
        self._stratify_by = stratify_by

    def process(self, named: tuple[str, str]) -> Iterator[dict[str, _Drawn]]:
        file, name = named
        yield _smallest(_read(file, self._stratify_by), self._quotas, self._seed, name)


def _smallest(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], quotas: Mapping[str, int], seed: int, name: str
) -> dict[str, _Drawn]:
    """The rows of a file that have the smallest random numbers of their stratum, out of what `_read` returns."""
    generator = np.random.default_rng(random.Random(f"{seed}/{name}").getrandbits(128))
    kept: dict[str, _Drawn] = {value: [] for value in quotas}  # heaps, the largest number first
    limits = {value: 1.0 if quota else 0.0 for value, quota in quotas.items()}  # a number below it is kept
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
    """The rows with the smallest random numbers of each stratum, in the order of those."""

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
    """Batches of the rows of a file, [batch] tf.Examples, and of their stratum, [batch] strings."""
    dtype = None
    try:
        for rows in examples.records([file]).batch(_BATCH).prefetch(1).as_numpy_iterator():
            if feature is None:
                yield rows, np.full(len(rows), _WHOLE)
                continue
            if dtype is None:
                dtype = _stored(rows[0], feature, file).dtype
            yield rows, _values(rows, feature, dtype, file)
    except tf.errors.OpError as error:
        raise examples.unreadable_error(file, error) from error


def _values(rows: np.ndarray, feature: str, dtype: np.dtype, file: str) -> np.ndarray:
    """What is stratified by, as strings."""
    spec = tf.io.FixedLenFeature([], tf.string if dtype.kind == "O" else tf.as_dtype(dtype))
    try:
        values = tf.io.parse_example(rows, {feature: spec})[feature].numpy()
    except tf.errors.InvalidArgumentError as error:
        raise DataError(
            f"{file} has tf.Examples without the one value of {feature!r}, which is stratified by: "
            f"{example_parsing.one_line(error)} Remedy: stratify_by a feature that every row has once, or by none."
        ) from error
    if dtype.kind == "O":
        return np.array([value.decode(errors="backslashreplace") for value in values])
    if dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.floor(values)).all()):
            raise DataError(
                f"The feature {feature!r} of {file} has values that are no whole numbers, and can't be stratified by. "
                "Remedy: stratify_by a feature of classes, the label of a classifier mostly, or by none."
            )
        values = values.astype(np.int64)
    return values.astype(str)


def _labels(rows: Sequence[bytes], label: str) -> np.ndarray:
    found = [_stored(row, label, "a drawn tf.Example") for row in rows]
    kinds = {(values.dtype, values.shape) for values in found}
    if len(kinds) > 1:
        described = ", ".join(sorted(f"{size[0]} of {dtype}" for dtype, size in kinds))
        raise DataError(
            f"The label {label!r} has not the same number of values of the same type in each row: {described}. "
            "Remedy: set label_key to a feature that has."
        )
    labels = np.stack(found)
    return labels[:, 0] if labels.shape[1] == 1 else labels


def _stored(row: bytes, feature: str, place: str) -> np.ndarray:
    """The values of a feature of a tf.Example, in the type that they are stored in."""
    from google.protobuf.message import DecodeError

    try:
        stored = tf.train.Example.FromString(row).features.feature
    except DecodeError as error:
        raise DataError(f"{place} is no tf.Example. Remedy: TFRecord files of tf.Examples.") from error
    kind = stored[feature].WhichOneof("kind") if feature in stored else None
    if kind is None or not getattr(stored[feature], kind).value:
        raise DataError(
            f"{place} has no {feature!r}; it has: {', '.join(sorted(stored)) or 'nothing'}. "
            "Remedy: name a feature that every row has."
        )
    dtypes: dict[str, Any] = {"int64_list": np.int64, "float_list": np.float32, "bytes_list": object}
    return np.array(getattr(stored[feature], kind).value, dtypes[kind])
