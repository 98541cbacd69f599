"""What users get wrong about losses that hypergradients go through: each is named in the first step
that shows it, and that step leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from metaweight.problems.config import HYPERGRADIENT_NAMES
from support.bad_input import (
    Row,
    assert_refused,
    bilevel,
    numbers,
    problem,
)
from support.small import Inner, Outer

from metaweight import Config, Engine, HypergradientError, LossError, ReweightedProblem, Reweighting


def run(engine: Engine) -> None:
    engine.run()


class Free(Inner):
    def training_step(self, batch: Any) -> Any:
        return 0.5 * ((self.module() - batch) ** 2).sum()


class Detaches(Inner):
    def training_step(self, batch: Any) -> Any:
        w = self.module()
        return 0.5 * ((w - batch) ** 2).sum() + (self.outer().detach() * w).sum()


class Hill(Inner):
    def training_step(self, batch: Any) -> Any:
        w = self.module()
        return -0.5 * ((w - batch) ** 2).sum() + (self.outer() * w).sum()


class Deaf(Outer):
    """Does not look at the problem below."""

    def training_step(self, batch: Any) -> Any:
        return ((self.module() - self.inner().detach()) ** 2).sum()


def levels(kind: Any, config: Any, upper: Any = Outer, start: Any = (0.0,)) -> Callable[[], Engine]:
    def build() -> Engine:
        inner = problem(kind, "inner", start=start, config=config)
        outer = problem(upper, "outer", start=(0.5,), data=numbers(3.0))
        return bilevel(inner=inner, outer=outer, steps=1)

    return build


def through(method: str) -> dict[str, Row]:
    """What a hypergradient cannot be formed from, or is zero for."""
    below = "loss of problem 'inner' does not depend … upper problem 'outer' … Use self.outer"
    above = "loss of problem 'outer' does not depend … 'inner' below it … Use self.inner"
    config = Config(type=method)
    return {
        f"{method}: lower loss free of the upper": Row(
            LossError, below, run, levels(Free, config), stepped=("inner",)
        ),
        f"{method}: lower loss detaches the upper": Row(
            LossError, below, run, levels(Detaches, config), stepped=("inner",)
        ),
        f"{method}: upper loss detaches the lower": Row(
            UserWarning, above, run, levels(Inner, config, Deaf), stepped=("inner",)
        ),
    }


GRADIENT_METHODS = [
    n for n in HYPERGRADIENT_NAMES if n not in ("reweighting", "zero_order", "reinforce")
]


class Weighted(ReweightedProblem):
    losses: Callable[[Any, Any], Any] = staticmethod(
        lambda self, batch: (self.module() - batch) ** 2
    )
    weights: Callable[[Any, Any], Any] = staticmethod(lambda self, losses: self.outer() * losses)

    def sample_losses(self, batch: Any) -> Any:
        return self.losses(self, batch)

    def sample_weights(self, losses: Any, batch: Any) -> Any:
        return self.weights(self, losses)


def weighted(
    error: type[Exception],
    words: str,
    config: Config | None = None,
    stepped: tuple[str, ...] = (),
    **parts: Any,
) -> Row:
    kind = type("Weighted", (Weighted,), {k: staticmethod(v) for k, v in parts.items()})
    return Row(error, words, run, levels(kind, config, start=(0.0, 1.0)), stepped=stepped)


UNUSED = "loss of problem 'inner' does not depend … upper problem 'outer'"
FREE = "sample_losses of problem 'inner' depends on the upper problem 'outer' … FiniteDifference()"

WEIGHING = {
    "weights: None": weighted(
        LossError,
        "sample_weights of problem 'inner' … NoneType … per sample",
        weights=lambda s, losses: None,
    ),
    "weights: list": weighted(
        LossError,
        "sample_weights of problem 'inner' … list … per sample",
        weights=lambda s, losses: [1.0, 2.0],
    ),
    "weights: integers": weighted(
        LossError,
        "sample_weights of problem 'inner' … int64 … floating",
        weights=lambda s, losses: torch.ones(2).long(),
    ),
    "weights: truth values": weighted(
        LossError,
        "sample_weights of problem 'inner' … bool … floating",
        weights=lambda s, losses: losses > 0,
    ),
    "weights: of another number": weighted(
        LossError,
        "sample_weights of problem 'inner' … (3,) for 2 losses",
        weights=lambda s, losses: torch.ones(3),
    ),
    "weights: in a row": weighted(
        LossError,
        "sample_weights of problem 'inner' … (1, 2) for 2 losses",
        weights=lambda s, losses: torch.ones(1, 2),
    ),
    "weights: free of the upper": weighted(
        LossError, UNUSED, stepped=("inner",), weights=lambda s, losses: torch.ones_like(losses)
    ),
    "weights: detached": weighted(
        LossError,
        UNUSED,
        stepped=("inner",),
        weights=lambda s, losses: s.outer().detach() * losses,
    ),
    "losses: None": weighted(
        LossError, "sample_losses of problem 'inner' … NoneType", losses=lambda s, b: None
    ),
    "losses: reduced": weighted(
        LossError,
        "sample_losses of problem 'inner' … () … reduction='none'",
        losses=lambda s, b: s.module().sum(),
    ),
    "losses: integers": weighted(
        LossError,
        "sample_losses of problem 'inner' … int64",
        losses=lambda s, b: torch.ones(2).long(),
    ),
    "losses: none at all": weighted(
        LossError, "sample_losses of problem 'inner' … (0,)", losses=lambda s, b: s.module()[:0]
    ),
    "losses: detached": weighted(
        LossError,
        "loss of problem 'inner' … parameters it trains",
        losses=lambda s, b: s.module().detach(),
    ),
    "losses: of the upper": weighted(LossError, FREE, losses=lambda s, b: s.module() * s.outer()),
    "losses: of the upper, by forward mode": weighted(
        LossError,
        FREE,
        Config(type=Reweighting(derivative="forward_mode")),
        losses=lambda s, b: s.module() * s.outer(),
    ),
}

TABLE = {
    **{name: row for method in GRADIENT_METHODS for name, row in through(method).items()},
    "reinforce: no log-probability": Row(
        LossError,
        "'inner' asks for Reinforce … 'log_prob'",
        run,
        levels(Inner, Config(type="reinforce")),
        stepped=("inner",),
    ),
    "cg: negative curvature": Row(
        HypergradientError, "'inner'", run, levels(Hill, Config(type="cg")), stepped=("inner",)
    ),
    **WEIGHING,
}


@pytest.mark.parametrize("name", TABLE)
def test_it_is_named_and_the_step_leaves_no_trace(name: str) -> None:
    assert_refused(TABLE[name])
