"""Models: backbone, tokenizer, packed attention, and the choice of what trains."""
