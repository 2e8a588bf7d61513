"""The quantization modes of TFLite models and the precisions of their layers: one table each, one row per entry.

Configuration, conversion, reports and checks follow from these rows. A mode with a new precision needs a row in both
tables; a mode with a precision that exists needs one in `MODES` only.
"""

import dataclasses
from typing import Literal

Io = Literal["integer", "uint8", "float32"]  # what a calibrated model takes and returns
BlockSize = Literal[0, 32, 64, 128, 256]  # weights that share a scale; 0 is one scale per channel

_BITS = {"float32": 32, "float16": 16, "int16": 16, "int8": 8, "int4": 4, "int2": 2}


@dataclasses.dataclass(frozen=True)
class PrecisionSpec:
    """How a layer stores its weights and computes.

    Attributes:
      name: Name in `PrecisionRule.precision`, `AutoPrecision.precisions` and records.
      weights: Type of the stored weights, as in TFLite's schema, in lower case.
      activations: Type of the activations.
      dequantized_weights: Whether weights are converted to floats before they are used. Float activations over
        quantized weights that are not converted are quantized at run time.
      fallbacks: Precisions for operators that don't support this one, best first; float32 is always the last.
      blocks: Whether `block_size` applies.
      weightless: Whether operators without weights can have it, lookups in tables (embeddings) included. There is one
        such precision per type of activations.
      operators: Operators whose kernels compute it right; empty means all that the quantizer supports.
      searched: Whether mode `auto` tries it by default, in the order of the table.
    """

    name: str
    weights: str
    activations: str
    dequantized_weights: bool = False
    fallbacks: tuple[str, ...] = ()
    blocks: bool = False
    weightless: bool = False
    operators: tuple[str, ...] = ()
    searched: bool = True

    @property
    def quantized(self) -> bool:
        """Whether weights are stored in fewer than 32 bits."""
        return self.weights != "float32"

    @property
    def weight_bits(self) -> int:
        """Bits of a stored weight."""
        return _BITS[self.weights]

    @property
    def activation_bits(self) -> int:
        """Bits of an integer activation; 0 where activations are floats."""
        return _BITS[self.activations] if self.calibrated else 0

    @property
    def calibrated(self) -> bool:
        """Whether activations are integers, whose ranges are measured on data."""
        return self.activations.startswith("int")

    @property
    def dynamic(self) -> bool:
        """Whether float activations are quantized at run time."""
        return self.weights.startswith("int") and not self.calibrated and not self.dequantized_weights


PRECISIONS = {
    spec.name: spec
    for spec in (
        PrecisionSpec("int8", "int8", "int8", weightless=True),
        PrecisionSpec("int4", "int4", "int8", fallbacks=("int8",)),
        PrecisionSpec("int4_dynamic", "int4", "float32", fallbacks=("int8_dynamic",), blocks=True),
        PrecisionSpec("int4_weight_only", "int4", "float32", dequantized_weights=True, fallbacks=("int8_weight_only",)),
        # Weights are -1, 0 or 1 times their channel's scale, which large dense layers may tolerate. The quantizer also
        # makes convolutions of 2 bits, which LiteRT 2.3 runs and returns NaN for.
        PrecisionSpec(
            "int2_dynamic",
            "int2",
            "float32",
            fallbacks=("int4_dynamic", "int8_dynamic"),
            operators=("FULLY_CONNECTED",),
        ),
        PrecisionSpec("int8_dynamic", "int8", "float32"),
        PrecisionSpec("int8_weight_only", "int8", "float32", dequantized_weights=True),
        PrecisionSpec("float16", "float16", "float32", dequantized_weights=True),
        PrecisionSpec("float32", "float32", "float32", weightless=True),
        PrecisionSpec("int16x8", "int8", "int16", weightless=True, searched=False),
    )
}


@dataclasses.dataclass(frozen=True)
class ModeSpec:
    """A quantization mode: how a whole model is converted.

    Attributes:
      name: Name in `Quantization.mode`.
      label: Title in reports.
      precision: Name of the precision of every layer that supports it; None where layers differ.
      engine: `converter` is TensorFlow's converter, on the SavedModel; `recipe` is litert-quantizer, on the float
        TFLite model, operator by operator.
      layers: What chooses each layer's precision: `uniform` is the mode's own, `rules` the user's rules, `search` a
        search on data.
      accepts_ranges: Whether TensorFlow's converter can also quantize the float TFLite model with given activation
        ranges. Modes of engine `recipe` always can.
    """

    name: str
    label: str
    precision: str | None = None
    engine: Literal["converter", "recipe"] = "converter"
    layers: Literal["uniform", "rules", "search"] = "uniform"
    accepts_ranges: bool = False

    @property
    def weights(self) -> str | None:
        """Type of the weights; None where layers differ."""
        return PRECISIONS[self.precision].weights if self.precision else None

    @property
    def activations(self) -> str | None:
        """Type of the activations; None where layers differ."""
        return PRECISIONS[self.precision].activations if self.precision else None

    @property
    def quantized(self) -> bool:
        """Whether weights may be stored in fewer than 32 bits."""
        return self.weights != "float32"

    @property
    def calibrated(self) -> bool:
        """Whether activation ranges are measured on data; with rules, whether they may be."""
        return PRECISIONS[self.precision].calibrated if self.precision else True

    @property
    def calibrated_by_converter(self) -> bool:
        """Whether TensorFlow's converter calibrates, so that nothing but missing kernels leaves floats in the model."""
        return self.engine == "converter" and self.calibrated

    @property
    def io(self) -> tuple[Io, ...]:
        """What the model can take and return."""
        if not self.calibrated:
            return ("float32",)
        return ("integer", "float32") if self.activations == "int16" else ("integer", "uint8", "float32")

    @property
    def from_float_model(self) -> bool:
        """Whether the mode can be made from a float TFLite model, so that equalization and own ranges apply."""
        return self.engine == "recipe" or self.accepts_ranges

    @property
    def per_tensor(self) -> bool:
        """Whether `per_channel=False` applies."""
        return self.engine == "recipe" or self.calibrated

    @property
    def blocks(self) -> bool:
        """Whether `block_size` applies."""
        return self.precision is not None and PRECISIONS[self.precision].blocks

    @property
    def several_signatures(self) -> bool:
        """Whether several signatures convert into one file."""
        return self.engine == "converter"


MODES = {
    spec.name: spec
    for spec in (
        ModeSpec("float32", "32-bit floats", "float32"),
        ModeSpec("float16", "16-bit float weights", "float16"),
        ModeSpec("dynamic", "8-bit weights, activations quantized at run time", "int8_dynamic"),
        ModeSpec("int8", "8-bit weights and activations", "int8", accepts_ranges=True),
        ModeSpec("int16x8", "8-bit weights, 16-bit activations", "int16x8"),
        ModeSpec("int4", "4-bit weights, 8-bit activations", "int4", "recipe"),
        ModeSpec("int4_dynamic", "4-bit weights, activations quantized at run time", "int4_dynamic", "recipe"),
        ModeSpec("int4_weight_only", "4-bit weights, float activations", "int4_weight_only", "recipe"),
        ModeSpec("mixed", "Precision of each layer set by rules", engine="recipe", layers="rules"),
        ModeSpec("auto", "Precision of each layer found by a search", engine="recipe", layers="search"),
    )
}


def weightless_precision(activation_bits: int) -> str:
    """Returns the precision of operators without weights whose activations have this many bits."""
    return next(
        spec.name for spec in PRECISIONS.values() if spec.weightless and spec.activation_bits == activation_bits
    )


def precision_of_types(activations: str, weights: str | None, unpacked: bool) -> str | None:
    """Returns the precision that the types of an operator's tensors show; None where no row fits.

    Args:
      activations: Type of the operator's output.
      weights: Type of its stored weights; None for an operator without weights.
      unpacked: Whether another operator unpacks the weights first: DEQUANTIZE, or DENSIFY of sparse weights.
    """
    rows = [spec for spec in PRECISIONS.values() if spec.activations == activations]
    for spec in rows:
        if spec.weights == weights and spec.dequantized_weights == unpacked:
            return spec.name
    for spec in rows:  # sparse weights, which are unpacked in their own type, and operators without weights
        if spec.weightless and (spec.weights == weights if unpacked else weights is None):
            return spec.name
    return None
