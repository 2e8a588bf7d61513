"""Verdicts on a TFLite model: per operator, per accelerator and per target."""

from tfx_compression.config import Config


class OperatorVerdict(Config):
    """The verdict on an operator: whether an accelerator takes it.

    Attributes:
      index: Place of the operator in the graph.
      op: Name of the operator, such as CONV_2D.
      layer: Name of the layer that the operator comes from.
      mapped: Whether the accelerator (on a microcontroller: the kernel library) takes it.
      reason: Rule that keeps it out; empty when `mapped`.
    """

    index: int
    op: str
    layer: str
    mapped: bool
    reason: str = ""


class DelegateVerdict(Config):
    """The verdict of an accelerator on a model: the operators that it takes.

    Attributes:
      name: Name of the accelerator, such as XNNPACK.
      ops: Verdict on every operator of the main graph.
      segments: Number of pieces that the accelerator gets. With more than one, data goes back and forth.
      cut: First operator that it doesn't take, with the reason; empty when it takes all.
      source: Origin of the rules.
      source_date: Date of that page or code.
    """

    name: str
    ops: tuple[OperatorVerdict, ...]
    segments: int
    cut: str = ""
    source: str
    source_date: str

    @property
    def mapped(self) -> int:
        """Number of operators that it takes."""
        return sum(op.mapped for op in self.ops)


class TargetVerdict(Config):
    """The verdict of a target on a model: whether it runs there.

    Attributes:
      target: Name of the target.
      runs: Whether the model can run there at all.
      problems: Obstacles, each with the operator, the reason and the remedy.
      runtime: What the device must have, such as "LiteRT 2.1 or newer".
      delegates: Verdict of each accelerator of the target.
      arena_bytes: Memory for the tensors between the operators, one row.
      max_arena_bytes: Limit on `arena_bytes`, if any.
    """

    target: str
    runs: bool
    problems: tuple[str, ...]
    runtime: str
    delegates: tuple[DelegateVerdict, ...]
    arena_bytes: int
    max_arena_bytes: int | None = None
