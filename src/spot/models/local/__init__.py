"""In process: a transformers model, sampled in batches that are repeatable bit for bit."""
