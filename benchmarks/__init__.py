"""What was measured, how, and against whom. Speed is a ratio: both sides in one run, alternating."""
