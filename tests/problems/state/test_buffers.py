"""State of modules kept where it was: buffers around evaluations, everything for a roll-back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from metaweight.problems.state.buffers import Snapshot, buffer_slots, preserved_buffers
from torch import Tensor, nn


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()


def inputs(seed: int = 1) -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_as_before_and_a_backward_pass_afterwards_works(training: bool) -> None:
    net = network().train(training)
    net(inputs(3))
    reference = copy.deepcopy(net)
    before = buffers(net)
    with preserved_buffers(buffer_slots(net)):
        loss = net(inputs()).sum()
        moved = not torch.equal(net[1].running_mean, before["1.running_mean"])
    assert moved is training
    assert_equal(buffers(net), before)
    loss.backward()
    reference(inputs()).sum().backward()
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


def test_buffers_are_as_before_after_an_exception() -> None:
    net = network()
    before = buffers(net)
    with pytest.raises(RuntimeError, match="inside"), preserved_buffers(buffer_slots(net)):
        net(inputs())
        raise RuntimeError("inside")
    assert_equal(buffers(net), before)


class Averaging(nn.Module):
    """Keeps a running mean by giving its buffer another tensor each time."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean()
        return self.scale * (x - self.mean)


def test_a_buffer_given_another_tensor_is_as_before() -> None:
    module = Averaging()
    given = module.mean
    with preserved_buffers(buffer_slots(module)):
        module(torch.ones(2))
        assert module.mean.item() == 0.5
    assert module.mean is given
    assert module.mean.item() == 0.0


def test_slots_leave_out_buffers_that_are_none() -> None:
    assert [name for _, name in buffer_slots(Averaging())] == ["mean"]
    assert [name for _, name in buffer_slots(network())] == [
        "running_mean",
        "running_var",
        "num_batches_tracked",
    ]


def step(net: nn.Module, optimizer: Any, seed: int) -> None:
    optimizer.zero_grad()
    net(inputs(seed)).square().mean().backward()
    optimizer.step()


OPTIMIZERS = {
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw, amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_snapshot_brings_back_parameters_buffers_and_moments(name: str) -> None:
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters())
    step(net, optimizer, 1)
    snapshot = Snapshot(net.parameters(), buffer_slots(net), optimizer, None)
    parameters = list(net.parameters())
    expected = None
    for _ in range(3):  # the second and third time only if restoring spent nothing of the snapshot
        step(net, optimizer, 2)
        step(net, optimizer, 3)
        ended = copy.deepcopy(net.state_dict())
        expected = ended if expected is None else expected
        assert_equal(ended, expected)
        snapshot.restore(optimizer, None)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))


def test_a_snapshot_taken_before_the_first_step_forgets_the_moments_since() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    snapshot = Snapshot(net.parameters(), buffer_slots(net), optimizer, None)
    step(net, optimizer, 1)
    snapshot.restore(optimizer, None)
    assert optimizer.state_dict()["state"] == {}


def test_a_snapshot_brings_back_a_buffer_given_another_tensor() -> None:
    module = Averaging()
    snapshot = Snapshot(module.parameters(), buffer_slots(module), None, None)
    module(torch.ones(2))
    snapshot.restore(None, None)
    assert module.mean.item() == 0.0


def test_a_snapshot_brings_back_the_scale_of_a_loss() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    snapshot = Snapshot([], [], None, scaler)
    scaler.update(2.0)
    assert scaler.get_scale() == 2.0
    snapshot.restore(None, scaler)
    assert scaler.get_scale() == 8.0
