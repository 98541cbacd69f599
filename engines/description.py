"""A program in words: its graph, the passes of each step, and what is kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from metaweight.problems import Problem
from metaweight.problems.base.memory import shown_bytes
from metaweight.problems.state.owned import owned
from metaweight.problems.step.lower_view import lower_view
from metaweight.problems.step.plan_in_words import plan_in_words

from .memory import (
    bytes_of,
    bytes_of_module,
    bytes_of_optimizer,
    bytes_of_record,
)

if TYPE_CHECKING:
    from .engine import Engine


def describe(engine: Engine) -> str:
    """Return upper and lower problems, hypergradient paths, size, memory and passes of each problem
    as text, and the length of the run."""
    lines = [line for problem in engine.problems for line in _lines(problem, engine)]
    epochs = engine.config.epochs
    passes = "" if epochs is None else f" (epochs={epochs})"
    leaves = ", ".join(problem.name for problem in engine.leaves)
    return "\n".join([*lines, f"run: {engine.train_iters} steps of {leaves}{passes}"])


def _lines(problem: Problem, engine: Engine) -> Iterator[str]:
    paths = [" -> ".join(p.name for p in path) for path in problem.paths]
    yield (
        f"{problem.name}: uppers {[p.name for p in problem.parents]}, "
        f"lowers {[p.name for p in problem.children]}, paths {paths}"
    )
    yield _size(problem)
    yield _memory(problem, engine)
    if any(problem in path[1:-1] for upper in engine.problems for path in upper.paths):
        yield _kept_by_method(problem)
    count = problem.config.gradient_accumulation
    batches = "a micro-batch, of which a step has " + str(count) if count > 1 else "a step"
    yield f"  {batches}: a forward and a backward pass in {_training_precision(problem)}"
    yield f"  plan: {'; '.join(plan_in_words(problem, _hooks(engine, problem)))}"
    lowers = {lower: None for path in problem.paths for lower in path[1:-1]}
    for lower in lowers:
        yield from _hypergradient(problem, lower)


def _hooks(engine: Engine, problem: Problem) -> dict[str, list[str]]:
    """Return the methods of hooks that a step of the problem calls, by their name."""
    hooks = engine.hooks
    called = {
        "before_step": hooks.before_steps,
        "accepts": hooks.accepting,
        # One that changes gradients may do so for other problems alone.
        "after_gradient": [
            hook
            for hook in hooks.after_gradients
            if hook.changes_gradients_of(problem) or hook.only_shows or not hook.changes_gradients
        ],
        "after_step": hooks.after_steps,
    }
    return {
        moment: [f"{type(hook).__name__}.{moment}" for hook in found]
        for moment, found in called.items()
    }


def _size(problem: Problem) -> str:
    parameters = list(problem.module.parameters())
    trained = sum(p.numel() for p in problem.trainable_parameters())
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    return (
        f"  {sum(p.numel() for p in parameters):,} parameters, {trained:,} of them trained, in "
        f"{' and '.join(kinds)} on {problem.device}"
    )


def _memory(problem: Problem, engine: Engine) -> str:
    module, optimizer = bytes_of_module(problem.module), problem.optimizer
    parts = [
        f"{shown_bytes(module)} of parameters and buffers",
        f"{shown_bytes(bytes_of(problem.trainable_parameters()))} of gradients in a step",
    ]
    found = None if optimizer is None else bytes_of_optimizer(optimizer)
    if optimizer is not None:
        name, size = type(optimizer).__name__, "unknown before its first step"
        if found is not None:
            whole = " over all processes" if engine.config.strategy == "zero" else ""
            estimated = "" if found.is_counted else f"{whole}, estimated before its first step"
            size = f"{shown_bytes(found.bytes)}{estimated}"
        parts.append(f"state of {name}: {size}")
    if engine.config.roll_back and problem.parents:
        known = bytes_of(owned(problem).tensors) + (0 if found is None else found.bytes)
        least = "at least " if found is None and optimizer is not None else ""
        parts.append(f"snapshot for roll_back: {least}{shown_bytes(known)}")
    return f"  memory: {'; '.join(parts)}"


def _kept_by_method(problem: Problem) -> str:
    trajectory, size = problem.step_state.trajectory, bytes_of_record(problem)
    record = trajectory.recording
    parts = ["batches"]
    parts += ["graphs"] if trajectory.keeps_graphs else []
    parts += ["activations"] if record.activations else []
    uncounted = f"{', '.join(parts)} (not counted)"
    known = "states of unknown size, " if size is None else f"{shown_bytes(size)} of states, "
    return (
        f"  {type(problem.hypergradient).__name__} goes through {record.updates} of unroll_steps="
        f"{problem.config.unroll_steps} steps, and keeps {known if size != 0 else ''}{uncounted}"
    )


def _hypergradient(problem: Problem, lower: Problem) -> Iterator[str]:
    method = lower.hypergradient
    passes = method.passes(lower_view(lower))
    if passes:
        full = method.in_full_precision
        precision = _stored_precision(lower) if full else _training_precision(lower)
        name = type(method).__name__
        yield f"  {name} through {lower.name}, per micro-batch: {passes}, in {precision}"
    if lower.config.precision != "fp32" and problem.config.precision == "fp32":
        yield (
            f"  {problem.name} passes through {lower.name} without autocast, though that trains in "
            f"{lower.config.precision}; Config(precision={lower.config.precision!r}) speeds it up"
        )


def _stored_precision(problem: Problem) -> str:
    return str(next(iter(problem.trainable_parameters())).dtype).removeprefix("torch.")


def _training_precision(problem: Problem) -> str:
    own = problem.config.precision
    return _stored_precision(problem) if own == "fp32" else f"{own} by autocast"
