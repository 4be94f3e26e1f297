"""Verifiers: each reads the final answer out of a response and compares it with the known one."""
