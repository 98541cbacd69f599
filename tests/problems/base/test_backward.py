"""Backward passes without the work around them are those of ``torch.autograd``."""

from __future__ import annotations

import pytest
import torch
from metaweight.problems.base import backward
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def network() -> tuple[nn.Module, Tensor]:
    torch.default_generator.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    unused = torch.ones(2, dtype=torch.float64, requires_grad=True)
    net.register_parameter("unused", nn.Parameter(unused))
    return net, torch.randn(7, 3, dtype=torch.float64)


@pytest.mark.parametrize("run", [backward._run, None])
def test_gradients_are_those_of_autograd(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: it is the same pass; without torch's private call, by torch's own functions."""
    assert backward._run is not None
    monkeypatch.setattr(backward, "_run", run)
    net, inputs = network()
    parameters = list(net.parameters())
    expected = torch.autograd.grad(net(inputs).square().mean(), parameters, allow_unused=True)
    found = backward.gradients(net(inputs).square().mean(), parameters)
    assert expected[0] is None and found[0] is None
    for theirs, ours in zip(expected[1:], found[1:], strict=True):
        assert torch.equal(theirs, ours)
    for _ in range(2):
        backward.accumulate(net(inputs).square().mean(), parameters[1:3])
    for parameter, theirs in zip(parameters[1:3], expected[1:3], strict=True):
        assert torch.equal(parameter.grad, theirs + theirs)
    assert all(p.grad is None for p in (parameters[0], *parameters[3:]))


def test_hooks_are_called_as_by_autograd() -> None:
    w = torch.ones(3, requires_grad=True)
    w.register_hook(lambda gradient: 2 * gradient)
    assert torch.equal(backward.gradients((3 * w).sum(), [w])[0], torch.full((3,), 6.0))


def test_a_loss_that_is_a_parameter_shares_no_memory_between_passes() -> None:
    w = torch.tensor(2.0, requires_grad=True)
    (first,) = backward.gradients(w, [w])
    first.mul_(5)
    (second,) = backward.gradients(w, [w])
    assert float(second) == 1.0


def test_overrides_of_torch_functions_see_the_pass() -> None:
    class Seeing(TorchFunctionMode):
        seen = False

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen |= func is torch.autograd.grad
            return func(*args, **(kwargs or {}))

    w = torch.ones(3, requires_grad=True)
    loss = w.square().sum()
    with Seeing() as mode:
        (found,) = backward.gradients(loss, [w])
    assert mode.seen
    assert torch.equal(found, torch.full((3,), 2.0))
