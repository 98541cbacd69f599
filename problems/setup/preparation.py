"""Preparation of a problem: module, optimizer, scheduler, data and device, checked once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..base.errors import ConfigurationError, GraphError
from ..data.loaders import BatchSource
from ..data.validation import require_batches
from ..hypergradients.parameter_selection import chosen_parameters, is_fixed
from ..hypergradients.unroll import Unroll
from ..problem import Problem
from ..references import require_known_references
from ..step.lower_view import lower_view, sign_of_loss
from ..step.unseen_changes import warn_of_unseen_changes
from ..unrolling import owns_settings, owns_start
from .layers import require_known_derivatives


def prepare(
    problem: Problem,
    device: torch.device,
    on_epoch_end: Callable[[Problem], None],
    *,
    channels_last: bool = False,
) -> None:
    """Build what the problem configures, move it to its device and check that it can step.

    The user's objects are used unchanged: the module's parameters stay the same objects, optimizer
    and scheduler are never rebuilt, and loaders are not read before the first batch.

    Args:
        problem: The problem, in its graph and with its engine's state.
        device: The device, unless the problem sets one itself.
        on_epoch_end: Called with the problem when its first loader has ended.
        channels_last: Use the channels-last memory format for convolution weights and images.

    Raises:
        GraphError: When it has no module, no loss, no data, or no optimizer.
        ConfigurationError: When its settings do not fit, or a ``configure_*`` method returns an
            object of the wrong type.
        DataError: When a loader cannot be iterated or is known to be empty.
    """
    require_known_references(problem)
    problem.build(device, channels_last=channels_last)
    _require_complete(problem)
    _require_choice(problem)
    if problem.train_data_loader is not None:
        _open_loaders(problem, on_epoch_end)
    problem.step_state.scale_losses_by(_scaler(problem))


def _scaler(problem: Problem) -> torch.amp.GradScaler | None:
    config = problem.config
    if config.precision != "fp16":
        return None
    return torch.amp.GradScaler(
        problem.device.type,
        init_scale=config.initial_dynamic_scale,
        growth_factor=config.scale_factor,
    )


def _open_loaders(problem: Problem, on_epoch_end: Callable[[Problem], None]) -> None:
    loaders, state = problem.train_data_loader, problem.step_state
    if type(problem).get_batch is Problem.get_batch:
        for index, loader in enumerate(loaders):
            require_batches(problem.name, index, loader)
    at_end = partial(on_epoch_end, problem)
    state.read_from(BatchSource(problem.name, loaders, at_end, state.processes))


def check_hypergradients(problem: Problem) -> None:
    """Refuse hypergradient settings that the problem does not support, and set up the recording of
    lower problems. All problems must be prepared first.

    Raises:
        ConfigurationError: Naming the problem and what to choose instead.
    """
    _require_first_order(problem)
    for path in problem.paths:
        for lower in path[1:-1]:
            lower.hypergradient.check(lower_view(lower))
            if not lower.hypergradient.follows_optimizer:
                sign_of_loss(lower)
            _require_same_weights(lower)
            _require_seen(lower)
            warn_of_unseen_changes(lower, lower.hypergradient)
            require_known_derivatives(lower)
            prepare_recording(lower)


def _require_same_weights(lower: Problem) -> None:
    """Refuse a method that keeps a state of the weights where these change from step to step."""
    choice = lower.config.hypergradient_parameters
    if lower.hypergradient.keeps_state and not is_fixed(choice):
        raise ConfigurationError(
            f"Problem {lower.name!r} has Config(hypergradient_parameters={choice!r}), which "
            f"selects other parameters in every step, but {type(lower.hypergradient).__name__} "
            "goes on from a solution for those of the last one; use LastLayers, or names of "
            "modules."
        )


def _require_seen(lower: Problem) -> None:
    """Refuse what an upper problem would learn without ever getting a hypergradient for it."""
    method, view = lower.hypergradient, lower_view(lower)
    name = type(method).__name__
    if owns_settings(lower) and not method.sees_settings(view):
        raise GraphError(
            f"Problem {lower.name!r} defines learned_settings, but {name} gives settings of the "
            "optimizer no hypergradient, so that they would never be learned. Use "
            "Config(type='unroll'), 't1t2', 'zero_order' or SAMA(preconditioner='exact') for "
            f"{lower.name!r}, or remove learned_settings."
        )
    if owns_start(lower) and not method.sees_start(view):
        raise GraphError(
            f"Problem {lower.name!r} defines initial_parameters, but {name} gives the start of a "
            "loop no hypergradient, so that it would never be learned. Use Config(type='unroll') "
            f"or 'zero_order' for {lower.name!r}, or remove initial_parameters."
        )


def prepare_recording(problem: Problem) -> None:
    """Set the problem to record what its hypergradient, or a check of it, needs."""
    method = problem.step_state.auditor or problem.hypergradient
    problem.step_state.record_as(method.recording(lower_view(problem)))


def _require_choice(problem: Problem) -> None:
    choice = problem.config.hypergradient_parameters
    if choice is None:
        return
    kind = type(problem)
    overridden = kind.meta_trainable_parameters is not Problem.meta_trainable_parameters
    if overridden or "meta_trainable_parameters" in vars(problem):
        raise ConfigurationError(
            f"Problem {problem.name!r} defines meta_trainable_parameters and has "
            f"Config(hypergradient_parameters={choice!r}), which both select the parameters; "
            "keep one of them."
        )
    trained = list(problem.trainable_parameters())
    chosen_parameters(choice, problem.module, trained, problem.count, problem.name)


def _require_complete(problem: Problem) -> None:
    kind = type(problem)
    problem.require_loss()
    if problem.train_data_loader is None and kind.get_batch is Problem.get_batch:
        raise GraphError(
            f"Problem {problem.name!r} has no data; give it train_data_loader=, define "
            "configure_train_data_loader, or override get_batch."
        )
    if problem.optimizer is None and kind.custom_optimizer_step is Problem.custom_optimizer_step:
        raise GraphError(
            f"Problem {problem.name!r} has no optimizer; give it optimizer=, define "
            "configure_optimizer, or override custom_optimizer_step."
        )
    if problem.train_data_loader is None and getattr(problem.scheduler, "t_in_epochs", False):
        raise ConfigurationError(
            f"{type(problem.scheduler).__name__}, the scheduler of problem {problem.name!r}, "
            "counts epochs, but the problem has no loader whose epochs could be counted; give it "
            "train_data_loader=, or make the scheduler with t_in_epochs=False."
        )
    if not list(problem.trainable_parameters()):
        raise GraphError(
            f"Problem {problem.name!r} has nothing to train: its module has no parameter that "
            "requires a gradient and belongs to its optimizer. Build the optimizer over this "
            "module's parameters."
        )


def _require_first_order(problem: Problem) -> None:
    """Refuse ``first_order=False`` for implicit lower problems, which keep no graphs."""
    lowers = [lower for path in problem.paths for lower in path[1:-1]]
    if not problem.config.first_order and not all(_unrolled(lower) for lower in lowers):
        raise ConfigurationError(
            f"Problem {problem.name!r} has Config(first_order=False): it asks to differentiate "
            "through the graph of unrolled lower problems, which implicit problems do not keep. "
            "Derive the lower problems from IterativeProblem, or use first_order=True and choose "
            "their type."
        )


def _unrolled(problem: Problem) -> bool:
    return isinstance(problem.hypergradient, Unroll)
