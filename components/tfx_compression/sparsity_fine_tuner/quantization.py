"""Quantization-aware training: a network that rounds as int8 will, by tfmot."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Aware:
    """A network that is quantization-aware.

    Attributes:
      network: with the weights of the original.
      names: by kernel of the original, its name in the network.
      notes: which layers stay float, and why.
    """

    network: Any
    names: dict[str, str]
    notes: tuple[str, ...]


def aware(network: Any) -> Aware:
    """Makes a Keras 2 network quantization-aware."""
    raise NotImplementedError
