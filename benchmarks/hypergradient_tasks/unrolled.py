"""A network under learned sample weights, unrolled: the program in every library.

``k`` steps of SGD with momentum on ``mean_i V(sg(l_i); θ) l_i``, each on a batch of its own, then
the gradient by ``θ`` of the cross-entropy of other samples at the parameters reached. Every maker
returns a function that starts from the same parameters each time.
"""

from __future__ import annotations

import copy
import importlib.util
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import metaweight
from metaweight import Hypergradient, Reweighting, Unroll
from metaweight.weighting import MetaWeightNet

from .programs import Library, on_betty, on_metaweight

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
Batch = tuple[Tensor, Tensor]
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Workload:
    """The data and start of every contender.

    Attributes:
        steps: ``k``.
        net: The lower network at its start.
        train: Batches of the first steps, at least ``k`` of them.
        judge: The batch of the upper loss.
        lr: Learning rate.
        kernels: A context whose kernels can be differentiated twice, where others are the default.
    """

    steps: int
    net: nn.Module
    train: Sequence[Batch]
    judge: Batch
    lr: float = 0.1
    kernels: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def batches(self) -> list[Batch]:
        """The batches of the ``k`` steps."""
        return list(self.train[: self.steps])

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Return a new copy of the lower network and of the weight network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return copy.deepcopy(self.net), MetaWeightNet()

    def optimizer(self, net: nn.Module) -> torch.optim.SGD:
        """Return the optimizer of the lower network."""
        return torch.optim.SGD(net.parameters(), **self.settings)

    @property
    def settings(self) -> dict[str, float]:
        """Return the settings of the optimizer."""
        return {"lr": self.lr, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}


def sample_losses(net: Callable[[Tensor], Tensor], batch: Any) -> Tensor:
    """Return the cross-entropy of each sample, (B, 1)."""
    inputs, labels = batch
    return F.cross_entropy(net(inputs), labels, reduction="none").unsqueeze(1)


def weighted_loss(net: Callable[[Tensor], Tensor], weights: nn.Module, batch: Any) -> Tensor:
    """Return ``mean_i V(sg(l_i); θ) l_i``."""
    losses = sample_losses(net, batch)
    loss: Tensor = (weights(losses.detach()) * losses).mean()
    return loss


def judged_loss(net: Callable[[Tensor], Tensor], batch: Any) -> Tensor:
    """Return the cross-entropy."""
    return sample_losses(net, batch).mean()


def flat(gradients: Any) -> Tensor:
    """Return gradients as one vector."""
    return torch.cat([g.detach().reshape(-1) for g in gradients])


def weighted(library: Library) -> Any:
    """Return the lower problem as a user of the library writes it."""

    class Inner(library.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            return weighted_loss(self.module, self.outer, batch)

    return Inner


class Declared(metaweight.ReweightedProblem):
    """The same by its sample losses and weights."""

    def sample_losses(self, batch: Any) -> Tensor:
        return sample_losses(self.module, batch)

    def sample_weights(self, losses: Tensor, batch: Any) -> Tensor:
        del batch
        weights: Tensor = self.outer(losses)
        return weights


def program(library: Library, inner_type: Any, settings: dict[str, Any], work: Workload) -> Run:
    """Return the run of a two-level program on metaweight or Betty."""
    seen: list[Tensor] = []
    net, weights = work.networks()

    class Outer(library.problem):  # type: ignore[misc, name-defined]
        def training_step(self, batch: Any) -> Tensor:
            return judged_loss(self.inner, batch)

        def grad_callback(self) -> None:
            seen[:] = [flat(p.grad for p in self.module.parameters())]

    outer = Outer(
        name="outer",
        config=library.config(retain_graph=True),
        module=weights,
        optimizer=torch.optim.SGD(weights.parameters(), lr=0.0),
        train_data_loader=[work.judge],
    )
    inner = inner_type(
        name="inner",
        config=library.config(unroll_steps=work.steps, **settings),
        module=net,
        optimizer=work.optimizer(net),
        train_data_loader=work.batches,
    )
    engine = library.engine(
        problems=[outer, inner],
        config=library.engine_config(train_iters=1, strategy="cpu"),
        dependencies={"u2l": {outer: [inner]}, "l2u": {inner: [outer]}},
    )
    engine.train()
    start = copy.deepcopy(net.state_dict())

    def run() -> Tensor:
        net.load_state_dict(start)
        engine.inner.optimizer.state = defaultdict(dict)
        for _ in range(work.steps):
            engine.train_step()
        return seen[0]

    return run


def ours(kind: Hypergradient, declared: bool, work: Workload) -> Run:
    """Return metaweight's run."""
    library = on_metaweight()
    if isinstance(kind, Unroll) and not declared:
        library = library._replace(problem=metaweight.IterativeProblem)
    inner_type = Declared if declared else weighted(library)
    upper = library._replace(problem=metaweight.ImplicitProblem)
    return program(upper, inner_type, {"type": kind}, work)


def betty(work: Workload) -> Run:
    """Return Betty's run, with the finite difference of the last step."""
    library = on_betty()
    return program(library, weighted(library), {"type": "darts"}, work)


def higher(work: Workload) -> Run:
    """Return higher's run."""
    import higher as library

    net, weights = work.networks()
    optimizer = work.optimizer(net)

    def run() -> Tensor:
        context = library.innerloop_ctx(net, optimizer, copy_initial_weights=False)
        with work.kernels(), context as (fast, inner):
            for batch in work.batches:
                inner.step(weighted_loss(fast, weights, batch))
            loss = judged_loss(fast, work.judge)
            return flat(torch.autograd.grad(loss, list(weights.parameters())))

    return run


def torchopt(work: Workload) -> Run:
    """Return TorchOpt's run."""
    import torchopt as library

    net, weights = work.networks()
    inner = library.MetaSGD(net, **work.settings)
    start = library.extract_state_dict(net, by="copy")
    optimizer_start = library.extract_state_dict(inner, by="copy")

    def run() -> Tensor:
        library.recover_state_dict(net, start)
        library.recover_state_dict(inner, optimizer_start)
        with work.kernels():
            for batch in work.batches:
                inner.step(weighted_loss(net, weights, batch))
            loss = judged_loss(net, work.judge)
            found = flat(torch.autograd.grad(loss, list(weights.parameters())))
        library.stop_gradient(net)
        library.stop_gradient(inner)
        return found

    return run


def training(work: Workload) -> Run:
    """Return a run of the training steps alone."""
    net, weights = work.networks()
    optimizer = work.optimizer(net)

    def run() -> Tensor:
        for batch in work.batches:
            optimizer.zero_grad()
            weighted_loss(net, weights.requires_grad_(False), batch).backward()
            optimizer.step()
        return torch.zeros(sum(p.numel() for p in weights.parameters()))

    return run


Make = Callable[[Workload], Run]

TRAINING = "training alone"
EXACT = "metaweight: exact"
DIFFERENCE = "metaweight: finite_difference, declared"
ONE_SIDED = "metaweight: one_sided, declared"
KEPT = "metaweight: exact, full memory"
HIGHER = "higher: unroll"


def contenders() -> dict[str, Make]:
    """Return the maker of each contender's run, without those of missing libraries."""
    exact, difference = Unroll(), Unroll(product="finite_difference")
    forward = Unroll(product="forward_over_reverse")
    makes: dict[str, Make] = {
        TRAINING: training,
        EXACT: partial(ours, exact, False),
        "metaweight: exact, declared": partial(ours, exact, True),
        KEPT: partial(ours, Unroll(memory="full"), False),
        "metaweight: forward_over_reverse": partial(ours, forward, False),
        "metaweight: finite_difference": partial(ours, difference, False),
        DIFFERENCE: partial(ours, difference, True),
        ONE_SIDED: partial(ours, Unroll(product="one_sided"), True),
        "metaweight: Reweighting, last step": partial(ours, Reweighting(), True),
    }
    peers: dict[str, tuple[str, Make]] = {
        HIGHER: ("higher", higher),
        "torchopt: MetaSGD": ("torchopt", torchopt),
        "betty-ml: darts, last step": ("betty", betty),
    }
    return makes | {
        label: make for label, (package, make) in peers.items() if importlib.util.find_spec(package)
    }
