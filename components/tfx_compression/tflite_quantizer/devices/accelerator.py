"""An accelerator: a rule that says which operators it takes, and the verdict that follows on a graph."""

import dataclasses
from collections.abc import Callable, Sequence

from tfx_compression.tflite_quantizer.devices.nodes import Node
from tfx_compression.tflite_quantizer.devices.verdicts import DelegateVerdict, OperatorVerdict


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A delegate, a chip or a kernel library that runs operators of TFLite models.

    Attributes:
      name: Name in reports.
      source: Origin of the rule.
      source_date: Date of that page or code.
      rule: Returns why an operator is not taken; empty when it is.
      custom_operators: Whether `rule` decides on custom operators too; otherwise none is taken.
      one_piece: Whether it takes a single piece of the graph: nothing after the first operator that it leaves.
    """

    name: str
    source: str
    source_date: str
    rule: Callable[[Node], str]
    custom_operators: bool = False
    one_piece: bool = False

    def judge(self, nodes: Sequence[Node]) -> DelegateVerdict:
        """Returns the verdict on the operators of a graph, which are in the order in which they run."""
        verdicts: list[OperatorVerdict] = []
        cut, first = "", None
        for node in nodes:
            reason = self._reason(node)
            if self.one_piece and cut and not reason:
                reason = f"after the cut at {first}"
            elif reason and not cut and (not self.one_piece or not _converts_floats(node)):
                first, cut = node, f"{node}: {reason}"
            verdicts.append(
                OperatorVerdict(index=node.index, op=node.op, layer=node.layer, mapped=not reason, reason=reason)
            )
        mapped = [verdict.mapped for verdict in verdicts]
        segments = sum(now and not before for before, now in zip([False, *mapped], mapped, strict=False))
        return DelegateVerdict(
            name=self.name,
            ops=tuple(verdicts),
            segments=segments,
            cut=cut,
            source=self.source,
            source_date=self.source_date,
        )

    def _reason(self, node: Node) -> str:
        return "a custom operator" if node.custom and not self.custom_operators else self.rule(node)


def _converts_floats(node: Node) -> bool:
    """Returns whether a node converts between floats and integers at an end of the graph."""
    return node.op in ("QUANTIZE", "DEQUANTIZE") and any(tensor.dtype == "float32" for tensor in node.computed)
