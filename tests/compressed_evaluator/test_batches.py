"""Slices and samples of batches are those that TFMA makes of rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow_model_analysis as tfma
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_model_analysis.extractors import slice_key_extractor
from tensorflow_model_analysis.slicer import slicer_lib
from tensorflow_model_analysis.utils import util
from tfx_compression.compressed_evaluator.batches import SliceBatches

from tests.support.extracts import ONE_MODEL, eval_config, extracts, metrics

# Slices

_SLICES = """
    slicing_specs {}
    slicing_specs { feature_keys: "color" }
    slicing_specs { feature_keys: "size" }
    slicing_specs { feature_keys: "tags" }
    slicing_specs { feature_keys: "price" }
    slicing_specs { feature_keys: "rare" }
    slicing_specs { feature_keys: "color" feature_keys: "size" }
    slicing_specs { feature_keys: "tags" feature_keys: "rare" }
    slicing_specs { feature_values { key: "color" value: "red" } }
    slicing_specs { feature_keys: "tags" feature_values { key: "size" value: "1" } }
    slicing_specs { feature_values { key: "tags" value: "x" } feature_values { key: "color" value: "blue" } }
    slicing_specs { feature_keys: "nowhere" }
    slicing_specs { feature_keys: "color" }
    cross_slicing_specs {
      baseline_spec { feature_values { key: "size" value: "2" } } slicing_specs { feature_keys: "price" }
    }
"""


def _features(generator: np.random.Generator, rows: int) -> Mapping[str, Any]:
    """Features as tf.Examples give them: with one or any number of values, and missing in some rows."""

    def some(values: Sequence[Any], fewest: int, most: int, missing: float = 0.0) -> list[list[Any] | None]:
        return [
            None
            if generator.uniform() < missing
            else generator.choice(values, generator.integers(fewest, most + 1)).tolist()
            for _ in range(rows)
        ]

    columns = {
        "color": pa.array(some([b"red", b"green", b"blue"], 1, 1), pa.list_(pa.binary())),
        "size": pa.array(some([0, 1, 2], 1, 1), pa.list_(pa.int64())),
        "tags": pa.array(some([b"x", b"y", b"z"], 0, 3, 0.2), pa.list_(pa.binary())),
        "price": pa.array(some([0.5, 1.5], 1, 1), pa.list_(pa.float32())),
        "rare": pa.array(some([7, 8], 1, 1, 0.7), pa.list_(pa.int64())),
    }
    return util.record_batch_to_tensor_values(pa.RecordBatch.from_pydict(columns), {})


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 12))
def test_slices_equal_tfmas(seed, rows):
    config = eval_config(ONE_MODEL + metrics("ExampleCount") + _SLICES)
    generator = np.random.default_rng(seed)
    columns = extracts(np.zeros(rows), np.zeros(rows), features=_features(generator, rows))
    ours: dict[Any, list[int]] = {}
    for key, part in SliceBatches(config, ()).process(columns):
        assert key not in ours
        ours[key] = part.index.tolist()
    specs = [slicer_lib.SingleSliceSpec(spec=spec) for spec in config.slicing_specs]
    for cross in config.cross_slicing_specs:
        specs += [slicer_lib.SingleSliceSpec(spec=spec) for spec in (cross.baseline_spec, *cross.slicing_specs)]
    extract = slice_key_extractor.ExtractSliceKeysFn(config, materialize=False)
    theirs: dict[Any, list[int]] = {}
    for number, row in enumerate(util.split_extracts(columns)):
        (extracted,) = extract.process(row, specs)
        for key in extracted[tfma.SLICE_KEY_TYPES_KEY]:
            theirs.setdefault(tuple(map(tuple, key)), []).append(number)
    assert ours == theirs
    assert list(ours[()]) == list(range(rows))


def test_without_slicing_specs_there_is_one_slice_of_all_rows():
    slices = SliceBatches(eval_config(ONE_MODEL), ()).process(extracts(np.zeros(3), np.zeros(3)))
    assert [(key, rows.index.tolist()) for key, rows in slices] == [((), [0, 1, 2])]


# Samples
