"""What joins a run at named moments."""

from .base import Hook

__all__ = ["Hook"]
