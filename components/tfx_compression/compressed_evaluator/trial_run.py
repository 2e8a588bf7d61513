"""Runs each TFLite model once in a process of its own, since a model can crash the process that runs it."""

import concurrent.futures
import os
from collections.abc import Mapping

from tfx_compression import worker
from tfx_compression.errors import WorkerError

_TIMEOUT_SECONDS = 300.0


def find_failures(models: Mapping[str, bytes], reference_kernels: bool = False) -> dict[str, str]:
    """Runs each TFLite model once on zeros, and returns the failures of those that crash, hang or are refused.

    Args:
      models: Flatbuffers by name.
      reference_kernels: Whether the evaluation runs them on TFLite's reference kernels.

    Returns:
      By name, why a model failed.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as processes:
        failures = processes.map(lambda content: _failure(content, reference_kernels), models.values())
        return {name: failure for name, failure in zip(models, failures, strict=True) if failure}


def _failure(content: bytes, reference_kernels: bool) -> str:
    """Returns why a model failed; empty if it ran."""
    request = {"reference_kernels": reference_kernels}
    module = "tfx_compression.compressed_evaluator.trial_run_worker"
    try:
        return str(worker.run(module, request, task="The interpreter", timeout=_TIMEOUT_SECONDS, input=content))
    except WorkerError as error:
        return str(error)
