"""Timing of several models in turns."""

import time

import pytest
from tfx_compression.compressed_evaluator import latency


def test_models_take_turns_and_every_timed_call_follows_an_untimed_one(monkeypatch):
    monkeypatch.setattr(latency, "_MAX_ROUNDS", 3)
    calls = []
    latency.measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert calls == ["a"] * 10 + ["b"] * 10 + ["a", "a", "b", "b"] * 3


def test_times_are_summarized_in_milliseconds(monkeypatch):
    monkeypatch.setattr(latency, "_MAX_ROUNDS", 20)
    times = latency.measure({"slow": lambda: time.sleep(0.002), "fast": lambda: None})
    assert times["slow"].median >= 2 > times["fast"].median
    assert times["slow"].repeats == 20
    assert len(times["slow"].quantiles) == len(latency.QUANTILES)
    assert list(times["slow"].quantiles) == sorted(times["slow"].quantiles)
    assert times["slow"].quantiles[4] == pytest.approx(times["slow"].median)


def test_slow_models_are_timed_ten_times(monkeypatch):
    monkeypatch.setattr(latency, "_MAX_SECONDS", 0.0)
    assert latency.measure({"a": lambda: None})["a"].repeats == 10
