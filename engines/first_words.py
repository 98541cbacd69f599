"""What a run says before its first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metaweight.problems.base.settings import LeftOut

if TYPE_CHECKING:
    from .engine import Engine

SETTINGS = {"ConjugateGradient": "cg_iterations", "Neumann": "neumann_iterations"}


def name_defaults(engine: Engine) -> None:
    """Log which lower problems solve a linear system by the default number of iterations."""
    lowers = {lower for problem in engine.problems for lower in problem.position.lowers}
    for problem in engine.problems:
        method = problem.hypergradient
        number, kind = getattr(method, "iterations", None), type(method).__name__
        if problem in lowers and isinstance(number, LeftOut) and not method.keeps_state:
            setting = SETTINGS.get(kind)
            other = "" if setting is None else f" or Config({setting}=...)"
            engine.logger.warning(
                f"{kind} of problem {problem.name!r} takes {number} iteration, the default, which "
                "is kept for programs written for Betty and rarely solves the system: set "
                f"{kind}(iterations=...){other}. engine.check_hypergradient() says how many it "
                "needs; 1, if written down, is taken without a word."
            )
