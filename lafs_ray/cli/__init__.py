"""Command lines of the jobs: arguments, messages and exit codes."""
