"""Our methods on a case."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from metaweight import (
    SAMA,
    ConjugateGradient,
    FiniteDifference,
    Hypergradient,
    Neumann,
    Nystrom,
    Penalty,
    Reweighting,
    Unroll,
    ZeroOrder,
)

from .case import Case
from .method import (
    ADAM,
    ADAM_LR,
    ADAM_STEPS,
    CG,
    IDENTITY,
    NEUMANN,
    NEUMANN_ITERATIONS,
    UNROLLED,
    Build,
    Method,
    cg_iterations,
    unroll_steps,
)
from .programs import Gradient, Lower, adam, at_solution, heavy_ball, on_metaweight, program

LIBRARY = "metaweight"
RANK = 100
BOME_STEPS = 10
DIRECTIONS = 8
ZERO_ORDER_STEPS = 100

Kind = Callable[[int], Hypergradient]


def ours(case: Case) -> Iterator[Method]:
    """Yield our methods."""
    yield from _one_step(case)
    yield from _linear_systems(case)
    yield from _unrolled(case)
    yield from _without_second_derivatives(case)


def _at(place: Callable[[Case, int], Lower], kind: Kind, *, reweighted: bool = False) -> Build:
    def build(case: Case, k: int) -> Gradient:
        return program(on_metaweight(), case, place(case, k), reweighted=reweighted, type=kind(k))

    return build


def _there(case: Case, k: int) -> Lower:
    del k
    return at_solution(case)


def _after_adam(case: Case, k: int) -> Lower:
    return adam(case, k, ADAM_LR)


def _one_step(case: Case) -> Iterator[Method]:
    difference = _at(_there, lambda k: FiniteDifference())
    yield Method(LIBRARY, "FiniteDifference", IDENTITY, difference)
    if case.sample_losses is not None:
        for derivative in ("central_difference", "one_sided", "forward_mode"):
            kind = Reweighting(derivative=derivative)
            build = _at(_there, lambda k, kind=kind: kind, reweighted=True)  # type: ignore[misc]
            yield Method(LIBRARY, f"Reweighting, {derivative}", IDENTITY, build)
    yield Method(LIBRARY, "SAMA, SGD", IDENTITY, _at(_there, lambda k: SAMA()))
    source = _at(_after_adam, lambda k: SAMA())
    yield Method(LIBRARY, "SAMA, Adam", ADAM, source, ADAM_STEPS)
    exact = _at(_after_adam, lambda k: SAMA(preconditioner="exact"))
    yield Method(LIBRARY, "SAMA exact, Adam", ADAM, exact, ADAM_STEPS)


def _linear_systems(case: Case) -> Iterator[Method]:
    alpha, least, most = 1 / case.largest, case.smallest, cg_iterations(case)
    neumann = _at(_there, lambda k: Neumann(iterations=k, alpha=alpha))
    cg = _at(_there, lambda k: ConjugateGradient(iterations=k))
    stopped = _at(_there, lambda k: ConjugateGradient(iterations=k, tolerance=1e-4))
    damped = _at(_there, lambda k: ConjugateGradient(iterations=k, damping=least))
    nystrom = _at(_there, lambda k: Nystrom(rank=k, damping=skipped(case, k)))
    yield Method(LIBRARY, "Neumann", NEUMANN, neumann, NEUMANN_ITERATIONS, True)
    yield Method(LIBRARY, "ConjugateGradient", CG, cg, most, True)
    yield Method(
        LIBRARY, "ConjugateGradient, tolerance 1e-4", "H⁻¹ by at most K steps", stopped, most
    )
    yield Method(
        LIBRARY, "ConjugateGradient, damping λ_min", "(H + λ_min)⁻¹ by K steps", damped, most
    )
    yield Method(
        LIBRARY,
        "Nystrom",
        "(Ĥ + ρ)⁻¹, Ĥ of rank K, ρ the first eigenvalue left out",
        nystrom,
        min(RANK, len(case.solution)),
        True,
    )


def skipped(case: Case, rank: int) -> float:
    """Return the largest eigenvalue outside a sketch of that rank, or a tiny number if none is."""
    size = len(case.spectrum)
    return float(case.spectrum[size - rank - 1]) if rank < size else 1e-6 * case.smallest


def _unrolled(case: Case) -> Iterator[Method]:
    steps = unroll_steps(case)
    for product in ("exact", "forward_over_reverse", "finite_difference"):
        kind = Unroll(product=product)
        build = _at(heavy_ball, lambda k, kind=kind: kind)  # type: ignore[misc]
        yield Method(LIBRARY, f"Unroll, {product}", UNROLLED, build, steps, product == "exact")
    full = _at(heavy_ball, lambda k: Unroll(memory="full"))
    yield Method(LIBRARY, "Unroll, exact, full memory", UNROLLED, full, steps)
    estimate = _at(heavy_ball, lambda k: ZeroOrder(samples=DIRECTIONS))
    text = f"the same from {DIRECTIONS} random directions"
    yield Method(LIBRARY, "ZeroOrder", text, estimate, min(steps, ZERO_ORDER_STEPS))


def _without_second_derivatives(case: Case) -> Iterator[Method]:
    settings = case.heavy_ball()
    f2sa = _at(_there, lambda k: Penalty(steps=k, **settings))
    bome = _at(_there, lambda k: Penalty(steps=k, lr=1 / case.largest, form="bome"))
    yield Method(
        LIBRARY, "Penalty, f2sa", "H⁻¹ by K heavy-ball steps", f2sa, unroll_steps(case), True
    )
    yield Method(LIBRARY, "Penalty, bome", "the best number for H⁻¹", bome, BOME_STEPS)
