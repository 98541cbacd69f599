"""The smallest programs that show a behaviour: one or two levels on a few float64 numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaweight import Config, Engine, EngineConfig, ImplicitProblem


class Point(nn.Module):
    """A vector of parameters, of these numbers or a tensor; calling it returns them."""

    def __init__(self, *values: Any) -> None:
        super().__init__()
        (start, *_) = values
        given = (
            start.clone()
            if isinstance(start, Tensor)
            else torch.tensor(values, dtype=torch.float64)
        )
        self.w = nn.Parameter(given)

    def forward(self) -> Tensor:
        return self.w


class Chase(ImplicitProblem):
    """``0.5 |w - batch|²``: a gradient step of length lr moves w by lr of the way to the batch."""

    def training_step(self, batch: Any) -> Any:
        return 0.5 * ((self.module() - batch) ** 2).sum()


class Inner(ImplicitProblem):
    """``0.5 |w - batch|² + outer · w``."""

    def training_step(self, batch: Any) -> Any:
        w = self.module()
        return 0.5 * ((w - batch) ** 2).sum() + (self.outer() * w).sum()


class Outer(ImplicitProblem):
    """``0.5 |w - batch|²`` of the inner problem's w."""

    def training_step(self, batch: Any) -> Any:
        return 0.5 * ((self.inner() - batch) ** 2).sum()


def numbers(*values: float) -> list[Tensor]:
    """A loader of one-number batches."""
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def problem(
    cls: type[ImplicitProblem] = Chase,
    name: str = "chase",
    *,
    start: Sequence[float] = (0.0,),
    data: Any = None,
    lr: float = 0.1,
    **settings: Any,
) -> Any:
    """A problem over a :class:`Point` with SGD; ``settings`` are arguments of the problem."""
    if "module" not in settings:
        settings["module"] = Point(*start)
    if "optimizer" not in settings:
        settings["optimizer"] = torch.optim.SGD(settings["module"].parameters(), lr=lr)
    data = numbers(1.0) if data is None else data
    return cls(name=name, train_data_loader=data, **settings)


def single(lower: Any, *, engine: type[Engine] = Engine, steps: int = 1, **settings: Any) -> Any:
    """An engine of one problem."""
    hooks = settings.pop("hooks", ())
    config = EngineConfig(train_iters=steps, strategy="cpu", **settings)
    return engine([lower], config, hooks=hooks)


def bilevel(
    *,
    inner: Any = None,
    outer: Any = None,
    engine: type[Engine] = Engine,
    steps: int = 1,
    inner_config: Config | None = None,
    outer_config: Config | None = None,
    env: Any = None,
    hooks: Any = (),
    **settings: Any,
) -> Any:
    """An engine of :class:`Inner` and :class:`Outer`."""
    if inner is None:
        inner = problem(Inner, "inner", data=numbers(1.0, 2.0), config=inner_config)
    if outer is None:
        outer = problem(Outer, "outer", start=(0.5,), data=numbers(3.0), config=outer_config)
    return engine(
        [outer, inner],
        EngineConfig(train_iters=steps, strategy="cpu", **settings),
        {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}},
        env=env,
        hooks=hooks,
    )
