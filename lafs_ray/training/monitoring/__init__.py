"""Metrics, health checks and warnings of a run."""
