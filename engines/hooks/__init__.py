"""Hooks: callbacks at the events of a run."""

from .base import Hook

__all__ = ["Hook"]
