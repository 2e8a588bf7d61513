"""What ML Metadata knows of a released model: from the store back to the Trainer and its data. Imports no TFX."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_metadata import errors as mlmd_errors
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from tfx_compression.errors import LineageError
from tfx_compression.store.uris import local_path

_OUTPUT = (mlmd.Event.OUTPUT, mlmd.Event.DECLARED_OUTPUT)
_INPUT = (mlmd.Event.INPUT, mlmd.Event.DECLARED_INPUT)
_DONE = (mlmd.Execution.COMPLETE, mlmd.Execution.CACHED)  # an execution that was killed stays RUNNING for ever


@dataclasses.dataclass(frozen=True)
class Step:
    """One component on a model's way.

    Attributes:
      title: what happened, in words.
      node: the component's id in its pipeline.
      details: what is known of it, by name.
    """

    title: str
    node: str
    details: dict[str, Any]


class Records:
    """A reader of the ML Metadata in an SQLite file.

    Raises:
      LineageError: where there is no such file.
    """

    def __init__(self, path: str | Path):
        if not Path(path).is_file():
            raise LineageError(
                f"There is no ML Metadata at {path}. Remedy: --metadata with the path of its SQLite file."
            )
        config = mlmd.ConnectionConfig()
        config.sqlite.filename_uri = str(path)
        config.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READONLY
        try:
            self._store = metadata_store.MetadataStore(config)
        except (RuntimeError, mlmd_errors.StatusError) as error:
            raise LineageError(f"{path} is no ML Metadata of this version, or damaged: {error}") from error

    def artifacts(self, type_name: str) -> list[mlmd.Artifact]:
        """All artifacts of a type, oldest first."""
        return sorted(self._store.get_artifacts_by_type(type_name), key=lambda artifact: artifact.id)

    def run(self, run_id: str) -> dict[str, mlmd.Execution]:
        """The executions of a pipeline run, by node id; none where there is no such run."""
        run = self._store.get_context_by_type_and_name("pipeline_run", run_id)
        executions = self._store.get_executions_by_context(run.id) if run else []
        return {self.node(execution): execution for execution in executions}

    def last_run(self) -> str:
        """The id of the newest pipeline run.

        Raises:
          LineageError: where there is none.
        """
        runs = self._store.get_contexts_by_type("pipeline_run")
        if not runs:
            raise LineageError("ML Metadata knows no pipeline run.")
        return str(max(runs, key=lambda run: run.id).name)

    def producer(self, artifact: mlmd.Artifact) -> mlmd.Execution:
        """The execution that made an artifact: the first that finished with it as an output, not one that re-used it.

        Raises:
          LineageError: where there is none.
        """
        events = self._store.get_events_by_artifact_ids([artifact.id])
        ids = sorted({event.execution_id for event in events if event.type in _OUTPUT})
        done = [found for found in self._store.get_executions_by_id(ids) if found.last_known_state in _DONE]
        if not done:
            raise LineageError(f"No finished execution made artifact {artifact.id} ({artifact.uri}).")
        return min(done, key=lambda execution: execution.id)

    def outputs(self, execution: mlmd.Execution) -> dict[str, mlmd.Artifact]:
        """The artifacts that an execution made or re-used, by output name."""
        return dict(self._ends(execution, _OUTPUT))

    def inputs(self, execution: mlmd.Execution) -> dict[str, mlmd.Artifact]:
        """The artifacts that an execution read, by input name."""
        return dict(self._ends(execution, _INPUT))

    def _ends(self, execution: mlmd.Execution, kinds: Sequence[int]) -> Iterator[tuple[str, mlmd.Artifact]]:
        events = [event for event in self._store.get_events_by_execution_ids([execution.id]) if event.type in kinds]
        found = {artifact.id: artifact for artifact in self._store.get_artifacts_by_id([e.artifact_id for e in events])}
        for event in events:
            name = next((step.key for step in event.path.steps if step.HasField("key")), "")
            yield name, found[event.artifact_id]

    def node(self, execution: mlmd.Execution) -> str:
        """The id of the pipeline node that an execution ran."""
        contexts = self._store.get_contexts_by_execution(execution.id)
        names = [context.name for context in contexts if context.type == "node"]
        return names[0].split(".", 1)[1] if names else str(execution.id)


def properties(record: mlmd.Artifact | mlmd.Execution) -> dict[str, Any]:
    """The properties and custom properties of an artifact or execution."""
    return {
        name: getattr(value, value.WhichOneof("value"))
        for fields in (record.properties, record.custom_properties)
        for name, value in fields.items()
        if value.WhichOneof("value")
    }


def trace(metadata: str | Path, store_uri: str, name: str, version: int) -> list[Step]:
    """The way of a version in a TFLite store, from its release back to the data, from ML Metadata alone.

    Args:
      metadata: the SQLite file.
      store_uri: the store's root, as its pusher knew it or as a path to the same place.
      name: the model's.
      version: its number.

    Raises:
      LineageError: where ML Metadata knows no such release.
    """
    records = Records(metadata)
    pushed = _released(records, store_uri, name, version)
    known = properties(pushed)
    release = records.producer(pushed)
    steps = [
        Step(
            "released",
            records.node(release),
            {"store": known["pushed_destination"], "name": name, "version": version, "sha256": known["sha256"]},
        )
    ]
    model = records.inputs(release)["model"]
    while True:
        execution = records.producer(model)
        inputs = records.inputs(execution)
        steps.append(_step(records, execution, model, inputs))
        parent = next((inputs[key] for key in _parents(model) if key in inputs), None)
        if parent is None:
            break
        model = parent
    while "examples" in inputs:
        examples = inputs["examples"]
        execution = records.producer(examples)
        inputs = records.inputs(execution)
        if "examples" not in inputs:
            steps.append(_data(records, execution, examples))
    return steps


def _released(records: Records, store_uri: str, name: str, version: int) -> mlmd.Artifact:
    releases = []
    for artifact in records.artifacts("PushedModel"):
        known = properties(artifact)
        if known.get("pushed") == 1 and "store_name" in known:
            releases.append(f"{known['store_name']} {known['pushed_version']} in {known['pushed_destination']}")
            same_place = _place(known["pushed_destination"]) == _place(store_uri)
            if same_place and known["store_name"] == name and known["pushed_version"] == str(version):
                return artifact
    raise LineageError(
        f"ML Metadata knows no release of {name} {version} in {store_uri}; it knows: {'; '.join(releases) or 'none'}."
    )


def _place(uri: str) -> str:
    path = local_path(uri)
    return uri if path is None else str(Path(path).resolve())


def _parents(model: mlmd.Artifact) -> list[str]:
    """The inputs that the maker of a model may have made it from, the likeliest first."""
    candidate = properties(model).get("candidate")
    return [f"candidate_{candidate}", "model"] if candidate else ["model"]


# By component class: what happened, and the exec property with its configuration.
_STEPS = {
    "CompressedEvaluator": ("chosen", "budget"),
    "TFLiteQuantizer": ("quantized", "config"),
    "SparsityFineTuner": ("fine-tuned", "config"),
    "Pruner": ("pruned", "plan"),
    "Trainer": ("trained", ""),
}


def _step(records: Records, execution: mlmd.Execution, model: mlmd.Artifact, inputs: dict[str, mlmd.Artifact]) -> Step:
    title, configuration = _STEPS.get(execution.type.rpartition(".")[2], ("made", ""))
    known = properties(model)
    settings = properties(execution)
    details: dict[str, Any] = {"model": model.uri, "id": model.id}
    details |= {key: known[key] for key in ("candidate", "sparsity", "bytes", "bytes_gzip") if key in known}
    details |= {key: value for key, value in known.items() if key.startswith(("metric_", "drop_"))}
    if "baseline_model" in inputs:
        baseline = inputs["baseline_model"]
        details["compared_with"] = f"{baseline.uri} (id {baseline.id})"
        details["evaluated_on"] = f"{inputs['examples'].uri}, split {settings['example_split']}"
    if configuration in settings:
        details[configuration] = _settings(settings, configuration)
    return Step(title, records.node(execution), details)


def _settings(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """A configuration as it was in force: its JSON, with the scalars that override it; only what is set."""
    config = json.loads(settings[key])
    config.update({name: value for name, value in settings.items() if name in config})
    return {name: value for name, value in config.items() if value not in (None, [], {})}


def _data(records: Records, execution: mlmd.Execution, examples: mlmd.Artifact) -> Step:
    known = properties(examples)
    keys = ("split_names", "span", "input_fingerprint")
    return Step(
        "data",
        records.node(execution),
        {"examples": examples.uri, "id": examples.id, **{key: known[key] for key in keys if key in known}},
    )
