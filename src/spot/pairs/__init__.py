"""Corrections to training pairs: change ratio and filter."""
