"""LAFS and supervised training: losses, schedules, optimizer; plain arguments, no config."""
