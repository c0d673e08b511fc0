"""Training and evaluation: the step, the loop, and what a run writes and reads."""
