"""Reports of runs: one self-contained HTML file."""
