"""Drawn inputs of signatures, to compare two functions on.

The code around a network may treat some values differently: it fills in missing values, clips large ones, scales images
if their largest value exceeds 1, or lowercases words. Each probe therefore draws one kind of values that such code
would change. A new kind is a new entry of PROBES.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.data import example_parsing
from tfx_compression.data.example_parsing import Feature
from tfx_compression.errors import ModelError
from tfx_compression.tf_graphs import inlining

ROWS = 12
FREE_SIZES = (3, 1)  # drawn for a dimension of any size: several, for code that sums, and one, for code that squeezes

_MAGNITUDES = (0.1, 1.0, 10.0, 100.0)
_LARGEST_PIXEL = 255
_TEXTS = (b"0", b"A", b"a", "Straße".encode(), b"", b" a ")
_WORDS_PER_VOCABULARY = 4
_ASSET_BYTES = 10_000  # read from the beginning of a vocabulary file


@dataclasses.dataclass(frozen=True)
class Draw:
    """A draw of values.

    Attributes:
      shape: Shape of the values.
      seed: Random seed, another one for each input.
      words: Words that the model may know.
    """

    shape: tuple[int, ...]
    seed: int
    words: Sequence[bytes]

    @property
    def generator(self) -> np.random.Generator:
        """A generator in its initial state."""
        return np.random.default_rng(self.seed)

    def uniform(self) -> np.ndarray:
        """Returns numbers between 0 and 1."""
        return np.asarray(self.generator.uniform(0, 1, self.shape))

    def cycle(self, values: Sequence[Any]) -> np.ndarray:
        """Returns the values in turn."""
        return np.resize(np.array(values), self.shape)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A kind of values.

    Attributes:
      applies: Whether the probe is for an input, a tf.TensorSpec or a feature as tf.io.parse_example takes it.
      values: Returns the values of a draw.
    """

    applies: Callable[[Any], bool]
    values: Callable[[Draw], np.ndarray]


def _is_float(spec: Any) -> bool:
    return bool(spec.dtype.is_floating)


def _is_integer(spec: Any) -> bool:
    return bool(spec.dtype.is_integer)


def _is_string(spec: Any) -> bool:
    return bool(spec.dtype == tf.string)


def _may_be_absent(spec: Any) -> bool:
    return not isinstance(spec, tf.TensorSpec) and example_parsing.is_optional(spec)


def _of_both_signs(draw: Draw) -> np.ndarray:
    generator = draw.generator
    return np.asarray(generator.normal(size=draw.shape) * generator.choice(_MAGNITUDES, draw.shape))


def _with_nan(draw: Draw) -> np.ndarray:
    values = draw.uniform()
    values.ravel()[draw.seed % 3 :: 3] = np.nan
    return values


def _integers(*values: int) -> Probe:
    return Probe(_is_integer, lambda draw: draw.cycle(np.roll(values, draw.seed)))


ABSENT, NAN = "absent", "nan"
PROBES: dict[str, Probe] = {
    "negative": Probe(_is_float, _of_both_signs),
    "large": Probe(_is_float, lambda draw: _LARGEST_PIXEL * draw.uniform()),
    NAN: Probe(_is_float, _with_nan),
    "minus one": _integers(-1, 0, 1),
    "small integers": _integers(0, 1, 2, 7),
    "hundred": _integers(-1, 0, 1, 7, 100),
    "texts": Probe(_is_string, lambda draw: draw.cycle(_TEXTS)),
    "words": Probe(_is_string, lambda draw: draw.cycle([*draw.words, *_TEXTS])),
    ABSENT: Probe(_may_be_absent, Draw.uniform),  # the last row and every second before it lack the feature
}


@dataclasses.dataclass(frozen=True)
class SignatureInputs:
    """The inputs of a signature.

    Attributes:
      place: The signature, for error messages.
      arguments: The tensors that it takes, by name.
      features: The features that it parses from tf.Examples in its string arguments. Empty if it parses none.
    """

    place: str
    arguments: Mapping[str, tf.TensorSpec]
    features: Mapping[str, Feature] = dataclasses.field(default_factory=dict)

    @property
    def probed(self) -> Mapping[str, Any]:
        """What probes apply to: the features, or else the arguments."""
        return self.features or self.arguments

    @property
    def rows(self) -> int:
        """The number of rows that the signature takes at once, or else ROWS."""
        return next((spec.shape[0] for spec in self.arguments.values() if spec.shape.rank), None) or ROWS

    @property
    def free_sizes(self) -> tuple[int, ...]:
        """The sizes to draw for dimensions of any size; one that doesn't matter where all sizes are fixed."""
        fixed = all(_shape(spec, 1)[1:].is_fully_defined() for spec in self.probed.values())
        return FREE_SIZES[:1] if fixed else FREE_SIZES

    def draw(
        self, probes: Mapping[str, str] | None = None, words: Sequence[bytes] = (), free_size: int = FREE_SIZES[0]
    ) -> dict[str, tf.Tensor]:
        """Draws the arguments of one call.

        Args:
          probes: By feature or argument, the probe to draw it by. All others are plain: numbers between 0 and 1,
            integers 0 and 1, and the strings `0` and `1`.
          words: Words that the model may know.
          free_size: Size to draw for dimensions of any size.

        Raises:
          ModelError: If the number of an argument's dimensions isn't known.
        """
        probes = probes or {}
        seeds = {name: seed for seed, name in enumerate([*self.features, *self.arguments])}

        def values(name: str, spec: Any) -> np.ndarray:
            shape = _shape(spec, self.rows)
            if shape.rank is None:
                raise ModelError(f"The signature {self.place} takes {spec.name!r} in any shape.", code="any-shape")
            sizes = tuple(free_size if size is None else size for size in shape)
            return _values(spec.dtype, Draw(sizes, seeds[name], words), probes.get(name, ""))

        columns: dict[str, list[Any]] = {}
        for name, spec in self.features.items():
            columns[name] = list(values(name, spec))
            if probes.get(name) == ABSENT:
                columns[name][self.rows - 1 :: -2] = [None] * ((self.rows + 1) // 2)
        examples = example_parsing.serialize(columns) if columns else None
        return {
            name: tf.constant(examples if examples and spec.dtype == tf.string else values(name, spec), spec.dtype)
            for name, spec in self.arguments.items()
        }


def signature_inputs(place: str, signature: Any) -> SignatureInputs:
    """Returns the inputs of a signature of a loaded SavedModel.

    Args:
      place: The signature, for error messages.
      signature: The signature.

    Raises:
      ModelError: If it takes no tensors by name, or parses protocol buffers other than by tf.io.parse_example.
    """
    specs = signature.structured_input_signature[1]
    if not specs:
        raise ModelError(f"The signature {place} takes no tensors by name.", code="no-arguments")
    parsers = example_parsing.find_parsers(inlining.inline_calls(signature).graph.get_operations())
    if others := [op.type for op in parsers if op.type != example_parsing.PARSE_OP]:
        raise ModelError(
            f"The signature {place} parses its examples by {', '.join(dict.fromkeys(others))}.",
            code="unsupported-parsing",
        )
    arguments = {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()}
    return SignatureInputs(place, arguments, example_parsing.parsed_features(parsers))


def known_words(path: str, vocabularies: Iterable[Sequence[Any]] = ()) -> list[bytes]:
    """Returns words that a model may know, each in several spellings.

    Args:
      path: Path of the SavedModel, whose assets may be vocabulary files. Empty for none.
      vocabularies: Further vocabularies, such as those of lookup layers.
    """
    words: list[str] = []
    for vocabulary in vocabularies:
        words += [str(word) for word in vocabulary[: 2 * _WORDS_PER_VOCABULARY]]
    for name in tf.io.gfile.glob(os.path.join(path, "assets", "*")) if path else []:
        with tf.io.gfile.GFile(name, "rb") as file:
            lines = file.read(_ASSET_BYTES).decode(errors="replace").splitlines()
        words += lines[:_WORDS_PER_VOCABULARY]
    known = [word for word in dict.fromkeys(words) if word.strip() and word != "[UNK]"][:_WORDS_PER_VOCABULARY]
    spellings = [[word.swapcase(), word, f" {word} ", word.lower(), word.upper()] for word in known]
    return [spelling.encode() for word in spellings for spelling in word]


def _shape(spec: Any, rows: int) -> tf.TensorShape:
    """Returns the shape of an argument, or of a feature's values in `rows` rows."""
    if isinstance(spec, tf.TensorSpec):
        shape = spec.shape
        return tf.TensorShape([shape[0] or rows, *shape[1:]]) if shape.rank else shape
    if isinstance(spec, tf.io.FixedLenFeature):
        return tf.TensorShape([rows]).concatenate(spec.shape)
    values = spec.shape if isinstance(spec, tf.io.FixedLenSequenceFeature) else []
    return tf.TensorShape([rows, None]).concatenate(values)


def _values(dtype: tf.DType, draw: Draw, probe: str) -> np.ndarray:
    """Returns the values of a draw by a probe, or plain values if `probe` is empty."""
    values = PROBES[probe].values(draw) if probe else draw.uniform()
    if dtype == tf.string:
        if values.dtype.kind == "f":
            values = np.round(values).astype(np.int64).astype(str).astype(bytes)
        return values.astype(object)
    return (values if dtype.is_floating else np.round(values)).astype(dtype.as_numpy_dtype)
