"""What things cost: each prints ratios to a named baseline of the same run."""
