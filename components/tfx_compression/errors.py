"""The errors that this package raises for what a user can mend. Importing this module imports nothing else."""


class CompressionError(ValueError):
    """Base of all errors below. The message names the value, the place and the remedy."""


class ConfigError(CompressionError):
    """A configuration that can't be used as given, or doesn't fit the model."""


class ModelError(CompressionError):
    """A model that can't be read, written or compressed as asked."""


class DataError(CompressionError):
    """Examples that can't be read or don't fit the model."""


class StoreError(CompressionError):
    """A store, or a version or channel in it, that can't be read or written."""


class LineageError(CompressionError):
    """A released version whose origin can't be found in ML Metadata."""
