"""Reads the protocol buffers that the command line takes as files."""

import tensorflow as tf
from google.protobuf import json_format, text_format
from google.protobuf.message import Message
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis.proto import config_pb2

from tfx_compression.errors import ConfigError


def read_schema(path: str) -> schema_pb2.Schema:
    """Reads a Schema from a text proto.

    Raises:
      ConfigError: The file holds no Schema.
    """
    return _parse(path, schema_pb2.Schema())


def read_eval_config(path: str) -> config_pb2.EvalConfig:
    """Reads TFMA's EvalConfig from JSON or a text proto.

    Raises:
      ConfigError: The file holds no EvalConfig.
    """
    return _parse(path, config_pb2.EvalConfig())


def _parse(path: str, message: Message) -> Message:
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    try:
        text = content.decode()
        is_json = text.lstrip().startswith("{")
        return json_format.Parse(text, message) if is_json else text_format.Parse(text, message)
    except (UnicodeDecodeError, json_format.ParseError, text_format.ParseError) as error:
        raise ConfigError(
            f"{path} holds no {message.DESCRIPTOR.full_name}: {error}", code="unreadable-proto"
        ) from error
