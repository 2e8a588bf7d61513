"""The other modes that an error or a warning proposes."""

from collections.abc import Sequence

# Modes that keep outputs closer to the float model's, closest in size first. Where it isn't listed, all of the default.
_MORE_BITS = {
    "float16": ("float32",),
    "dynamic": ("float16",),
    "int16x8": ("float16",),
    "int8": ("int16x8", "dynamic", "float16"),
}
_DEFAULT = ("int8", "dynamic", "float16")


def other_modes(mode: str) -> str:
    """Returns modes that most models run in, other than `mode`."""
    return _listed([name for name in _DEFAULT if name != mode])


def more_bits(mode: str) -> str:
    """Returns modes with more bits for weights or activations than `mode`."""
    return f"more bits ({_listed(_MORE_BITS.get(mode, _DEFAULT))})"


def _listed(names: Sequence[str]) -> str:
    *others, last = map(repr, names)
    return f"mode {', '.join(others)} or {last}" if others else f"mode {last}"
