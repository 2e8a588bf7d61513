"""The zoo's operations on a net. `zoo.py` starts this as a process per net and reads a line of JSON per operation."""

import dataclasses
import functools
import json
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tfx_compression as tfc
import zoo_comparison as comparison
import zoo_plain
from tfx_compression.errors import CompressionError, CompressionWarning
from zoo_models import MODELS, ZooModel, folder_of
from zoo_settings import BOTH, PLAIN, PRUNINGS, QUANTIZATIONS, REFERENCE

SEED = 23


class Bench:
    """A net, its rows, and what is done with it.

    Args:
      model: The net.
      folder: Folder with its files.
      temporary: Folder for what is written on the way.
      log: File that this process prints to.
    """

    def __init__(self, model: ZooModel, folder: Path, temporary: str, log: Path):
        self._folder, self._temporary, self._model, self._log = folder, temporary, model, log
        self.source = model.load(folder)
        self.net = comparison.Net(self.source)
        drawn = model.draw(np.random.default_rng(SEED), 2 * model.rows)
        rows = dict(zip(self.net.inputs, drawn, strict=True))
        self.calibration = {name: values[: model.rows] for name, values in rows.items()}
        self.rows = {name: values[model.rows :] for name, values in rows.items()}
        self.expected = self.net.run(self.rows)

    def describe(self) -> dict[str, Any]:
        """Returns what is known of the net."""
        variables = self.net.model.weights if self.net.keras else getattr(self.net.model, "variables", [])
        kind = f"Keras {self.net.keras}" if self.net.keras else "SavedModel"
        parameters = sum(int(np.prod(variable.shape)) for variable in variables)
        return {"kind": kind, "parameters": parameters, "rows": self._model.rows}

    def run(self, name: str) -> dict[str, Any]:
        """Returns the row of an operation."""
        if name in QUANTIZATIONS:
            return self._quantize(self.source, QUANTIZATIONS[name], self.expected)
        if name in PRUNINGS:
            return self._prune(PRUNINGS[name])
        if name in BOTH:
            return self._prune_and_quantize(*BOTH[name])
        if name == REFERENCE:
            row = self._tflite((self._folder / self._model.reference).read_bytes(), self.expected)
            return {**row, "note": self._model.reference_note}
        content, measured = self._measured(lambda: self._plain(PLAIN[name]))
        return {**measured, **self._tflite(content, self.expected)}

    @functools.cached_property
    def _plain(self) -> Callable[[str], bytes]:
        return zoo_plain.Plain(self.net, self.calibration, self._model.batch_size, self._temporary)

    def _measured(self, call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """Returns a call's result, its seconds, and the number of lines that it printed."""
        before, started = self._printed(), time.perf_counter()
        result = call()
        return result, {"seconds": time.perf_counter() - started, "lines_printed": self._printed() - before}

    def _printed(self) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        return self._log.read_bytes().count(b"\n")

    def _tflite(self, content: bytes, expected: comparison.Outputs) -> dict[str, Any]:
        outputs = comparison.run_tflite(content, self.rows)
        return {"bytes": len(content), **dataclasses.asdict(comparison.compare(expected, outputs))}

    def _quantize(self, source: Any, settings: Mapping[str, Any], expected: comparison.Outputs) -> dict[str, Any]:
        calibrated = self._model.rows
        # Whatever the outputs are, they are compared; the library warns.
        options: dict[str, Any] = {**settings, "batch_size": self._model.batch_size, "min_output_cosine": None}
        if settings["mode"] == "auto":  # It searches on rows that it isn't calibrated on.
            calibrated = max(1, calibrated // 2)
            output = list(self.expected)[-1] if len(self.expected) > 1 else None
            searched = self._model.rows - calibrated
            options["auto"] = tfc.AutoPrecision(metric="agreement", rows=searched, max_drop=0.02, output=output)
        options["calibration"] = tfc.Calibration(rows=calibrated)
        data = tf.data.Dataset.from_tensor_slices(self.calibration).batch(8)
        result, measured = self._measured(lambda: tfc.quantize(source, tfc.Quantization(**options), data))
        return {**measured, **self._tflite(bytes(result), expected)}

    def _prune(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        plan = tfc.PruningPlan(**settings)
        result, measured = self._measured(lambda: tfc.prune(self.source, plan))
        row: dict[str, Any] = {**measured, "asked": plan.sparsity}
        before, after = result.summary.before, result.summary.after
        row |= {"bytes": after.bytes, "bytes_before": before.bytes}
        groups = result.record.groups
        removed = 1 - sum(group.kept for group in groups) / sum(group.elements for group in groups)
        row["reached"] = removed if plan.structured else after.sparsity
        if not self.net.keras:
            pruned = self._saved(result)
            return {**row, **dataclasses.asdict(comparison.compare(self.expected, pruned))}
        pruned = comparison.Net(result.model).run(self.rows)
        row |= dataclasses.asdict(comparison.compare(self.expected, pruned))
        if plan.structured:
            row |= self._zeroed(result, pruned)
        else:
            row["reached"] = comparison.sparsity(result.model)
        try:
            row["saved_difference"] = comparison.compare(pruned, self._saved(result)).largest_error
        except Exception as error:  # noqa: BLE001  # A network that can't be saved is a row, too.
            row["save_error"] = first_line(error)
        return row

    def _zeroed(self, result: Any, pruned: comparison.Outputs) -> dict[str, Any]:
        try:
            zeroed = comparison.zeroed_outputs(self.net, result.model, result.record.channels, self.rows)
        except LookupError as error:
            return {"zeroed_unknown": str(error)}
        return {"zeroed_difference": comparison.compare(zeroed, pruned).largest_error}

    def _saved(self, result: Any) -> dict[str, np.ndarray]:
        """Returns the outputs of the pruned network as written, read by TensorFlow."""
        path = tempfile.mkdtemp(dir=self._temporary)
        result.save(path)
        rows = self.rows
        loaded = tf.saved_model.load(path)
        given = list(loaded.signatures["serving_default"].structured_input_signature[1])
        if set(given) != set(rows) and len(given) == len(rows) == 1:
            rows = {given[0]: next(iter(rows.values()))}
        return comparison.run_signature(loaded, rows)

    def _prune_and_quantize(self, pruning: str, quantization: str) -> dict[str, Any]:
        """Compares with the pruned network in float."""
        result = tfc.prune(self.source, tfc.PruningPlan(**PRUNINGS[pruning]))
        if self.net.keras:
            source, expected = result.model, comparison.Net(result.model).run(self.rows)
        else:
            source = tempfile.mkdtemp(dir=self._temporary)
            result.save(source)
            expected = comparison.run_signature(tf.saved_model.load(source), self.rows)
        return self._quantize(source, QUANTIZATIONS[quantization], expected)


def first_line(error: BaseException) -> str:
    """Returns an error's class and the first line of its message, without folders of this machine."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    text = re.sub(r"(?<![\w.)\]}])(?:/[\w.+:=-]+)+/(?=[\w.+-]+)", "…/", f"{type(error).__name__}: {lines[0]}")
    return re.sub(r"tmp\w{6,8}|(?<=tfx-compression-)\w{8}", "…", text)


def main(name: str, cache: Path, log: Path, names: list[str]) -> None:
    """Prints the net's description, then a row for each operation, as lines of JSON on the standard output."""
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print goes to the log.
    model = next(model for model in MODELS if model.name == name)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(model, folder_of(model, cache), temporary, log)
        print(json.dumps(bench.describe()), file=results)
        for operation in names:
            print(json.dumps(_row(bench, operation)), file=results)


def _row(bench: Bench, operation: str) -> dict[str, Any]:
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            row = bench.run(operation)
        except Exception as error:  # noqa: BLE001  # Whatever goes wrong is the row.
            row = {"error": first_line(error), "seconds": time.perf_counter() - started}
            row |= {"refused": isinstance(error, CompressionError), "code": getattr(error, "code", None)}
    row["said"] = [
        line
        for warning in caught
        if issubclass(warning.category, CompressionWarning)
        for line in str(warning.message).splitlines()
    ]
    return row


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
