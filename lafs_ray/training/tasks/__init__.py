"""What each kind of training consists of: networks, initial weights, schedules, run length."""
