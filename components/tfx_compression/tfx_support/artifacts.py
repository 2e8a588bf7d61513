"""Artifact types of our own, and what is written on artifacts."""

import os
from collections.abc import Mapping, Sequence

from tfx.types import artifact, artifact_utils, standard_artifacts

from tfx_compression import files

SERVING = "Format-Serving"  # where TFX keeps the model in a Model artifact


class PruningPlanArtifact(artifact.Artifact):
    """A pruning plan as it was carried out: `plan.json` and the masks, `masks.npz`."""

    TYPE_NAME = "tfx_compression.PruningPlanArtifact"  # Kubeflow imports the class by this name: package.Class


class EvaluationReport(artifact.Artifact):
    """A report for people: `report.html`."""

    TYPE_NAME = "tfx_compression.EvaluationReport"


Artifacts = Mapping[str, Sequence[artifact.Artifact]]

PLAN_FILE = "plan.json"
MASKS_FILE = "masks.npz"
REPORT_FILE = "report.html"


def single(artifacts: Artifacts, key: str) -> artifact.Artifact:
    """The one artifact of an input or output."""
    return artifact_utils.get_single_instance(list(artifacts[key]))


def optional(artifacts: Artifacts, key: str) -> artifact.Artifact | None:
    """The one artifact of an input that may not be there."""
    return single(artifacts, key) if artifacts.get(key) else None


def model_path(model: standard_artifacts.Model) -> str:
    """Where the model is in a Model artifact."""
    return os.path.join(model.uri, SERVING)


def custom_properties(source: artifact.Artifact) -> dict[str, object]:
    """What the components wrote on an artifact, without what TFX itself keeps there."""
    names = [name for name in source.mlmd_artifact.custom_properties if name not in ("name", "state", "tfx_version")]
    return {name: source.get_custom_property(name) for name in names}


def describe_model(model: standard_artifacts.Model, parent: standard_artifacts.Model, /, **properties: object) -> None:
    """Writes what compression did to a model on its artifact, so that ML Metadata alone can answer it.

    Besides `properties`, the size of its files and the URI of the model that it was made from.
    """
    size = files.size(model_path(model))
    set_properties(model, parent_uri=parent.uri, bytes=size.raw, bytes_gzip=size.gzip, **properties)


def set_properties(target: artifact.Artifact, /, **properties: object) -> None:
    """Sets custom properties by the type of their values; those that are None are left out."""
    for name, value in properties.items():
        if isinstance(value, int):
            target.set_int_custom_property(name, int(value))
        elif isinstance(value, float):
            target.set_float_custom_property(name, value)
        elif value is not None:
            target.set_string_custom_property(name, str(value))
