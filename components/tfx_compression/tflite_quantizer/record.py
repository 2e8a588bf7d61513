"""What a conversion did, as it lies in the artifact (`quantization.json`)."""

from tfx_compression.config import Config
from tfx_compression.tflite_quantizer.config import Precision, Quantization


class TensorRecord(Config):
    """An input or output; `real = (stored - zero_point) * scale`, a scale of 0 means floats. -1 is a free size."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int


class SignatureRecord(Config):
    """A signature of the TFLite model; its names are the SavedModel's."""

    name: str
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]


class InputRange(Config):
    """What calibration saw of an input, and how much of other data lies outside of the range that was made of it.

    Attributes:
      input: its name.
      minimum, maximum: as seen.
      range: what is quantized; other values saturate.
      outside: the share of the check split's values outside `range`; None where nothing was checked.
    """

    input: str
    minimum: float
    maximum: float
    range: tuple[float, float]
    outside: float | None = None


class CalibrationRecord(Config):
    """How the ranges were found.

    Attributes:
      rows: that were used.
      method: `min_max`, `percentile`, `mse`.
      inputs: what was seen of each.
      checked_rows: of the check split.
      strata: by value of the feature that was stratified by, the rows of it.
    """

    rows: int
    method: str
    inputs: tuple[InputRange, ...] = ()
    checked_rows: int = 0
    strata: dict[str, int] = {}


class LayerError(Config):
    """How far a layer's output is from the float model's, on the same rows.

    Attributes:
      layer: its name in the TFLite model.
      op: the operator.
      precision: as it was quantized; None where the mode says it all.
      snr_db: signal-to-noise ratio in decibels; None where there is no difference.
      max_error: the largest absolute difference.
      cosine: of the two outputs as vectors; None where one is all zeros.
    """

    layer: str
    op: str
    precision: Precision | None = None
    snr_db: float | None
    max_error: float
    cosine: float | None


class OperatorVerdict(Config):
    """Whether an operator runs where the target is fast.

    Attributes:
      index: its place in the graph.
      op: the operator.
      layer: the name of what it returns.
      mapped: whether the accelerator (the kernels, of a microcontroller) takes it.
      reason: why not, with the rule; empty where it is taken.
    """

    index: int
    op: str
    layer: str
    mapped: bool
    reason: str = ""


class DelegateVerdict(Config):
    """The verdict of one accelerator or runtime.

    Attributes:
      name: XNNPACK, Edge TPU, …
      ops: of every operator.
      segments: how many pieces the accelerator gets; more than one means data goes back and forth.
      cut: the first operator that it doesn't take, in words; empty where it takes all.
      source: where the rules are from.
      source_date: of the page or code.
    """

    name: str
    ops: tuple[OperatorVerdict, ...]
    segments: int
    cut: str = ""
    source: str
    source_date: str

    @property
    def mapped(self) -> int:
        """How many operators it takes."""
        return sum(op.mapped for op in self.ops)


class TargetVerdict(Config):
    """Whether the model runs on its target.

    Attributes:
      target: the profile's name.
      runs: whether it can run there at all.
      problems: why not, each with the op, the reason and the remedy.
      runtime: what the device must have, in words (`LiteRT 2.1 or newer`, …).
      delegates: what each accelerator of the target takes.
      arena_bytes: for the tensors between the operators.
      max_arena_bytes: the limit, if any.
    """

    target: str
    runs: bool
    problems: tuple[str, ...]
    runtime: str
    delegates: tuple[DelegateVerdict, ...]
    arena_bytes: int
    max_arena_bytes: int | None = None


class SparseRecord(Config):
    """Whether sparse kernels were encoded as such, and why.

    Attributes:
      encoded: whether.
      reason: in words.
      bytes_gzip: of the dense file and of the sparse one.
      speedup: dense by sparse latency, medians of interleaved runs; None where it was not measured.
    """

    encoded: bool
    reason: str
    bytes_gzip: tuple[int, int] | None = None
    speedup: float | None = None


class TrialRecord(Config):
    """A model that mode `auto` tried; a metric of None is no number."""

    step: str
    metric: float | None
    bytes: int
    accepted: bool


class AutoRecord(Config):
    """What mode `auto` found.

    Attributes:
      metric, baseline, value: its name, the float model's, the result's.
      drop: by how much the result is worse; below zero where it is better.
      rows: that it is measured on.
      equalized: whether the result is.
      precisions: by layer.
      trials: in order.
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
    """Two layers whose channels were scaled: the spread of the ranges of the first one's channels before and after.

    A spread is the largest channel's range by the smallest one's.
    """

    first: str
    second: str
    spread_before: float
    spread_after: float


class QuantizationRecord(Config):
    """All of it.

    Attributes:
      config: what was asked for.
      versions: of the converter, the quantizer and the runtime, by package.
      seconds: by step: `cut` (the signature's graph, out of the SavedModel), `convert`, `finish` (sparse encoding,
        metadata), `prove`.
      signatures: the TFLite model's.
      ops, float_ops: how often each operator occurs; those that return floats.
      select_tf_ops: TensorFlow's own operators in the file, with the layers that asked for them.
      bytes, bytes_gzip, bytes_zstd: of the file.
      arena_bytes: for the tensors between the operators, one row.
      parameters, sparsity: of the weights.
      calibration, sparse, auto, equalization, verdict: see there.
      runtime: what a device must have to run it, in words.
      layers: each layer's error against the float model.
      notes: what a user should know: (quantization-aware ranges, …).
      warnings: what a user should act on.
      self_test: the largest difference between the outputs in `self_test.npz` and the float model's, by output; None
        where one is infinite and the other isn't.
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
    layers: tuple[LayerError, ...] = ()
    sparse: SparseRecord | None = None
    equalization: tuple[EqualizedPair, ...] = ()
    auto: AutoRecord | None = None
    verdict: TargetVerdict | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    self_test: dict[str, float | None] = {}
