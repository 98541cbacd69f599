"""A start that adapts in few steps (MAML), on sine waves of random amplitude and phase.

The upper problem owns the start. The lower problem begins each loop there and takes five steps
on ten points of each of 25 waves, side by side: the network's parameters have a first
dimension, the wave's. The upper loss is that of ten other points of the same waves, and its
gradient goes through the steps.

Compared is a network trained as long on all waves together. Both adapt to new waves by plain
SGD. ::

    python examples/maml.py

Source: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
Networks", ICML 2017 (arXiv:1703.03400).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaweight import Config, Engine, ImplicitProblem, IterativeProblem

SHOTS, STEPS, INNER_LR, TASKS = 10, 5, 0.01, 25
Points = tuple[Tensor, Tensor]


class Waves(NamedTuple):
    """Amplitudes and phases, (T, 1, 1) each."""

    amplitude: Tensor
    phase: Tensor


def draw_waves(number: int) -> Waves:
    """Return random waves."""
    return Waves(0.1 + 4.9 * torch.rand(number, 1, 1), math.pi * torch.rand(number, 1, 1))


def draw_points(waves: Waves, number: int = SHOTS) -> Points:
    """Return random points of each wave, x and y of shape (T, number, 1)."""
    x = 10 * torch.rand(len(waves.amplitude), number, 1) - 5
    return x, waves.amplitude * torch.sin(x + waves.phase)


class Regressors(nn.Module):
    """A network of two hidden layers for each wave."""

    def __init__(self, tasks: int = 1, width: int = 40) -> None:
        super().__init__()
        sizes = [(1, width), (width, width), (width, 1)]
        drawn = [(2 * torch.rand(tasks, a, b) - 1) / a**0.5 for a, b in sizes]
        self.weights = nn.ParameterList(drawn)
        self.biases = nn.ParameterList([torch.zeros(tasks, 1, b) for _, b in sizes])

    def forward(self, x: Tensor) -> Tensor:
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, F.relu(x) if index else x, weight)
        return x


class Learner(IterativeProblem[Regressors]):
    """Lower problem: adapts to the waves of this loop."""

    waves: Waves
    points: Points

    def on_inner_loop_start(self) -> None:
        self.waves = draw_waves(TASKS)
        self.points = draw_points(self.waves)

    def initial_parameters(self) -> Mapping[str, Tensor]:
        start = self.meta.module.named_parameters()
        return {name: p.expand(TASKS, *p.shape[1:]) for name, p in start}

    def get_batch(self) -> Points:
        return self.points

    def training_step(self, batch: Points) -> Tensor:
        # A sum over waves: each learns as if alone.
        return TASKS * F.mse_loss(self.module(batch[0]), batch[1])


class Meta(ImplicitProblem[Regressors]):
    """Upper problem: judges what the learner has become."""

    def get_batch(self) -> Points:
        return draw_points(self.learner.waves)

    def training_step(self, batch: Points) -> Tensor:
        return F.mse_loss(self.learner(batch[0]), batch[1])


def learn_start(loops: int) -> Regressors:
    """Return the start that MAML learns."""
    start, adapted = Regressors(), Regressors(TASKS)
    learner = Learner(
        "learner",
        Config(unroll_steps=STEPS),
        module=adapted,
        optimizer=torch.optim.SGD(adapted.parameters(), lr=INNER_LR),
    )
    meta = Meta("meta", module=start, optimizer=torch.optim.Adam(start.parameters(), lr=3e-3))
    Engine.bilevel(meta, learner, train_iters=loops * STEPS, progress=False).run()
    return start


def train_jointly(steps: int) -> Regressors:
    """Return a network trained on as many points of as many waves, without an inner loop."""
    net = Regressors()
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        x, y = draw_points(draw_waves(TASKS), 2 * SHOTS)
        adam.zero_grad()
        torch.autograd.backward(F.mse_loss(net(x.reshape(1, -1, 1)), y.reshape(1, -1, 1)))
        adam.step()
    return net


def error_after(start: Regressors, steps: int, seed: int, tasks: int = 500) -> float:
    """Return the mean squared error on new waves, after so many steps on ten points of each."""
    torch.manual_seed(seed)
    net = Regressors(tasks)
    for p, q in zip(net.parameters(), start.parameters(), strict=True):
        p.data.copy_(q.data.expand_as(p))
    sgd, waves = torch.optim.SGD(net.parameters(), INNER_LR), draw_waves(tasks)
    x, y = draw_points(waves)
    for _ in range(steps):
        sgd.zero_grad()
        torch.autograd.backward(tasks * F.mse_loss(net(x), y))
        sgd.step()
    with torch.no_grad():
        x, y = draw_points(waves, 100)
        return float(F.mse_loss(net(x), y))


def main(loops: int = 250, seed: int = 0) -> dict[int, tuple[float, float]]:
    """Train both, print and return their errors after 0, 1, 5 and 10 steps on new waves."""
    # The networks are small: a second thread would make the run slower.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    learned, joint = learn_start(loops), train_jointly(loops)
    found = {}
    for steps in (0, 1, 5, 10):
        found[steps] = error_after(joint, steps, seed + 1), error_after(learned, steps, seed + 1)
        both = "trained jointly {:.2f}, learned start {:.2f}".format(*found[steps])
        print(f"error after {steps} steps: {both}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--loops", type=int, default=250, help="steps of the upper problem")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    main(**vars(parser.parse_args()))
