"""The rows that the report and the command line show."""

import pytest
from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.compressed_evaluator.summary_table import shown_metric, summary_rows

from tests.support.evaluations import baseline, decide, failed_model, model


@pytest.mark.parametrize(
    ("budget", "metrics", "shown"),
    [
        (Budget(max_slice_metric_drop={"auc": 0.1}), {"accuracy": 1.0, "auc": 1.0}, "auc"),
        (Budget(), {"example_count": 5.0, "accuracy": 1.0}, "accuracy"),
        (Budget(), {"binary/example_count": 5.0, "accuracy": 1.0}, "accuracy"),
        (Budget(), {}, ""),
    ],
    ids=["the budget's first", "the first", "the first that is not a count", "none"],
)
def test_one_metric_is_shown(budget, metrics, shown):
    evaluation = decide(budget, {"int8": model(metrics=metrics)}, first=True)
    assert shown_metric(evaluation) == shown
    assert [row.metric for row in summary_rows(evaluation)] == [metrics.get(shown)]


def test_candidates_are_compared_with_the_baseline_in_their_format():
    candidates = {
        "int8": model(metrics={"accuracy": 0.5}, bytes=10),
        "pruned": model(kind="saved_model"),
        "bad": failed_model("x"),
    }
    evaluation = decide(Budget(), candidates)
    rows = {row.name: row for row in summary_rows(evaluation)}
    assert list(rows) == ["baseline", "baseline as float TFLite", "int8", "pruned", "bad"]
    assert (rows["int8"].reference, rows["pruned"].reference) == (baseline().tflite, baseline())
    assert (rows["int8"].speedup, rows["pruned"].speedup, rows["bad"].speedup) == (2.0, 32.0, None)
    assert (rows["int8"].drop.value, rows["baseline"].drop) == (0.25, None)
    assert [row.verdict for row in rows.values()] == ["", "", "chosen", "held", "failed"]
