"""Bringing a problem to life: module, optimizer, scheduler, data and device, checked once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..base.errors import ConfigurationError, GraphError
from ..base.memory_layout import laid_out
from ..data.loaders import BatchSource
from ..data.validation import (
    require_batches,
    require_loaders,
    require_module,
    require_movable,
    require_optimizer,
    require_scheduler,
)
from ..hypergradients.parameter_selection import chosen_parameters
from ..hypergradients.unroll import Unroll
from ..kernels.compilation import compile_module
from ..problem import GraphPosition, Problem, apply_param_groups
from ..references import require_known_references


def place_in_graph(problem: Problem, position: GraphPosition) -> None:
    """Tell a problem its neighbours and the problems it can see by name."""
    problem.position = position


def prepare(
    problem: Problem,
    device: torch.device,
    on_epoch_end: Callable[[Problem], None],
    driver: Callable[[Problem, int | None], None],
    *,
    channels_last: bool = False,
) -> None:
    """Build what the problem configures, move it to its device and check that it can be stepped.

    What the user made is used as it is: the module's parameters stay the same objects, optimizer
    and scheduler are never rebuilt, loaders are not touched before the first batch.

    Args:
        problem: The problem, already placed in its graph.
        device: Where to put it, unless it names a device itself.
        on_epoch_end: Called with the problem when its first loader has ended.
        driver: What ``problem.step()`` calls.
        channels_last: Lay out convolution weights and image batches with channels innermost.

    Raises:
        GraphError: When it has no module, no loss, no data, or nothing to update it with.
        ConfigurationError: When its hypergradient does not fit it, or it configures something of
            another kind than was asked for.
        DataError: When a loader cannot be iterated or is known to be empty.
    """
    problem.channels_last = channels_last
    require_known_references(problem)
    _build(problem, device)
    _require_parts(problem)
    _require_choice(problem)
    if problem.train_data_loader is not None:
        loaders = problem.train_data_loader
        if problem._source is None or loaders is not problem._source.loaders:
            require_loaders(problem.name, loaders)
            loaders = list(loaders) if isinstance(loaders, tuple) else [loaders]
        if type(problem).get_batch is Problem.get_batch:
            for index, loader in enumerate(loaders):
                require_batches(problem.name, index, loader)
        problem.train_data_loader = loaders
        problem._source = BatchSource(
            problem.name, loaders, lambda: on_epoch_end(problem), problem.processes
        )
    config = problem.config
    if config.precision == "fp16":
        problem.scaler = torch.amp.GradScaler(
            problem.device.type,
            init_scale=config.initial_dynamic_scale,
            growth_factor=config.scale_factor,
        )
    problem._driver = driver
    problem.processes.own_optimizer(problem)


def check_hypergradients(problem: Problem) -> None:
    """Refuse hypergradient settings the problem cannot serve, and prepare the lower problems for
    what will be asked of them; needs every problem prepared.

    Raises:
        ConfigurationError: Naming the problem and what to choose instead.
    """
    _require_first_order(problem)
    for path in problem.paths:
        for lower in path[1:-1]:
            lower.hypergradient.check(lower)
            prepare_recording(lower)


def prepare_recording(problem: Problem) -> None:
    """Let the problem record what its hypergradient, or a check of it, asks for."""
    method = problem.auditor or problem.hypergradient
    recording = method.recording(problem)
    if problem.trajectory.recording != recording:
        problem.trajectory = problem.trajectory.recording_as(recording)


def _build(problem: Problem, device: torch.device) -> None:
    problem.device = torch.device(device) if problem.device is None else problem.device
    if problem.train_data_loader is None:
        problem.train_data_loader = problem.configure_train_data_loader()
    if problem.module is None:
        problem.module = problem.configure_module()
    if problem.module is None:
        raise GraphError(
            f"Problem {problem.name!r} has no module; give it module=, or define configure_module."
        )
    require_module(problem.name, problem.module)
    move_module(problem)
    if problem.optimizer is None:
        problem.optimizer = problem.configure_optimizer()
    if problem.optimizer is not None:
        require_optimizer(problem.name, problem.optimizer)
    apply_param_groups(problem)
    if problem.scheduler is None:
        problem.scheduler = problem.configure_scheduler()
    if problem.scheduler is not None:
        require_scheduler(problem.name, problem.scheduler, problem.optimizer)


def move_module(problem: Problem) -> None:
    """Put the module on the problem's device, leaving one that is there already untouched."""
    tensors = (*problem.module.parameters(), *problem.module.buffers())
    if any(tensor.device != problem.device for tensor in tensors):
        require_movable(problem.name, problem.module, problem.device)
        problem.module = problem.module.to(problem.device)
    problem.module = laid_out(problem.module, problem.channels_last)
    compile_module(problem.module, problem.config.compile)


def _require_choice(problem: Problem) -> None:
    choice = problem.config.hypergradient_parameters
    if choice is None:
        return
    if problem.chooses_by_method or "meta_trainable_parameters" in vars(problem):
        raise ConfigurationError(
            f"Problem {problem.name!r} defines meta_trainable_parameters and has "
            f"Config(hypergradient_parameters={choice!r}), which say the same thing twice; "
            "keep one of them."
        )
    chosen_parameters(problem)


def _require_parts(problem: Problem) -> None:
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
    if not list(problem.trainable_parameters()):
        raise GraphError(
            f"Problem {problem.name!r} has nothing to train: its module has no parameter that "
            "requires a gradient and belongs to its optimizer. Build the optimizer over this "
            "module's parameters."
        )


def _require_first_order(problem: Problem) -> None:
    """Refuse ``first_order=False``, which asks for graphs implicit problems do not keep."""
    lowers = [lower for path in problem.paths for lower in path[1:-1]]
    if not problem.config.first_order and not all(_unrolled(lower) for lower in lowers):
        raise ConfigurationError(
            f"Problem {problem.name!r} has Config(first_order=False): it asks to differentiate "
            "through the graph of unrolled lower problems, which implicit problems do not keep, "
            "so nothing would reach it. Derive the lower problems from IterativeProblem, or use "
            "first_order=True and choose their type."
        )


def _unrolled(problem: Problem) -> bool:
    return isinstance(problem.hypergradient, Unroll)
