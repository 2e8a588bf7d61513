"""A model as C++ source, for the firmware of devices without files."""

import re

from tfx_compression.errors import ModelError

_PER_LINE = 12  # as `xxd -i` writes them


def write_sources(content: bytes, name: str = "model") -> dict[str, str]:
    """Returns the files `model.cc` and `model.h` with a model's bytes, aligned as TensorFlow Lite Micro reads them.

    Args:
      content: The flatbuffer.
      name: Name of the array. Its length is called `<name>_len`, as in `xxd -i`.

    Returns:
      The text of each file, by file name.

    Raises:
      ModelError: If `name` is not a C identifier, or there is no content.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ModelError(
            f"{name!r} can't be the name of a C array. Remedy: use letters, digits and underscores only.",
            code="invalid-c-name",
        )
    if not content:
        raise ModelError(f"The C array {name!r} would be empty. Remedy: pass a TFLite model.", code="empty-model")
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
