"""Upper parameters without any hypergradient, refused in the first step of their problem.

An upper parameter is learned by the upper loss itself, or by lower losses that it shares with what
the lower problems train. One that neither contains has a hypergradient of zero in every step. What
counts is the first step: all of its micro-batches, all recorded steps below it, all processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..base.errors import LossError
from ..hypergradients.parameter_selection import is_fixed
from ..problem import Problem
from ..products.dependence import reached, reached_beside
from ..state.buffers import preserved_buffers
from ..state.random_streams import preserved_streams
from ..unrolling import owns_settings, owns_start, settings_per_group, start_of_loop
from .plan import plan_of

Edge = tuple[Problem, Problem]


def expect_dependence(problems: Iterable[Problem]) -> None:
    """Look from now on for the upper parameters that lower losses depend on, until the first step
    of each upper problem."""
    everyone = list(problems)
    for problem in everyone:
        problem.step_state.look_for(
            [(top, above) for top in everyone for lower, above in _edges(top) if lower is problem],
            first_step=bool(problem.position.paths),
        )


def note_dependence(problem: Problem, loss: Tensor, weights: Iterable[Tensor] = ()) -> None:
    """Note which upper parameters the loss of a recorded step depends on, while they are looked
    for.

    Args:
        problem: The lower problem.
        loss: Its loss.
        weights: What it was computed at, if not at the parameters themselves.
    """
    state = problem.step_state
    if not state.dependence or state.trajectory.under_way is None:
        return
    fixed = is_fixed(problem.config.hypergradient_parameters)
    own = problem.meta_trainable_parameters() if fixed else problem.trainable_parameters()
    at = list(weights) or list(own)
    for top, above in list(state.dependence):
        if top.step_state.seen_directly is None:
            del state.dependence[top, above]
        else:
            found = reached_beside(loss, above.trainable_parameters(), at)
            state.dependence[top, above] |= found


def note_gradients(
    problem: Problem,
    own: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    passed: Iterable[Problem],
) -> None:
    """Note which parameters the upper loss itself depends on, and which lower problems.

    Args:
        problem: The upper problem.
        own: What it trains.
        gradients: The direct gradient.
        passed: The lower problems it depends on.
    """
    seen = problem.step_state.seen_directly
    if seen is not None:
        seen |= {p for p, g in zip(own, gradients, strict=True) if g is not None}
        seen |= set(passed)


def require_hypergradients(problem: Problem) -> None:
    """Refuse upper parameters without any hypergradient, once, when the gradient of the first step
    is complete and averaged. Warn of a lower loss that no upper parameter enters.

    Raises:
        LossError: In all processes, naming the problems and the parameters.
    """
    seen = problem.step_state.seen_directly
    if seen is None:
        return
    own = list(problem.trainable_parameters())
    edges = _edges(problem)
    found = _over_processes(problem, own, edges, seen)
    problem.step_state.end_first_step()
    if not any(lower.hypergradient.zeroth_order for lower in problem.position.lowers):
        present: set[object] = {p for p in own if p in found[problem]}
        for path in problem.position.paths:
            if path[1] in found[problem] and all(found[edge] for edge in pairwise(path[1:])):
                present |= found[path[-2], problem]
        absent = [p for p in own if p not in present]
        # A method of one's own may know a dependence that no graph shows.
        if absent and not problem.config.allow_absent_hypergradient:
            absent = [p for p in absent if p.grad is None or not bool(p.grad.any())]
            if absent:
                unseen = [p[1] for p in problem.position.paths if p[1] not in found[problem]]
                raise LossError(_refusal(problem, absent, unseen))
    for lower, above in edges:
        # A method of one's own may know a dependence that no graph shows.
        ours = type(lower.hypergradient).__module__.startswith("metaweight.")
        if ours and not found[lower, above] and not problem.config.allow_absent_hypergradient:
            warnings.warn(
                f"The loss of problem {lower.name!r} does not depend on the parameters of the "
                f"upper problem {above.name!r} together with its own, so that no hypergradient "
                f"passes there. Use self.{above.name} in its training_step, without detaching its "
                "output, or leave this dependency out.",
                stacklevel=2,
            )


def _edges(problem: Problem) -> list[Edge]:
    """Return the pairs of a lower problem and the one above it, on the hypergradient paths of a
    problem, whose dependence can be read from a graph."""
    pairs = [pair for path in problem.position.paths for pair in pairwise(path[1:])]
    return [pair for pair in dict.fromkeys(pairs) if not pair[0].hypergradient.zeroth_order]


def _over_processes(
    problem: Problem, own: Sequence[Tensor], edges: Sequence[Edge], seen: set[Tensor | Problem]
) -> dict[object, set[Tensor | Problem]]:
    """Return what is seen in any process: directly, keyed by the problem, and along its edges."""
    own_places: list[Tensor | Problem] = [*own, *problem.position.lowers]
    places: list[tuple[object, Tensor | Problem]] = [(problem, each) for each in own_places]
    found: dict[object, set[Tensor | Problem]] = {problem: seen}
    for lower, above in edges:
        above_it = list(above.trainable_parameters())
        noted = lower.step_state.dependence[problem, above]
        found[lower, above] = {*noted, *_learned_elsewhere(lower, above_it)}
        places += [((lower, above), p) for p in above_it]
    if problem.step_state.processes.world == 1:
        return found
    marks = [float(each in found[where]) for where, each in places]
    sent = torch.tensor(marks, dtype=torch.float32, device=problem.device)
    (mean,) = problem.step_state.processes.mean([sent])
    for (where, each), mark in zip(places, mean.tolist(), strict=True):
        if mark > 0:
            found[where].add(each)
    return found


def _learned_elsewhere(lower: Problem, parameters: Sequence[Tensor]) -> set[Tensor]:
    """Return the parameters that learned settings and learned starts are functions of."""
    if not owns_settings(lower) and not owns_start(lower):
        return set()
    with preserved_streams(lower.device), preserved_buffers(plan_of(lower).surroundings.buffers):
        settings = settings_per_group(lower) if owns_settings(lower) else []
        values = [
            *(v for group in settings for v in group.values()),
            *start_of_loop(lower).values(),
        ]
        return {p for value in values for p in reached(value, parameters)}


def _refusal(problem: Problem, absent: Sequence[Tensor], unseen: Sequence[Problem]) -> str:
    names = {p: name for name, p in problem.module.named_parameters()}
    shown = [repr(names.get(p, f"of shape {tuple(p.shape)}")) for p in absent[:5]]
    more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
    ends = list(dict.fromkeys(path[-2].name for path in problem.position.paths))
    edges = " or ".join(f"{problem.name} -> {name}" for name in ends)
    below = " and ".join(map(repr, ends))
    why = (
        f"the loss of problem {below} does not depend on them, together with what is trained "
        f"there, nor does that of the upper problem {problem.name!r}, in its first step. Use "
        f"self.{problem.name} in the training_step of {below}"
    )
    if len(unseen) == len(problem.position.paths):
        starts = list(dict.fromkeys(lower.name for lower in unseen))
        why = (
            f"the loss of problem {problem.name!r} depends neither on them nor on what is trained "
            f"in {' or '.join(map(repr, starts))}, in its first step. Use "
            f"{' or '.join(f'self.{name}' for name in starts)} in its training_step"
        )
    return (
        f"Parameters {', '.join(shown)}{more} of problem {problem.name!r} have no hypergradient "
        f"(edge {edges}), so that they would never be learned: {why}, without detaching its "
        "output; take them out of training by requires_grad=False; or, if it is meant, set "
        f"Config(allow_absent_hypergradient=True) of {problem.name!r}."
    )
