"""A checkpoint or hub id, opened: config, tensors, anatomy, tokenizer, and a forward pass."""
