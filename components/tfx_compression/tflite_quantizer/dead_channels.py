"""Channels without weights, removed from a float TFLite model.

A channel whose weights are all zero returns the same value for all inputs. If only one layer reads it, that value times
the reader's weights belongs in the reader's bias, and the channel needs no bytes on either side.
"""

import collections
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer.zero_channels import floats, unshared

# These treat every channel alike and keep the channels in order. Poolings leave padding out.
_BETWEEN = {
    "RELU",
    "RELU6",
    "RELU_N1_TO_1",
    "LEAKY_RELU",
    "LOGISTIC",
    "TANH",
    "ELU",
    "HARD_SWISH",
    "GELU",
    "MAX_POOL_2D",
    "AVERAGE_POOL_2D",
}
_ROUNDING = 1e-5  # between the averages of a constant over several numbers of values
_LAYERS = ("CONV_2D", "FULLY_CONNECTED")


def remove_dead_channels(
    content: bytes, columns: Mapping[str, np.ndarray], block_size: int = 0
) -> tuple[bytes, tuple[str, ...]]:
    """Returns the model without its dead channels, and a note for each layer that lost some.

    The layers are convolutions and dense layers whose only reader is another one, with activations and poolings between
    them. A channel stays if its value isn't zero and the reader pads its input, because the padding is zero. Each layer
    keeps one channel at least, and as many as `block_size` divides, if it divided them before.

    Args:
      content: A float flatbuffer.
      columns: [rows, …] values by input, of which the first row is used.
      block_size: Largest number of weights of a dense layer that share a scale; 0 for none.
    """
    model = flatbuffer.parse(content)
    if len(model.subgraphs) > 1:
        return content, ()
    network = _Network(model)
    pairs = list(network.pairs())
    if not pairs:
        return content, ()
    interpreter = Interpreter(content, xnnpack=False, preserve_tensors=True)
    interpreter.predict({name: values[:1] for name, values in columns.items()})
    notes = []
    for first, second, path in pairs:
        values = interpreter.tensor_values(path[-1])
        if values is not None and (removed := network.removable(first, second, values, block_size)).size:
            network.remove(first, second, path, removed, values)
            channels = f"{removed.size} channel{'s' if removed.size > 1 else ''} without weights"
            notes.append(f"{channels} of {first.layer!r} became part of the bias of {second.layer!r}.")
    return (flatbuffer.serialize(model), tuple(notes)) if notes else (content, ())


class _Network:
    """The layers of a parsed model, which `remove` changes."""

    def __init__(self, model: Any):
        self._model = model
        self._graph = model.subgraphs[0]
        self._operators = flatbuffer.operators(model)
        self._readers: dict[int, list[flatbuffer.Operator]] = collections.defaultdict(list)
        for operator in self._operators:
            for tensor in operator.inputs:
                self._readers[tensor].append(operator)
        self._users = collections.Counter(tensor.buffer for tensor in self._graph.tensors)

    def pairs(self) -> Iterator[tuple[flatbuffer.Operator, flatbuffer.Operator, list[int]]]:
        """Yields each layer with dead channels, its only reader, and the tensors from one to the other."""
        for operator in self._operators:
            if operator.op not in _LAYERS or not self._is_changeable(operator) or not self._dead(operator).any():
                continue
            channels, path, reader = len(self._dead(operator)), [operator.outputs[0]], self._reader(operator)
            while reader is not None and reader.op in _BETWEEN:
                path.append(reader.outputs[0])
                reader = self._reader(reader)
            if reader is None or reader.op not in _LAYERS or not self._is_changeable(reader):
                continue
            sizes = {self._tensor(place).shape[-1] for place in path} | {self._tensor(reader.inputs[1]).shape[-1]}
            if reader.inputs[0] == path[-1] and sizes == {channels}:
                yield operator, reader, path

    def removable(
        self, first: flatbuffer.Operator, second: flatbuffer.Operator, values: np.ndarray, block_size: int
    ) -> np.ndarray:
        """Returns the dead channels that the second layer doesn't need, given the values that it reads."""
        flat = values.reshape(-1, values.shape[-1])
        dead = self._dead(first) & np.isclose(flat, flat[:1], rtol=_ROUNDING, atol=0).all(axis=0)
        options = self._graph.operators[second.index].builtinOptions
        kernel = self._tensor(second.inputs[1]).shape
        pads = getattr(options, "padding", None) == schema.Padding.SAME and max(kernel[1:-1], default=1) > 1
        if pads:
            dead &= flat[0] == 0
        if dead.all():
            dead[0] = False
        places = np.flatnonzero(dead)
        surplus = places.size % block_size if block_size and dead.size % block_size == 0 else 0
        return places[surplus:]

    def remove(
        self,
        first: flatbuffer.Operator,
        second: flatbuffer.Operator,
        path: list[int],
        removed: np.ndarray,
        values: np.ndarray,
    ) -> None:
        """Removes channels, and adds what they contribute to the second layer's bias."""
        constants = values.reshape(-1, values.shape[-1])[0, removed].astype(np.float64)
        kernel = floats(self._model, self._tensor(second.inputs[1]))
        if constants.any():
            place = self._bias(second)
            rows = kernel[..., removed].astype(np.float64).reshape(len(kernel), -1, removed.size).sum(axis=1)
            self._put(place, floats(self._model, self._tensor(place)) + rows @ constants)
        self._put(second.inputs[1], np.delete(kernel, removed, axis=-1))
        self._put(first.inputs[1], np.delete(floats(self._model, self._tensor(first.inputs[1])), removed, axis=0))
        stored = self._graph.operators[first.index].inputs  # A bias may have been added.
        if len(stored) > 2 and stored[2] >= 0:
            place = unshared(self._model, first.index, 2)
            self._put(place, np.delete(floats(self._model, self._tensor(place)), removed))
        for place in path:
            tensor = self._tensor(place)
            for shape in (tensor.shape, tensor.shapeSignature):
                if shape is not None:
                    shape[-1] = values.shape[-1] - removed.size

    def _bias(self, operator: flatbuffer.Operator) -> int:
        """Returns a layer's own bias, which is added if there is none."""
        stored = self._graph.operators[operator.index]
        if len(stored.inputs) > 2 and stored.inputs[2] >= 0:
            return unshared(self._model, operator.index, 2)
        bias = schema.TensorT()
        bias.name = self._tensor(operator.outputs[0]).name + b"/bias"
        bias.type, bias.buffer = schema.TensorType.FLOAT32, len(self._model.buffers)
        self._model.buffers.append(schema.BufferT())
        self._graph.tensors.append(bias)
        stored.inputs = np.array([*stored.inputs[:2], len(self._graph.tensors) - 1], np.int32)
        self._put(len(self._graph.tensors) - 1, np.zeros(self._tensor(operator.inputs[1]).shape[0]))
        return len(self._graph.tensors) - 1

    def _dead(self, operator: flatbuffer.Operator) -> np.ndarray:
        kernel = floats(self._model, self._tensor(operator.inputs[1]))
        return ~kernel.reshape(len(kernel), -1).any(axis=1)

    def _is_changeable(self, operator: flatbuffer.Operator) -> bool:
        """Returns whether kernel and bias are floats in the file, and the kernel is no other operator's, too."""
        places = [place for place in operator.inputs[1:] if place >= 0]
        for place in places:
            tensor = self._tensor(place)
            if tensor.type != schema.TensorType.FLOAT32 or self._model.buffers[tensor.buffer].data is None:
                return False
        kernel = self._tensor(operator.inputs[1])
        alone = len(self._readers[operator.inputs[1]]) == 1 and self._users[kernel.buffer] == 1
        options = self._graph.operators[operator.index].builtinOptions
        return alone and kernel.sparsity is None and not getattr(options, "weightsFormat", 0)

    def _reader(self, operator: flatbuffer.Operator) -> flatbuffer.Operator | None:
        """Returns the only operator that reads an operator's only result; None if there are others."""
        tensor = operator.outputs[0]
        readers = self._readers[tensor]
        single = len(operator.outputs) == len(readers) == 1 and tensor not in self._graph.outputs
        return readers[0] if single else None

    def _tensor(self, place: int) -> Any:
        return self._graph.tensors[place]

    def _put(self, place: int, values: np.ndarray) -> None:
        tensor = self._tensor(place)
        data = np.ascontiguousarray(values, np.float32)
        tensor.shape = np.array(values.shape, np.int32)
        self._model.buffers[tensor.buffer].data = np.frombuffer(data.tobytes(), np.uint8)
