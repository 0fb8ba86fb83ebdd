"""Checkpoint and weights files: read without executing them, convert, describe, export."""
