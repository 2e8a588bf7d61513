"""Protocol buffers that the command line reads from files."""

import pytest
from tfx_compression.compressed_evaluator import proto_files
from tfx_compression.errors import ConfigError

from tests.support.errors import raises


def test_an_eval_config_is_json_or_a_text_proto(tmp_path):
    (tmp_path / "config.json").write_text('{"model_specs": [{"label_key": "label"}]}')
    (tmp_path / "config.pbtxt").write_text('model_specs { label_key: "label" }')
    configs = [proto_files.read_eval_config(str(path)) for path in sorted(tmp_path.iterdir())]
    assert [config.model_specs[0].label_key for config in configs] == ["label", "label"]


def test_a_schema_is_a_text_proto(tmp_path):
    (tmp_path / "schema.pbtxt").write_text('feature { name: "x" }')
    assert proto_files.read_schema(str(tmp_path / "schema.pbtxt")).feature[0].name == "x"


@pytest.mark.parametrize("content", [b"Dear all", b'{"nothing": 1}', b"\xff\xfe"], ids=["text", "json", "binary"])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "letter").write_bytes(content)
    with raises(ConfigError, code="unreadable-proto", match=str(tmp_path / "letter")):
        proto_files.read_eval_config(str(tmp_path / "letter"))
