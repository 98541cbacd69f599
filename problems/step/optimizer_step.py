"""The optimizer's step on the gradient in ``.grad``."""

from __future__ import annotations

import torch

from ..problem import Problem
from ..unrolling import apply_learned_settings


def take_optimizer_step(problem: Problem) -> None:
    """Unscale and clip the gradient, apply it, and drop it."""
    apply_learned_settings(problem)
    scaler = problem.scaler
    if scaler is not None:
        scaler.unscale_(problem.optimizer)
    problem.step_state.trajectory.keep_optimizer(problem)
    if problem.config.gradient_clipping > 0:
        torch.nn.utils.clip_grad_norm_(
            problem.trainable_parameters(), problem.config.gradient_clipping
        )
    problem.custom_optimizer_step()
    if scaler is not None:
        scaler.update()
    problem.param_callback()
    problem.zero_grad()
