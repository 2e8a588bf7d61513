"""The errors that a user can mend. This module imports nothing else of the package."""


class CompressionError(ValueError):
    """Base class of the errors below.

    Args:
      message: The value, its place and the remedy.
      field: Name of the configuration field or argument at fault, such as "PruningPlan.sparsity".
      code: Short identifier of the problem, such as "unreachable-sparsity", which callers and tests can rely on.
    """

    ag_pass_through = True  # AutoGraph wraps errors of traced code, except those with this attribute.

    def __init__(self, message: str, *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class CompressionWarning(UserWarning):
    """A result has findings that a user should act on."""


class ConfigError(CompressionError):
    """A configuration is invalid or doesn't fit the model."""


class ModelError(CompressionError):
    """A model can't be read, written or compressed as requested."""


class DataError(CompressionError):
    """Examples can't be read or don't fit the model."""


class StoreError(CompressionError):
    """A store, or a version or channel in it, can't be read or written."""


class LineageError(CompressionError):
    """The origin of a released version can't be found in ML Metadata."""


class WorkerError(CompressionError):
    """A worker process ended without an answer.

    Args:
      message: The value, its place and the remedy.
      code: One of "crashed", "failed", "hung", "killed", "no-answer" and "out-of-memory".
      reason: How the process ended, such as "crashed (SIGSEGV)" or "hung: no result in 60 s".
      step: The last step that the worker reported, empty before the first.
      op: The operator that the end of its output names, if any.
      output: The end of its output.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        code: str | None = None,
        reason: str = "",
        step: str = "",
        op: str = "",
        output: str = "",
    ) -> None:
        super().__init__(message, field=field, code=code)
        self.reason, self.step, self.op, self.output = reason, step, op, output
