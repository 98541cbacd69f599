"""A program in words: its graph, and the passes of each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metaweight.problems import Problem
from metaweight.problems.step.lower_view import lower_view


def describe(problems: Sequence[Problem]) -> str:
    """Return upper and lower problems, hypergradient paths and passes of each problem as text."""
    return "\n".join(line for problem in problems for line in _lines(problem))


def _lines(problem: Problem) -> Iterator[str]:
    paths = [" -> ".join(p.name for p in path) for path in problem.paths]
    yield (
        f"{problem.name}: uppers {[p.name for p in problem.parents]}, "
        f"lowers {[p.name for p in problem.children]}, paths {paths}"
    )
    count = problem.config.gradient_accumulation
    batches = "a micro-batch, of which a step has " + str(count) if count > 1 else "a step"
    yield f"  {batches}: a forward and a backward pass in {_training_precision(problem)}"
    lowers = {lower: None for path in problem.paths for lower in path[1:-1]}
    for lower in lowers:
        yield from _hypergradient(problem, lower)


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
