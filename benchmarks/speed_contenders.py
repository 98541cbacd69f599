"""The contenders of a :class:`~speed_bilevel.Task` by name, and those on higher and TorchOpt."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from hypergradient_tasks.programs import on_betty, on_metaweight
from speed_bilevel import (
    Task,
    learn,
    native_by_hand,
    official,
    ours,
    plain,
    train_weighted,
    written_for_betty,
)
from torch import nn
from turns import Step, later

from metaweight import Config, Reweighting, Unroll


def on_higher(task: Task, again: bool) -> Step:
    """Return the unrolled program on higher.

    Args:
        task: What is trained.
        again: Take the steps again with the new weights, as published, or else keep them.
    """
    import higher

    net, weights, optimizer, upper_optimizer, batches = task.parts()

    def step() -> None:
        chosen = list(islice(batches, task.steps))
        context = higher.innerloop_ctx(net, optimizer, copy_initial_weights=False)
        with task.kernels(), context as (fast, inner):
            for batch in chosen:
                inner.step(task.weighted_loss(fast, weights, batch))
            judged = task.upper_loss(fast)
            gradients = torch.autograd.grad(judged, list(weights.parameters()))
            if not again:
                keep(net, optimizer, fast, inner)
        learn(weights, gradients, upper_optimizer)
        if again:
            train_weighted(task, net, weights, optimizer, chosen)

    return step


@torch.no_grad()
def keep(net: nn.Module, optimizer: torch.optim.Optimizer, fast: Any, inner: Any) -> None:
    """Write the result of higher's steps into the network and its optimizer."""
    for kept, new in zip(net.parameters(), fast.parameters(), strict=True):
        kept.copy_(new)
    for kept, new in zip(net.buffers(), fast.buffers(), strict=True):
        kept.copy_(new)
    for group, states in zip(optimizer.param_groups, inner.state, strict=True):
        for position, parameter in enumerate(group["params"]):
            optimizer.state[parameter] = {
                name: value.detach() if isinstance(value, torch.Tensor) else value
                for name, value in states[position].items()
            }


def on_torchopt(task: Task, again: bool) -> Step:
    """Return the unrolled program on TorchOpt; for the arguments see :func:`on_higher`."""
    import torchopt

    net, weights, _, upper_optimizer, batches = task.parts()
    inner = torchopt.MetaSGD(net, **task.sgd)

    def step() -> None:
        chosen = list(islice(batches, task.steps))
        if again:
            before = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
            optimizer_before = torchopt.extract_state_dict(inner, by="reference")
        with task.kernels():
            for batch in chosen:
                inner.step(task.weighted_loss(net, weights, batch))
            judged = task.upper_loss(net)
            gradients = torch.autograd.grad(judged, list(weights.parameters()))
        learn(weights, gradients, upper_optimizer)
        if again:
            torchopt.recover_state_dict(net, before)
            torchopt.recover_state_dict(inner, optimizer_before)
            for batch in chosen:
                losses = task.sample_losses(net, batch)
                w = task.weigh(weights, losses.detach(), batch).detach()
                inner.step((w * losses).mean())
        torchopt.stop_gradient(net)
        torchopt.stop_gradient(inner)

    return step


Maker = Callable[[Task], Step]

PLAIN = "plain step"
OFFICIAL = "official algorithm, plain"
BY_HAND = "native, by hand"
NATIVE = "metaweight, native"
ONE_SIDED = "metaweight, native, one-sided"
FORWARD = "metaweight, native, forward mode"
PROGRAM = "metaweight, Betty's program"
EXACT = "metaweight, exact"
EXACT_AGAIN = "metaweight, exact, step taken again"
FULL = "metaweight, exact, full memory"
UNROLLED_ONE_SIDED = "metaweight, unrolled, one-sided"
BETTY = "betty-ml, finite difference"
HIGHER = "higher, unrolled"
HIGHER_KEPT = "higher, unrolled, step kept"
TORCHOPT = "torchopt, unrolled"
TORCHOPT_KEPT = "torchopt, unrolled, step kept"

OURS: dict[str, Config] = {
    NATIVE: Config(),
    ONE_SIDED: Config(type=Reweighting(derivative="one_sided")),
    FORWARD: Config(type=Reweighting(derivative="forward_mode")),
    EXACT: Config(type=Unroll()),
    FULL: Config(type=Unroll(memory="full")),
    UNROLLED_ONE_SIDED: Config(type=Unroll(product="one_sided")),
}
PEERS: dict[str, tuple[str, Maker]] = {
    BETTY: ("betty", partial(written_for_betty, library=on_betty)),
    HIGHER: ("higher", partial(on_higher, again=True)),
    HIGHER_KEPT: ("higher", partial(on_higher, again=False)),
    TORCHOPT: ("torchopt", partial(on_torchopt, again=True)),
    TORCHOPT_KEPT: ("torchopt", partial(on_torchopt, again=False)),
}
ONE_STEP = (
    PLAIN,
    OFFICIAL,
    BY_HAND,
    NATIVE,
    ONE_SIDED,
    FORWARD,
    PROGRAM,
    EXACT,
    FULL,
    EXACT_AGAIN,
    BETTY,
    HIGHER,
    HIGHER_KEPT,
    TORCHOPT,
    TORCHOPT_KEPT,
)
"""The contenders of a workload with one lower step for each upper one."""


def bilevel_contenders(
    make_task: Callable[[], Task], names: Sequence[str] = ONE_STEP, device: str = "cpu"
) -> dict[str, Callable[[], Step]]:
    """Return makers of the contenders' steps; peers that are missing are left out.

    Args:
        make_task: Makes what is trained, in the contender's process.
        names: Of the contenders.
        device: Where they compute.
    """
    makers: dict[str, Maker] = {PLAIN: plain, OFFICIAL: official, BY_HAND: native_by_hand}
    makers |= {name: partial(ours, config=config) for name, config in OURS.items()}
    makers[EXACT_AGAIN] = partial(ours, config=OURS[EXACT], again=True)
    makers[PROGRAM] = partial(written_for_betty, library=on_metaweight)
    makers |= {n: make for n, (package, make) in PEERS.items() if importlib.util.find_spec(package)}
    return {
        name: later(makers[name], lambda: make_task().on(device))
        for name in names
        if name in makers
    }
