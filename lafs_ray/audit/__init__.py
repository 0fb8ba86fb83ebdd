"""Audit of face sets by their embeddings: leaks between sets, wrong labels, duplicates, balance."""
