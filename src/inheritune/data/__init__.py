"""Text in, shards and rows of tokens out: sources, the split, the tokenizer, shards, batches. No torch in here."""
