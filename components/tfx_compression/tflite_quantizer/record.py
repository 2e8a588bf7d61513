"""The record of a conversion, which the artifact holds as `quantization.json`."""

from tfx_compression.config import Config
from tfx_compression.tflite_quantizer.config import Precision, Quantization
from tfx_compression.tflite_quantizer.devices.verdicts import TargetVerdict


class TensorRecord(Config):
    """An input or output. `real = (stored - zero_point) * scale`; a scale of 0 means floats. -1 is a free size."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int


class SignatureRecord(Config):
    """A signature of the TFLite model, with the names of the SavedModel's."""

    name: str
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]


class InputRange(Config):
    """The values of an input that calibration saw, and the share of other data outside the resulting range.

    Attributes:
      input: Name of the input.
      minimum, maximum: Smallest and largest value seen.
      range: Range that is quantized; values outside saturate.
      outside: Share of the check split's values outside `range`; None if nothing was checked.
    """

    input: str
    minimum: float
    maximum: float
    range: tuple[float, float]
    outside: float | None = None


class CalibrationRecord(Config):
    """The calibration of activation ranges.

    Attributes:
      rows: Number of rows used.
      method: `min_max`, `percentile` or `mse`.
      inputs: Range of each quantized input.
      checked_rows: Number of rows of the check split.
      strata: Number of rows by value of the feature that was stratified by.
    """

    rows: int
    method: str
    inputs: tuple[InputRange, ...] = ()
    checked_rows: int = 0
    strata: dict[str, int] = {}


class LayerError(Config):
    """The difference of a layer's output from the float model's, on the same rows.

    Attributes:
      layer: Name of the layer in the TFLite model.
      op: Name of the operator.
      precision: Precision that its tensors show; None if they show none.
      snr_db: Signal-to-noise ratio in decibels; None if there is no difference.
      max_error: Largest absolute difference.
      cosine: Cosine similarity of the two outputs; None if one is all zeros.
    """

    layer: str
    op: str
    precision: Precision | None = None
    snr_db: float | None
    max_error: float
    cosine: float | None


class OutputError(Config):
    """The difference of an output from the float model's, on the same rows, as `output_errors` defines it.

    Attributes:
      signature: Name of the signature; empty if there is one only.
      output: Name of the output.
      rows: Number of rows.
      finite: Whether all values are finite where the float model's are.
      max_error: Largest absolute difference; None without `finite`.
      cosine: Cosine similarity of the two models' values, over all rows; None for integers, and where both are zero.
      centered: Whether `cosine` is `centered_cosine`, because the float model's values vary by a tenth of their size.
      centered_cosine: Cosine similarity after the float model's mean over the rows is subtracted from both, which is a
        correlation; None for integers, and where the float model's values don't vary.
      constant: Whether the converted model returns the same for all rows and the float model doesn't.
    """

    signature: str = ""
    output: str
    rows: int
    finite: bool = True
    max_error: float | None = None
    cosine: float | None = None
    centered: bool = False
    centered_cosine: float | None = None
    constant: bool = False


class SparseRecord(Config):
    """The decision about encoding sparse kernels.

    Attributes:
      encoded: Whether the file's sparse kernels are encoded as such.
      reason: Reason of the decision.
      bytes_gzip: Gzipped size of the dense file and of the sparse one.
      speedup: Dense latency divided by sparse latency, medians of interleaved runs; None if not measured.
    """

    encoded: bool
    reason: str
    bytes_gzip: tuple[int, int] | None = None
    speedup: float | None = None


class TrialRecord(Config):
    """A model that mode `auto` tried. A metric of None is not a finite number."""

    step: str
    metric: float | None
    bytes: int
    accepted: bool


class AutoRecord(Config):
    """The search of mode `auto`.

    Attributes:
      metric: Name of the metric.
      baseline, value: Metric of the float model, and of the result.
      drop: Loss of the result against the float model; negative if it is better.
      rows: Number of rows that the metric is measured on.
      equalized: Whether the result comes from the equalized float model.
      precisions: Precision by layer.
      trials: Models tried, in order.
    """

    metric: str
    baseline: float
    value: float
    drop: float
    rows: int
    equalized: bool
    precisions: dict[str, Precision]
    trials: tuple[TrialRecord, ...]


class EqualizedPair(Config):
    """Two layers whose channels were scaled, with the spread of the first layer's channel ranges before and after.

    The spread is the largest channel's range divided by the smallest one's.
    """

    first: str
    second: str
    spread_before: float
    spread_after: float


class QuantizationRecord(Config):
    """The record of a conversion.

    Attributes:
      config: Configuration of the conversion.
      versions: Versions of the converter, the quantizer and the runtime, by package.
      seconds: Duration by step: `cut` (extraction of the signature's graph from the SavedModel), `convert`, `finish`
        (sparse encoding, metadata), `prove` (checks of the result).
      signatures: Signatures of the TFLite model.
      ops, float_ops: Count of each operator, and of those that return floats.
      select_tf_ops: TensorFlow's own operators in the file, with the layers that need them.
      bytes, bytes_gzip, bytes_zstd: Size of the file.
      arena_bytes: Memory for the tensors between the operators, one row.
      parameters, sparsity: Number of weights, and the fraction of zeros in them.
      runtime: What a device must have to run the model.
      calibration: Calibration of activation ranges; None if there was none.
      outputs: Each output's error against the float model, on calibration rows or random ones.
      layers: Each layer's error against the float model.
      sparse: Decision about sparse kernels; None if not requested.
      equalization: Pairs of layers that were equalized.
      auto: Search of mode `auto`.
      verdict: Verdict of the target.
      notes: Facts that a user should know, such as ranges of quantization-aware training.
      warnings: Findings that a user should act on.
      self_test: Largest difference between the outputs in `self_test.npz` and the float model's, by output; None where
        one of them is infinite and the other isn't.
    """

    config: Quantization
    versions: dict[str, str]
    seconds: dict[str, float]
    signatures: tuple[SignatureRecord, ...]
    ops: dict[str, int]
    float_ops: dict[str, int]
    select_tf_ops: dict[str, tuple[str, ...]] = {}
    bytes: int
    bytes_gzip: int
    bytes_zstd: int
    arena_bytes: int
    parameters: int
    sparsity: float
    runtime: str
    calibration: CalibrationRecord | None = None
    outputs: tuple[OutputError, ...] = ()
    layers: tuple[LayerError, ...] = ()
    sparse: SparseRecord | None = None
    equalization: tuple[EqualizedPair, ...] = ()
    auto: AutoRecord | None = None
    verdict: TargetVerdict | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    self_test: dict[str, float | None] = {}

    @property
    def summary(self) -> str:
        """The size, the error of each output and the warnings, in lines of text."""
        lines = [f"Mode {self.config.mode}: {self.bytes:,} bytes ({self.bytes_gzip:,} gzipped)."]
        for error in self.outputs:
            cosine = "" if error.cosine is None else f"cosine {error.cosine:.4f}, "
            if error.centered_cosine is not None and not error.centered:
                cosine += f"less the mean {error.centered_cosine:.4f}, "
            difference = "not finite" if error.max_error is None else f"largest difference {error.max_error:.3g}"
            rows = f"{error.rows} row{'s' if error.rows != 1 else ''}"
            lines.append(f"Output {error.output!r} against float: {cosine}{difference}, on {rows}.")
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])
