"""Every hypergradient method that applies to a small case, ours and the peers'."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

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
from .ours import ours
from .peers import higher_unroll, torchopt_implicit, torchopt_unroll
from .programs import Gradient, adam, at_solution, on_betty, program


def methods(case: Case) -> dict[str, Method]:
    """Return the methods that apply to the case, by label, without those of missing libraries."""
    found = list(ours(case))
    for package, those in {"betty": betty, "higher": higher, "torchopt": torchopt}.items():
        if importlib.util.find_spec(package):
            found += those(case)
    return {method.label: method for method in found}


def betty(case: Case) -> Iterator[Method]:
    """Yield Betty's methods."""

    def at(kind: str, name: str | None = None, **fixed: float) -> Build:
        def build(c: Case, k: int) -> Gradient:
            counted = {} if name is None else {name: k}
            return program(on_betty(), c, at_solution(c), type=kind, **fixed, **counted)

        return build

    def after_adam(c: Case, k: int) -> Gradient:
        return program(on_betty(), c, adam(c, k, ADAM_LR), type="sama")

    neumann = at("neumann", "neumann_iterations", neumann_alpha=1 / case.largest)
    yield Method("betty-ml", "darts", IDENTITY, at("darts"))
    yield Method("betty-ml", "sama, SGD", IDENTITY, at("sama"))
    yield Method("betty-ml", "sama, Adam", ADAM, after_adam, ADAM_STEPS)
    yield Method("betty-ml", "neumann", NEUMANN, neumann, NEUMANN_ITERATIONS, True)
    yield Method("betty-ml", "cg", CG, at("cg", "cg_iterations"), cg_iterations(case), True)


def higher(case: Case) -> Iterator[Method]:
    """Yield higher's method."""
    yield Method("higher", "unroll", UNROLLED, higher_unroll, unroll_steps(case), True)


def torchopt(case: Case) -> Iterator[Method]:
    """Yield TorchOpt's methods."""

    def solver(name: str, counts: bool = True, **fixed: float) -> Build:
        def build(c: Case, k: int) -> Gradient:
            from torchopt import linear_solve

            settings = {**fixed, "maxiter": k} if counts else fixed
            return torchopt_implicit(c, getattr(linear_solve, name)(**settings))

        return build

    neumann = solver("solve_inv", ns=True, alpha=1 / case.largest)
    dense = solver("solve_inv", counts=False)
    yield Method("torchopt", "MetaSGD", UNROLLED, torchopt_unroll, unroll_steps(case))
    yield Method("torchopt", "cg", CG, solver("solve_cg", rtol=0.0), cg_iterations(case), True)
    yield Method("torchopt", "neumann", NEUMANN, neumann, NEUMANN_ITERATIONS)
    yield Method("torchopt", "dense inverse", "H⁻¹ by a dense solve", dense)
