"""The run folder: checkpoints written in the background, resharded on load, metrics."""
