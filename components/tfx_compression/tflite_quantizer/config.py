"""Configuration of the conversion of a model to TFLite."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from tfx_compression.config import Config, Name, Pattern, Seed
from tfx_compression.errors import ConfigError
from tfx_compression.tflite.modes import MODES, PRECISIONS, BlockSize, Io, ModeSpec
from tfx_compression.tflite_quantizer.devices.targets import TARGETS


def _one_of(names: Iterable[str], kind: str) -> Callable[[str], str]:
    """Returns a validator of a name that must be one of a table's."""
    known = tuple(names)

    def validate(name: str) -> str:
        if name not in known:
            raise ConfigError(f"unknown {kind}; known: {', '.join(known)}", code=f"unknown-{kind}")
        return name

    return validate


Mode = Annotated[str, AfterValidator(_one_of(MODES, "mode"))]  # name of a row of tflite.modes.MODES
Precision = Annotated[str, AfterValidator(_one_of(PRECISIONS, "precision"))]  # name of a row of tflite.modes.PRECISIONS
Target = Annotated[str, AfterValidator(_one_of(TARGETS, "target"))]  # name of a row of devices.targets.TARGETS


class Calibration(Config):
    """The rows that activation ranges are measured on, and how ranges follow from them.

    Attributes:
      split: Split of the examples.
      rows: Number of rows. They are drawn from the whole split, each with equal chance (reservoir sampling).
      seed: Random seed of the draw.
      stratify_by: Feature, usually the label, of whose values equally many rows are drawn, as far as there are enough.
      ranges: `min_max` spans all values; `percentile` leaves out the outermost values; `mse` minimizes the error of
        rounding and clipping together. The last two are robust to outliers.
      percentile: Percentage of the values that `percentile` keeps.
      check_split: Split that is compared with the ranges; None compares nothing.
      max_outside: Share of its input values outside the ranges above which the record has a warning.
    """

    split: Name = "train"
    rows: int = Field(default=200, ge=1)
    seed: Seed = 0
    stratify_by: Name | None = None
    ranges: Literal["min_max", "percentile", "mse"] = "min_max"
    percentile: float = Field(default=99.99, gt=50.0, le=100.0)
    check_split: Name | None = "eval"
    max_outside: float = Field(default=0.01, ge=0.0, le=1.0)


class PrecisionRule(Config):
    """The precision of some layers. Of the rules that match a layer, the last one wins.

    Attributes:
      layers: Regular expression that is searched for in layer names, which are those in `QuantizationRecord.layers`.
      precision: Name of a precision, which `tflite.modes.PRECISIONS` defines. `…_dynamic` quantizes activations at run
        time, `…_weight_only` converts weights to floats before they are used; other integer precisions have calibrated
        integer activations.
      block_size: Number of weights that share a scale, in `int4_dynamic` dense layers; 0 is one scale per channel.
    """

    layers: Pattern
    precision: Precision
    block_size: BlockSize = 0

    @model_validator(mode="after")
    def _check_block_size(self) -> "PrecisionRule":
        if self.block_size and not PRECISIONS[self.precision].blocks:
            supported = ", ".join(name for name, spec in PRECISIONS.items() if spec.blocks)
            raise ConfigError(
                f"block_size={self.block_size} applies to precision {supported}, not to {self.precision!r}",
                field="PrecisionRule.block_size",
                code="inapplicable-field",
            )
        return self


class AutoPrecision(Config):
    """The search of mode `auto` for the smallest file that loses at most `max_drop`.

    Attributes:
      metric: Name of a Keras metric, such as `accuracy` or `mean_squared_error`, against the labels; or `agreement`,
        which needs no labels: the share of rows whose largest output is the float model's.
      max_drop: Largest acceptable loss against the float model, in the metric's own unit.
      split: Split of the examples that the metric is measured on. The result has seen these rows.
      rows: Number of its rows.
      label_key: Feature that is the label. By default, the one feature of the schema that is no input of the model.
      output: Output that the metric applies to. By default, the only one.
      precisions: Precisions that layers may have, as far as the target runs them. `int16x8` must be named explicitly.
    """

    metric: str = "accuracy"
    max_drop: float = Field(default=0.01, ge=0.0)
    split: Name = "eval"
    rows: int = Field(default=2000, ge=1)
    label_key: Name | None = None
    output: Name | None = None
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = tuple(
        name for name, spec in PRECISIONS.items() if spec.searched
    )


class Normalization(Config):
    """Normalization of an input by the application: `(value - mean) / std`, per channel or once for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _check_sizes(self) -> "Normalization":
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(
                "mean and std must have the same length: one number per channel, or one for all",
                field="Normalization.std",
                code="length-mismatch",
            )
        if any(std <= 0 for std in self.std):
            raise ConfigError("std must be above zero", field="Normalization.std", code="not-positive")
        return self


class Metadata(Config):
    """Metadata in the TFLite file (TFLite model metadata, ai.google.dev/edge/litert/models/metadata).

    Attributes:
      name, description, version, author, license: Free text.
      labels: Names of the classes, by output; stored in the file as an associated file.
      normalization: Normalization that the application applies, by input.
    """

    name: str = ""
    description: str = ""
    version: str = ""
    author: str = ""
    license: str = ""
    labels: dict[str, tuple[str, ...]] = {}
    normalization: dict[str, Normalization] = {}


class Quantization(Config):
    """Conversion of a model to TFLite.

    Attributes:
      mode: Name of a mode. `tflite.modes.MODES` defines the modes; docs/quantization.md says when to choose which. A
        quantization-aware model keeps the ranges that it was trained with: use `int8`, or `dynamic` for float inputs
        and outputs.
      io: What a calibrated model takes and returns: `integer` (int8; int16 in `int16x8`), `uint8`, or `float32` with
        the quantization inside.
      per_channel: Whether each output channel of a kernel has a scale, or the kernel has one.
      block_size: Number of weights of a dense layer that share a scale, in `int4_dynamic`; 0 is one scale per channel.
      calibration: Calibration of the calibrated modes.
      rules: Rules of `mixed`. A layer that no rule matches stays `float32`.
      auto: Search of `auto`.
      equalize: Whether cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721) is applied to the float model
        first: it scales consecutive layers' channels alike, which changes no output. `auto` tries it in mode `auto` and
        does nothing in others.
      sparse: Whether sparse kernels are encoded as such; `auto` does so only if the gzipped file gets smaller or the
        model faster.
      target: Device that the model must run on. docs/devices.md has the rules.
      min_output_cosine: Smallest acceptable cosine similarity of each output with the float model's, as `output_errors`
        defines it, on calibration rows or, without data, random ones. An output below 0.3 keeps less than a tenth of
        the float model's variance. Below the limit the conversion fails; None accepts any. Below 0.9 the record has a
        warning.
      max_arena_bytes: Limit on the target's memory for the tensors between the operators.
      signatures: Signatures of the SavedModel, all in one file.
      batch_size: Number of rows that the model takes at once; None is any number.
      transform: Whether a Transform layer in the serving signature goes into the TFLite model (`inside`) or stays
        before it (`outside`), so that the model takes transformed features.
      select_tf_ops: Whether TensorFlow's own operators may be used where TFLite has none. The runtime then needs the
        Flex delegate.
      metadata: Metadata in the file.
      timeout_seconds: Limit on the time of the conversion.
      max_memory_bytes: Limit on the memory of the conversion; None is no limit.
    """

    mode: Mode = "int8"
    io: Io = "integer"
    per_channel: bool = True
    block_size: BlockSize = 0
    calibration: Calibration = Calibration()
    rules: tuple[PrecisionRule, ...] = ()
    auto: AutoPrecision = AutoPrecision()
    equalize: bool | Literal["auto"] = "auto"
    sparse: bool | Literal["auto"] = False
    target: Target = "cpu"
    min_output_cosine: float | None = Field(default=0.3, ge=-1.0, le=1.0)
    max_arena_bytes: int | None = Field(default=None, ge=1)
    signatures: tuple[str, ...] = ("serving_default",)
    batch_size: int | None = Field(default=None, ge=1)
    transform: Literal["inside", "outside"] = "inside"
    select_tf_ops: bool = False
    metadata: Metadata = Metadata()
    timeout_seconds: float = Field(default=3600.0, gt=0.0)
    max_memory_bytes: int | None = Field(default=None, ge=1)

    @property
    def mode_spec(self) -> ModeSpec:
        """The mode's row."""
        return MODES[self.mode]

    @property
    def needs_data(self) -> bool:
        """Whether activation ranges are measured on data."""
        if self.mode_spec.layers == "rules":
            return any(PRECISIONS[rule.precision].calibrated for rule in self.rules)
        return self.mode_spec.calibrated

    @property
    def largest_block(self) -> int:
        """Largest number of weights that share a scale in a block; 0 without blocks."""
        return max((self.block_size, *(rule.block_size for rule in self.rules)))

    @property
    def searches(self) -> bool:
        """Whether each layer's precision is found by a search on data."""
        return self.mode_spec.layers == "search"

    @property
    def needs_labels(self) -> bool:
        """Whether the search measures a metric against labels."""
        return self.searches and self.auto.metric != "agreement"

    @property
    def custom_ranges(self) -> bool:
        """Whether activation ranges need more than the converter's own calibration, which is `min_max`."""
        return self.needs_data and self.calibration.ranges != "min_max"

    @model_validator(mode="after")
    def _check_mode(self) -> "Quantization":
        mode = self.mode_spec
        if bool(self.rules) != (mode.layers == "rules"):
            if not self.rules:
                raise ConfigError(
                    f"mode {self.mode!r} needs rules. Remedy: rules=(PrecisionRule(layers=…, precision=…),)",
                    field="Quantization.rules",
                    code="rules-missing",
                )
            raise self._inapplicable("rules", _modes(lambda spec: spec.layers == "rules"))
        if self.io == "uint8" and "uint8" not in mode.io:
            raise self._inapplicable("io", _modes(lambda spec: "uint8" in spec.io))
        if self.io == "uint8" and self.searches:
            wide = [name for name in self.auto.precisions if PRECISIONS[name].activation_bits > 8]
            if wide:
                raise ConfigError(
                    f"io 'uint8' doesn't go with auto.precisions {', '.join(wide)}: no kernel converts between them",
                    field="Quantization.io",
                    code="incompatible-precision",
                )
        if self.block_size and not mode.blocks:
            raise self._inapplicable("block_size", _modes(lambda spec: spec.blocks))
        if self.block_size and not self.per_channel:
            raise ConfigError(
                "per_channel=False is one scale for a kernel, but block_size is several for a channel",
                field="Quantization.per_channel",
                code="incompatible-block-size",
            )
        if not self.per_channel and not mode.per_tensor:
            raise self._inapplicable("per_channel", _modes(lambda spec: spec.per_tensor))
        if self.custom_ranges and not mode.from_float_model:
            supported = _modes(lambda spec: spec.calibrated and spec.from_float_model)
            raise self._inapplicable("calibration.ranges", supported)
        if self.equalize is True and not mode.from_float_model:
            raise self._inapplicable("equalize", _modes(lambda spec: spec.from_float_model))
        return self

    @model_validator(mode="after")
    def _check_target(self) -> "Quantization":
        target = TARGETS[self.target]
        if self.select_tf_ops and not target.select_tf_ops:
            raise ConfigError(
                f"select_tf_ops needs the Flex delegate, which target {self.target!r} doesn't have",
                field="Quantization.select_tf_ops",
                code="unsupported-by-target",
            )
        if self.mode not in target.modes:
            raise ConfigError(
                f"target {self.target!r} can't run mode {self.mode!r}. Remedy: mode {', '.join(target.modes)}",
                field="Quantization.mode",
                code="unsupported-by-target",
            )
        if target.static_shapes and self.batch_size is None:
            raise ConfigError(
                f"target {self.target!r} has static shapes. Remedy: a batch_size, usually 1",
                field="Quantization.batch_size",
                code="required-by-target",
            )
        return self

    @model_validator(mode="after")
    def _check_signatures(self) -> "Quantization":
        if not self.signatures or len(set(self.signatures)) < len(self.signatures):
            raise ConfigError(
                "signatures must name at least one signature, and each once",
                field="Quantization.signatures",
                code="not-unique",
            )
        if len(self.signatures) == 1:
            return self
        if "serving_default" not in self.signatures:
            raise ConfigError(
                "one of several signatures must be 'serving_default', which evaluators and self-tests run",
                field="Quantization.signatures",
                code="no-serving-default",
            )
        if (
            not self.mode_spec.several_signatures
            or self.equalize is True
            or self.calibration.ranges != "min_max"
            or self.transform == "outside"
        ):
            raise ConfigError(
                f"several signatures need mode {_modes(lambda spec: spec.several_signatures)}, calibration.ranges "
                "'min_max', transform 'inside', and equalize False or 'auto'",
                field="Quantization.signatures",
                code="several-signatures",
            )
        return self

    def _inapplicable(self, field: str, supported: str) -> ConfigError:
        value: Any = self
        for name in field.split("."):
            value = getattr(value, name)
        return ConfigError(
            f"{field}={value!r} applies to mode {supported}, not to {self.mode!r}",
            field=f"Quantization.{field}",
            code="inapplicable-field",
        )


def _modes(condition: Callable[[ModeSpec], bool]) -> str:
    """Returns the names of the modes that satisfy a condition."""
    return ", ".join(name for name, spec in MODES.items() if condition(spec))
