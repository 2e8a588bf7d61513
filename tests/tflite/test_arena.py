"""The planned memory arena against LiteRT's own layout."""

import hypothesis
import numpy as np
from ai_edge_litert import interpreter as litert
from hypothesis import strategies
from tensorflow.lite.python import schema_py_generated as schema
from tfx_compression.tflite import arena, flatbuffer

from tests.support import by_hand
from tests.support.by_hand import Graph, Op

FLOAT = 4
CHANNELS = 100  # 400 bytes, which TFLite rounds up to 448, a multiple of 64


def dense(graph: Graph, x: int, size: int) -> int:
    """Adds a fully connected layer of `size` outputs. Its kernel takes no memory in the arena."""
    kernel = graph.constant(f"kernel{len(graph.tensors)}", np.zeros((size, graph.tensors[x].shape[1]), np.float32))
    y = graph.tensor(f"y{len(graph.tensors)}", [1, size])
    options, kind = schema.FullyConnectedOptionsT(), schema.BuiltinOptions.FullyConnectedOptions
    return graph.apply(Op.FULLY_CONNECTED, [x, kernel, -1], [y], options, kind)


def logistic(graph: Graph, x: int) -> int:
    return graph.apply(Op.LOGISTIC, [x], [graph.tensor(f"y{len(graph.tensors)}", graph.tensors[x].shape)])


def add(graph: Graph, x: int, y: int) -> int:
    total = graph.tensor(f"y{len(graph.tensors)}", graph.tensors[x].shape)
    return graph.apply(Op.ADD, [x, y], [total], schema.AddOptionsT(), schema.BuiltinOptions.AddOptions)


def start(*sizes: int) -> Graph:
    graph = Graph()
    graph.inputs = [graph.tensor(f"x{index}", [1, size]) for index, size in enumerate(sizes)]
    return graph


def laid_out(graph: Graph) -> int:
    """Returns the bytes from the first to the last tensor in LiteRT's arena, without constants."""
    interpreter = litert.Interpreter(
        model_content=by_hand.model(graph),
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    extents = []
    for index, data in enumerate(graph.data):
        if data is None:
            values = interpreter.tensor(index)()
            address = values.__array_interface__["data"][0]
            extents.append((address, address + values.nbytes))
    used = max(end for _, end in extents) - min(address for address, _ in extents)
    return -(-used // 64) * 64


def planned(graph: Graph) -> int:
    return arena.arena_bytes(flatbuffer.parse(by_hand.model(graph)))


def test_a_chain_needs_two_tensors_at_a_time_besides_its_input():
    graph = start(CHANNELS)
    x = graph.inputs[0]
    for _ in range(4):
        x = logistic(graph, x)
    graph.outputs = [x]
    assert planned(graph) == laid_out(graph) == 3 * 448


def test_a_residual_branch_lives_until_it_is_added():
    graph = start(CHANNELS)
    branch = logistic(graph, graph.inputs[0])
    graph.outputs = [add(graph, branch, logistic(graph, branch))]
    assert planned(graph) == laid_out(graph) == 4 * 448


def test_a_small_tensor_takes_the_place_of_a_larger_one():
    graph = start(16)
    wide = dense(graph, graph.inputs[0], 256)
    narrow = dense(graph, wide, 32)
    graph.outputs = [dense(graph, narrow, 16)]
    assert planned(graph) == laid_out(graph) == (16 + 256 + 32) * FLOAT


def test_an_unused_tensor_is_never_freed():
    graph = start(CHANNELS)
    logistic(graph, graph.inputs[0])
    graph.outputs = [logistic(graph, logistic(graph, graph.inputs[0]))]
    assert planned(graph) == laid_out(graph) == 4 * 448


def test_integers_take_the_size_of_their_type():
    graph = Graph()
    x = graph.tensor("x", [1, 1000], by_hand.Type.INT8, scale=0.1)
    y = graph.tensor("y", [1, 1000], by_hand.Type.INT16, scale=0.1)
    graph.inputs, graph.outputs = [x], [graph.apply(Op.QUANTIZE, [x], [y])]
    assert planned(graph) == 1024 + 2048


def test_dequantized_weights_take_no_memory_in_the_arena():
    graph = start(8)
    half = graph.tensor("half", [4, 8], by_hand.Type.FLOAT16, data=bytes(4 * 8 * 2))
    kernel = graph.apply(Op.DEQUANTIZE, [half], [graph.tensor("kernel", [4, 8])])
    y = graph.tensor("y", [1, 4])
    options, kind = schema.FullyConnectedOptionsT(), schema.BuiltinOptions.FullyConnectedOptions
    graph.outputs = [graph.apply(Op.FULLY_CONNECTED, [graph.inputs[0], kernel, -1], [y], options, kind)]
    same = start(8)
    same.outputs = [dense(same, same.inputs[0], 4)]
    assert planned(graph) == planned(same) == laid_out(same) == 2 * 64


def test_a_free_batch_counts_as_one_row():
    fixed, free = by_hand.one_operator(Op.LOGISTIC, batch=1), by_hand.one_operator(Op.LOGISTIC)
    assert planned(fixed) == planned(free) == 2 * 64


layers = strategies.lists(
    strategies.tuples(strategies.integers(0, 99), strategies.integers(0, 200)), min_size=1, max_size=12
)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(inputs=strategies.lists(strategies.integers(1, 200), min_size=1, max_size=3), layers=layers)
def test_any_graph_of_layers_is_planned_as_in_litert(inputs, layers):
    """Each layer takes any earlier tensor. Tensors that no layer takes are the outputs."""
    graph = start(*inputs)
    tensors = list(graph.inputs)
    taken = set()
    for place, size in layers:
        x = tensors[place % len(tensors)]
        taken.add(x)
        tensors.append(dense(graph, x, size) if size else logistic(graph, x))
    graph.outputs = [tensor for tensor in tensors if tensor not in taken and tensor not in graph.inputs]
    assert planned(graph) == laid_out(graph)
