"""TFLite model metadata, read and written.

The format (https://ai.google.dev/edge/litert/models/metadata; its schema is `metadata_schema.fbs` in
tensorflow/tflite-support) is a flatbuffer in the model's buffer `TFLITE_METADATA`, and a ZIP archive after the model
with the files that it names. The package that writes it, `tflite-support`, isn't built for Python 3.10 with a current
protobuf, so the tables are written here by the schema's field numbers.
"""

import dataclasses
import io
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import number_types
from flatbuffers.table import Table  # type: ignore[import-untyped]

from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.tflite import flatbuffer

_BUFFER, _IDENTIFIER = b"TFLITE_METADATA", b"M001"
_PARSER = "1.0.0"  # the first version has all fields that are written here
_NORMALIZATION_OPTIONS = 1  # in the union ProcessUnitOptions
_TENSOR_AXIS_LABELS = 2  # in the enum AssociatedFileType
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # fixed, so that the same model gives the same bytes


@dataclasses.dataclass(frozen=True)
class TensorMetadata:
    """Metadata of an input or output.

    Attributes:
      name: Name in the signature.
      mean, std: Normalization `(value - mean) / std` that an application applies, per channel or once for all.
      minimum, maximum: Smallest and largest value, per channel or once for all.
      labels: Names of the places along the last axis.
    """

    name: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    minimum: tuple[float, ...] = ()
    maximum: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class GraphMetadata:
    """Metadata of a graph: the name of the signature that runs it (empty without one), its inputs and outputs."""

    name: str
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelMetadata:
    """Metadata of a model. The first of `graphs` is the main one."""

    name: str = ""
    description: str = ""
    version: str = ""
    author: str = ""
    license: str = ""
    graphs: tuple[GraphMetadata, ...] = ()
    min_parser_version: str = ""


def write(
    content: bytes,
    *,
    name: str = "",
    description: str = "",
    version: str = "",
    author: str = "",
    license: str = "",
    labels: Mapping[str, Sequence[str]] | None = None,
    normalization: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> bytes:
    """Returns the model with metadata, which replaces metadata that it had. Weights and operators stay as they are.

    Args:
      content: The TFLite model.
      name: Name of the model.
      description: Description of what it does.
      version: Version in the authors' own scheme.
      author: Author of the model.
      license: License of the model.
      labels: Names of the classes by output, one for each place along its last axis.
      normalization: Means and standard deviations by input, equally many.
      ranges: Smallest and largest calibrated value by input.

    Raises:
      ModelError: If `content` is not a TFLite model.
      ConfigError: If the model has no such input or output, or labels don't fit it.
    """
    labels, normalization, ranges = labels or {}, normalization or {}, ranges or {}
    model = flatbuffer.parse(content)
    graphs = _graphs(model)
    _require_known("output", labels, (name for graph in graphs for name in graph.outputs))
    _require_known("input", {**normalization, **ranges}, (name for graph in graphs for name in graph.inputs))
    for graph in graphs:
        for output in labels.keys() & graph.outputs.keys():
            _require_fitting(output, labels[output], graph.outputs[output])

    def input_metadata(tensor: str) -> TensorMetadata:
        mean, std = normalization.get(tensor, ((), ()))
        minimum, maximum = ([end] for end in ranges[tensor]) if tensor in ranges else ((), ())
        return TensorMetadata(tensor, tuple(mean), tuple(std), tuple(minimum), tuple(maximum))

    graph_metadata = tuple(
        GraphMetadata(
            graph.name,
            tuple(input_metadata(tensor) for tensor in graph.inputs),
            tuple(TensorMetadata(tensor, labels=tuple(labels.get(tensor, ()))) for tensor in graph.outputs),
        )
        for graph in graphs
    )
    files = {output: f"labels_{number}.txt" for number, output in enumerate(labels)}
    metadata = ModelMetadata(name, description, version, author, license, graph_metadata, _PARSER)
    _attach(model, _Writer(files).serialize(metadata))
    content = flatbuffer.serialize(model)
    return _with_files(content, {file: labels[output] for output, file in files.items()})


def read(content: bytes) -> ModelMetadata | None:
    """Returns the metadata of a TFLite model; None if it has none.

    Raises:
      ModelError: If it is not a TFLite model, or the metadata is damaged.
    """
    model = flatbuffer.parse(content)
    buffer = next((entry.buffer for entry in model.metadata or () if entry.name == _BUFFER), None)
    if buffer is None:
        return None
    try:
        data = bytes(model.buffers[buffer].data)
        if data[4:8] != _IDENTIFIER:
            raise ModelError(
                f"The TFLite model's metadata has the identifier {data[4:8]!r} instead of {_IDENTIFIER!r}. Remedy: "
                "write it again.",
                code="unknown-metadata",
            )
        return _read(_Reader(data, struct.unpack_from("<I", data)[0]), content)
    except (struct.error, TypeError, IndexError, KeyError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"The TFLite model's metadata is damaged: {error}. Remedy: write it again.", code="damaged-metadata"
        ) from error


# The model


@dataclasses.dataclass(frozen=True)
class _GraphSizes:
    """The signature's name, and the size of the last axis of each input and output, in the graph's order; -1: any."""

    name: str
    inputs: dict[str, int]
    outputs: dict[str, int]


def _graphs(model: Any) -> list[_GraphSizes]:
    """Returns the main graph, and those after it up to the last that a signature runs."""
    signatures = {signature.subgraphIndex: signature for signature in model.signatureDefs or ()}
    graphs = []
    for number, graph in enumerate(model.subgraphs[: max(signatures, default=0) + 1]):
        signature = signatures.get(number)
        names = {
            int(tensor.tensorIndex): tensor.name.decode()
            for tensor in ((*signature.inputs, *signature.outputs) if signature else ())
        }

        def sizes(places: Iterable[int], graph: Any = graph, names: dict[int, str] = names) -> dict[str, int]:
            tensors = {int(place): graph.tensors[place] for place in places}
            return {names.get(place, tensor.name.decode()): _last_size(tensor) for place, tensor in tensors.items()}

        key = signature.signatureKey.decode() if signature else ""
        graphs.append(_GraphSizes(key, sizes(graph.inputs), sizes(graph.outputs)))
    return graphs


def _last_size(tensor: Any) -> int:
    shape = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    return int(shape[-1]) if shape is not None and len(shape) else 1


def _require_known(kind: str, requested: Iterable[str], known: Iterable[str]) -> None:
    names = set(known)
    unknown = [name for name in requested if name not in names]
    if unknown:
        raise ConfigError(
            f"The metadata describes the {kind}s {', '.join(map(repr, unknown))}, which the TFLite model doesn't have; "
            f"its {kind}s are: {', '.join(sorted(names))}. Remedy: use the names of its signature.",
            field="Quantization.metadata",
            code=f"unknown-{kind}",
        )


def _require_fitting(output: str, labels: Sequence[str], size: int) -> None:
    if size not in (-1, len(labels)):
        raise ConfigError(
            f"The output {output!r} has {size} values along its last axis, but metadata.labels has {len(labels)} "
            "names. Remedy: one label for each value, in order.",
            field="Metadata.labels",
            code="label-count",
        )
    broken = [label for label in labels if "\n" in label or "\r" in label]
    if broken:
        raise ConfigError(
            f"The label {broken[0]!r} of the output {output!r} has a line break. Remedy: labels of one line each.",
            field="Metadata.labels",
            code="label-line-break",
        )


def _attach(model: Any, data: bytes) -> None:
    """Puts metadata into the model's buffers, in place of metadata that is there."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8)
    for entry in model.metadata or ():
        if entry.name == _BUFFER:
            model.buffers[entry.buffer] = buffer
            return
    entry = schema.MetadataT()
    entry.name, entry.buffer = _BUFFER, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]


def _with_files(content: bytes, files: Mapping[str, Sequence[str]]) -> bytes:
    """Returns the model with files after it, stored uncompressed, since readers on devices don't decompress."""
    if not files:
        return content
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        for name, lines in files.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), "\n".join(lines))
    return file.getvalue()


# Tables, with fields by their number in metadata_schema.fbs


class _Writer:
    """Writes the tables; `files` has the name of each output's file of labels."""

    def __init__(self, files: Mapping[str, str]):
        self._files = files
        self._builder = flatbuffers.Builder(1024)

    def serialize(self, metadata: ModelMetadata) -> bytes:
        words = (metadata.name, metadata.description, metadata.version, metadata.author, metadata.license)
        name, description, version, author, license_, parser = map(self._string, (*words, metadata.min_parser_version))
        graphs = self._tables([self._graph(graph) for graph in metadata.graphs])
        fields = {0: name, 1: description, 2: version, 3: graphs, 4: author, 5: license_, 7: parser}
        self._builder.Finish(self._table(8, fields), file_identifier=_IDENTIFIER)
        return bytes(self._builder.Output())

    def _graph(self, graph: GraphMetadata) -> int:
        inputs, outputs = (
            self._tables([self._tensor(tensor) for tensor in tensors]) for tensors in (graph.inputs, graph.outputs)
        )
        return self._table(5, {0: self._string(graph.name), 2: inputs, 3: outputs})

    def _tensor(self, tensor: TensorMetadata) -> int:
        units = self._normalization(tensor) if tensor.mean else 0
        stats = 0
        if tensor.minimum:
            stats = self._table(2, {0: self._floats(tensor.maximum), 1: self._floats(tensor.minimum)})
        files = self._labels(self._files[tensor.name]) if tensor.labels else 0
        return self._table(7, {0: self._string(tensor.name), 4: units, 5: stats, 6: files})

    def _normalization(self, tensor: TensorMetadata) -> int:
        options = self._table(2, {0: self._floats(tensor.mean), 1: self._floats(tensor.std)})
        return self._tables([self._table(2, {1: options}, enums={0: _NORMALIZATION_OPTIONS})])

    def _labels(self, file: str) -> int:
        return self._tables([self._table(4, {0: self._string(file)}, enums={2: _TENSOR_AXIS_LABELS})])

    def _table(self, size: int, fields: Mapping[int, int], enums: Mapping[int, int] | None = None) -> int:
        """Returns a table with `size` fields. An offset of 0 leaves a field out; enums have one byte."""
        self._builder.StartObject(size)
        for number, offset in fields.items():
            self._builder.PrependUOffsetTRelativeSlot(number, offset, 0)
        for number, value in (enums or {}).items():
            self._builder.PrependByteSlot(number, value, 0)
        return int(self._builder.EndObject())

    def _string(self, text: str) -> int:
        return int(self._builder.CreateString(text)) if text else 0

    def _floats(self, values: Sequence[float]) -> int:
        return int(self._builder.CreateNumpyVector(np.asarray(values, np.float32)))

    def _tables(self, offsets: Sequence[int]) -> int:
        self._builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._builder.PrependUOffsetTRelative(offset)
        return int(self._builder.EndVector())


class _Reader:
    """A table, with fields by number; an absent one is empty."""

    def __init__(self, data: bytes, place: int):
        self._table = Table(data, place)

    def string(self, number: int) -> str:
        offset = self._offset(number)
        return self._table.String(offset + self._table.Pos).decode() if offset else ""

    def floats(self, number: int) -> tuple[float, ...]:
        offset = self._offset(number)
        if not offset:
            return ()
        return tuple(map(float, self._table.GetVectorAsNumpy(number_types.Float32Flags, offset)))

    def enum(self, number: int) -> int:
        offset = self._offset(number)
        return int(self._table.Get(number_types.Uint8Flags, offset + self._table.Pos)) if offset else 0

    def table(self, number: int) -> "_Reader | None":
        offset = self._offset(number)
        return _Reader(self._table.Bytes, self._table.Indirect(offset + self._table.Pos)) if offset else None

    def tables(self, number: int) -> list["_Reader"]:
        offset = self._offset(number)
        if not offset:
            return []
        start = self._table.Vector(offset)
        places = range(start, start + 4 * self._table.VectorLen(offset), 4)
        return [_Reader(self._table.Bytes, self._table.Indirect(place)) for place in places]

    def _offset(self, number: int) -> int:
        return int(self._table.Offset(4 + 2 * number))


def _read(root: _Reader, content: bytes) -> ModelMetadata:
    graphs = tuple(
        GraphMetadata(
            graph.string(0),
            tuple(_read_tensor(tensor, content) for tensor in graph.tables(2)),
            tuple(_read_tensor(tensor, content) for tensor in graph.tables(3)),
        )
        for graph in root.tables(3)
    )
    return ModelMetadata(
        root.string(0), root.string(1), root.string(2), root.string(4), root.string(5), graphs, root.string(7)
    )


def _read_tensor(tensor: _Reader, content: bytes) -> TensorMetadata:
    units = [unit.table(1) for unit in tensor.tables(4) if unit.enum(0) == _NORMALIZATION_OPTIONS]
    options = units[0] if units else None
    mean, std = (options.floats(0), options.floats(1)) if options else ((), ())
    stats = tensor.table(5)
    maximum, minimum = (stats.floats(0), stats.floats(1)) if stats else ((), ())
    files = [file.string(0) for file in tensor.tables(6) if file.enum(2) == _TENSOR_AXIS_LABELS]
    labels: tuple[str, ...] = ()
    if files:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            labels = tuple(archive.read(files[0]).decode().split("\n"))
    return TensorMetadata(tensor.string(0), mean, std, minimum, maximum, labels)
