"""LAFS and finetuning: views, losses, schedules, optimizer rules; plain arguments, no config."""
