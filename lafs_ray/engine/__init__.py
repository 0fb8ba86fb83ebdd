"""The only imports of Ray: ingest, launch, job entry points."""
