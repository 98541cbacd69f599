"""The door: scikit-learn estimators that learn a weight for each training sample."""

from .regressor import ReweightingRegressor
from .reweighter import Reweighter

__all__ = ["Reweighter", "ReweightingRegressor"]
