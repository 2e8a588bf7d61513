"""The steps of a conversion: from the SavedModel of a signature's graph to the TFLite file."""

import functools
import time
from collections.abc import Mapping

from tfx_compression import worker
from tfx_compression.errors import ModelError
from tfx_compression.tflite import conversion
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite.modes import MODES
from tfx_compression.tflite.sample_rows import random_rows
from tfx_compression.tflite.saved_model_graph import SavedModelGraph
from tfx_compression.tflite_quantizer import calibration, equalization, sparse, tflite_metadata
from tfx_compression.tflite_quantizer.config import Metadata, Quantization
from tfx_compression.tflite_quantizer.dead_channels import remove_dead_channels
from tfx_compression.tflite_quantizer.record import AutoRecord, EqualizedPair, InputRange, SparseRecord
from tfx_compression.tflite_quantizer.rows import Columns, Rows

_SAMPLE_ROWS = 4  # where there is no data
FREE_SIZE = 32  # in place of a free size


class Conversion:
    """A conversion, and what its steps leave for the checks of the result.

    Args:
      saved_model: Path of a SavedModel whose signatures take features.
      config: Configuration.
      rows: Rows, as far as there are any.

    Attributes:
      quantization_aware: Whether the model brings activation ranges from training.
      input_ranges: Range of each input, if they were measured here and not by TensorFlow's converter.
      reference: Float model that the result was made from, if that isn't `float_model`: equalized, or without dead
        channels.
      notes: Changes of the float model.
      sparse: Decision about sparse kernels.
      pairs: Layers that were equalized.
      auto: Search of mode `auto`.
      seconds: Duration by step.
    """

    def __init__(self, saved_model: str, config: Quantization, rows: Rows):
        self.config, self.rows = config, rows
        self._saved_model = saved_model
        self.quantization_aware = SavedModelGraph(saved_model).is_quantization_aware(config.signatures)
        self.input_ranges: Mapping[str, InputRange] = {}
        self.reference = b""
        self.notes: tuple[str, ...] = ()
        self.sparse: SparseRecord | None = None
        self.pairs: tuple[EqualizedPair, ...] = ()
        self.auto: AutoRecord | None = None
        self.seconds: dict[str, float] = {}

    @functools.cached_property
    def float_model(self) -> bytes:
        """The model in mode `float32`."""
        return conversion.to_tflite(self._saved_model, self._options("float32"))

    def convert(self) -> bytes:
        """Returns the TFLite file, with its metadata.

        Raises:
          ModelError: If the model can't be converted in this mode.
          ConfigError: If rules or the metric don't fit the model.
          DataError: If rows don't fit the model.
        """
        started = time.perf_counter()
        content = self._quantize()
        self.seconds["convert"] = time.perf_counter() - started
        started = time.perf_counter()
        if self.config.sparse is not False:
            content, self.sparse = sparse.encode(content, self.config.sparse, self.sample_rows(content))
        content = _with_metadata(content, self.config.metadata, self.rows.calibration if self.config.needs_data else {})
        self.seconds["finish"] = time.perf_counter() - started
        return content

    def sample_rows(self, content: bytes) -> Columns:
        """Returns the calibration rows, or a few random ones that a model takes."""
        return self.rows.calibration or random_rows(Interpreter(content).inputs, _SAMPLE_ROWS, FREE_SIZE)

    def _quantize(self) -> bytes:
        config, mode = self.config, self.config.mode_spec
        if self.quantization_aware:
            self._require_trained_ranges()
        if not mode.quantized:
            return self.float_model
        needs_float_model = mode.engine == "recipe" or config.equalize is True or config.custom_ranges
        if self.quantization_aware or not needs_float_model:
            return conversion.to_tflite(self._saved_model, self._options(config.mode), self.rows.calibration)
        content = self.float_model
        if mode.engine == "recipe":
            content, self.notes = remove_dead_channels(content, self.sample_rows(content), config.largest_block)
            self.reference = content if self.notes else b""
        if config.searches:
            return self._search(content)
        if config.equalize is True:
            worker.step("equalizing layers")
            content, self.pairs = equalization.equalize(content)
            self.reference = content
        ranges = calibration.Ranges({}, {})
        if config.needs_data:
            worker.step("calibrating")
            ranges = calibration.measure_ranges(content, self.rows.calibration, config.calibration)
            self.input_ranges = ranges.inputs
        if mode.engine == "converter":
            return conversion.quantize_with_ranges(content, self._options(config.mode), ranges.tensors)
        return self._quantize_layers(content, ranges)

    def _require_trained_ranges(self) -> None:
        """Checks that the mode keeps the ranges of a quantization-aware model."""
        if self.config.equalize is True:
            raise ModelError(
                "The model is quantization-aware, and equalize=True would move the ranges that it was trained with. "
                "Remedy: equalize=False.",
                field="Quantization.equalize",
                code="quantization-aware",
            )
        if self.config.mode_spec.engine == "recipe":
            raise ModelError(
                f"The model is quantization-aware, and mode {self.config.mode!r} would lose the ranges that it was "
                "trained with. Remedy: mode 'int8', or 'dynamic' for float inputs and outputs.",
                field="Quantization.mode",
                code="quantization-aware",
            )

    def _search(self, content: bytes) -> bytes:
        from tfx_compression.tflite_quantizer import auto_search

        rows = self.rows
        result = auto_search.search(content, self.config, rows.calibration, rows.trial, rows.labels)
        self.auto, self.reference, self.pairs = result.record, result.float_model, result.pairs
        self.input_ranges = result.input_ranges
        return result.content

    def _quantize_layers(self, content: bytes, ranges: calibration.Ranges) -> bytes:
        from tfx_compression.tflite_quantizer.layer_quantizer import quantize_layers
        from tfx_compression.tflite_quantizer.precision_choice import choose_by_rules, choose_uniform

        config = self.config
        worker.step("quantizing layer by layer")
        if config.mode_spec.precision is None:
            choices = choose_by_rules(content, config.rules, config.per_channel)
        else:
            choices = choose_uniform(content, config.mode_spec.precision, config.block_size, config.per_channel)
        io = config.io if config.needs_data else "float32"
        return quantize_layers(content, choices, ranges.tensors, io=io, per_channel=config.per_channel)

    def _options(self, mode: str) -> conversion.ConversionOptions:
        return conversion.ConversionOptions(
            mode=mode,
            io=self.config.io if self.config.io in MODES[mode].io else "float32",
            per_channel=self.config.per_channel,
            select_tf_ops=self.config.select_tf_ops,
            signatures=self.config.signatures,
        )


def _with_metadata(content: bytes, metadata: Metadata, columns: Columns) -> bytes:
    if metadata == Metadata():
        return content
    worker.step("writing metadata")
    floats = {name: values for name, values in columns.items() if calibration.is_float(values)}
    return tflite_metadata.write(
        content,
        name=metadata.name,
        description=metadata.description,
        version=metadata.version,
        author=metadata.author,
        license=metadata.license,
        labels=metadata.labels,
        normalization={name: (item.mean, item.std) for name, item in metadata.normalization.items()},
        ranges={name: (float(values.min()), float(values.max())) for name, values in floats.items()},
    )
