"""One loop for every job: build, train, save, measure; knows nothing of faces or Ray."""
