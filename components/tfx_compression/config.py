"""The base class of configurations: frozen, strict about field names, stored as JSON in an exec property."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import pydantic

from tfx_compression.errors import ConfigError

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


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, pydantic.AfterValidator(_compiles)]  # A regular expression.


def _explained(config: type[Config], error: pydantic.ValidationError) -> ConfigError:
    """Returns a pydantic error as a sentence per bad field, with the field and error type of the first.

    A validator that raises a ConfigError with its own field or code passes them on.
    """
    problems = error.errors()
    cause = problems[0].get("ctx", {}).get("error")
    field, code = getattr(cause, "field", None), getattr(cause, "code", None)
    return ConfigError(
        "; ".join(_sentence(config, problem) for problem in problems),
        field=field or ".".join([config.__name__, *map(str, problems[0]["loc"])]),
        code=code or problems[0]["type"],
    )


def _sentence(config: type[Config], problem: Any) -> str:
    """Returns the field, its value and the problem, or the existing fields if the field is unknown."""
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = ", ".join(sorted(config.model_fields))
        return f"{config.__name__} has no field {place!r}; its fields are: {known}"
    message = problem["msg"].removeprefix("Value error, ")
    subject = f"{config.__name__}.{place} = {problem['input']!r}" if place else config.__name__
    return f"{subject}: {message}"
