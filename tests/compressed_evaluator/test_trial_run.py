"""Models that crash, hang or fail in the process that runs them."""

import time

import numpy as np
import pytest
from tensorflow.lite.python import schema_py_generated as schema
from tfx_compression.compressed_evaluator import trial_run
from tfx_compression.compressed_evaluator.trial_run import find_failures
from tfx_compression.tflite.contents import read_contents

from tests.support import by_hand
from tests.support.by_hand import Graph, Op, Type, one_operator

pytestmark = pytest.mark.slow  # each starts processes


def good() -> bytes:
    return by_hand.model(one_operator(Op.FLOOR))


def without_a_required_input() -> bytes:
    """A LOGISTIC whose only input is -1, as if it were optional and left out. XNNPACK looks up tensor -1."""
    graph = one_operator(Op.LOGISTIC)
    graph.operators[0][1].inputs = [-1]
    return by_hand.model(graph)


def calling_itself() -> bytes:
    """An IF both of whose branches are the graph that it is in: preparing it never ends, until the stack does."""
    graph = Graph()
    graph.inputs = [graph.tensor("condition", [1], Type.BOOL), graph.tensor("x", [1, 3])]
    options = schema.IfOptionsT()
    options.thenSubgraphIndex = options.elseSubgraphIndex = 0
    kind = schema.BuiltinOptions.IfOptions
    graph.outputs = [graph.apply(Op.IF, [0, 0, 1], [graph.tensor("y", [1, 3])], options, kind)]
    return by_hand.model(graph)


def endless() -> bytes:
    """A WHILE whose condition is the constant true."""
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = 1, 2
    condition = Graph()
    condition.inputs = [condition.tensor("x", [1, 3])]
    condition.outputs = [condition.tensor("always", [], Type.BOOL, data=b"\x01")]
    loop = one_operator(Op.WHILE, options, schema.BuiltinOptions.WhileOptions, batch=1)
    return by_hand.model(loop, condition, one_operator(Op.LOGISTIC, batch=1))


@pytest.mark.parametrize("reference_kernels", [False, True], ids=["XNNPACK", "reference kernels"])
def test_models_that_run_have_no_failure(reference_kernels):
    strings = one_operator(Op.FLOOR)
    strings.inputs.append(strings.tensor("text", [-1], Type.STRING))
    models = {
        "good": good(),
        "one row": by_hand.model(one_operator(Op.NEG, batch=1)),
        "text": by_hand.model(strings),
    }
    assert find_failures(models, reference_kernels=reference_kernels) == {}


def test_no_models_have_no_failures():
    assert find_failures({}) == {}


@pytest.mark.parametrize("reference_kernels", [False, True], ids=["XNNPACK", "reference kernels"])
def test_a_crash_is_named_by_its_signal_and_the_other_models_are_tried(reference_kernels):
    content = calling_itself()
    read_contents(content)  # is read without complaint, and would be run
    models = {"before": good(), "crash": content, "behind": good(), "again": content, "last": good()}
    failures = find_failures(models, reference_kernels=reference_kernels)
    assert failures.keys() == {"crash", "again"}
    assert all(failure.startswith("The interpreter crashed (SIGSEGV)") for failure in failures.values())


def test_a_model_may_crash_only_one_set_of_kernels():
    models = {"crash": without_a_required_input()}
    assert "SIGSEGV" in find_failures(models)["crash"]
    assert "optional" in find_failures(models, reference_kernels=True)["crash"]


def test_the_interpreters_own_errors_are_reported():
    custom = by_hand.model(one_operator("MyOperator"))
    no_inputs = one_operator(Op.LOGISTIC)
    no_inputs.operators[0][1].inputs = []
    far = one_operator(Op.FLOOR)
    far.operators[0][1].inputs = [57]
    short = one_operator(Op.FLOOR)
    kernel = short.tensor("kernel", [3, 3], data=bytes(8))
    options, kind = schema.FullyConnectedOptionsT(), schema.BuiltinOptions.FullyConnectedOptions
    short.outputs = [short.apply(Op.FULLY_CONNECTED, [0, kernel, -1], [short.tensor("z", [-1, 3])], options, kind)]
    signature = (0, {"x": 0}, {"y": 57})
    zero = Graph()
    zero.inputs = [zero.tensor("x", [1, 1], Type.INT32)]
    divisor = zero.constant("zero", np.zeros((1, 1), np.int32))
    zero.outputs = [zero.apply(Op.FLOOR_DIV, [0, divisor], [zero.tensor("y", [1, 1], Type.INT32)])]
    failures = find_failures(
        {
            "custom": custom,
            "no inputs": by_hand.model(no_inputs),
            "far": by_hand.model(far),
            "good": good(),
            "short": by_hand.model(short),
            "signature": by_hand.model(one_operator(Op.FLOOR), signatures={"serving_default": signature}),
            "two signatures": by_hand.model(
                one_operator(Op.FLOOR), signatures={name: (0, {"x": 0}, {"y": 1}) for name in ("a", "b")}
            ),
            "zero": by_hand.model(zero),
            "text": b"no model",
        }
    )
    expected = {
        "custom": "unresolved custom op: MyOperator",
        "no inputs": "NumInputs(node) != 1 (0 != 1)",
        "far": "Invalid tensor index 57 in node inputs",
        "short": "Tensor 2 is invalidly specified",
        "signature": "Invalid tensor index 57",
        "two signatures": "none of them is 'serving_default'",
        "zero": "Division by 0",
        "text": "Not a TFLite model",
    }
    assert set(failures) == set(expected)
    for name, words in expected.items():
        assert words in failures[name]


def test_hanging_and_crashing_models_are_stopped_and_the_others_are_tried(monkeypatch):
    monkeypatch.setattr(trial_run, "_TIMEOUT_SECONDS", 5.0)
    started = time.monotonic()
    failures = find_failures({"before": good(), "loop": endless(), "crash": calling_itself(), "behind": good()})
    assert failures.keys() == {"loop", "crash"}
    assert failures["loop"].startswith("The interpreter hung: no result in 5 s")
    assert failures["crash"].startswith("The interpreter crashed (SIGSEGV)")
    assert time.monotonic() - started < 60
