"""Files and records: RecordIO, face sets, pair files, the order of an epoch (numpy and pyarrow, no torch)."""
