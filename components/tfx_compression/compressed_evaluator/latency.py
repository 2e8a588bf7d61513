"""Measures how long one row takes, for several models on the same machine at the same time."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

_WARM_UP_CALLS = 10
_MIN_ROUNDS = 10
_MAX_ROUNDS = 200
_MAX_SECONDS = 10.0
QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)


class Latency(NamedTuple):
    """Times of one model in milliseconds.

    Attributes:
      median: Median.
      spread: Interquartile range.
      quantiles: Times at `QUANTILES`.
      repeats: Number of timed calls.
    """

    median: float
    spread: float
    quantiles: tuple[float, ...]
    repeats: int


def measure(models: Mapping[str, Callable[[], object]]) -> dict[str, Latency]:
    """Times each model, one call of each in turn, so that a busy machine slows all of them alike.

    After ten warm-up calls of each model there are 200 rounds, or as many as fit into ten seconds but at least ten. In
    each round an untimed call of a model precedes its timed call, so that no model pays for the caches that the one
    before it left.

    Args:
      models: By name, a function that runs one row.
    """
    for run in models.values():
        for _ in range(_WARM_UP_CALLS):
            run()
    times: dict[str, list[float]] = {name: [] for name in models}
    started = time.perf_counter()
    for completed in range(_MAX_ROUNDS):
        if completed >= _MIN_ROUNDS and time.perf_counter() - started > _MAX_SECONDS:
            break
        for name, run in models.items():
            run()
            before = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - before) * 1e3)
    return {name: _summary(values) for name, values in times.items()}


def _summary(times: list[float]) -> Latency:
    first, median, third = statistics.quantiles(times, n=4)
    quantiles = tuple(np.asarray(np.quantile(times, QUANTILES)).tolist())
    return Latency(median, third - first, quantiles, len(times))
