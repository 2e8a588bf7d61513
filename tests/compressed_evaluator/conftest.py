"""Classifiers in every format, and one evaluation of all of them."""

from pathlib import Path

import pytest
import tfx_compression as tfc

from tests.support.classifiers import ACCURACY, CANDIDATES, convert, rows, save, sliced_config
from tests.support.helpers import write_examples


@pytest.fixture(scope="session")
def paths(tmp_path_factory) -> dict[str, str]:
    """Paths of the models by format, and of the rows, which are `rows`."""
    folder = tmp_path_factory.mktemp("models")
    saved, one_row = save(folder / "saved"), save(folder / "one_row", batch=1)
    models = {
        "raw": saved,
        "examples": f"{saved}.examples",
        "rows": write_examples(folder / "rows.tfrecord", rows()),
    }
    for name, source, mode in (
        ("float32", saved, "float32"),
        ("int8", saved, "int8"),
        ("int16x8", saved, "int16x8"),
        ("one_row", one_row, "int8"),
    ):
        models[name] = str(folder / f"{name}.tflite")
        Path(models[name]).write_bytes(convert(source, mode))
    return models


@pytest.fixture(scope="session")
def evaluated(paths, tmp_path_factory) -> tuple[tfc.Evaluation, Path]:
    """An evaluation of models of every format in one pass, and the folder of its files."""
    output = tmp_path_factory.mktemp("evaluated")
    evaluation = tfc.evaluate(
        {name: paths[name] for name in CANDIDATES},
        paths["rows"],
        baseline=paths["examples"],
        eval_config=sliced_config(),
        budget=tfc.Budget(
            max_metric_drop={ACCURACY: 0.1}, min_agreement=0.8, max_divergence=0.5, objective="most_accurate"
        ),
        output_path=str(output),
    )
    return evaluation, output
