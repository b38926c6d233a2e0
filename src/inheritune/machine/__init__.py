"""What the machine can do, and the split of a model into body and head."""
