"""Data sets: RecordIO, face sets, evaluation sets, the order of an epoch (no torch)."""
