"""The derivative of an optimizer step."""

from .adjoint import UpdateAdjoint, clipped, update_adjoint, why_not_differentiable
from .learned import apply_learned_settings, owns_settings, settings_per_group

__all__ = [
    "UpdateAdjoint",
    "apply_learned_settings",
    "clipped",
    "owns_settings",
    "settings_per_group",
    "update_adjoint",
    "why_not_differentiable",
]
