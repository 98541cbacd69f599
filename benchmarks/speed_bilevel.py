"""A network trained on weighted samples, in every library that can learn the weights.

The lower problem takes SGD steps on ``mean_i V_i l_i``; the upper one evaluates the network on
other samples and learns ``V``. A :class:`Task` describes the program; its contenders use the same
tensors and start from the same parameters. They compute one of two hypergradients:

- *finite difference* and *native*: ``-∂²L/∂θ∂w · v``, without the learning rate;
- *exact* and *unrolled*: the derivative through the SGD steps, which is what the official
  algorithm of Meta-Weight-Net (Shu et al., NeurIPS 2019, arXiv:1902.07379) computes.

And they continue in one of two ways. As published, the step that was differentiated is only a look
ahead, and is taken again with the new weights: the official algorithm, ``higher``, ``TorchOpt`` and
those *with the step taken again*. An engine keeps the step, as all others here do, and saves a
forward and a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, NamedTuple

import torch
from devices import strategy_on
from hypergradient_tasks.programs import Library, on_metaweight
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from turns import Step

import metaweight
from metaweight import Config

Batch = tuple[Tensor, ...]
"""Inputs, labels, and positions of the samples where weights are stored by position."""

Optimizer = torch.optim.Optimizer

ALPHA = 0.01
"""Length of the displacement of a native hypergradient."""


class Parts(NamedTuple):
    """The modules and optimizers of one contender."""

    net: nn.Module
    weights: nn.Module
    optimizer: Optimizer
    upper_optimizer: Optimizer
    batches: Iterator[Batch]


def by_losses(weights: Any, losses: Tensor, batch: Batch) -> Tensor:
    """Return the weights of a network whose only input are the losses."""
    del batch
    found: Tensor = weights(losses)
    return found


def meta_adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the usual optimizer of weights."""
    return torch.optim.Adam(parameters, lr=1e-3)


@dataclass(frozen=True)
class Task:
    """The networks, data and settings of a workload.

    Attributes:
        modules: Makes the network and the module of the weights, after a fixed seed.
        train: The batches of the lower problem, used in order and repeatedly.
        judge: The batch of the upper problem.
        weigh: Weights (B,) from the upper module, the losses (B,) without a graph, and the batch.
        sgd: Settings of the lower optimizer.
        upper_optimizer: Makes the upper optimizer.
        steps: Lower steps for each upper one.
        kernels: A context whose kernels can be differentiated twice, where others are the default.
        dtype: Precision of everything.
        device: Where everything is.
    """

    modules: Callable[[], tuple[nn.Module, nn.Module]]
    train: Sequence[Batch]
    judge: Batch
    weigh: Callable[[Any, Tensor, Batch], Tensor]
    sgd: dict[str, float]
    upper_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = meta_adam
    steps: int = 1
    kernels: Callable[[], AbstractContextManager[Any]] = nullcontext
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def on(self, device: str) -> Task:
        """Return the task with its batches on a device, where it makes its modules."""
        train, judge = (
            [tuple(t.to(device) for t in batch) for batch in batches]
            for batches in (self.train, [self.judge])
        )
        return replace(self, train=train, judge=judge[0], device=device)

    def parts(self) -> Parts:
        """Return modules and optimizers, the same for every contender."""
        torch.manual_seed(0)
        net, weights = (module.to(self.device, self.dtype) for module in self.modules())
        optimizer = torch.optim.SGD(net.parameters(), **self.sgd)
        upper_optimizer = self.upper_optimizer(weights.parameters())
        return Parts(net, weights, optimizer, upper_optimizer, cycle(self.train))

    def sample_losses(self, net: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """Return ``l_i``, (B,)."""
        return F.cross_entropy(net(batch[0]), batch[1], reduction="none")

    def weighted_loss(self, net: Callable[[Tensor], Tensor], weights: Any, batch: Batch) -> Tensor:
        """Return ``mean_i V_i(sg(l)) l_i``."""
        losses = self.sample_losses(net, batch)
        return (self.weigh(weights, losses.detach(), batch) * losses).mean()

    def upper_loss(self, net: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the cross-entropy of the upper problem's batch."""
        return F.cross_entropy(net(self.judge[0]), self.judge[1])


def plain(task: Task) -> Step:
    """Return ordinary training steps, without any weights."""
    net, _, optimizer, _, batches = task.parts()

    def step() -> None:
        for _ in range(task.steps):
            inputs, labels, *_ = next(batches)
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), labels).backward()
            optimizer.step()

    return step


def official(task: Task) -> Step:
    """Return the published algorithm written plainly: look ahead, learn, then step."""
    net, weights, optimizer, upper_optimizer, batches = task.parts()

    def at(parameters: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        # Running statistics of a copy, as in the official code: a look ahead must not change them.
        buffers = {name: b.clone() for name, b in net.named_buffers()}
        return lambda inputs: functional_call(net, {**parameters, **buffers}, (inputs,))

    def step() -> None:
        batch = next(batches)
        with task.kernels():
            now = dict(net.named_parameters())
            loss = task.weighted_loss(at(now), weights, batch)
            found = torch.autograd.grad(loss, list(now.values()), create_graph=True)
            ahead = {
                name: p - task.sgd["lr"] * g
                for (name, p), g in zip(now.items(), found, strict=True)
            }
            judged = task.upper_loss(at(ahead))
            gradients = torch.autograd.grad(judged, list(weights.parameters()))
        learn(weights, gradients, upper_optimizer)
        train_weighted(task, net, weights, optimizer, [batch])

    return step


def native_by_hand(task: Task) -> Step:
    """Return the steps of a native hypergradient written plainly, for a network without buffers.

    A step of the network, and one of the weights along ``-∇_w mean_i V_i d_i``, where ``d_i`` is
    the central difference of the sample losses along ``∇F``, of length :data:`ALPHA`. Nothing is
    checked, and parameters are moved back by subtraction, to rounding.
    """
    net, weights, optimizer, upper_optimizer, batches = task.parts()
    own, above = list(net.parameters()), list(weights.parameters())

    def train(batch: Batch) -> None:
        found = torch.autograd.grad(task.weighted_loss(net, weights, batch), own)
        for parameter, gradient in zip(own, found, strict=True):
            parameter.grad = gradient
        optimizer.step()

    def hypergradient(batch: Batch) -> Sequence[Tensor]:
        vector = torch.autograd.grad(task.upper_loss(net), own)
        with torch.no_grad():
            eps = ALPHA / torch.linalg.vector_norm(torch.stack(torch._foreach_norm(vector)))
            shift = torch._foreach_mul(vector, eps)
            torch._foreach_add_(own, shift)
            ahead = task.sample_losses(net, batch)
            torch._foreach_sub_(own, shift, alpha=2)
            behind = task.sample_losses(net, batch)
            torch._foreach_add_(own, shift)
            along = (behind - ahead) / (2 * eps)
        weighed = task.weigh(weights, (ahead + behind) / 2, batch)
        return torch.autograd.grad((weighed * along).mean(), above)

    def step() -> None:
        for _ in range(task.steps):
            batch = next(batches)
            train(batch)
        learn(weights, hypergradient(batch), upper_optimizer)

    return step


def learn(weights: nn.Module, gradients: Iterable[Tensor], optimizer: Optimizer) -> None:
    """Step the module of the weights."""
    for parameter, gradient in zip(weights.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def train_weighted(
    task: Task, net: nn.Module, weights: nn.Module, optimizer: Optimizer, batches: Iterable[Batch]
) -> None:
    """Step the network on weighted losses."""
    for batch in batches:
        losses = task.sample_losses(net, batch)
        with torch.no_grad():
            w = task.weigh(weights, losses, batch)
        optimizer.zero_grad()
        (w * losses).mean().backward()
        optimizer.step()


def ours(task: Task, config: Config, again: bool = False) -> Step:
    """Return metaweight's steps, sample losses and weights declared.

    Args:
        task: What is trained.
        config: Config of the lower problem.
        again: Take the step again with the new weights, as published.
    """
    return repeated(our_engine(task, config, roll_back=again).train_step, task.steps)


def our_engine(task: Task, config: Config, **settings: Any) -> Any:
    """Return metaweight's engine, sample losses and weights declared.

    Args:
        task: What is trained.
        config: Config of the lower problem.
        **settings: Settings of the ``EngineConfig``.
    """

    class Lower(metaweight.ReweightedProblem):
        def sample_losses(self, batch: Any) -> Tensor:
            return task.sample_losses(self.module, batch)

        def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
            return task.weigh(self.upper, losses, batch)

    return engine_of(task, on_metaweight(), Lower, {"type": config.type}, settings)


def engine_of(
    task: Task,
    library: Library,
    lower_type: Any,
    settings: dict[str, Any],
    engine_settings: dict[str, Any],
) -> Any:
    """Return the engine of a program with that lower problem.

    Args:
        task: What is trained.
        library: The library on which the program runs.
        lower_type: The class of the lower problem.
        settings: Settings of its ``Config``.
        engine_settings: Settings of the ``EngineConfig``.
    """
    net, weights, optimizer, upper_optimizer, _ = task.parts()

    class Upper(library.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.lower(batch[0]), batch[1])

    upper = Upper(
        name="upper",
        config=library.config(retain_graph=True),
        module=weights,
        optimizer=upper_optimizer,
        train_data_loader=[task.judge],
    )
    lower = lower_type(
        name="lower",
        config=library.config(unroll_steps=task.steps, **settings),
        module=net,
        optimizer=optimizer,
        train_data_loader=list(task.train),
    )
    engine = library.engine(
        problems=[upper, lower],
        config=library.engine_config(
            **{"train_iters": 1, "strategy": strategy_on(task.device), **engine_settings}
        ),
        dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
    )
    engine.train()
    return engine


def repeated(step: Step, times: int) -> Step:
    """Return a function that takes a step ``times`` times."""

    def steps() -> None:
        for _ in range(times):
            step()

    return step if times == 1 else steps


def written_for_betty(task: Task, library: Callable[[], Library]) -> Step:
    """Return the steps of the program as its users write it, a finite difference of the loss."""
    names = library()

    class Lower(names.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            return task.weighted_loss(self.module, self.upper, batch)

    engine = engine_of(task, names, Lower, {"type": "darts"}, {})
    return repeated(engine.train_step, task.steps)
