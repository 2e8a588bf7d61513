"""How long one row takes, for several models on the same machine at the same time."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

_WARM_UP = _AT_LEAST = 10
_ROUNDS = 200
_SECONDS = 10.0
QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)


class Latency(NamedTuple):
    """Milliseconds: the median, the distance between the quartiles, and the times at `QUANTILES` of the repeats."""

    median: float
    spread: float
    quantiles: tuple[float, ...]
    repeats: int


def measure(models: Mapping[str, Callable[[], object]]) -> dict[str, Latency]:
    """Times each model, one call of each in turn, so that what else the machine does hits all alike.

    Each timed call follows an untimed one of the same model, so that none pays for the one before it.

    Ten calls to warm up, then 200 rounds, or as many as fit into ten seconds and at least ten.
    """
    for run in models.values():
        for _ in range(_WARM_UP):
            run()
    times: dict[str, list[float]] = {name: [] for name in models}
    started = time.perf_counter()
    for rounds in range(_ROUNDS):
        if rounds >= _AT_LEAST and time.perf_counter() - started > _SECONDS:
            break
        for name, run in models.items():
            run()  # untimed: who comes after another finds the caches as that left them
            before = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - before) * 1e3)
    return {name: _summary(values) for name, values in times.items()}


def _summary(times: list[float]) -> Latency:
    first, median, third = statistics.quantiles(times, n=4)
    quantiles = tuple(np.asarray(np.quantile(times, QUANTILES)).tolist())
    return Latency(median, third - first, quantiles, len(times))
