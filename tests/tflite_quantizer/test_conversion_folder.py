"""The folder between a conversion and its worker: whatever is written is read back."""

import numpy as np
from tfx_compression.tflite_quantizer import conversion_folder
from tfx_compression.tflite_quantizer.rows import Rows


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = Rows(
        calibration={"file": np.arange(6.0).reshape(2, 3), "x/y": np.arange(2)},
        trial={"file": np.ones((4, 3))},
        labels=np.array([0, 1, 1, 0]),
    )
    conversion_folder.write_rows(str(tmp_path), rows)
    read = conversion_folder.read_rows(str(tmp_path), {"a": 2})
    assert read.calibration.keys() == rows.calibration.keys()
    for name, values in rows.calibration.items():
        np.testing.assert_array_equal(read.calibration[name], values)
    np.testing.assert_array_equal(read.trial["file"], rows.trial["file"])
    np.testing.assert_array_equal(read.labels, rows.labels)
    assert read.check == {} and read.strata == {"a": 2}


def test_nothing_is_read_where_nothing_was_written(tmp_path):
    conversion_folder.write_rows(str(tmp_path), Rows())
    read = conversion_folder.read_rows(str(tmp_path), {})
    assert (read.calibration, read.check, read.trial, read.labels) == ({}, {}, {}, None)
