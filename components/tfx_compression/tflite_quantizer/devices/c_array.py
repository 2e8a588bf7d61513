"""A model as C++ source: how it gets into the firmware of a device without files."""

import re

from tfx_compression.errors import ModelError

_PER_LINE = 12  # as `xxd -i`


def sources(content: bytes, name: str = "model") -> dict[str, str]:
    """The files `model.cc` and `model.h` with the bytes of a model, aligned as TensorFlow Lite Micro reads them.

    Args:
      content: the flatbuffer.
      name: of the array; its length is `<name>_len`, as `xxd -i` calls it.

    Returns:
      The text of each file, by its name.

    Raises:
      ModelError: where `name` is no name in C or there is no content.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ModelError(f"{name!r} is no name of a C array. Remedy: letters, digits and underscores only.")
    if not content:
        raise ModelError(f"A C array {name!r} of no bytes. Remedy: give it the bytes of a TFLite model.")
    lines = [
        "    " + ", ".join(f"0x{byte:02x}" for byte in content[start : start + _PER_LINE])
        for start in range(0, len(content), _PER_LINE)
    ]
    guard = f"{name.upper()}_H_"
    return {
        f"{name}.h": (
            f"#ifndef {guard}\n#define {guard}\n\n"
            f"extern const unsigned char {name}[];\nextern const unsigned int {name}_len;\n\n#endif  // {guard}\n"
        ),
        f"{name}.cc": (
            f'#include "{name}.h"\n\nalignas(16) extern const unsigned char {name}[] = {{\n'
            + ",\n".join(lines)
            + f"\n}};\nextern const unsigned int {name}_len = {len(content)};\n"
        ),
    }
