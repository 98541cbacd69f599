"""Programs with batches that are not finite, run by the engine and by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metaweight import Config, Engine, EngineConfig, Hook, ImplicitProblem, ReweightedProblem
from metaweight.weighting import MetaWeightNet

from .reweighting import Judge, network
from .small import Inner, Outer, Point, numbers

LR, UPPER_LR, MOMENTUM = 0.1, 0.05, 0.9


@dataclass(frozen=True)
class Case:
    """``0.5 |w - b|² + θ w`` below ``0.5 |w - c|²``, both by SGD with momentum.

    Attributes:
        lower: Batches ``b``, in a circle.
        upper: Batches ``c``, in a circle.
        unroll_steps: Optimizer steps of a loop.
        accumulation: Micro-batches of a lower step.
        upper_accumulation: Micro-batches of an upper step.
        type: ``"unroll"``, or ``"darts"``, which takes ``dw/dθ`` for -1.
        roll_back: Whether loops are taken back.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...] = (3.0, -1.0, 2.0)
    unroll_steps: int = 1
    accumulation: int = 1
    upper_accumulation: int = 1
    type: str = "darts"
    roll_back: bool = False

    def engine(self, steps: int, *, hooks: Sequence[Hook] = (), **settings: Any) -> Engine:
        """Return it as an engine."""

        def made(kind: Any, name: str, start: float, data: Any, lr: float, config: Config) -> Any:
            module = Point(start)
            optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=MOMENTUM)
            return kind(name, config, module, optimizer, train_data_loader=numbers(*data))

        inner = made(
            Inner,
            "inner",
            0.0,
            self.lower,
            LR,
            Config(
                type=self.type,
                unroll_steps=self.unroll_steps,
                gradient_accumulation=self.accumulation,
            ),
        )
        upper = Config(gradient_accumulation=self.upper_accumulation)
        outer = made(Outer, "outer", 0.5, self.upper, UPPER_LR, upper)
        config = EngineConfig(
            train_iters=steps, strategy="cpu", roll_back=self.roll_back, **settings
        )
        return Engine(
            [outer, inner],
            config,
            {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}},
            hooks=hooks,
        )

    def by_hand(self, loops: int) -> tuple[float, float, dict[str, int]]:
        """Return ``w`` and ``θ`` after so many loops, and how many steps were left out."""
        skipped = {"inner": 0, "outer": 0}
        theta, pushed = torch.tensor(0.5, dtype=torch.float64), 0.0
        w, velocity = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        position, window = 0, []
        for loop in range(loops):
            theta = theta.detach().requires_grad_()
            start = w, velocity
            taken: list[list[float]] = []
            for _ in range(self.unroll_steps):
                batches = [
                    self.lower[(position + i) % len(self.lower)] for i in range(self.accumulation)
                ]
                position += self.accumulation
                moved = _moved(w, velocity, theta, batches)
                if torch.isfinite(moved[0]):
                    (w, velocity), taken = moved, [*taken, batches]
                else:
                    skipped["inner"] += 1
            c = self.upper[loop % len(self.upper)]
            gradient = None
            if taken and torch.isfinite(torch.tensor(c)):
                if self.type == "darts":
                    gradient = -(w.detach() - c)
                else:
                    loss = 0.5 * (w - c) ** 2
                    gradient = torch.autograd.grad(loss, theta)[0]
            window.append(gradient)
            w, velocity, theta = w.detach(), velocity.detach(), theta.detach()
            if len(window) < self.upper_accumulation:
                continue
            if any(g is None for g in window):
                skipped["outer"] += 1
            else:
                pushed = MOMENTUM * pushed + sum(window) / len(window)
                theta = theta - UPPER_LR * pushed
            window = []
            if self.roll_back and taken:
                w, velocity = _moved(*start, theta, taken[-1])
        return w.item(), theta.item(), {k: n for k, n in skipped.items() if n}


def _moved(w: Tensor, velocity: Tensor, theta: Tensor, batches: list[float]) -> Any:
    velocity = MOMENTUM * velocity + (w + theta - sum(batches) / len(batches))
    return w - LR * velocity, velocity


def values(engine: Engine) -> tuple[float, float]:
    """Return the ``w`` and ``θ`` of an engine of a :class:`Case`."""
    return engine.inner.module.w.item(), engine.outer.module.w.item()


class Weighted(ReweightedProblem):
    def sample_losses(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.module(batch[0]), batch[1], reduction="none")

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        return self.judge(losses)


def reweighted(
    good: Sequence[int],
    upper: Sequence[int],
    bad: Sequence[int] = (),
    hooks: Sequence[Hook] = (),
    config: Config | None = None,
    kind: type[ImplicitProblem] = Weighted,
    **settings: Any,
) -> Engine:
    """Return a Meta-Weight-Net with batch norm, on batches by their numbers.

    Args:
        good: Numbers of the lower problem's batches.
        upper: Numbers of the upper problem's.
        bad: Those of the former whose inputs hold an infinite number.
        hooks: Hooks of the engine.
        config: Settings of the lower problem.
        kind: Its class.
        **settings: Settings of the engine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net, weights = network(), MetaWeightNet(8)

    def batch(number: int, skipped: bool = False) -> Any:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(10, 6, generator=generator)
        x[3, 2] = torch.inf if skipped else x[3, 2]
        return x, torch.randint(0, 4, (10,), generator=generator)

    classifier = kind(
        "classifier",
        config,
        net,
        torch.optim.Adam(net.parameters(), 0.05),
        train_data_loader=[batch(n, n in bad) for n in good],
    )
    judge = Judge(
        "judge",
        None,
        weights,
        torch.optim.Adam(weights.parameters(), 0.05),
        train_data_loader=[batch(100 + n) for n in upper],
    )
    chosen = {"train_iters": len(good), "strategy": "cpu"}
    return Engine(
        [judge, classifier],
        EngineConfig(**(chosen | settings)),
        {"u2l": {judge: [classifier]}, "l2u": {classifier: [judge]}},
        hooks=hooks,
    )
