"""Pairs to a trained student: tokens, micro-batches, log-probabilities, the reference, the Trainer."""
