"""The gradient of an upper loss: direct, and along all paths through lower problems."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..base import vectors
from ..base.errors import HypergradientError, LossError
from ..base.reduction import Reduction
from ..base.vectors import Spare
from ..hypergradients.base import Hypergradient
from ..hypergradients.product import Product, Status
from ..hypergradients.value import ValueHypergradient
from ..kernels.gradient_hooks import silent_hooks
from ..problem import Problem
from .absent_hypergradients import note_gradients
from .lower_view import lower_view
from .method_states import spoilt_by, unit
from .plan import Edge, PathPlan, StepPlan
from .unseen_changes import warn_of_unseen_changes
from .upper_loss import UpperLoss


def hypergradient(
    problem: Problem,
    plan: StepPlan,
    loss: Tensor,
    own: list[Tensor],
    again: UpperLoss | None = None,
) -> list[Tensor | None]:
    """Return ``∂F/∂θ + Σ_paths (dw*/dθ)ᵀ ∂F/∂w`` for the loss ``F`` of ``problem``.

    One backward pass gives the direct gradient and the vectors ``v`` of all paths. Along a path
    ``θ → w_1 → … → w_k → θ``, each problem maps the vector to one for the next problem. A path
    whose lower problem uses a zeroth-order method needs ``again``, which evaluates the loss.

    With several processes, each returns the products of its own lower losses with vectors averaged
    over processes. Their mean over processes is the hypergradient.
    """
    held = []
    parameters = [*own]
    try:
        for edge in plan.repeated:
            warn_of_unseen_changes(edge.lower, edge.method)
        for edge in plan.through:
            state = edge.lower.step_state
            held.append((state, state.hold(edge.lower.trainable_parameters())))
            parameters += state.held or ()
        with silent_hooks(parameters):
            total = _through_paths(problem, plan, loss, own, again)
    finally:
        for state, before in held:
            state.release(before)
            state.forget_drawn()
    require_used(problem, total)
    return total


def _through_paths(
    problem: Problem,
    plan: StepPlan,
    loss: Tensor,
    own: list[Tensor],
    again: UpperLoss | None,
) -> list[Tensor | None]:
    state = problem.step_state
    total, starts = _direct(problem, plan, loss, own)
    if not plan.is_alone:
        starts = _averaged(state.processes, starts)
    for path in plan.paths:
        if path.is_measured:
            # The direct gradient counts once: by autograd, or else with the first such path.
            direct = not loss.requires_grad and path is plan.measured[0]
            vector: Sequence[Tensor] = _estimate(path.start, own, again, direct=direct)
        else:
            vector = Spare(starts.pop(path.start)) if path.spends else starts[path.start]
            for edge in path.edges:
                if not (plan.is_alone or edge.lower is path.start):
                    vector = state.processes.mean(vector)
                vector = _product(problem, path, edge, own, vector, loss)
        if state.keeps_hypergradient_terms:
            state.note_term(path.label, vector)
        total = [_sum(t, v) for t, v in zip(total, vector, strict=True)]
    return total


def _sum(direct: Tensor | None, through: Tensor) -> Tensor:
    """Return the sum; a direct gradient may be sparse, which torch adds to a dense one only."""
    if direct is None:
        return through
    return through + direct if direct.is_sparse else direct + through


def _product(
    problem: Problem,
    path: PathPlan,
    edge: Edge,
    own: list[Tensor],
    vector: Sequence[Tensor],
    loss: Tensor,
) -> list[Tensor]:
    """Return the product along an edge of a path; keep the state that its method proposes.

    A state outlives loss scales, so a method that keeps one gets the vector without.
    """
    lower, above, method = edge
    parameters = own if above is problem else list(above.meta_trainable_parameters())
    scale = unit(problem, loss) if method.keeps_state else None
    given = vector if scale is None else vectors.divide(vector, scale)
    product = method.vjp(lower_view(lower, path.names), given, parameters)
    values = _checked_values(lower, method, product, parameters)
    if product.state is not None:
        _require_kept(lower, method, product.state)
        states = lower.step_state.method_states
        spoilt = spoilt_by(product.state, states.of(path.names))
        states.propose(path.names, product.state)
        values = [value + spoilt.to(value.device) for value in values]
    return values if scale is None else vectors.scale(values, scale)


def _require_kept(lower: Problem, method: Hypergradient, state: object) -> None:
    if not method.keeps_state or not isinstance(state, Mapping):
        raise HypergradientError(
            f"{type(method).__name__} of problem {lower.name!r} returned a state of type "
            f"{type(state).__name__} and has keeps_state={method.keeps_state}; return a dict of "
            "tensors, numbers and text, from a class with keeps_state = True."
        )


def _direct(
    problem: Problem, plan: StepPlan, loss: Tensor, own: list[Tensor]
) -> tuple[list[Tensor | None], dict[Problem, list[Tensor]]]:
    """Return ``∂F/∂θ``, and ``∂F/∂w`` of each lower problem that a path starts with."""
    below = {lower: list(lower.meta_trainable_parameters()) for lower in plan.starts}
    inputs = [*own]
    for parameters in below.values():
        inputs += parameters
    gradients: list[Tensor | None] = [None] * len(inputs)
    if loss.requires_grad:
        gradients = problem.step_state.processes.gradients(loss, inputs)
    starts: dict[Problem, list[Tensor]] = {}
    passed: list[Problem] = []
    position = len(own)
    for lower, parameters in below.items():
        end = position + len(parameters)
        found = gradients[position:end]
        if _are_none(found):
            warnings.warn(
                f"The loss of problem {problem.name!r} does not depend on the parameters of "
                f"{lower.name!r} below it, so that no hypergradient passes through it. Use "
                f"self.{lower.name} in its training_step, without detaching its output.",
                stacklevel=2,
            )
        else:
            passed.append(lower)
        starts[lower] = vectors.fill_none(found, parameters)
        position = end
    direct = gradients[: len(own)]
    if problem.step_state.seen_directly is not None:
        note_gradients(problem, own, direct, passed)
    return direct, starts


def _averaged(
    reduction: Reduction, starts: dict[Problem, list[Tensor]]
) -> dict[Problem, list[Tensor]]:
    """Return the means over processes of the vectors of all paths, in one reduction."""
    means = iter(reduction.mean([t for vector in starts.values() for t in vector]))
    return {lower: [next(means) for _ in vector] for lower, vector in starts.items()}


def _estimate(
    lower: Problem, own: list[Tensor], again: UpperLoss | None, *, direct: bool
) -> list[Tensor]:
    """Return the result of a zeroth-order method, with the direct gradient or without."""
    algorithm = lower.hypergradient
    assert isinstance(algorithm, ValueHypergradient) and again is not None
    value: Callable[[], Tensor] = again if direct else again.holding(own)
    return _checked_values(lower, algorithm, algorithm.estimate(lower_view(lower), value, own), own)


def _checked_values(
    lower: Problem, method: Hypergradient, product: object, upper_parameters: Sequence[Tensor]
) -> list[Tensor]:
    """Store the status of a product, and return its values.

    Raises:
        HypergradientError: For anything but a product with a tensor of the shape of each upper
            parameter.
    """
    if isinstance(product, Product):
        values = list(product.values)
        same = len(values) == len(upper_parameters)
        if same and all(map(_fits, values, upper_parameters)):
            _note_status(lower, method, product.status)
            return [value.detach() if value.requires_grad else value for value in values]
        returned = f"a Product of {_shapes(values)}"
    else:
        returned = type(product).__name__
    raise HypergradientError(
        f"{type(method).__name__} of problem {lower.name!r} returned {returned}; return "
        f"Product(values, Status(...)) with one tensor for each upper parameter, of its shape: "
        f"{_shapes(upper_parameters)}. Parameters are as they were."
    )


def _note_status(lower: Problem, method: Hypergradient, status: Status) -> None:
    """Store the status of a product, and warn of its advice the first time that it has any."""
    lower.step_state.note_status(status)
    if status.advice and lower.step_state.not_mentioned([type(method).__name__]):
        warnings.warn(status.advice, stacklevel=2)


def _fits(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _shapes(values: Sequence[object]) -> str:
    """Return the shapes of tensors and the types of other objects as text."""
    known = [str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in values]
    return f"shapes {', '.join(known)}" if known else "nothing"


def require_used(problem: Problem, gradients: Sequence[Tensor | None]) -> None:
    """Refuse a loss that depends on no trainable parameter; with ``allow_unused=False``, one that
    does not depend on all of them.

    Raises:
        LossError: Naming the problem.
    """
    if _are_none(gradients):
        raise LossError(
            f"The loss of problem {problem.name!r} does not depend on any of the parameters it "
            "trains; compute it from self.module, with the parameters its optimizer was made for, "
            "or, if they act through a problem below, name that under 'u2l' in the dependencies."
        )
    if not problem.config.allow_unused and any(g is None for g in gradients):
        raise LossError(
            f"Problem {problem.name!r} has Config(allow_unused=False), but some of its trainable "
            "parameters do not enter its loss; use them, or allow it."
        )


def _are_none(gradients: Sequence[Tensor | None]) -> bool:
    for gradient in gradients:  # noqa: SIM110 (a generator takes five times as long)
        if gradient is not None:
            return False
    return True
