"""Stores are opened by the scheme of their URI."""

import subprocess
import sys

import pytest
import tfx_compression.store as stores
from tfx_compression.errors import StoreError
from tfx_compression.store import backends

from tests.support.errors import raises
from tests.support.stores import publish


def test_a_file_uri_opens_the_store_at_its_path(store, root):
    publish(store, 1)
    assert stores.open(f"file://{root}").versions("digits") == [1]


def test_a_file_uri_names_the_path_that_it_quotes(tmp_path):
    place = tmp_path / "a b"
    stores.open(place.as_uri()).publish("digits", b"model", {})
    assert stores.open(str(place)).versions("digits") == [1]


@pytest.mark.parametrize("scheme", ["s3", "gs", "https", "oci"])
def test_an_unknown_scheme_is_refused(scheme):
    with raises(StoreError, code="unknown-scheme", field="uri", match=f"{scheme}://bucket/store"):
        stores.open(f"{scheme}://bucket/store")


def test_a_row_of_the_table_adds_a_backend(monkeypatch):
    class Bucket:
        def __init__(self, uri: str):
            self.uri = uri

    monkeypatch.setitem(backends._BACKENDS, "bucket", Bucket)
    assert stores.open("bucket://models").uri == "bucket://models"


def test_the_store_loads_neither_tensorflow_nor_tfx():
    heavy = ["tensorflow", "tf_keras", "keras", "tfx", "tensorflow_model_analysis", "apache_beam", "numpy"]
    script = f"import sys, tfx_compression.store; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert (loaded.stdout, loaded.stderr) == ("[]\n", "")
