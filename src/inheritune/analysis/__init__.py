"""What a model's layers do: how much of its attention is used, and what its loss is worth at every depth."""
