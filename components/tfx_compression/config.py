"""The base of every configuration: frozen, strict about names, one JSON string as a component's exec property."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import pydantic

from tfx_compression.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(pydantic.BaseModel):
    """A frozen configuration that round-trips through JSON. Unknown fields are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def to_json(self) -> str:
        """The configuration as JSON, its fields as declared: equal ones give equal strings, for TFX's cache."""
        return self.model_dump_json()

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except pydantic.ValidationError as error:
            raise ConfigError(_explain(type(self), error)) from error

    @classmethod
    def merged(cls: type[ConfigT], config_json: str, overrides: Mapping[str, Any]) -> ConfigT:
        """The configuration of `config_json` with the fields in `overrides` that are not None put over it.

        Raises:
          ConfigError: naming each bad field, its value, and what it may be.
        """
        try:
            fields = json.loads(config_json)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{cls.__name__} is not JSON: {error}: {config_json!r}") from error
        if not isinstance(fields, dict):
            raise ConfigError(f"{cls.__name__} is not a JSON object: {config_json!r}")
        fields.update({name: value for name, value in overrides.items() if value is not None})
        return cls(**fields)


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, pydantic.AfterValidator(_compiles)]  # a regular expression


def _explain(config: type[Config], error: pydantic.ValidationError) -> str:
    """A pydantic error in one line per field: where, which value, what is wrong, and the fields that exist."""
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"]) or config.__name__
        if problem["type"] == "extra_forbidden":
            known = ", ".join(sorted(config.model_fields))
            lines.append(f"{config.__name__} has no field {place!r}; its fields are: {known}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            where = f"{config.__name__}.{place} = {problem['input']!r}" if problem["loc"] else config.__name__
            lines.append(f"{where}: {message}")
    return "; ".join(lines)
