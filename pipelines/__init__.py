"""Runnable pipelines: one builder, and a thin runner for each place that they run in."""
