"""The toy workload: logistic regression with one learned penalty per weight, 20 of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metaweight

FEATURES = 20


class Weights(nn.Module):
    """A linear model whose parameters a problem can read."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start)

    def forward(self, inputs: Tensor | None = None) -> Tensor:
        """Return the scores of ``inputs``, or the parameters themselves."""
        return self.w if inputs is None else inputs @ self.w


def data() -> tuple[list[Any], list[Any]]:
    """Return one training batch and one validation batch, as loaders."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for _ in range(2):
        x = torch.randn(500, FEATURES, generator=generator)
        truth = torch.randn(FEATURES, generator=generator)
        sets.append([(x, (x @ truth > 0).float())])
    return sets[0], sets[1]


def engine(
    engine_type: Any, engine_config: Any, problem: Any, config: Any, unroll: int
) -> Callable[[], None]:
    """Return one step of the program on a library that has these four names."""
    train, valid = data()

    class Outer(problem):  # type: ignore[misc]
        def training_step(self, batch: Any) -> Tensor:
            inputs, labels = batch
            return F.binary_cross_entropy_with_logits(self.inner(inputs), labels)

    class Inner(problem):  # type: ignore[misc]
        def training_step(self, batch: Any) -> Tensor:
            inputs, labels = batch
            w = self.module.w
            loss = F.binary_cross_entropy_with_logits(self.module(inputs), labels)
            return loss + 0.5 * (w * self.outer() * w).sum()

    child, parent = Weights(torch.zeros(FEATURES)), Weights(torch.ones(FEATURES))
    outer = Outer(
        name="outer",
        module=parent,
        optimizer=torch.optim.SGD(parent.parameters(), lr=1.0, momentum=0.9),
        train_data_loader=valid,
        config=config(),
    )
    inner = Inner(
        name="inner",
        module=child,
        optimizer=torch.optim.SGD(child.parameters(), lr=0.1),
        train_data_loader=train,
        config=config(unroll_steps=unroll),
    )
    program = engine_type(
        problems=[outer, inner],
        config=engine_config(train_iters=1, valid_step=10**9, strategy="cpu"),
        dependencies={"u2l": {outer: [inner]}, "l2u": {inner: [outer]}},
    )
    program.train()

    def step() -> None:
        program.global_step += 1
        program.train_step()

    return step


def hand_written(unroll: int) -> Callable[[], None]:
    """Return one step of the same program as written without a library."""
    (train,), (valid,) = data()
    child, parent = Weights(torch.zeros(FEATURES)), Weights(torch.ones(FEATURES))
    inner = torch.optim.SGD(child.parameters(), lr=0.1)
    outer = torch.optim.SGD(parent.parameters(), lr=1.0, momentum=0.9)
    count = 0

    def training_loss() -> Tensor:
        inputs, labels = train
        w = child.w
        loss = F.binary_cross_entropy_with_logits(child(inputs), labels)
        return loss + 0.5 * (w * parent() * w).sum()

    def hypergradient() -> Tensor:
        inputs, labels = valid
        loss = F.binary_cross_entropy_with_logits(child(inputs), labels)
        (v,) = torch.autograd.grad(loss, [child.w])
        eps = (0.01 / v.norm()).item()
        with torch.no_grad():
            child.w.add_(v, alpha=eps)
        (plus,) = torch.autograd.grad(training_loss(), [parent.w])
        with torch.no_grad():
            child.w.sub_(v, alpha=2 * eps)
        (minus,) = torch.autograd.grad(training_loss(), [parent.w])
        with torch.no_grad():
            child.w.add_(v, alpha=eps)
        return (minus - plus) / (2 * eps)

    def step() -> None:
        nonlocal count
        count += 1
        (gradient,) = torch.autograd.grad(training_loss(), [child.w])
        child.w.grad = gradient
        inner.step()
        if count % unroll == 0:
            parent.w.grad = hypergradient()
            outer.step()

    return step


def on_metaweight(unroll: int) -> Callable[[], None]:
    """Return metaweight's step."""
    library = metaweight
    return engine(
        library.Engine, library.EngineConfig, library.ImplicitProblem, library.Config, unroll
    )


def on_betty(unroll: int) -> Callable[[], None]:
    """Return Betty's step."""
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    return engine(Engine, EngineConfig, ImplicitProblem, Config, unroll)


def toy_contenders(unroll: int) -> dict[str, Callable[[], Callable[[], None]]]:
    """Return makers of the contenders' steps, by name; peers that are missing are left out."""
    makers: dict[str, Callable[[int], Callable[[], None]]] = {
        "hand-written": hand_written,
        "metaweight": on_metaweight,
    }
    if importlib.util.find_spec("betty"):
        makers["betty-ml"] = on_betty
    return {name: partial(make, unroll) for name, make in makers.items()}
