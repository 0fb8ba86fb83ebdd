"""One training loop for every job: build, train, save, monitor. Imports no Ray."""
