"""The precision of each operator: by rules, or the same wherever it is supported."""

import re
from collections.abc import Sequence

from tfx_compression.errors import ConfigError
from tfx_compression.tflite.modes import PRECISIONS
from tfx_compression.tflite_quantizer.config import PrecisionRule
from tfx_compression.tflite_quantizer.precision_graph import PrecisionGraph
from tfx_compression.tflite_quantizer.recipe import PrecisionChoice, supports

Choices = dict[int, PrecisionChoice]  # by the operator's index


def allowed_precisions(graph: PrecisionGraph, index: int, per_channel: bool = True) -> tuple[str, ...]:
    """Returns the precisions that an operator with a kernel supports."""
    kind = graph.kind(index)
    return tuple(name for name in PRECISIONS if supports(kind, PrecisionChoice(name), per_channel))


def choose_by_rules(content: bytes, rules: Sequence[PrecisionRule], per_channel: bool = True) -> Choices:
    """Returns the precision of each operator that a rule matches. The last rule that matches wins.

    For an operator without a kernel (pooling, reshape, …), a rule sets the bits of its activations. If the operator
    doesn't support them, it follows its neighbors.

    Args:
      content: A float flatbuffer.
      rules: The rules, at least one.
      per_channel: See `Quantization`.

    Raises:
      ConfigError: If a rule matches no layer, or a layer doesn't support its rule's precision.
    """
    graph = PrecisionGraph(content)
    choices: Choices = {}
    for rule in rules:
        matches = [operator.index for operator in graph.operators if re.search(rule.layers, operator.layer)]
        if not matches:
            layers = dict.fromkeys(operator.layer for operator in graph.operators)
            raise ConfigError(
                f"The rule layers={rule.layers!r} matches no layer of the model. Remedy: match one of "
                f"{', '.join(layers)}.",
                field="PrecisionRule.layers",
                code="no-matching-layer",
            )
        choices.update(dict.fromkeys(matches, PrecisionChoice(rule.precision, rule.block_size)))
    for index in choices.keys() & graph.kernels.keys():
        require_supported(graph, index, choices[index], per_channel)
    for operator in (graph.operators[index] for index in choices):
        precision = choices[operator.index].precision
        if graph.is_table_lookup(operator) and not PRECISIONS[precision].weightless:
            supported = ", ".join(name for name, spec in PRECISIONS.items() if spec.weightless)
            raise ConfigError(
                f"The layer {operator.layer!r} ({operator.op}) looks up a table, which doesn't support precision "
                f"{precision!r}. Remedy: a later rule for it with one of {supported}.",
                field="PrecisionRule.precision",
                code="unsupported-precision",
            )
    return choices


def choose_uniform(content: bytes, precision: str, block_size: int = 0, per_channel: bool = True) -> Choices:
    """Returns a precision for every operator that supports it, and a fallback for others with a kernel.

    Fallbacks are those of the precision's row, float32 at last. A layer whose input size `block_size` doesn't divide
    gets one scale per channel.
    """
    graph = PrecisionGraph(content)
    fallbacks = [PrecisionChoice(name) for name in (precision, *PRECISIONS[precision].fallbacks, "float32")]
    choices = {}
    for index in range(len(graph.operators)):
        first = PrecisionChoice(precision, block_size)
        if block_size and index in graph.kernels and graph.input_size(index) % block_size:
            first = PrecisionChoice(precision)
        kind = graph.kind(index)
        choices[index] = next(
            choice
            for choice in (first, *fallbacks)
            if index not in graph.kernels or supports(kind, choice, per_channel)
        )
    return choices


def require_supported(graph: PrecisionGraph, index: int, choice: PrecisionChoice, per_channel: bool) -> None:
    """Checks that an operator with a kernel supports a choice.

    Raises:
      ConfigError: If it doesn't support the precision or the block size.
    """
    operator, kind = graph.operators[index], graph.kind(index)
    place = f"The layer {operator.layer!r} ({operator.op})"
    if not supports(kind, PrecisionChoice(choice.precision), per_channel):
        raise ConfigError(
            f"{place} doesn't support precision {choice.precision!r}. Remedy: a later rule for it with one of "
            f"{', '.join(allowed_precisions(graph, index, per_channel))}.",
            field="PrecisionRule.precision",
            code="unsupported-precision",
        )
    if not choice.block_size:
        return
    if not supports(kind, choice, per_channel):
        raise ConfigError(
            f"{place} doesn't support block_size={choice.block_size} with precision {choice.precision!r}: only dense "
            "layers and embeddings do. Remedy: a later rule for it with block_size=0.",
            field="PrecisionRule.block_size",
            code="unsupported-block-size",
        )
    if graph.input_size(index) % choice.block_size:
        raise ConfigError(
            f"{place} has {graph.input_size(index)} inputs, which block_size={choice.block_size} doesn't divide. "
            "Remedy: a later rule for it with a smaller block_size, or 0.",
            field="PrecisionRule.block_size",
            code="indivisible-block-size",
        )
