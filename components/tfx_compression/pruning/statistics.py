"""The statistics of a model and its data that criteria and the allocation `sensitivity` use."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class Statistics(Protocol):
    """Gradients, activations and metrics of a model on a sample of data.

    `KerasStatistics` implements it for Keras models, `SignatureStatistics` for SavedModels without layers.
    """

    def batches(self) -> Iterable[Any]:
        """Returns the sample in batches."""

    def rows(self) -> Iterable[Any]:
        """Returns the sample in batches of one row."""

    def gradients(self, batch: Any, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Returns the gradient of the batch's mean loss with respect to each kernel, in the kernel's shape."""

    def gates(self, batch: Any, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Returns the gradient of the batch's mean loss with respect to a multiplicative gate on each output channel.

        Kernels whose layers don't show their gates are left out.
        """

    def activations(self, batch: Any, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Returns the input of the layer that follows each kernel, [positions, channels].

        Kernels whose activations are not visible are left out.
        """

    def scales(self) -> Mapping[str, np.ndarray]:
        """Returns the scale of the normalization that follows each kernel, [channels], where there is one."""

    def metrics(self) -> Mapping[str, float]:
        """Returns loss and metrics on the sample, with the current weights."""
