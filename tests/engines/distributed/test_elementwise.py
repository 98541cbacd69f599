"""Optimizers that can update a part of a parameter are told from those that cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from metaweight.engines.distributed.elementwise import ENTRYWISE, require_entrywise
from support.small import problem
from torch import nn

from metaweight import ConfigurationError


class Normalised(torch.optim.Optimizer):
    """Divides a gradient by its norm, over the whole parameter."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad / p.grad.norm(), alpha=group["lr"])


class Matrices(torch.optim.Optimizer):
    """Decays only what has two dimensions."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.dim() > 1:
                    p.mul_(1 - group["lr"])
                p.sub_(p.grad, alpha=group["lr"])


class Signs(torch.optim.Optimizer):
    """Follows signs, by a mean it keeps."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    p.sub_(mean.lerp_(p.grad, 0.1).sign(), alpha=group["lr"])


class Wrapped(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.inner = torch.optim.SGD(self.param_groups, 0.1)


class Renamed(torch.optim.Adam):
    """Adam by another name."""


def with_optimizer(make: Callable[[Any], torch.optim.Optimizer]) -> Any:
    module = nn.Linear(2, 2, bias=False)
    return problem(module=module, optimizer=make(module.parameters()))


REFUSED: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], str]] = {
    "LBFGS": (torch.optim.LBFGS, "which keeps one state for all parameters"),
    "Adafactor": (torch.optim.Adafactor, "whose update of an entry depends on the others"),
    "Muon": (
        getattr(torch.optim, "Muon", torch.optim.LBFGS),
        "which cannot update a part of a parameter",
    ),
    "Normalised": (lambda p: Normalised(p, {"lr": 0.1}), "whose update of an entry depends"),
    "at a rate of 0": (lambda p: Normalised(p, {"lr": 0.0}), "whose update of an entry depends"),
    "Matrices": (lambda p: Matrices(p, {"lr": 0.1}), "whose update of an entry depends"),
    "Wrapped": (Wrapped, "which holds another optimizer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_looks_at_more_than_one_entry_is_refused(name: str) -> None:
    if name == "Muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    make, reason = REFUSED[name]
    refused = with_optimizer(make)
    before = {k: dict(v) for k, v in refused.optimizer.state.items()}
    values = [p.detach().clone() for p in refused.parameters()]
    with pytest.raises(ConfigurationError, match=f"{reason}.*strategy='zero'"):
        require_entrywise(refused, 2)
    assert refused.optimizer.state == before
    assert all(torch.equal(a, b) for a, b in zip(values, refused.parameters(), strict=True))


@pytest.mark.parametrize("make", [*ENTRYWISE, Renamed, lambda p: Signs(p, {"lr": 0.1})])
def test_what_updates_entries_one_by_one_is_taken(make: Any) -> None:
    taken = with_optimizer(make)
    require_entrywise(taken, 2)
    assert not taken.optimizer.state or isinstance(taken.optimizer, torch.optim.Adagrad)


def test_what_is_no_optimizer_is_refused() -> None:
    taken = with_optimizer(torch.optim.SGD)
    taken.optimizer = object()
    with pytest.raises(ConfigurationError, match=r"object, which is no torch.optim.Optimizer"):
        require_entrywise(taken, 2)
