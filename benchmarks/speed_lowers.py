"""One set of weights for the samples of many networks, the same text on Betty and on metaweight.

Each of ``n`` small networks trains on samples of its own, weighted by one network of weights. That
is judged by the mean loss of all networks on clean samples. A step is one of every network and one
of the weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hypergradient_tasks.programs import Library, on_betty, on_metaweight
from speed_bilevel import Optimizer, meta_adam
from speed_three_level import Batch, lower_optimizer, minus_mixed_product, weighted_loss
from torch import Tensor, nn
from torch.nn import functional as F
from turns import Step, later

from metaweight.weighting import MetaWeightNet

FEATURES, CLASSES = 784, 10
PLAIN, HAND, OURS, BETTY = "plain step", "hand-written", "metaweight", "betty-ml"


@dataclass(frozen=True)
class Lowers:
    """The program.

    Attributes:
        number: Networks under the weights.
        batch: Samples of a batch.
        width: Width of the hidden layers.
        dtype: Precision of everything.
        upper_optimizer: Makes the optimizer of the weights.
    """

    number: int = 4
    batch: int = 100
    width: int = 100
    dtype: torch.dtype = torch.float32
    upper_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = meta_adam

    def modules(self) -> tuple[list[nn.Module], nn.Module]:
        """Return the networks and the weights, the same for every contender."""
        torch.manual_seed(0)
        networks = [
            nn.Sequential(
                nn.Linear(FEATURES, self.width), nn.Tanh(), nn.Linear(self.width, CLASSES)
            ).to(self.dtype)
            for _ in range(self.number)
        ]
        return networks, MetaWeightNet().to(self.dtype)

    def batches(self) -> list[Batch]:
        """Return the batch of each network, and that of the weights last."""
        generator = torch.Generator().manual_seed(0)
        return [
            (
                torch.randn(self.batch, FEATURES, generator=generator, dtype=self.dtype),
                torch.randint(0, CLASSES, (self.batch,), generator=generator),
            )
            for _ in range(self.number + 1)
        ]


def judged(networks: Sequence[Any], batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the networks."""
    return torch.stack([F.cross_entropy(net(batch[0]), batch[1]) for net in networks]).mean()


def plain(program: Lowers) -> Step:
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


def hand_written(program: Lowers) -> Step:
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
            for parameter, gradient in zip(own, torch.autograd.grad(loss(), own), strict=True):
                parameter.grad = gradient
            optimizer.step()
        every = torch.autograd.grad(judged(networks, clean), [p for own in parameters for p in own])
        found = [torch.zeros_like(parameter) for parameter in wanted]
        for loss, own in zip(losses, parameters, strict=True):
            v, every = every[: len(own)], every[len(own) :]
            torch._foreach_add_(found, minus_mixed_product(loss, own, v, wanted))
        for parameter, gradient in zip(wanted, found, strict=True):
            parameter.grad = gradient
        upper_optimizer.step()

    return step


def on(program: Lowers, library: Callable[[], Library]) -> Step:
    """Return the step of the program on a library."""
    names = library()
    networks, weights = program.modules()
    *batches, clean = program.batches()

    class Lower(names.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            return weighted_loss(self.module, self.reweight, batch)

    class Reweight(names.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            below = [getattr(self, f"network{n}") for n in range(program.number)]
            return judged(below, batch)

    def problem(cls: Any, name: str, module: nn.Module, batch: Batch, optimizer: Any) -> Any:
        # Without this setting Betty frees the graph of an upper loss before its last use.
        config = names.config(type="darts", retain_graph=True)
        return cls(
            name=name,
            config=config,
            module=module,
            optimizer=optimizer,
            train_data_loader=[batch],
        )

    lowers = [
        problem(Lower, f"network{n}", network, batch, lower_optimizer(network))
        for n, (network, batch) in enumerate(zip(networks, batches, strict=True))
    ]
    upper_optimizer = program.upper_optimizer(weights.parameters())
    upper = problem(Reweight, "reweight", weights, clean, upper_optimizer)
    engine = names.engine(
        problems=[*lowers, upper],
        config=names.engine_config(train_iters=1, strategy="cpu"),
        dependencies={"u2l": {upper: lowers}, "l2u": {lower: [upper] for lower in lowers}},
    )
    engine.train()
    step: Step = engine.train_step
    return step


def lowers_contenders(**program: Any) -> dict[str, Callable[[], Step]]:
    """Return makers of the contenders' steps; peers that are missing are left out.

    Args:
        **program: See :class:`Lowers`.
    """
    makers: dict[str, Callable[[Lowers], Step]] = {
        PLAIN: plain,
        HAND: hand_written,
        OURS: partial(on, library=on_metaweight),
    }
    if importlib.util.find_spec("betty"):
        makers[BETTY] = partial(on, library=on_betty)
    given = partial(Lowers, **program)
    return {name: later(make, given) for name, make in makers.items()}
