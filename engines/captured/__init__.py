"""Iterations as a graph of tensor operations, taken without Python."""

from .captured_steps import CapturedSteps, captured_steps

__all__ = ["CapturedSteps", "captured_steps"]
