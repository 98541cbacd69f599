"""A card computes what the CPU does, and the host never waits for it in a step.

Every test is a function of the device, and runs on the CPU too.
"""

from __future__ import annotations

import multiprocessing
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import fork_server
from support.device_programs import ONE_SIDED, UNWAITING, learned, one_rank, reweighting
from support.devices import DEVICES, no_waiting
from support.methods import GRADIENT_METHODS
from support.two_processes import free_port
from torch import Tensor

from metaweight import Engine, FiniteDifference, Hook, Reweighting, Unroll

on_every_device = pytest.mark.parametrize("device", DEVICES)


def close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Relative to the largest entry of each tensor."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


@on_every_device
@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_hypergradients_and_steps_are_those_of_the_cpu(name: str, device: str) -> None:
    """To 1e-6 in double precision: rounding, divided by steps of 1e-6 and penalties of 1e6."""
    method = GRADIENT_METHODS[name]
    close(learned(reweighting(device, method)), learned(reweighting("cpu", method)), 1e-6)


@on_every_device
@pytest.mark.parametrize(
    "method", [Reweighting(), ONE_SIDED, FiniteDifference(), Unroll()], ids=repr
)
def test_hypergradients_in_bfloat16_point_where_those_in_single_precision_do(
    method: Any, device: str
) -> None:
    """With a cosine of 0.99, the first one: later ones are those of other parameters."""
    first = slice(0, 4)
    run = partial(reweighting, device, method, dtype=torch.float32, train_iters=2)
    half, whole = (
        torch.cat([t.reshape(-1) for t in learned(run(precision=precision))[first]])
        for precision in ("bf16", "fp32")
    )
    assert not torch.equal(half, whole)
    assert torch.cosine_similarity(half, whole, dim=0) > 0.99


@on_every_device
@pytest.mark.parametrize("method", [Reweighting(), Unroll()], ids=["native", "unroll"])
@pytest.mark.parametrize(
    "make",
    [partial(torch.optim.Adam, lr=0.01), partial(torch.optim.SGD, lr=0.1, momentum=0.9)],
    ids=["Adam", "SGD"],
)
def test_fused_optimizers_take_the_same_steps(make: Any, method: Any, device: str) -> None:
    """To 1e-6 in double precision: rounding, divided by the steps of differences."""
    run = partial(reweighting, device, method)
    fused, plain = (learned(run(optimizer=partial(make, fused=f))) for f in (True, False))
    close(fused, plain, 1e-6)


class Unwaiting(Hook):
    """Refuses to wait for the device after three iterations, which make what is made once."""

    def __init__(self, device: str, stack: ExitStack) -> None:
        self.device, self.stack, self.iterations = device, stack, 0

    def iteration_end(self, engine: Engine) -> None:
        del engine
        self.iterations += 1
        if self.iterations == 3:
            self.stack.enter_context(no_waiting(self.device))
        elif self.iterations == 8:
            self.stack.close()


@on_every_device
@pytest.mark.parametrize("name", UNWAITING)
def test_the_host_never_waits_for_the_device(name: str, device: str) -> None:
    """In five steps of a run, the first batch of an epoch among them."""
    with ExitStack() as stack:
        hook = Unwaiting(device, stack)
        engine = UNWAITING[name](device, hooks=[hook], train_iters=8)
        engine.run()
    assert hook.iterations == engine.judge.count == 8


@on_every_device
def test_a_group_of_one_process_learns_what_no_group_does(device: str, tmp_path: Path) -> None:
    """Of NCCL on a card, to rounding: sums may be taken in another order there."""
    # A process forked from one that has asked for a card cannot use it.
    spawned = multiprocessing.get_context("spawn")
    context = fork_server.context() if device == "cpu" else spawned
    process = context.Process(target=one_rank, args=(device, free_port(), tmp_path))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert found["backend"] == ("gloo" if device == "cpu" else "nccl")
    assert found["sum"].tolist() == [3.0, 3.0]
    close(found["learned"], learned(reweighting(device, Reweighting())), 1e-10)
