"""Token loss, validation, paired intervals, and what a model writes."""
