"""The door: a scikit-learn classifier that learns a weight for each training sample."""

from .reweighter import Reweighter

__all__ = ["Reweighter"]
