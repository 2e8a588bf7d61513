"""How a model becomes a TFLite model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tfx_compression.config import Config, Pattern

Precision = Literal[
    "float32",
    "float16",
    "int8",
    "int8_dynamic",
    "int8_weight_only",
    "int16x8",
    "int4",
    "int4_dynamic",
    "int4_weight_only",
    "int2_dynamic",
]
Target = Literal["cpu", "edge_tpu", "microcontroller", "android_nnapi_gpu", "ios_coreml"]

CALIBRATED = ("int8", "int16x8", "int4")
_CALIBRATED_MODES = (*CALIBRATED, "auto")
_NOT_ON_MICROCONTROLLERS = ("float16", "dynamic", "int4_dynamic", "int4_weight_only")
_UNSIGNED = ("int8", "int4", "mixed", "auto")
_BY_RECIPE = ("int4", "int4_dynamic", "int4_weight_only", "mixed", "auto")


class Calibration(Config):
    """The rows that activation ranges are measured on, and how a range is made of them.

    Attributes:
      split: of the examples.
      rows: how many; drawn from the whole split, each row with equal chance (reservoir sampling).
      seed: of that draw.
      stratify_by: a feature, the label mostly: as many rows of each of its values, as far as there are.
      ranges: `min_max`, all that was seen; `percentile`, without the outermost values; `mse`, the range whose rounding
        and clipping together lose least (both stand against outliers).
      percentile: of `percentile`, the share of the values that is kept, in percent.
      check_split: a split that is compared with the ranges; None compares nothing.
      max_outside: a warning where more than this share of its input values lies outside.
    """

    split: str = "train"
    rows: int = Field(default=200, ge=1)
    seed: int = 0
    stratify_by: str | None = None
    ranges: Literal["min_max", "percentile", "mse"] = "min_max"
    percentile: float = Field(default=99.99, gt=50.0, le=100.0)
    check_split: str | None = "eval"
    max_outside: float = Field(default=0.01, ge=0.0, le=1.0)


class PrecisionRule(Config):
    """The precision of some layers; of the rules that fit a layer, the last one wins.

    Attributes:
      layers: a regular expression, searched for in the layer's name as `QuantizationRecord.layers` has it.
      precision: `float32`; `float16` (weights stored as halves); `int8`, `int4` (weights; activations in int8, ranges
        calibrated), `int16x8` (activations in 16 bits, weights in 8); `…_dynamic` (activations rounded on the fly;
        `int2_dynamic` leaves a weight -1, 0 or 1 times its channel's scale, which large dense layers may bear);
        `…_weight_only` (weights made floats again before they are used).
      block_size: of `int4_dynamic`, weights that share a scale; 0 is one scale per channel. Dense layers only.
    """

    layers: Pattern
    precision: Precision
    block_size: Literal[0, 32, 64, 128, 256] = 0

    @model_validator(mode="after")
    def _has_blocks(self) -> "PrecisionRule":
        if self.block_size and self.precision != "int4_dynamic":
            raise ValueError(f"block_size={self.block_size} is of precision 'int4_dynamic', not of {self.precision!r}")
        return self


class AutoPrecision(Config):
    """The search of mode `auto`: the smallest file that loses at most `max_drop`.

    Attributes:
      metric: a Keras name (`accuracy`, `mean_squared_error`), against the labels; `agreement` needs no labels: the
        share of rows whose largest output is the float model's.
      max_drop: by how much the metric may be worse than the float model's, in its own unit.
      split: of the examples that the metric is measured on. What is chosen by it is no longer unseen.
      rows: of it.
      label_key: the label's feature; by default the one feature of the schema that is no input of the model.
      output: the output that the metric is of; by default the only one.
      precisions: that layers may have, as far as the target runs them; `int16x8` only where it is named here.
    """

    metric: str = "accuracy"
    max_drop: float = Field(default=0.01, ge=0.0)
    split: str = "eval"
    rows: int = Field(default=2000, ge=1)
    label_key: str | None = None
    output: str | None = None
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = (
        "int8",
        "int4",
        "int4_dynamic",
        "int4_weight_only",
        "int2_dynamic",
        "int8_dynamic",
        "int8_weight_only",
        "float16",
        "float32",
    )


class Normalization(Config):
    """What an application does to an input before the model: `(value - mean) / std`, per channel or once for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _fits_together(self) -> "Normalization":
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError("mean and std have one number per channel, or one for all: as many each")
        if any(std <= 0 for std in self.std):
            raise ValueError("std is above zero")
        return self


class Metadata(Config):
    """What a TFLite model says of itself (TFLite model metadata, ai.google.dev/edge/litert/models/metadata).

    Attributes:
      name, description, version, author, license: in words.
      labels: by output, the name of each class; put into the file as an associated file.
      normalization: by input.
    """

    name: str = ""
    description: str = ""
    version: str = ""
    author: str = ""
    license: str = ""
    labels: dict[str, tuple[str, ...]] = {}
    normalization: dict[str, Normalization] = {}


class Quantization(Config):
    """Conversion to TFLite.

    Attributes:
      mode: `float32`; `float16` (weights stored as halves); `dynamic` (int8 weights, activations rounded on the fly);
        `int8` (weights and activations, calibrated on data; ai.google.dev/edge/litert/models/quantization_spec);
        `int16x8` (int8 weights, int16 activations; slow where there are reference kernels only); `int4` (as `int8`,
        the weights of dense layers and convolutions in 4 bits), `int4_dynamic`, `int4_weight_only`: run on LiteRT only;
        `mixed`, each layer by the `rules`; `auto`, each layer as found by `auto`. A quantization-aware model keeps the
        ranges that it was trained in: `int8`, or `dynamic` for floats in and out.
      io: what a calibrated model takes and returns: `integer` (int8; int16 of `int16x8`), `uint8`, or `float32` with
        the quantization inside.
      per_channel: a scale for each output channel of a kernel, or one for all of it.
      block_size: of `int4_dynamic`, weights of a dense layer that share a scale; 0 is one scale per channel.
      calibration: of the calibrated modes.
      rules: of `mixed`; a layer that no rule fits stays `float32`.
      auto: of `auto`.
      equalize: cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721) of the float model first: consecutive
        layers' channels scaled alike, which changes no output; `auto` tries it in mode `auto` and leaves it elsewhere.
      sparse: encodes sparse kernels as such; `auto` only where the gzipped file gets smaller or the model faster.
      target: the device that the model shall run on: see `docs/quantization.md`.
      max_arena_bytes: of the target's memory, for the tensors between the operators.
      signatures: of the SavedModel, all in one file.
      batch_size: rows that the model takes at once; None is any number.
      transform: a Transform layer in the serving signature goes into the TFLite model (`inside`) or stays before it
        (`outside`): the model then takes transformed features.
      select_tf_ops: TensorFlow's own operators where TFLite has none; the runtime then needs the Flex delegate.
      metadata: what the file says of itself.
      timeout_seconds: that conversion may take.
      max_memory_bytes: that it may take; None is no limit.
    """

    mode: Literal[
        "float32",
        "float16",
        "dynamic",
        "int8",
        "int16x8",
        "int4",
        "int4_dynamic",
        "int4_weight_only",
        "mixed",
        "auto",
    ] = "int8"
    io: Literal["integer", "uint8", "float32"] = "integer"
    per_channel: bool = True
    block_size: Literal[0, 32, 64, 128, 256] = 0
    calibration: Calibration = Calibration()
    rules: tuple[PrecisionRule, ...] = ()
    auto: AutoPrecision = AutoPrecision()
    equalize: bool | Literal["auto"] = "auto"
    sparse: bool | Literal["auto"] = False
    target: Target = "cpu"
    max_arena_bytes: int | None = Field(default=None, ge=1)
    signatures: tuple[str, ...] = ("serving_default",)
    batch_size: int | None = Field(default=None, ge=1)
    transform: Literal["inside", "outside"] = "inside"
    select_tf_ops: bool = False
    metadata: Metadata = Metadata()
    timeout_seconds: float = Field(default=3600.0, gt=0.0)
    max_memory_bytes: int | None = Field(default=None, ge=1)

    @property
    def needs_data(self) -> bool:
        """Whether the mode is calibrated."""
        if self.mode == "mixed":
            return any(rule.precision in CALIBRATED for rule in self.rules)
        return self.mode in _CALIBRATED_MODES

    @property
    def needs_labels(self) -> bool:
        """Whether the mode measures a metric against labels."""
        return self.mode == "auto" and self.auto.metric != "agreement"

    @property
    def by_recipe(self) -> bool:
        """Whether layers are quantized one by one, from a float model."""
        return self.mode in _BY_RECIPE

    @model_validator(mode="after")
    def _fits_together(self) -> "Quantization":
        if bool(self.rules) != (self.mode == "mixed"):
            raise ValueError(f"rules are of mode 'mixed', which needs one at least; mode is {self.mode!r}")
        if self.io == "uint8" and self.mode not in _UNSIGNED:
            raise ValueError(f"io 'uint8' is of the modes {', '.join(_UNSIGNED)}, not of {self.mode!r}")
        if self.io == "uint8" and self.mode == "auto" and "int16x8" in self.auto.precisions:
            raise ValueError("io 'uint8' doesn't go with 'int16x8' in auto.precisions: there is no kernel between them")
        if self.block_size and self.mode != "int4_dynamic":
            raise ValueError(f"block_size={self.block_size} is of mode 'int4_dynamic', not of {self.mode!r}")
        if not self.per_channel and self.block_size:
            raise ValueError("per_channel=False is one scale for a kernel, and block_size several for a channel")
        if not self.per_channel and self.mode in ("float32", "float16", "dynamic"):
            raise ValueError(f"per_channel=False is of the calibrated modes and those of 4 bits, not of {self.mode!r}")
        if self.calibration.ranges != "min_max" and self.mode == "int16x8":
            raise ValueError("calibration.ranges of mode 'int16x8' is 'min_max': 16 bits have room for outliers")
        if self.equalize is True and self.mode in ("float32", "float16", "dynamic", "int16x8"):
            raise ValueError(f"equalize=True is of mode 'int8' and of those by layer, not of {self.mode!r}")
        if self.target in ("edge_tpu", "microcontroller") and self.select_tf_ops:
            raise ValueError(f"select_tf_ops needs the Flex delegate, which target {self.target!r} has not")
        if self.target == "microcontroller" and self.mode in _NOT_ON_MICROCONTROLLERS:
            raise ValueError(
                f"target 'microcontroller' has no kernels of mode {self.mode!r}. Remedy: mode 'int8' or 'float32'"
            )
        if self.target == "edge_tpu" and (self.mode != "int8" or self.batch_size is None):
            raise ValueError("target 'edge_tpu' needs mode='int8' and a batch_size (1 mostly): its shapes are static")
        if not self.signatures or len(set(self.signatures)) < len(self.signatures):
            raise ValueError("signatures names at least one, and each once")
        if len(self.signatures) > 1 and "serving_default" not in self.signatures:
            raise ValueError("of several signatures one is 'serving_default', which evaluators and self-tests run")
        if len(self.signatures) > 1 and (
            self.by_recipe
            or self.equalize is True
            or self.calibration.ranges != "min_max"
            or self.transform == "outside"
        ):
            raise ValueError(
                "several signatures convert in the modes float32, float16, dynamic, int8 and int16x8 only, with ranges "
                "'min_max', transform 'inside' and without equalize"
            )
        return self
