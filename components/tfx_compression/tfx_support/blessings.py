"""Blessings name the bytes that were measured, and whatever pushes a model checks that it pushes those."""

import hashlib
import os

import tensorflow as tf
from tfx.components.evaluator import constants
from tfx.components.util import model_utils
from tfx.types import artifact

from tfx_compression.errors import ModelError
from tfx_compression.tfx_support import artifacts

MODEL_DIGEST = "model_sha256"
BUDGET_DIGEST = "budget_sha256"

_CHUNK = 2**20


def model_digest(model: artifact.Artifact) -> str:
    """Returns a SHA-256 digest, in hexadecimal digits, of the names and bytes of all files of a model.

    Raises:
      ModelError: A file is a link, whose target could change (code "model-has-links").
    """
    root = artifacts.model_path(model)
    digest = hashlib.sha256()
    paths = [root] if not tf.io.gfile.isdir(root) else []
    paths += [os.path.join(folder, name) for folder, _, names in tf.io.gfile.walk(root) for name in names]
    for path in sorted(paths):
        if os.path.islink(path):
            raise ModelError(f"{path} is a link. Remedy: a model of regular files.", code="model-has-links")
        content = hashlib.sha256()
        with tf.io.gfile.GFile(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                content.update(chunk)
        digest.update(f"{os.path.relpath(path, root)}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()


def is_blessed(blessing: artifact.Artifact) -> bool:
    """Returns whether a blessing's property says yes.

    Raises:
      ModelError: The property says yes, and the blessing's file says no (code "contradictory-blessing").
    """
    if not model_utils.is_model_blessed(blessing):
        return False
    if tf.io.gfile.exists(os.path.join(blessing.uri, constants.NOT_BLESSED_FILE_NAME)):
        raise ModelError(
            f"The blessing {blessing.uri} has the property blessed=1 and the file {constants.NOT_BLESSED_FILE_NAME}. "
            "Remedy: run the evaluator again.",
            code="contradictory-blessing",
        )
    return True


def require_match(blessing: artifact.Artifact, model: artifact.Artifact) -> None:
    """Checks that a model is the one that a blessing is about, byte by byte.

    Raises:
      ModelError: The blessing has no digest (code "blessing-without-digest"), or that of other bytes
        ("blessing-of-other-bytes").
    """
    blessed = blessing.get_string_custom_property(MODEL_DIGEST)
    if not blessed:
        raise ModelError(
            f"The blessing {blessing.uri} doesn't say which bytes it is about. Remedy: the blessing of a "
            "CompressedEvaluator.",
            code="blessing-without-digest",
        )
    actual = model_digest(model)
    if actual != blessed:
        raise ModelError(
            f"The blessing {blessing.uri} is about a model with the digest {blessed}, and {model.uri} has {actual}. "
            "Remedy: give the pusher the outputs best_model and blessing of the same evaluator, and leave their files "
            "alone.",
            code="blessing-of-other-bytes",
        )
