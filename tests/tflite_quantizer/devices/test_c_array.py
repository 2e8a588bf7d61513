"""C++ source of a model: a compiler reads back the same bytes."""

import subprocess

import numpy as np
import pytest
from tfx_compression.errors import ModelError
from tfx_compression.tflite_quantizer.devices import c_array

from tests.support.errors import raises


@pytest.mark.peers  # g++
@pytest.mark.parametrize("size", [1, 12, 13, 1000])
def test_a_compiled_array_holds_the_bytes_of_the_model(tmp_path, size):
    content = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8).tobytes()
    for name, text in c_array.write_sources(content, "digits").items():
        (tmp_path / name).write_text(text)
    (tmp_path / "main.cc").write_text(
        '#include <cstdint>\n#include <cstdio>\n#include "digits.h"\n'
        "int main() {\n"
        "  if (reinterpret_cast<std::uintptr_t>(digits) % 16) return 2;\n"
        "  return std::fwrite(digits, 1, digits_len, stdout) == digits_len ? 0 : 1;\n}\n"
    )
    command = ["g++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "digits.cc", "main.cc", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "main"], check=True, capture_output=True).stdout == content


@pytest.mark.parametrize(("content", "name", "code"), [(b"x", "2 words", "invalid-c-name"), (b"", "m", "empty-model")])
def test_an_array_that_would_not_compile_is_refused(content, name, code):
    with raises(ModelError, code=code):
        c_array.write_sources(content, name)
