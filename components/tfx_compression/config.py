"""The base class of configurations: frozen, strict about field names, stored as JSON in an exec property."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import pydantic

from tfx_compression.errors import CompressionError, ConfigError

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(pydantic.BaseModel):
    """A frozen configuration that round-trips through JSON. Unknown fields are errors.

    Raises:
      ConfigError: A field has an invalid value. `field` names the first, and `code` is pydantic's error type for it,
        such as "extra_forbidden".
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def to_json(self) -> str:
        """Returns the configuration as JSON. Equal configurations give equal strings, which TFX's cache needs."""
        return self.model_dump_json()

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except pydantic.ValidationError as error:
            raise _explained(type(self), error) from error

    @classmethod
    def merged(cls: type[ConfigT], config_json: str, overrides: Mapping[str, Any]) -> ConfigT:
        """Returns the configuration in JSON, with fields replaced by those overrides that are not None.

        Raises:
          ConfigError: The text is not a JSON object, or a field has an invalid value.
        """
        try:
            fields = json.loads(config_json)
        except json.JSONDecodeError as error:
            message = f"{cls.__name__} is not JSON: {error}: {config_json!r}"
            raise ConfigError(message, field=cls.__name__, code="json_invalid") from error
        if not isinstance(fields, dict):
            message = f"{cls.__name__} is not a JSON object: {config_json!r}"
            raise ConfigError(message, field=cls.__name__, code="json_type")
        fields.update({name: value for name, value in overrides.items() if value is not None})
        return cls(**fields)


def require_config(value: Any, config: type[Config], argument: str) -> None:
    """Raises a ConfigError unless an argument is a configuration of a class (code "not-a-config")."""
    if not isinstance(value, config):
        fields = ", ".join(f"{name}={each!r}" for name, each in value.items()) if isinstance(value, Mapping) else "…"
        raise ConfigError(
            f"{argument} is a {type(value).__name__}, and has to be a {config.__name__}. "
            f"Remedy: tfc.{config.__name__}({fields}).",
            field=argument,
            code="not-a-config",
        )


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, pydantic.AfterValidator(_compiles)]  # A regular expression.
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]  # NumPy and TensorFlow take these.
Name = Annotated[str, pydantic.StringConstraints(min_length=1)]  # Of a feature, a split or the like.


def _explained(config: type[Config], error: pydantic.ValidationError) -> ConfigError:
    """Returns a pydantic error as a sentence per bad field, with the field and error type of the first.

    A validator that raises a ConfigError with its own field or code passes them on. The field of a nested
    configuration follows its place in this one.
    """
    problems = error.errors()
    field = ".".join([config.__name__, *map(str, problems[0]["loc"])])
    cause = _cause(problems[0])
    if cause is not None and cause.field and "." in cause.field:
        field = f"{field}.{cause.field.partition('.')[2]}" if _is_nested(config, cause) else cause.field
    return ConfigError(
        "; ".join(_sentence(config, problem) for problem in problems),
        field=field,
        code=(cause.code if cause is not None else None) or problems[0]["type"],
    )


def _cause(problem: Any) -> CompressionError | None:
    """Returns the error that a validator or a nested configuration raised."""
    error = problem.get("ctx", {}).get("error")
    return error if isinstance(error, CompressionError) else None


def _is_nested(config: type[Config], cause: CompressionError) -> bool:
    """Returns whether the error is one of a configuration in this one, whose message names the value already."""
    return cause.field is not None and "." in cause.field and not cause.field.startswith(f"{config.__name__}.")


def _sentence(config: type[Config], problem: Any) -> str:
    """Returns the field, its value and the problem, or the existing fields if the field is unknown."""
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = ", ".join(sorted(config.model_fields))
        return f"{config.__name__} has no field {place!r}; its fields are: {known}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{config.__name__}.{place} is missing"
    subject = f"{config.__name__}.{place}" if place else config.__name__
    cause = _cause(problem)
    complete = not place or (cause is not None and _is_nested(config, cause))
    return f"{subject}: {message}" if complete else f"{subject} = {problem['input']!r}: {message}"
