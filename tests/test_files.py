"""Files: sizes, and texts and JSON written and read."""

import gzip
import zlib

import pytest
from tfx_compression import compressed_size, files


def test_the_size_of_a_folder_is_the_total_of_its_files(tmp_path):
    (tmp_path / "inner").mkdir()
    contents = [bytes(1000), bytes(range(256)) * 4]
    for name, content in zip(("a", "inner/b"), contents, strict=True):
        (tmp_path / name).write_bytes(content)
    size = files.size(str(tmp_path))
    assert size == (2024, sum(len(gzip.compress(content, 6, mtime=0)) for content in contents))
    assert files.size(str(tmp_path / "a")).raw == 1000


def test_a_text_is_written_into_a_new_folder(tmp_path):
    files.write_text(str(tmp_path / "new" / "text"), "ü")
    assert (tmp_path / "new" / "text").read_text(encoding="utf-8") == "ü"


def test_json_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "new" / "state.json"
    for value in ({"step": 1}, {"step": 2}):
        files.write_json(str(path), value)
        assert files.read_json(str(path)) == value
    assert [file.name for file in path.parent.iterdir()] == ["state.json"]


def test_a_file_that_is_not_json_is_a_value_error(tmp_path):
    (tmp_path / "torn.json").write_text('{"step"')
    with pytest.raises(ValueError):
        files.read_json(str(tmp_path / "torn.json"))


def test_compressed_sizes_are_those_of_gzip_and_zstandard():
    import zstandard

    content = bytes(range(256)) * 40
    deflate = zlib.compressobj(6, zlib.DEFLATED, wbits=31)  # 31: with gzip's header and trailer.
    assert compressed_size.gzipped(content) == len(deflate.compress(content) + deflate.flush())
    assert compressed_size.zstd(content) == len(zstandard.compress(content, 3))
