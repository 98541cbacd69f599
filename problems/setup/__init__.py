"""Preparation of a problem for a run, and the checks before it."""
