"""The package's artifact types, and the custom properties of artifacts."""

import os
from collections.abc import Mapping, Sequence

from tfx.types import artifact, artifact_utils, standard_artifacts

from tfx_compression import files

SERVING = "Format-Serving"  # TFX's folder for the model in a Model artifact.

MASKS_FILE = "masks.npz"
REPORT_FILE = "report.html"

Artifacts = Mapping[str, Sequence[artifact.Artifact]]


class PruningPlanArtifact(artifact.Artifact):
    """The plan, masks and record of a pruning."""

    TYPE_NAME = "tfx_compression.PruningPlanArtifact"  # Kubeflow imports the class by this name: package.Class.


class EvaluationReport(artifact.Artifact):
    """A report as a page: `report.html`."""

    TYPE_NAME = "tfx_compression.EvaluationReport"


def single(artifacts: Artifacts, key: str) -> artifact.Artifact:
    """Returns the one artifact of an input or output."""
    return artifact_utils.get_single_instance(list(artifacts[key]))


def optional(artifacts: Artifacts, key: str) -> artifact.Artifact | None:
    """Returns the one artifact of an optional input, or None."""
    return single(artifacts, key) if artifacts.get(key) else None


def model_path(model: standard_artifacts.Model) -> str:
    """Returns the path of the model in a Model artifact."""
    return os.path.join(model.uri, SERVING)


def custom_properties(source: artifact.Artifact) -> dict[str, object]:
    """Returns the custom properties that components set on an artifact, without TFX's own."""
    names = [name for name in source.mlmd_artifact.custom_properties if name not in ("name", "state", "tfx_version")]
    return {name: source.get_custom_property(name) for name in names}


def describe_model(model: standard_artifacts.Model, parent: standard_artifacts.Model, /, **properties: object) -> None:
    """Sets custom properties that let ML Metadata alone answer what compression did to a model.

    Args:
      model: Output artifact, whose model is written already.
      parent: Artifact of the model that it was made from. Its URI is set as `parent_uri`.
      **properties: More properties. The size of the model's files is set too, as `bytes` and `bytes_gzip`.
    """
    size = files.size(model_path(model))
    set_properties(model, parent_uri=parent.uri, bytes=size.raw, bytes_gzip=size.gzip, **properties)


def set_properties(target: artifact.Artifact, /, **properties: object) -> None:
    """Sets custom properties with the types of their values, except those that are None."""
    for name, value in properties.items():
        if isinstance(value, int):
            target.set_int_custom_property(name, int(value))
        elif isinstance(value, float):
            target.set_float_custom_property(name, value)
        elif value is not None:
            target.set_string_custom_property(name, str(value))
