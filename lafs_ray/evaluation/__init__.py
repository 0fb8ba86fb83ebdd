"""Evaluation of embeddings: pairs, identities and templates."""
