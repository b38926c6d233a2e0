"""Sources, the split, tokenizers, shards and batches. No torch in here."""
