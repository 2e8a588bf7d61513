"""Runnable pipelines: one builder, and a small runner for each place where they run."""
