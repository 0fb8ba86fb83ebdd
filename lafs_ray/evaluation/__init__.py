"""What an embedding is worth: pair verification and its figures."""
