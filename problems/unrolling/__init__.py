"""The adjoint of one optimizer step, and of a sequence of steps."""

from .adjoint import UpdateAdjoint, clipped, reads_values, update_adjoint, why_not_differentiable
from .initial import apply_initial_parameters, moves_at_start, owns_start, start_of_loop
from .learned import apply_learned_settings, owns_settings, settings_per_group
from .optimizer_step import OptimizerStep
from .replay import at_start, replay, restore_start
from .torch_rule import optimizer_copy, why_not_copied

__all__ = [
    "OptimizerStep",
    "UpdateAdjoint",
    "apply_initial_parameters",
    "apply_learned_settings",
    "at_start",
    "clipped",
    "moves_at_start",
    "optimizer_copy",
    "owns_settings",
    "owns_start",
    "reads_values",
    "replay",
    "restore_start",
    "settings_per_group",
    "start_of_loop",
    "update_adjoint",
    "why_not_copied",
    "why_not_differentiable",
]
