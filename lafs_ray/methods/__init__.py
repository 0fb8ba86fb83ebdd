"""LAFS and finetuning: views, losses, schedules, optimiser rules; plain arguments, no config."""
