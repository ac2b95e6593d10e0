"""Text to blocks of tokens: sources, tokenizer, packing, batches."""
