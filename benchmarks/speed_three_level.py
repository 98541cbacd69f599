"""Any number of levels of MLPs, the same text on Betty and on metaweight; three by default.

- ``network0`` trains on noisy samples, weighted where there is a level above it;
- each further network trains on other samples and on the predictions of the one below for them;
- ``reweight`` weights the samples of ``network0`` by their losses, and evaluates the last network
  on clean samples.

A step is one step of every level. The hypergradient goes from the last network down to the first,
and from there to the weights.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from hypergradient_tasks.programs import Library, on_betty, on_metaweight
from speed_bilevel import Optimizer, meta_adam
from torch import Tensor, nn
from torch.nn import functional as F
from turns import Step, later

from metaweight import Unroll
from metaweight.weighting import MetaWeightNet

FEATURES, CLASSES, ALPHA = 784, 10, 0.01
Batch = tuple[Tensor, Tensor]


class Modules(NamedTuple):
    """The modules: a network for each level but the weights', from the lowest."""

    networks: list[nn.Module]
    weights: nn.Module


@dataclass(frozen=True)
class Levels:
    """The program.

    Attributes:
        levels: How many levels it has, at least 1.
        batch: Samples of a batch.
        width: Width of the hidden layers.
        dtype: Precision of everything.
        upper_optimizer: Makes the optimizer of the weights.
    """

    levels: int = 3
    batch: int = 100
    width: int = 100
    dtype: torch.dtype = torch.float32
    upper_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = meta_adam

    def modules(self) -> Modules:
        """Return the modules, the same for every contender."""
        torch.manual_seed(0)
        made = [self._network().to(self.dtype) for _ in range(max(1, self.levels - 1))]
        return Modules(made, MetaWeightNet().to(self.dtype))

    def batches(self) -> list[Batch]:
        """Return the batch of each level, from the lowest; that of the weights is the last."""
        generator = torch.Generator().manual_seed(0)
        return [
            (
                torch.randn(self.batch, FEATURES, generator=generator, dtype=self.dtype),
                torch.randint(0, CLASSES, (self.batch,), generator=generator),
            )
            for _ in range(max(2, self.levels))
        ]

    def _network(self) -> nn.Module:
        hidden = nn.Linear(FEATURES, self.width)
        return nn.Sequential(hidden, nn.Tanh(), nn.Linear(self.width, CLASSES))


def lower_optimizer(module: nn.Module) -> Optimizer:
    """Return the optimizer of a network."""
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def weighted_loss(network: Any, weights: Any, batch: Batch) -> Tensor:
    """Return the cross-entropy, weighted unless ``weights`` is ``None``."""
    inputs, labels = batch
    losses = F.cross_entropy(network(inputs), labels, reduction="none")
    return losses.mean() if weights is None else (weights(losses.detach()) * losses).mean()


def distilled_loss(network: Any, below: Any, batch: Batch) -> Tensor:
    """Return the cross-entropy to the labels and to the predictions of the network below."""
    inputs, labels = batch
    logits = network(inputs)
    distilled = F.cross_entropy(logits, below(inputs).softmax(-1))
    return F.cross_entropy(logits, labels) + distilled


def plain(program: Levels) -> Step:
    """Return an ordinary training step of the lowest network alone."""
    network = program.modules().networks[0]
    optimizer, batch = lower_optimizer(network), program.batches()[0]

    def step() -> None:
        optimizer.zero_grad()
        weighted_loss(network, None, batch).backward()
        optimizer.step()

    return step


def hand_written(program: Levels) -> Step:
    """Return the step as written without a library."""
    networks, weights = program.modules()
    batches = program.batches()
    optimizers = [lower_optimizer(network) for network in networks]
    upper_optimizer = program.upper_optimizer(weights.parameters())
    parameters = [list(network.parameters()) for network in networks]
    losses = [partial(weighted_loss, networks[0], weights, batches[0])] + [
        partial(distilled_loss, own, below, batch)
        for own, below, batch in zip(networks[1:], networks, batches[1:], strict=False)
    ]
    judged_on, above = batches[-1], [list(weights.parameters()), *parameters]

    def step() -> None:
        for loss, own, optimizer in zip(losses, parameters, optimizers, strict=True):
            descend(loss(), own, optimizer)
        judged = F.cross_entropy(networks[-1](judged_on[0]), judged_on[1])
        v = torch.autograd.grad(judged, parameters[-1])
        for number in reversed(range(len(networks))):
            v = minus_mixed_product(losses[number], parameters[number], v, above[number])
        for parameter, gradient in zip(above[0], v, strict=True):
            parameter.grad = gradient
        upper_optimizer.step()

    return step


def descend(loss: Tensor, parameters: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
    """Step down a loss."""
    found = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient
    optimizer.step()


def minus_mixed_product(
    loss: Callable[[], Tensor],
    at: list[nn.Parameter],
    v: tuple[Tensor, ...],
    wanted: list[nn.Parameter],
) -> tuple[Tensor, ...]:
    """Return ``-∂²L/∂θ∂w · v`` by a central difference; ``w`` are displaced and restored."""
    eps = (ALPHA / torch.cat([t.reshape(-1) for t in v]).norm()).item()
    found = []
    for move in (eps, -2 * eps):
        with torch.no_grad():
            torch._foreach_add_(at, v, alpha=move)
        found.append(torch.autograd.grad(loss(), wanted))
    with torch.no_grad():
        torch._foreach_add_(at, v, alpha=eps)
    plus, minus = found
    return tuple((m - p) / (2 * eps) for p, m in zip(plus, minus, strict=True))


def on(program: Levels, library: Callable[[], Library], kind: Any = "darts") -> Step:
    """Return the step of the program on a library.

    Args:
        program: The program.
        library: The library on which it runs.
        kind: Hypergradient method of the networks.
    """
    step: Step = engine_on(program, library, kind).train_step
    return step


def engine_on(
    program: Levels, library: Callable[[], Library], kind: Any = "darts", **settings: Any
) -> Any:
    """Return the engine of the program on a library.

    Args:
        program: The program.
        library: The library on which it runs.
        kind: Hypergradient method of the networks.
        **settings: Settings of the ``EngineConfig``.
    """
    names = library()
    made = partial(problem_of, names, kind)
    modules, batches = program.modules(), program.batches()
    last = f"network{len(modules.networks) - 1}"

    class Lowest(names.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            weights = self.reweight if program.levels > 1 else None
            return weighted_loss(self.module, weights, batch)

    class Distilled(names.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            return distilled_loss(self.module, getattr(self, below[self.name]), batch)

    class Reweight(names.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            return F.cross_entropy(getattr(self, last)(batch[0]), batch[1])

    below = {f"network{n}": f"network{n - 1}" for n in range(1, len(modules.networks))}
    problems = [
        made(Distilled if n else Lowest, f"network{n}", network, batch, lower_optimizer(network))
        for n, (network, batch) in enumerate(zip(modules.networks, batches, strict=False))
    ]
    down: dict[Any, list[Any]] = {}
    up: dict[Any, list[Any]] = {}
    if program.levels > 1:
        upper_optimizer = program.upper_optimizer(modules.weights.parameters())
        high = made(Reweight, "reweight", modules.weights, batches[-1], upper_optimizer)
        problems.append(high)
        down = {high: [problems[0]]}
        up = {low: [above] for low, above in itertools.pairwise(problems)}
    engine = names.engine(
        problems=problems,
        config=names.engine_config(**{"train_iters": 1, "strategy": "cpu", **settings}),
        dependencies={"u2l": down, "l2u": up},
    )
    engine.train()
    return engine


def problem_of(
    library: Library,
    kind: Any,
    cls: Any,
    name: str,
    module: nn.Module,
    batch: Batch,
    optimizer: Any,
) -> Any:
    """Return a problem of a class on a library, with one batch and a method of hypergradients."""
    # Without this setting Betty frees the graph of an upper loss before its last use.
    config = library.config(type=kind, retain_graph=True)
    return cls(
        name=name, config=config, module=module, optimizer=optimizer, train_data_loader=[batch]
    )


PLAIN, HAND = "plain step", "hand-written"
OURS, BETTY = "metaweight", "betty-ml"
ONE_SIDED, EXACT = "metaweight, unrolled, one-sided", "metaweight, exact"
Maker = Callable[[Levels], Step]


def three_level_contenders(
    names: Sequence[str] = (PLAIN, HAND, OURS, BETTY), **program: Any
) -> dict[str, Callable[[], Step]]:
    """Return makers of the contenders' steps; peers that are missing are left out.

    Args:
        names: Names of the contenders.
        **program: See :class:`Levels`.
    """
    makers: dict[str, Maker] = {
        PLAIN: plain,
        HAND: hand_written,
        OURS: partial(on, library=on_metaweight),
        ONE_SIDED: partial(on, library=on_metaweight, kind=Unroll(product="one_sided")),
        EXACT: partial(on, library=on_metaweight, kind=Unroll()),
    }
    if importlib.util.find_spec("betty"):
        makers[BETTY] = partial(on, library=on_betty)
    given = partial(Levels, **program)
    return {name: later(makers[name], given) for name in names if name in makers}
