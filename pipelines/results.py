"""Results of a run, read from ML Metadata: summary, table and reports."""

import json
from pathlib import Path
from typing import Any

from ml_metadata.proto import metadata_store_pb2 as mlmd
from rich.console import Console
from tfx_compression import store as stores
from tfx_compression.cli.output import shown
from tfx_compression.cli.terminal import evaluation_table
from tfx_compression.compressed_evaluator import report
from tfx_compression.compressed_evaluator.evaluation import FILE, Evaluation
from tfx_compression.lineage import MetadataReader, properties
from tfx_compression.model_handle.compressed import SUMMARY_FILE, Summary

HEADINGS = {
    "edge": "For devices: TFLite models",
    "serving": "For TensorFlow Serving: the pruned SavedModel",
}


class Results:
    """The results of a pipeline run.

    Args:
      metadata: Path of ML Metadata's SQLite file.
      run_id: Id of the run. The default is the newest run.

    Attributes:
      evaluations: Evaluation by gate, "edge" and "serving".
    """

    def __init__(self, metadata: Path, run_id: str | None = None):
        reader = MetadataReader(metadata)
        executions = reader.run(run_id or reader.last_run())
        self._outputs = {node: reader.outputs(execution) for node, execution in executions.items()}
        self._cached = {
            node for node, execution in executions.items() if execution.last_known_state == mlmd.Execution.CACHED
        }
        self.evaluations = {
            gate_name: Evaluation.model_validate_json(
                (Path(self._outputs[f"CompressedEvaluator.{gate_name}"]["evaluation"].uri) / FILE).read_text()
            )
            for gate_name in HEADINGS
        }

    def summary(self) -> dict[str, Any]:
        """Returns the content of `summary.json`. `chosen` and `blessed` are about the edge candidates."""
        edge = self.evaluations["edge"]
        served = properties(self._outputs["Pusher"]["pushed_model"])
        stored = properties(self._outputs["TFLiteStorePusher"]["pushed_model"])
        blessing = properties(self._outputs["CompressedEvaluator.edge"]["blessing"])
        baseline = edge.baseline
        assert baseline is not None  # The pipeline always has one.
        return {
            "baseline": {
                **_numbers(baseline),
                "tflite": _numbers(baseline.tflite) if baseline.tflite else None,
            },
            "candidates": {
                name: {
                    **_numbers(model),
                    "metric_drop": evaluation.metric_drop[name],
                    "speedup": model.speedup_over(evaluation.baseline),
                    "verdict": "held" if evaluation.held(name) else "refused",
                    "limits": [verdict.sentence for verdict in evaluation.verdicts[name]],
                    "gate": gate_name,
                }
                for gate_name, evaluation in self.evaluations.items()
                for name, model in evaluation.candidates.items()
            },
            "warnings": self.pruning_warnings,
            "chosen": edge.chosen,
            "blessed": blessing["blessed"] == 1,
            "serving": (
                {"path": served["pushed_destination"], "version": int(served["pushed_version"])}
                if served.get("pushed") == 1
                else None
            ),
            "store": (
                {
                    "uri": stored["pushed_destination"],
                    "name": stored["store_name"],
                    "version": int(stored["pushed_version"]),
                }
                if stored.get("pushed") == 1
                else None
            ),
        }

    @property
    def pruning_warnings(self) -> list[str]:
        """What the Pruner's model is not as asked."""
        path = Path(self._outputs["Pruner"]["pruned_model"].uri) / SUMMARY_FILE
        return list(Summary.model_validate_json(path.read_text()).warnings)

    @property
    def pruning_report(self) -> Path:
        """Path of the Pruner's report."""
        return Path(self._outputs["Pruner"]["pruning_plan"].uri) / "report.html"

    @property
    def quantization_report(self) -> Path:
        """Path of the TFLiteQuantizer's report on the chosen model, or on the int8 model if none was chosen."""
        chosen = self.evaluations["edge"].chosen or "int8"
        return Path(self._outputs[f"TFLiteQuantizer.{chosen}"]["tflite_model"].uri) / "report.html"

    def report(self) -> str:
        """Returns a page with both evaluations."""
        return report.render(
            {HEADINGS[name]: evaluation for name, evaluation in self.evaluations.items()},
            origins={HEADINGS[name]: self._origins(evaluation) for name, evaluation in self.evaluations.items()},
        )

    def _origins(self, evaluation: Evaluation) -> dict[str, dict[str, Any]]:
        """Returns the node, id, URI and properties of each model's artifact, by model of an evaluation."""
        models = {**evaluation.candidates, **({"baseline": evaluation.baseline} if evaluation.baseline else {})}
        artifacts = [(node, artifact) for node, outputs in self._outputs.items() for artifact in outputs.values()]
        return {
            name: {"made by": node, "artifact id": artifact.id, "uri": artifact.uri, **properties(artifact)}
            for name, model in models.items()
            for node, artifact in artifacts
            if model.uri.startswith(f"{artifact.uri}/")
        }

    def print(self, console: Console, summary: dict[str, Any]) -> None:
        """Prints the table and decision of each evaluation, and the places of the released models."""
        for name, evaluation in self.evaluations.items():
            console.print()
            console.print(evaluation_table(HEADINGS[name], evaluation))
            console.print(f"[bold]{'→' if evaluation.chosen else '✗'}[/] {shown(evaluation.reason)}", highlight=False)
        console.print()
        for warning in summary["warnings"]:
            console.print(f"[bold yellow]![/] Pruner: {shown(warning)}", highlight=False)
        console.print(f"TFLite store        {shown(self._stored(summary['store']))}", highlight=False)
        console.print(f"TensorFlow Serving  {shown(self._served(summary['serving']))}", highlight=False)

    def _stored(self, pushed: dict[str, Any] | None) -> str:
        """Describes the TFLite release. One from the cache may have been deleted or replaced since."""
        if pushed is None:
            return "nothing pushed"
        store = stores.open(pushed["uri"])
        text = f"{pushed['uri']}  {pushed['name']} version {pushed['version']}"
        if "TFLiteStorePusher" not in self._cached:
            return text
        if pushed["version"] not in store.versions(pushed["name"]):
            return f"{text}, released by an earlier run, IS NO LONGER THERE: start again in an empty folder"
        channels = ", ".join(f"{name}: {version}" for name, version in store.channels(pushed["name"]).items())
        return f"{text}, released by an earlier run; channels now: {channels or 'none'}"

    def _served(self, pushed: dict[str, Any] | None) -> str:
        if pushed is None:
            return "nothing pushed"
        if "Pusher" not in self._cached:
            return str(pushed["path"])
        exists = Path(pushed["path"]).exists()
        return f"{pushed['path']}, released by an earlier run{'' if exists else ', IS NO LONGER THERE'}"


def write(results: Results, folder: Path) -> dict[str, Any]:
    """Writes `summary.json` and `report.html`, and copies components' reports.

    Returns:
      The summary.
    """
    summary = results.summary()
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (folder / "report.html").write_text(results.report())
    (folder / "pruning.html").write_bytes(results.pruning_report.read_bytes())
    (folder / "quantization.html").write_bytes(results.quantization_report.read_bytes())
    return summary


def _numbers(model: Any) -> dict[str, Any]:
    shown = {"metrics", "bytes", "bytes_gzip", "latency_ms", "sparsity"}
    return dict(json.loads(model.model_dump_json(include=shown)))  # Pydantic writes NaN, which JSON lacks, as a string.
