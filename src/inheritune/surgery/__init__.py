"""Where a model's layers are, which ones a child keeps, how their tensors move, and the certificate."""
