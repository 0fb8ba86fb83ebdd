"""Files and records: RecordIO, face sets, pairs, the order of an epoch (no torch)."""
