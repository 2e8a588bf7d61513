"""TFX artifacts and channels, and runs of executors on them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import standard_artifacts

from tests.support import helpers


def channel(kind: type[types.Artifact]) -> types.Channel:
    """Returns a channel of artifacts of a type."""
    return types.Channel(type=kind)


def model_channels(*names: str) -> dict[str, types.Channel]:
    """Returns a channel of models for each name."""
    return {name: channel(standard_artifacts.Model) for name in names}


def artifact(kind: type[types.Artifact], path: Any) -> types.Artifact:
    """Returns an artifact of a type with the URI `path`."""
    instance = kind()
    instance.uri = str(path)
    return instance


def examples_artifact(path: Path, splits: Mapping[str, Mapping[str, np.ndarray]]) -> types.Artifact:
    """Writes rows of features for each split below `path`; returns an Examples artifact."""
    examples = artifact(standard_artifacts.Examples, path)
    examples.split_names = json.dumps(list(splits))
    for split, features in splits.items():
        helpers.write_examples(path / f"Split-{split}" / "rows.tfrecord", features)
    return examples


def schema_artifact(path: Path, features: Mapping[str, tuple[str, Sequence[int] | None]]) -> types.Artifact:
    """Writes a schema (see `helpers.schema`) below `path`; returns a Schema artifact."""
    path.mkdir(parents=True)
    (path / "schema.pbtxt").write_text(str(helpers.schema(features)))
    return artifact(standard_artifacts.Schema, path)


def run_executor(
    executor: base_executor.BaseExecutor,
    inputs: Mapping[str, types.Artifact],
    outputs: Mapping[str, types.Artifact],
    **properties: Any,
) -> None:
    """Runs an executor on one artifact per input and output."""
    executor.Do(
        {name: [value] for name, value in inputs.items()},
        {name: [value] for name, value in outputs.items()},
        properties,
    )
