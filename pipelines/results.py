"""What a run of the pipeline left, read from ML Metadata: the summary, the table, the report."""

import json
from pathlib import Path
from typing import Any

from ml_metadata.proto import metadata_store_pb2 as mlmd
from rich.console import Console
from tfx_compression import store as stores
from tfx_compression.cli.terminal import evaluation_table
from tfx_compression.compressed_evaluator import report
from tfx_compression.compressed_evaluator.evaluation import FILE, Evaluation
from tfx_compression.lineage import MetadataReader, properties

HEADINGS = {
    "edge": "For devices: TFLite models",
    "serving": "For TensorFlow Serving: the pruned SavedModel",
}


class Results:
    """A run in an ML Metadata file: by default the newest."""

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
        """The run as `summary.json` has it; `chosen` and `blessed` are those of the edge candidates."""
        edge = self.evaluations["edge"]
        served = properties(self._outputs["Pusher"]["pushed_model"])
        stored = properties(self._outputs["TFLiteStorePusher"]["pushed_model"])
        blessing = properties(self._outputs["CompressedEvaluator.edge"]["blessing"])
        baseline = edge.baseline
        assert baseline is not None  # the component has no evaluation without one
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
    def pruning_report(self) -> Path:
        """Pruner's own report."""
        return Path(self._outputs["Pruner"]["pruning_plan"].uri) / "report.html"

    @property
    def quantization_report(self) -> Path:
        """The TFLiteQuantizer's own report on the model that was chosen; of int8 where none was."""
        chosen = self.evaluations["edge"].chosen or "int8"
        return Path(self._outputs[f"TFLiteQuantizer.{chosen}"]["tflite_model"].uri) / "report.html"

    def report(self) -> str:
        """Both evaluations in one HTML file."""
        return report.render(
            {HEADINGS[name]: found for name, found in self.evaluations.items()},
            origins={HEADINGS[name]: self._origins(found) for name, found in self.evaluations.items()},
        )

    def _origins(self, evaluation: Evaluation) -> dict[str, dict[str, Any]]:
        """By model of an evaluation, what ML Metadata says of its making."""
        models = {**evaluation.candidates, **({"baseline": evaluation.baseline} if evaluation.baseline else {})}
        made = [(node, artifact) for node, outputs in self._outputs.items() for artifact in outputs.values()]
        return {
            name: {"made by": node, "artifact id": artifact.id, "uri": artifact.uri, **properties(artifact)}
            for name, model in models.items()
            for node, artifact in made
            if model.uri.startswith(f"{artifact.uri}/")
        }

    def print(self, console: Console, summary: dict[str, Any]) -> None:
        """The table, the decisions, and where the models went."""
        for name, evaluation in self.evaluations.items():
            console.print()
            console.print(evaluation_table(HEADINGS[name], evaluation))
            console.print(f"[bold]{'→' if evaluation.chosen else '✗'}[/] {evaluation.reason}", highlight=False)
        console.print()
        console.print(f"TFLite store        {self._stored(summary['store'])}", highlight=False)
        console.print(f"TensorFlow Serving  {self._served(summary['serving'])}", highlight=False)

    def _stored(self, pushed: dict[str, Any] | None) -> str:
        """Where the TFLite model is. What came from the cache was released before, and may have been moved since."""
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
        there = Path(pushed["path"]).exists()
        return f"{pushed['path']}, released by an earlier run{'' if there else ', IS NO LONGER THERE'}"


def write(results: Results, folder: Path) -> dict[str, Any]:
    """Writes `summary.json`, `report.html`, and two components' own, `pruning.html` and `quantization.html`.

    Returns the summary.
    """
    summary = results.summary()
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (folder / "report.html").write_text(results.report())
    (folder / "pruning.html").write_bytes(results.pruning_report.read_bytes())
    (folder / "quantization.html").write_bytes(results.quantization_report.read_bytes())
    return summary


def _numbers(model: Any) -> dict[str, Any]:
    shown = {"metrics", "bytes", "bytes_gzip", "latency_ms", "sparsity"}
    return dict(json.loads(model.model_dump_json(include=shown)))  # NaN is no JSON: there it is a string
