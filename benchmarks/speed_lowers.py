"""One set of weights for the samples of many networks, the same text on Betty and on metaweight.

Each of ``n`` small networks trains on samples of its own, weighted by one network of weights. That
is judged by the mean loss of all networks on clean samples. A step is one of every network and one
of the weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from hypergradient_tasks.programs import Library, on_betty, on_metaweight
from speed_three_level import (
    Batch,
    Levels,
    descend,
    lower_optimizer,
    minus_mixed_product,
    problem_of,
    weighted_loss,
)
from torch import Tensor
from torch.nn import functional as F
from turns import Step, later

PLAIN, HAND, OURS, BETTY = "plain step", "hand-written", "metaweight", "betty-ml"


def judged(networks: Sequence[Any], batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the networks."""
    return torch.stack([F.cross_entropy(net(batch[0]), batch[1]) for net in networks]).mean()


def plain(program: Levels) -> Step:
    """Return an ordinary training step of every network."""
    networks, _ = program.modules()
    optimizers = [lower_optimizer(network) for network in networks]
    batches = program.batches()[:-1]

    def step() -> None:
        for network, optimizer, batch in zip(networks, optimizers, batches, strict=True):
            optimizer.zero_grad()
            weighted_loss(network, None, batch).backward()
            optimizer.step()

    return step


def hand_written(program: Levels) -> Step:
    """Return the step as written without a library."""
    networks, weights = program.modules()
    *batches, clean = program.batches()
    optimizers = [lower_optimizer(network) for network in networks]
    upper_optimizer = program.upper_optimizer(weights.parameters())
    parameters = [list(network.parameters()) for network in networks]
    wanted = list(weights.parameters())
    losses = [
        partial(weighted_loss, network, weights, batch)
        for network, batch in zip(networks, batches, strict=True)
    ]

    def step() -> None:
        for loss, own, optimizer in zip(losses, parameters, optimizers, strict=True):
            descend(loss(), own, optimizer)
        every = torch.autograd.grad(judged(networks, clean), [p for own in parameters for p in own])
        found = [torch.zeros_like(parameter) for parameter in wanted]
        for loss, own in zip(losses, parameters, strict=True):
            v, every = every[: len(own)], every[len(own) :]
            torch._foreach_add_(found, minus_mixed_product(loss, own, v, wanted))
        for parameter, gradient in zip(wanted, found, strict=True):
            parameter.grad = gradient
        upper_optimizer.step()

    return step


def on(program: Levels, library: Callable[[], Library]) -> Step:
    """Return the step of the program on a library."""
    names = library()
    made = partial(problem_of, names, "darts")
    networks, weights = program.modules()
    *batches, clean = program.batches()

    class Lower(names.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            return weighted_loss(self.module, self.reweight, batch)

    class Reweight(names.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            below = [getattr(self, f"network{n}") for n in range(len(networks))]
            return judged(below, batch)

    lowers = [
        made(Lower, f"network{n}", network, batch, lower_optimizer(network))
        for n, (network, batch) in enumerate(zip(networks, batches, strict=True))
    ]
    upper_optimizer = program.upper_optimizer(weights.parameters())
    upper = made(Reweight, "reweight", weights, clean, upper_optimizer)
    engine = names.engine(
        problems=[*lowers, upper],
        config=names.engine_config(train_iters=1, strategy="cpu"),
        dependencies={"u2l": {upper: lowers}, "l2u": {lower: [upper] for lower in lowers}},
    )
    engine.train()
    step: Step = engine.train_step
    return step


def lowers_contenders(number: int = 4, **program: Any) -> dict[str, Callable[[], Step]]:
    """Return makers of the contenders' steps; peers that are missing are left out.

    Args:
        number: Networks under the weights.
        **program: See :class:`~speed_three_level.Levels`, whose networks and batches these are.
    """
    makers: dict[str, Callable[[Levels], Step]] = {
        PLAIN: plain,
        HAND: hand_written,
        OURS: partial(on, library=on_metaweight),
    }
    if importlib.util.find_spec("betty"):
        makers[BETTY] = partial(on, library=on_betty)
    given = partial(Levels, levels=number + 1, **program)
    return {name: later(make, given) for name, make in makers.items()}
