"""A tensor kept from one step to the next with its graph is named, beside torch's own words."""

from __future__ import annotations

import sys

import pytest
import torch
from support.small import Point
from torch import Tensor, nn

from metaweight import Engine, EngineConfig, ImplicitProblem


class RunningMean(ImplicitProblem[nn.Module]):
    kept: Tensor | None = None
    detaches = False

    def training_step(self, batch: Tensor) -> Tensor:
        loss = sum((p * batch).square().sum() for p in self.module.parameters())
        assert isinstance(loss, Tensor)
        mean = loss if self.kept is None else 0.9 * self.kept + 0.1 * loss
        self.kept = mean.detach() if self.detaches else mean
        return mean


def run(*, detaches: bool) -> None:
    point = Point(torch.ones(2))
    problem = RunningMean(
        "net",
        module=point,
        optimizer=torch.optim.SGD(point.parameters(), lr=0.1),
        train_data_loader=[torch.ones(2)],
    )
    problem.detaches = detaches
    Engine([problem], EngineConfig(train_iters=3, progress=False)).run()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes on errors came with Python 3.11")
def test_what_to_detach_is_said() -> None:
    with pytest.raises(RuntimeError, match="a second time") as raised:
        run(detaches=False)
    place, remedy = raised.value.__notes__
    assert "step 2 of problem 'net'" in place
    assert ".detach() what you keep between steps" in remedy


def test_detached_it_runs() -> None:
    run(detaches=True)
