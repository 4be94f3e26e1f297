"""Measuring: statistics over questions, before and after."""
