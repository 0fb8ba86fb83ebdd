"""From decoded faces to augmented views and landmark tokens."""
