"""Candidates are tried in processes of their own first: a model can end the process that runs it."""

import concurrent.futures
import os
from collections.abc import Mapping

from tfx_compression import worker
from tfx_compression.errors import WorkerError

_SECONDS = 300.0


def failures(models: Mapping[str, bytes], reference_kernels: bool = False) -> dict[str, str]:
    """Which TFLite models crash, hang or are refused when they are run once on zeros, and how.

    Each has a process to itself, so that none pays for what another broke.

    Args:
      models: flatbuffers by name.
      reference_kernels: as the evaluation will run them.

    Returns:
      By the name of each that failed, what happened to it.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as processes:
        problems = processes.map(lambda content: _problem(content, reference_kernels), models.values())
        return {name: problem for name, problem in zip(models, problems, strict=True) if problem}


def _problem(content: bytes, reference_kernels: bool) -> str:
    """What was wrong, empty for nothing."""
    request = {"reference_kernels": reference_kernels}
    module = "tfx_compression.compressed_evaluator.trial_run_worker"
    try:
        return str(worker.run(module, request, task="The interpreter", timeout=_SECONDS, input=content))
    except WorkerError as error:
        return str(error)
